//! Images, registries and golden texts made from specs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prebake::fixture::{Content, Spec};
use prebake::oci::{Digest, Platform};
use prebake::testing::{Auth, Fault, Options, Registry};
use serde_json::Value;

use crate::support::prebake::{Run, command, prebake};

const SMALL: &str = "[layer.l]\nfiles = [{ path = \"f\", random = 300_000 }]\n\
                     [[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n";

fn every() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/every.toml")
}

fn run(dir: &Path, arguments: &str) -> Run {
    command().current_dir(dir).arg("fixture").args(arguments.split_whitespace()).output().unwrap().into()
}

/// What the names of `fixtures/every.toml` lead to, and nothing else, on every machine. Who changes how images are made changes
/// this, and the fixtures of everybody who uses it.
const EVERY: &str = "\
app:1 5c80b6b0674730ffdd4bf472eb9a1142b2d413aab7830c8b11fdba5651e72feb
app:latest 5c80b6b0674730ffdd4bf472eb9a1142b2d413aab7830c8b11fdba5651e72feb
app:sha256-5c80b6b0674730ffdd4bf472eb9a1142b2d413aab7830c8b11fdba5651e72feb e02e73a9333a97ac992607e820b3404773f28ee801e75683a8e7aae6c49c7b93
app:stable 5c80b6b0674730ffdd4bf472eb9a1142b2d413aab7830c8b11fdba5651e72feb
both:1 2832372475c35cf50017d1b1ffec5ef40495f3525395967b4bf583fa31b731c3
docker:1 44ec2878f8a303c92d86e05e148d4386a2dd2a5fb08f08a3a40761c86fcc5ea8
docker:sha256-44ec2878f8a303c92d86e05e148d4386a2dd2a5fb08f08a3a40761c86fcc5ea8.sig fefb1f33d8d0c84a8e86d4be8cf2d8862631110477cdbec82128811ead96bdb7
";

#[test]
fn the_same_bytes_for_everybody() {
    let spec = Spec::load(&every()).unwrap();
    let content = Content::build(&spec).unwrap();
    let name = |((name, tag), digest): (&(String, String), &Digest)| format!("{name}:{tag} {}\n", digest.hex());
    assert_eq!(content.tags.iter().map(name).collect::<String>(), EVERY);

    // Whoever makes them, wherever, whenever; files of a tree as they are checked out.
    let dir = tempfile::tempdir().unwrap();
    let sum = |n: usize, prepare: &dyn Fn(&mut Command)| {
        let work = dir.path().join(n.to_string());
        fs::create_dir_all(&work).unwrap();
        let mut command = Command::new("sh");
        command.current_dir(&work).args([
            "-c",
            "umask $UMASK; mkdir -p tree/bin; printf x > tree/bin/x; chmod u+x tree/bin/x;
            printf y > tree/y; ln -s y tree/z; \"$PREBAKE\" fixture build \"$SPEC\" -o out.tar -q",
        ]);
        let text = fs::read_to_string(every()).unwrap();
        let text = text.replace("[layer.removes]\n", "[layer.removes]\ndir = \"tree\"\n");
        fs::write(work.join("spec.toml"), text).unwrap();
        command.env("PREBAKE", env!("CARGO_BIN_EXE_prebake")).env("SPEC", work.join("spec.toml")).env("UMASK", "022");
        prepare(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Digest::of(&fs::read(work.join("out.tar")).unwrap())
    };
    let usual = sum(0, &|_| ());
    assert_eq!(sum(1, &|command| _ = command.env("UMASK", "077")), usual);
    assert_eq!(sum(2, &|command| _ = command.env("LC_ALL", "tr_TR.UTF-8").env("TZ", "Pacific/Apia")), usual);
    assert_eq!(sum(3, &|command| _ = command.env("SOURCE_DATE_EPOCH", "1")), usual);
    if rustix::process::geteuid().is_root() {
        // As somebody else, who can make no devices and has no attributes to give.
        let work = dir.path().join("4");
        fs::create_dir_all(&work).unwrap();
        for path in [dir.path(), &work] {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        assert_eq!(sum(4, &|command| _ = command.uid(65534).gid(65534)), usual);
    }
}

#[test]
fn they_go_where_they_are_to_go() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let spec = every().display().to_string();
    run(dir, &format!("build {spec} -o layout")).expect(0);
    run(dir, &format!("build {spec} -o images.tar --json")).expect(0);
    run(dir, &format!("build {spec} -o containerd:root")).expect(0);
    let names = |root: &str| -> BTreeMap<String, Value> {
        let listed = prebake(&dir.join(root), "images --json").expect(0).stdout;
        let images = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        images.map(|image| (image["name"].as_str().unwrap().to_owned(), image["digest"].clone())).collect()
    };
    let made = names("root");
    assert!(
        made.contains_key("registry.example/app:stable") && made.contains_key("registry.example/both:1"),
        "{made:?}"
    );
    for place in ["oci:layout", "oci-archive:images.tar"] {
        let root = format!("from-{}", &place[..4]);
        let platform = Platform::host();
        let bake = format!("bake --root {root} --referrers --platform {platform} {place}");
        Run::from(command().current_dir(dir).args(bake.split_whitespace()).output().unwrap()).expect(0);
        let mut named = names(&root);
        named.retain(|name, _| made.contains_key(name));
        assert_eq!(named, made);
    }
    prebake(&dir.join("root"), "check").expect(0);
    // A directory that has something in it is not written to.
    let said = run(dir, &format!("build {spec} -o layout")).expect(1).stderr;
    assert!(said.contains("there is something in it"), "{said}");
    for (text, why) in [
        (
            "[[image]]\nname = \"a:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"no\"]\n",
            "that the spec does not have",
        ),
        ("[[image]]\nname = \"a:1\"\nimages = [\"b:1\"]\n", "that is not above it"),
        ("[[image]]\nname = \"a:1\"\n", "neither platforms nor images"),
        ("[[image]]\nname = \"a:1:2\"\nplatforms = [\"linux/amd64\"]\n", "is not REPOSITORY:TAG"),
        (
            "[layer.l]\nfiles = [{ path = \"f\", text = \"x\", fifo = true }]\n[[image]]\nname = \"a:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n",
            "more than one kind",
        ),
        (
            "[layer.l]\nfiles = [{ path = \"f\", random = \"9TiB\" }]\n[[image]]\nname = \"a:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n",
            "is too large",
        ),
        ("[[image]]\nname = \"a:1\"\ncolour = \"red\"\n", "colour"),
    ] {
        fs::write(dir.join("wrong.toml"), text).unwrap();
        let said = run(dir, "build wrong.toml -o wrong").expect(2).stderr;
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn signed_by_the_key_for_tests() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key = run(dir, "key").expect(0).stdout;
    fs::write(dir.join("test.pub"), key).unwrap();
    let registry =
        Registry::start(Content::build(&Spec::load(&every()).unwrap()).unwrap(), Options::default()).unwrap();
    let bake = |name: &str| {
        let bake =
            format!("bake --root {name} --platform linux/amd64 --verify-key test.pub {}", registry.reference(name));
        Run::from(command().current_dir(dir).args(bake.split_whitespace()).output().unwrap())
    };
    bake("app:1").expect(0);
    bake("docker:1").expect(0);
    bake("both:1").expect(6);
}

/// Everything a reader sees of an answer.
fn ask(registry: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(registry).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {registry}\r\nconnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    // A connection that is cut ends with an error, behind what came.
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    (head, answer.get(end + 4..).unwrap_or_default().to_vec())
}

fn with(faults: &[&str], auth: Auth) -> (Registry, String, Vec<u8>) {
    let content = Content::build(&Spec::parse(SMALL).unwrap()).unwrap();
    let (digest, bytes) =
        content.blobs.iter().map(|(digest, (_, bytes))| (digest, bytes)).max_by_key(|(_, b)| b.len()).unwrap();
    let (path, bytes) = (format!("/v2/app/blobs/{digest}"), bytes.to_vec());
    let faults = faults.iter().map(|fault| fault.parse::<Fault>().unwrap()).collect();
    (Registry::start(content, Options { faults, auth, ..Options::default() }).unwrap(), path, bytes)
}

#[test]
fn faults_as_they_are_asked_for() {
    let (registry, path, bytes) = with(&["blob:2 status=429 retry-after=7"], Auth::None);
    let name = registry.name();
    assert_eq!(ask(&name, &path, "").1, bytes);
    let (head, _) = ask(&name, &path, "");
    assert!(head.starts_with("HTTP/1.1 429") && head.contains("retry-after: 7"), "{head}");
    assert_eq!(ask(&name, &path, "").1, bytes);
    assert_eq!(registry.requests(), vec![format!("GET {path}"); 3]);
    assert!(registry.requests().is_empty());

    let (registry, path, bytes) = with(&["blob cut=1000"], Auth::None);
    assert_eq!(ask(&registry.name(), &path, "").1, bytes[..1000]);

    let (registry, path, bytes) = with(&["blob corrupt"], Auth::None);
    let got = ask(&registry.name(), &path, "").1;
    assert_eq!((got.len(), got.iter().zip(&bytes).filter(|(a, b)| a != b).count()), (bytes.len(), 1));

    let part = "range: bytes=100-199\r\n";
    let (registry, path, bytes) = with(&["blob:1 range=wrong", "blob:2 range=ignored"], Auth::None);
    let (head, got) = ask(&registry.name(), &path, part);
    assert!(head.contains("206") && got.len() == 100 && got != bytes[100..200], "{head}");
    let (head, got) = ask(&registry.name(), &path, part);
    assert!(head.contains("200") && got == bytes, "{head}");
    assert_eq!(ask(&registry.name(), &path, part).1, bytes[100..200]);

    let started = Instant::now();
    let (registry, path, bytes) = with(&["blob:1 rate=300KiB", "blob:2 delay=700ms"], Auth::None);
    assert_eq!(ask(&registry.name(), &path, "").1, bytes);
    assert!(started.elapsed() >= Duration::from_millis(700), "{:?}", started.elapsed());
    let started = Instant::now();
    ask(&registry.name(), &path, "");
    assert!(started.elapsed() >= Duration::from_millis(700));

    // Only where the path fits.
    let (registry, path, bytes) = with(&["any path=/v2/other/* status=500"], Auth::None);
    assert_eq!(ask(&registry.name(), &path, "").1, bytes);
    let tags = ask(&registry.name(), "/v2/app/tags/list", "").1;
    assert_eq!(serde_json::from_slice::<Value>(&tags).unwrap()["tags"][0], "1");
}

#[test]
fn credentials_and_tokens_that_expire() {
    let user = || ("me".to_owned(), "secret".to_owned());
    for auth in [Auth::Basic { user: user().0, password: user().1 }, Auth::Token { user: Some(user()) }] {
        let (registry, ..) = with(&[], auth);
        let root = tempfile::tempdir().unwrap();
        let bake = format!("bake --platform linux/amd64 {}", registry.reference("app:1"));
        prebake(root.path(), &bake).expect(4);
        prebake(root.path(), &format!("{bake} --creds me:wrong")).expect(4);
        prebake(root.path(), &format!("{bake} --creds me:secret")).expect(0);
    }
    // The second blob finds its token expired: another one is asked for, and the bake goes on.
    let (registry, ..) = with(&["blob:2 expired-token"], Auth::None);
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("bake --platform linux/amd64 {}", registry.reference("app:1"))).expect(0);
    let asked = registry.requests();
    assert_eq!(asked.iter().filter(|request| request.contains("/token")).count(), 2, "{asked:#?}");
}

/// A registry of the command, started by a shell that waits; with what it said.
fn serve(dir: &Path, arguments: &str) -> (Child, Value, BufReader<std::process::ChildStdout>) {
    fs::write(dir.join("small.toml"), SMALL).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("\"$PREBAKE\" fixture serve small.toml {arguments} & read wait")]).current_dir(dir);
    let mut shell = shell
        .env("PREBAKE", env!("CARGO_BIN_EXE_prebake"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(shell.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    (shell, serde_json::from_str(&line).unwrap(), lines)
}

#[test]
fn the_command_serves_as_long_as_who_started_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut shell, said, mut lines) = serve(dir.path(), "--log --fault 'blob:1 status=503'");
    let registry = said["registry"].as_str().unwrap().to_owned();
    let image = said["images"][0]["name"].as_str().unwrap();
    assert_eq!(image, format!("{registry}/app:1"));
    let root = dir.path().join("root");
    prebake(&root, &format!("bake --platform linux/amd64 {image}")).expect(0);
    let listed = prebake(&root, "images --json").expect(0).stdout;
    assert!(listed.contains(said["images"][0]["digest"].as_str().unwrap()));
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["event"], "request");
    // The shell goes, and with it the registry.
    shell.kill().unwrap();
    shell.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(&registry).is_ok() {
        assert!(Instant::now() < deadline, "the registry outlives its parent");
        std::thread::sleep(Duration::from_millis(20));
    }
    // A signal ends it as well.
    let (mut shell, said, _) = serve(dir.path(), "");
    let pid = rustix::process::Pid::from_raw(said["pid"].as_i64().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(said["registry"].as_str().unwrap()).is_ok() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    shell.kill().unwrap();
    shell.wait().unwrap();
    let refused = run(dir.path(), "serve small.toml --fault blob:soon");
    assert!(refused.expect(2).stderr.contains("write it like 'blob:3 status=429 retry-after=2'"));
}

#[test]
fn a_golden_text_says_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let spec = |motd: &str| {
        let text = format!(
            "[layer.base]\nfiles = [{{ path = \"data\", random = 9000 }}]\n\
             [layer.top]\nfiles = [{{ path = \"etc\" }}, {{ path = \"etc/motd\", text = \"{motd}\" }}]\n\
             [[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"base\", \"top\"]\n\
             created = \"2026-01-01T00:00:00Z\"\n"
        );
        fs::write(dir.join("spec.toml"), text).unwrap();
    };
    spec("hello");
    run(dir, "golden spec.toml -o golden.txt").expect(0);
    assert_eq!(run(dir, "golden spec.toml --check golden.txt").expect(0).stdout, "");
    assert_eq!(run(dir, "golden spec.toml").expect(0).stdout, fs::read_to_string(dir.join("golden.txt")).unwrap());
    // Of a root that is kept, and of one that is there: the same.
    run(dir, "golden spec.toml --root root --check golden.txt").expect(0);
    run(dir, "golden --root root --check golden.txt").expect(0);
    prebake(&dir.join("root"), "check").expect(0);
    spec("world");
    let said = run(dir, "golden spec.toml --check golden.txt").expect(1).stdout;
    let changed: Vec<&str> = said.lines().filter(|line| line.starts_with(['+', '-'])).collect();
    assert!(changed.iter().any(|line| line.starts_with("-    etc/motd 0644 0:0 0 5 sha256:")), "{said}");
    assert!(said.contains("+[fixture.test/app:1 linux/amd64 layer 2] sha256:"), "{said}");
    // Where the change was made, and the digests it leads to: not each place where one of them is named.
    assert!(changed.len() < 40, "{} lines: {said}", changed.len());
    run(dir, "golden --root nowhere").expect(3);
    run(dir, "golden spec.toml --check nowhere.txt").expect(3);
}

#[test]
fn real_images_become_small() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content = Content::build(&Spec::load(&every()).unwrap()).unwrap();
    let registry = Registry::start(content, Options::default()).unwrap();
    let (app, docker) = (registry.reference("app:1"), registry.reference("docker:1"));
    run(dir, &format!("shrink {app} {docker} --keep etc/passwd -o small --json")).expect(0);
    let bytes =
        |dir: &Path| -> u64 { fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum() };
    let total = bytes(&dir.join("small/blobs/sha256"));
    assert!(total < 40_000, "{total}");
    // The same files in the same layers, but for contents; the same platforms, history and words.
    for (name, root, from) in [("real", "real", app.clone()), ("small", "little", format!("oci:small:{app}"))] {
        let bake = format!("bake --root {root} --platform linux/amd64 {from}");
        Run::from(command().current_dir(dir).args(bake.split_whitespace()).output().unwrap()).expect(0);
        run(dir, &format!("golden --root {root} -o {name}.txt")).expect(0);
    }
    let entries = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        let end = text.find("io.containerd.content").unwrap();
        let without = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let is_file =
                words.last().is_some_and(|word| word.starts_with("sha256:")) || line.contains(" user.comment=");
            if is_file && !line.starts_with('[') { words[..8].join(" ") } else { line.to_owned() }
        };
        text[..end]
            .lines()
            .filter(|line| !line.starts_with('[') && !line.contains("\"size\":") && !line.contains("\"digest\":"))
            .map(without)
            .collect()
    };
    let (real, small) = (entries("real.txt"), entries("small.txt"));
    assert!(real.len() > 100);
    assert_eq!(real, small);
    let small = fs::read_to_string(dir.join("small.txt")).unwrap();
    let passwd = Digest::of(b"root:x:0:0:root:/:/bin/hello\napp:x:1000:1000:app:/:/bin/hello\n");
    assert!(small.contains(passwd.as_str()), "kept");
    prebake(&dir.join("little"), "check").expect(0);
    // The same again.
    run(dir, &format!("shrink {app} {docker} --keep etc/passwd -o again")).expect(0);
    let names = |name: &str| -> Vec<_> {
        let mut all: Vec<_> = fs::read_dir(dir.join(name)).unwrap().map(|file| file.unwrap().file_name()).collect();
        all.sort();
        all
    };
    assert_eq!(names("small/blobs/sha256"), names("again/blobs/sha256"));
    run(dir, &format!("shrink {app} --platform linux/arm64 -o one")).expect(0);
    let index = fs::read_to_string(dir.join("one/index.json")).unwrap();
    assert!(index.contains("/app:1"), "{index}");
    let said = run(dir, "shrink containerd:real -o not").expect(3).stderr;
    assert!(said.contains("--platform names the platforms"), "{said}");
    run(dir, "shrink containerd:real --platform linux/amd64 -o this").expect(0);
}
