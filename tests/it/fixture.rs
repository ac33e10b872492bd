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
use prebake::oci::Digest;
use prebake::testing::{Auth, Fault, Options, Registry};
use serde_json::Value;

use crate::support::prebake::{Run, command, prebake};

/// The whole test of the documentation is one of these.
#[path = "../../docs/snippets/fixture_test.rs"]
mod whole;

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
    // The archive, and the modes of a layout's files.
    let sum = |n: usize, prepare: &dyn Fn(&mut Command)| {
        let work = dir.path().join(n.to_string());
        fs::create_dir_all(&work).unwrap();
        let mut command = Command::new("sh");
        command.current_dir(&work).args([
            "-c",
            "umask $UMASK; mkdir -p tree/bin; printf x > tree/bin/x; chmod u+x tree/bin/x;
            printf y > tree/y; ln -s y tree/z; \"$PREBAKE\" fixture build \"$SPEC\" -o out.tar -q &&
            \"$PREBAKE\" fixture build \"$SPEC\" -o out -q && find out -printf '%p %M\\n' | LC_ALL=C sort > modes",
        ]);
        let text = fs::read_to_string(every()).unwrap();
        let text = text.replace("[layer.removes]\n", "[layer.removes]\ndir = \"tree\"\n");
        fs::write(work.join("spec.toml"), text).unwrap();
        command.env("PREBAKE", env!("CARGO_BIN_EXE_prebake")).env("SPEC", work.join("spec.toml")).env("UMASK", "022");
        prepare(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (Digest::of(&fs::read(work.join("out.tar")).unwrap()), fs::read_to_string(work.join("modes")).unwrap())
    };
    let usual = sum(0, &|_| ());
    let modes: Vec<&str> = usual.1.lines().filter(|line| !line.starts_with("out/blobs/sha256/")).collect();
    let own = ["out", "out/blobs", "out/blobs/sha256"].map(|dir| format!("{dir} drwxr-xr-x"));
    let files = ["out/index.json", "out/oci-layout"].map(|file| format!("{file} -rw-r--r--"));
    assert_eq!(modes, own.into_iter().chain(files).collect::<Vec<_>>());
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
        let bake = format!("bake --root {root} --referrers --platform linux/amd64 {place}");
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
        ("[[image]]\nname = \"App:1\"\nplatforms = [\"linux/amd64\"]\n", "repositories have no capitals"),
        ("[[image]]\nname = \"a:1\"\ntags = [\"x/y\"]\nplatforms = [\"linux/amd64\"]\n", "is not REPOSITORY:TAG"),
        (
            "[[image]]\nname = \"a:1\"\nplatforms = [\"linux/amd64\"]\n[[image]]\nname = \"a:1\"\nplatforms = [\"linux/arm64\"]\n",
            "there are two images a:1",
        ),
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
        assert!(!dir.join("wrong").exists());
    }
    // Nothing is written where something else was meant, or under a name that nobody can ask for.
    for place in ["images.tar.gz", "images.TGZ", "images.tar.zst", "x.oci", "x.zip"] {
        let said = run(dir, &format!("build {spec} -o {place}")).expect(2).stderr;
        assert!(said.contains("oci-archive:FILE is an archive, oci:DIR a directory"), "{said}");
        assert!(!dir.join(place).exists());
    }
    run(dir, &format!("build {spec} -o named --registry Bad/Name")).expect(2);
    assert!(!dir.join("named").exists());
    run(dir, &format!("build {spec} -o oci:x.oci")).expect(0);
    assert!(run(dir, "build nowhere.toml -o not").expect(3).stderr.contains("nowhere.toml"));
    let said = run(dir, &format!("build {spec} -o containerd:broken --break bad-gzip")).expect(2).stderr;
    assert!(said.contains("a root is made by a bake") && said.contains("DIR and FILE.tar take them"), "{said}");
    assert!(!dir.join("broken").exists());
}

#[test]
fn what_has_nothing_to_break_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let artifact = "[[image]]\nname = \"art:1\"\nartifact_type = \"application/vnd.example\"\nlayers = [\"l\"]\n";
    fs::write(dir.join("both.toml"), format!("{SMALL}{artifact}")).unwrap();
    fs::write(dir.join("art.toml"), format!("[layer.l]\nfiles = [{{ path = \"f\", text = \"x\" }}]\n{artifact}"))
        .unwrap();
    let said = run(dir, "build both.toml -o not --break bad-gzip=art:1").expect(2).stderr;
    assert!(said.contains("bad-gzip has nothing to break in art:1"), "{said}");
    let said = run(dir, "build art.toml -o not --break wrong-diffid").expect(2).stderr;
    assert!(said.contains("wrong-diffid has nothing to break in any image"), "{said}");
    // The same blob cannot be taken away and be another one.
    run(dir, "build both.toml -o not --break missing-blob=app:1 --break wrong-digest=app:1").expect(2);
    run(dir, "build both.toml -o not --break bad-gzip=app:2").expect(2);
    assert!(!dir.join("not").exists());
    // Of all images, those that can be; an artifact has a layer that can be another one.
    run(dir, "build both.toml -o all --break bad-gzip").expect(0);
    run(dir, "build art.toml -o one --break wrong-digest").expect(0);
}

#[test]
fn broken_images_are_signed_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("test.pub"), run(dir, "key").expect(0).stdout).unwrap();
    for how in ["bundle", "simple"] {
        let spec = Spec::parse(&format!("{SMALL}signed = \"{how}\"\n")).unwrap();
        let mut content = Content::build(&spec).unwrap();
        let before = content.tags.clone();
        content.sign_again(&spec).unwrap();
        assert_eq!(content.tags, before);
        // What a bake takes, when its signature fits.
        content.breaks(&"traversal".parse().unwrap()).unwrap();
        let unsigned = Registry::start(content.clone(), Options::default()).unwrap();
        content.sign_again(&spec).unwrap();
        let signed = Registry::start(content, Options::default()).unwrap();
        for (registry, code) in [(unsigned, 6), (signed, 0)] {
            let name = registry.reference("app:1");
            let bake = format!("bake --root {how}-{code} --platform linux/amd64 --verify-key test.pub {name}");
            Run::from(command().current_dir(dir).args(bake.split_whitespace()).output().unwrap()).expect(code);
        }
        // The command does it by itself.
        fs::write(dir.join("signed.toml"), format!("{SMALL}signed = \"{how}\"\n")).unwrap();
        run(dir, &format!("build signed.toml -o {how} --break traversal")).expect(0);
        let index: Value = serde_json::from_slice(&fs::read(dir.join(how).join("index.json")).unwrap()).unwrap();
        let all = index["manifests"].as_array().unwrap();
        let of = |entry: &Value| entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned();
        let app = all.iter().find(|entry| of(entry).ends_with("/app:1")).unwrap();
        let tag = app["digest"].as_str().unwrap().replace(':', "-");
        assert!(all.iter().any(|entry| of(entry).starts_with(&tag)), "{index}");
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
    // Or one that is not its parent.
    let (mut shell, said, _) = serve(dir.path(), "--parent $$");
    shell.kill().unwrap();
    shell.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(said["registry"].as_str().unwrap()).is_ok() {
        assert!(Instant::now() < deadline, "the registry outlives who is named");
        std::thread::sleep(Duration::from_millis(20));
    }
    // However early that goes: who waits for all that the shell has started does not wait for long.
    let mut shell = Command::new("sh");
    shell.args(["-c", "timeout 60 \"$PREBAKE\" fixture serve small.toml --parent $$ &"]).current_dir(dir.path());
    let started = Instant::now();
    shell.env("PREBAKE", env!("CARGO_BIN_EXE_prebake")).output().unwrap();
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let said = run(dir.path(), &format!("serve small.toml --parent {}", gone.id())).expect(3).stderr;
    assert!(said.contains("it has ended; name one that runs"), "{said}");
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
    for never in ["blob:0", "blob:5-2"] {
        let fault = format!("{never} corrupt");
        let refused =
            command().current_dir(dir.path()).args(["fixture", "serve", "small.toml", "--fault", &fault]).output();
        let said = Run::from(refused.unwrap()).expect(2).stderr;
        assert!(said.contains("it can never occur"), "{said}");
    }
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

#[test]
fn small_images_are_called_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let registry = |text: &str| {
        let spec = Spec::parse(&SMALL.replace("300_000", text)).unwrap();
        Registry::start(Content::build(&spec).unwrap(), Options::default()).unwrap()
    };
    let (one, two) = (registry("1000"), registry("2000"));
    let (first, second) = (one.reference("app:1"), two.reference("app:1"));
    let said = run(dir, &format!("shrink {first} {second} -o both --json")).expect(0).stdout;
    let index: Value = serde_json::from_slice(&fs::read(dir.join("both/index.json")).unwrap()).unwrap();
    let mut names = BTreeMap::new();
    for entry in index["manifests"].as_array().unwrap() {
        names.insert(entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap(), &entry["digest"]);
    }
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(names, BTreeMap::from([(&*first, &lines[0]["is"]), (&*second, &lines[1]["is"])]));
    assert_ne!(lines[0]["is"], lines[1]["is"]);
    // Where all are called anew, two cannot become one.
    one.requests();
    for place in ["-o not --registry small.test", "-o registry:127.0.0.1:1"] {
        let said = run(dir, &format!("shrink {first} {second} {place}")).expect(2).stderr;
        assert!(said.contains(&format!("{first} and {second} would both become app:1")), "{said}");
    }
    let digests = [1, 2].map(|n| format!("{}@{}", one.reference("app"), Digest::of(&[n])));
    let said = run(dir, &format!("shrink {} -o not", digests.join(" "))).expect(2).stderr;
    assert!(said.contains("/app:latest; make them small one by one"), "{said}");
    assert!(one.requests().is_empty() && !dir.join("not").exists());
    run(dir, &format!("shrink {first} {first} -o named --registry small.test")).expect(0);
    assert!(fs::read_to_string(dir.join("named/index.json")).unwrap().contains("\"small.test/app:1\""));

    // For a platform that it is not for, there is none: of a manifest, and of an index.
    let every = Registry::start(Content::build(&Spec::load(&every()).unwrap()).unwrap(), Options::default()).unwrap();
    for image in [first, every.reference("app:1")] {
        let said = run(dir, &format!("shrink {image} --platform linux/s390x -o not")).expect(3).stderr;
        assert!(said.contains("has nothing for linux/s390x; it is for linux/amd64"), "{said}");
        assert!(!dir.join("not").exists());
    }
}

#[test]
fn the_page_has_the_whole_test() {
    let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    assert!(read("docs/ci-fixtures.md").contains(&format!("```rust\n{}```\n", read("docs/snippets/fixture_test.rs"))));
}
