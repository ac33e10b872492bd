//! The real bbolt reads what we write, and we read what it writes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use prebake::bolt::{Db, FileStorage, FreelistForm, Lock};

use crate::peers;
use crate::script::text;
use crate::support::bolt_script::{random, run};
use crate::support::crash::cuts;
use crate::support::rng::Rng;

/// An oracle's process: one command, one answer.
pub struct Oracle {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Oracle {
    pub fn start() -> Self {
        Self::of("bbolt")
    }

    /// One of those that `tests/setup` builds.
    pub fn of(name: &str) -> Self {
        let mut process = Command::new(peers::dir().join(format!("{name}-oracle")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, input, output }
    }

    pub fn ask(&mut self, command: &str) -> Result<(), String> {
        writeln!(self.input, "{command}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        match answer.trim_end() {
            "ok" => Ok(()),
            other => Err(other.to_owned()),
        }
    }

    pub fn check(&mut self, file: &Path) -> Result<(), String> {
        self.ask(&format!("check {}", file.display()))
    }

    pub fn dump(&mut self, file: &Path) -> String {
        let out = file.with_extension("dump");
        self.ask(&format!("dump {} {}", file.display(), out.display())).unwrap();
        std::fs::read_to_string(out).unwrap()
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How many random trees each way; `PREBAKE_TREES` for a long campaign.
fn trees() -> u64 {
    std::env::var("PREBAKE_TREES").map_or(1500, |n| n.parse().unwrap())
}

fn dump_of(file: &Path) -> String {
    let mut db = Db::open(Box::new(FileStorage::open(file, Lock::Shared).unwrap())).unwrap();
    db.begin().unwrap().dump().unwrap()
}

#[test]
fn bbolt_reads_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut oracle = Oracle::start();
    for seed in 0..trees() {
        let mut rng = Rng::new(seed);
        let len = 5 + rng.below(400);
        let (ops, model) = random(&mut rng, len);
        let form = if rng.one_in(2) { FreelistForm::Persisted } else { FreelistForm::Rebuilt };
        let file = dir.path().join("ours.db");
        let _ = std::fs::remove_file(&file);
        let mut db = Db::create(Box::new(FileStorage::create(&file, 0o600).unwrap()), form).unwrap();
        run(&mut db, &ops).unwrap();
        drop(db);
        assert_eq!(oracle.check(&file), Ok(()), "seed {seed}");
        assert!(oracle.dump(&file) == model.dump(), "seed {seed}: bbolt reads something else");
    }
}

#[test]
fn we_read_and_continue_what_bbolt_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut oracle = Oracle::start();
    for seed in 0..trees() {
        let mut rng = Rng::new(1_000_000 + seed);
        let len = 5 + rng.below(400);
        let (mut ops, model) = random(&mut rng, len);
        let file = dir.path().join("theirs.db");
        let script = dir.path().join("script");
        let _ = std::fs::remove_file(&file);
        // bbolt writes the first half, we go on with the second.
        let half = rng.below(ops.len() + 1);
        let rest = ops.split_off(half);
        std::fs::write(&script, text(&ops)).unwrap();
        let options = ["", "nofreelist", "16384", "nofreelist 65536"][rng.below(4)];
        oracle.ask(&format!("build {} {} {options}", file.display(), script.display())).unwrap();
        assert!(dump_of(&file) == oracle.dump(&file), "seed {seed}: we read something else");
        let mut db = Db::open(Box::new(FileStorage::open(&file, Lock::Exclusive).unwrap())).unwrap();
        run(&mut db, &rest).unwrap();
        drop(db);
        assert_eq!(oracle.check(&file), Ok(()), "seed {seed}");
        assert!(oracle.dump(&file) == model.dump(), "seed {seed}: bbolt reads something else after our commits");
        // and bbolt goes on with what we wrote: it deletes everything
        let everything: String = model
            .dump()
            .lines()
            .filter(|l| l.starts_with("b "))
            .map(|l| l.split(' ').nth(1).unwrap())
            .filter(|path| !path.contains('/'))
            .map(|path| format!("D {path}\n"))
            .collect();
        std::fs::write(&script, everything).unwrap();
        oracle.ask(&format!("build {} {}", file.display(), script.display())).unwrap();
        assert_eq!(oracle.check(&file), Ok(()), "seed {seed}, emptied");
        assert_eq!(dump_of(&file), "", "seed {seed}");
    }
}

/// Transactions that are cut at each step and judged by bbolt; `PREBAKE_CUTS` for a long campaign.
fn cut_transactions() -> u64 {
    std::env::var("PREBAKE_CUTS").map_or(300, |n| n.parse().unwrap())
}

#[test]
fn bbolt_agrees_after_every_power_cut() {
    let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).unwrap();
    let file = dir.path().join("cut.db");
    let mut oracle = Oracle::start();
    let (mut old_states, mut new_states) = (0, 0);
    cuts(cut_transactions(), |cut, disk, old, new| {
        std::fs::write(&file, disk).unwrap();
        let found = oracle.dump(&file);
        assert!(found == old || found == new, "{cut}: neither old nor new to bbolt");
        assert_eq!(oracle.check(&file), Ok(()), "{cut}");
        assert!(dump_of(&file) == found, "{cut}: we read something else");
        old_states += u64::from(found == old);
        new_states += u64::from(found == new);
    });
    eprintln!("bbolt found the old state {old_states} times, the new one {new_states} times");
    assert!(old_states > 100 && new_states > 30);
}
