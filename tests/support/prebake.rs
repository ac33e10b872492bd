//! The command under test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The command, with no credentials but those a test gives it.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prebake"));
    command.env("DOCKER_CONFIG", "/nonexistent").env("HOME", "/nonexistent");
    for name in
        ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HTTP_PROXY", "http_proxy", "SOURCE_DATE_EPOCH"]
    {
        command.env_remove(name);
    }
    command
}

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Run {
    /// The run, if it ended as it should.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The last line of stdout as JSON.
    pub fn last_json(&self) -> serde_json::Value {
        serde_json::from_str(self.stdout.lines().last().unwrap()).unwrap()
    }
}

/// Runs `prebake` with arguments that are parted by spaces, and `--root ROOT` behind the first.
pub fn prebake(root: &Path, arguments: &str) -> Run {
    let mut words = arguments.split_whitespace();
    command().arg(words.next().unwrap()).arg("--root").arg(root).args(words).output().unwrap().into()
}

/// Starts `prebake` as [`prebake`] runs it.
pub fn start(root: &Path, arguments: &str) -> Child {
    let mut words = arguments.split_whitespace();
    let mut command = command();
    command.arg(words.next().unwrap()).arg("--root").arg(root).args(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a bake holds the root.
pub fn held(root: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fs::File::open(meta_db(root)).is_ok_and(|file| file.try_lock_shared().is_err()) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn containerd_root(root: &Path) -> PathBuf {
    root.join("var/lib/containerd")
}

pub fn blobs_dir(root: &Path) -> PathBuf {
    containerd_root(root).join("io.containerd.content.v1.content/blobs/sha256")
}

pub fn meta_db(root: &Path) -> PathBuf {
    containerd_root(root).join("io.containerd.metadata.v1.bolt/meta.db")
}

/// Names and bytes of all blobs.
pub fn blobs(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(blobs_dir(root)) else { return BTreeMap::new() };
    entries
        .map(|entry| entry.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect()
}

/// Every record of meta.db as a readable line, times aside.
pub fn records(root: &Path) -> Vec<String> {
    use ::prebake::bolt::{Db, FileStorage, Lock};
    let mut db = Db::open(Box::new(FileStorage::open(&meta_db(root), Lock::Shared).unwrap())).unwrap();
    let dump = db.begin().unwrap().dump().unwrap();
    let text = |hex: &str| match String::from_utf8(hex::decode(hex).unwrap()) {
        Ok(text) if !text.chars().any(char::is_control) => text,
        _ => format!("0x{hex}"),
    };
    let line = |line: &str| -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let path: Vec<String> = words[1].split('/').map(text).collect();
        match words[0] {
            "b" => format!("{} [{}]", path.join(" > "), words[2]),
            _ => format!(
                "{} > {} = {}",
                path.join(" > "),
                text(words[2]),
                if words[3] == "-" { String::new() } else { text(words[3]) }
            ),
        }
    };
    dump.lines().map(line).filter(|line| !line.contains("> createdat = ") && !line.contains("> updatedat = ")).collect()
}
