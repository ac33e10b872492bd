//! What a person can do with bake, fetch, bootstrap, images and demo.

use std::fs;
use std::io::Write;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use prebake::bake::EVENTS_VERSION;
use prebake::fixture::Content;
use serde_json::Value;

use crate::support::content::{build, demo};
use crate::support::prebake::{blobs, command, containerd_root, meta_db, prebake, records};
use crate::support::registry::TestRegistry;

const AMD64: &str = "--platform linux/amd64";

fn names(root: &Path, arguments: &str) -> Vec<String> {
    let run = prebake(root, &format!("images --json {arguments}")).expect(0);
    run.stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["name"].as_str().unwrap().to_owned())
        .collect()
}

fn all(registry: &TestRegistry) -> String {
    ["hello", "docker", "zstd", "plain", "chart"].map(|name| registry.reference(&format!("demo/{name}:1.0"))).join(" ")
}

#[test]
fn baking_again_changes_nothing() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let arguments = format!("bake {AMD64} --json {}", all(&registry));
    let first = prebake(root.path(), &arguments).expect(0).last_json();
    assert_eq!(first["present_blobs"], 0);
    assert_eq!(first["fetched_blobs"], blobs(root.path()).len());
    // Two images share layers; no blob was asked for twice.
    let mut asked = registry.asked();
    asked.sort();
    let before = asked.len();
    asked.dedup();
    assert_eq!(asked.len(), before);

    let database = fs::read(meta_db(root.path())).unwrap();
    let second = prebake(root.path(), &arguments).expect(0).last_json();
    assert_eq!(second["fetched_bytes"], 0);
    assert_eq!(second["present_bytes"], first["fetched_bytes"]);
    assert!(fs::read(meta_db(root.path())).unwrap() == database, "meta.db changed");
    assert!(registry.asked().iter().all(|request| request.contains("/manifests/1.0")), "only tags are asked for again");
}

#[test]
fn what_is_there_by_digest_needs_no_registry() {
    let content = demo();
    let digest = content.tags[&("demo/docker".to_owned(), "1.0".to_owned())].clone();
    let registry = TestRegistry::start(content);
    let root = tempfile::tempdir().unwrap();
    let reference = registry.reference(&format!("demo/docker:1.0@{digest}"));
    prebake(root.path(), &format!("bake {AMD64} {reference}")).expect(0);
    // A record by digest and one by config digest: CRI leaves no tag where a digest is given.
    assert_eq!(names(root.path(), "").len(), 2);
    let database = fs::read(meta_db(root.path())).unwrap();
    drop(registry);
    prebake(root.path(), &format!("bake {AMD64} {reference}")).expect(0);
    assert!(fs::read(meta_db(root.path())).unwrap() == database, "meta.db changed");
}

#[test]
fn a_registry_at_an_ipv6_address() {
    let registry = TestRegistry::on(Ipv6Addr::LOCALHOST.into(), demo(), |_| None);
    let root = tempfile::tempdir().unwrap();
    let reference = registry.reference("demo/hello:1.0");
    assert!(reference.starts_with("[::1]:"));
    prebake(root.path(), &format!("bake {AMD64} {reference}")).expect(0);
    assert!(names(root.path(), "").contains(&reference));
    assert!(
        records(root.path()).iter().any(|line| line.ends_with("containerd.io/distribution.source.::1 = demo/hello"))
    );
}

#[test]
fn without_its_catalog_nothing_is_fetched_again() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let arguments = format!("bake {AMD64} --json {}", all(&registry));
    prebake(root.path(), &arguments).expect(0);
    let database = fs::read(meta_db(root.path())).unwrap();
    fs::remove_dir_all(root.path().join("var/lib/prebake")).unwrap();
    let again = prebake(root.path(), &arguments).expect(0).last_json();
    assert_eq!(again["fetched_bytes"], 0);
    assert!(fs::read(meta_db(root.path())).unwrap() == database, "meta.db changed");
}

#[test]
fn links_lead_nowhere_outside() {
    let registry = TestRegistry::start(demo());
    let arguments = format!("bake {AMD64} {}", registry.reference("demo/hello:1.0"));
    let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    prebake(outside.path(), &arguments).expect(0);
    let theirs = fs::read(meta_db(outside.path())).unwrap();
    prebake(root.path(), &arguments).expect(0);
    fs::remove_file(meta_db(root.path())).unwrap();
    std::os::unix::fs::symlink(meta_db(outside.path()), meta_db(root.path())).unwrap();
    prebake(root.path(), &format!("bake {AMD64} {}", registry.reference("demo/zstd:1.0"))).expect(1);
    assert!(fs::read(meta_db(outside.path())).unwrap() == theirs, "a file outside the root was changed");
}

#[test]
fn links_inside_the_root_are_followed_inside_it() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let content = containerd_root(root.path()).join("io.containerd.content.v1.content");
    fs::create_dir_all(&content).unwrap();
    fs::create_dir_all(root.path().join("mnt/big")).unwrap();
    for dir in ["blobs", "ingest"] {
        fs::create_dir(root.path().join("mnt/big").join(dir)).unwrap();
        std::os::unix::fs::symlink(format!("/mnt/big/{dir}"), content.join(dir)).unwrap();
    }
    prebake(root.path(), &format!("bake {AMD64} {}", registry.reference("demo/hello:1.0"))).expect(0);
    assert_eq!(fs::read_dir(root.path().join("mnt/big/blobs/sha256")).unwrap().count(), 5);
    prebake(root.path(), "check").expect(0);
}

#[test]
fn loopback_is_not_reached_through_a_proxy() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let mut bake = command();
    bake.envs([
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("http_proxy", "http://127.0.0.1:1"),
        ("ALL_PROXY", "http://127.0.0.1:1"),
    ]);
    bake.args(["bake", "--platform", "linux/amd64", "--root"])
        .arg(root.path())
        .arg(registry.reference("demo/hello:1.0"));
    crate::support::prebake::Run::from(bake.output().unwrap()).expect(0);
}

#[test]
fn what_a_kill_leaves_of_a_new_catalog_is_replaced() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("var/lib/prebake")).unwrap();
    fs::write(root.path().join("var/lib/prebake/catalog.redb.new"), vec![0; 1 << 20]).unwrap();
    prebake(root.path(), &format!("bake {AMD64} {}", registry.reference("demo/hello:1.0"))).expect(0);
    assert!(!root.path().join("var/lib/prebake/catalog.redb.new").exists());
}

#[test]
fn the_second_bake_merges() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("bake {AMD64} {}", registry.reference("demo/docker:1.0"))).expect(0);
    let before = records(root.path());
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let file = inode(&meta_db(root.path()));
    prebake(root.path(), &format!("bake {AMD64} {}", registry.reference("demo/zstd:1.0"))).expect(0);
    assert_eq!(inode(&meta_db(root.path())), file, "the file was replaced, not changed in place");
    let after = records(root.path());
    let source = "containerd.io/distribution.source";
    let lost: Vec<_> = before.iter().filter(|line| !line.contains(source) && !after.contains(line)).collect();
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(after.iter().any(|line| line.ends_with("= demo/docker,demo/zstd")));
    assert_eq!(names(root.path(), "").len(), 6);
    prebake(root.path(), "check").expect(0);
}

#[test]
fn fetch_and_bootstrap_are_bake() {
    let registry = TestRegistry::start(demo());
    let (two, one) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    prebake(two.path(), &format!("fetch {AMD64} {}", all(&registry))).expect(0);
    assert_eq!(records(two.path()), Vec::<String>::new());
    assert_eq!(names(two.path(), ""), Vec::<String>::new());
    prebake(two.path(), "bootstrap").expect(0);
    prebake(one.path(), &format!("bake {AMD64} {}", all(&registry))).expect(0);
    let sorted = |root: &Path| {
        let mut lines = records(root);
        // Two images that share a config share a record; the one named last gets it.
        lines.sort();
        lines
    };
    assert_eq!(sorted(two.path()), sorted(one.path()));
    let database = fs::read(meta_db(two.path())).unwrap();
    prebake(two.path(), "bootstrap").expect(0);
    assert!(fs::read(meta_db(two.path())).unwrap() == database, "meta.db changed");
}

#[test]
fn bootstrap_lists_nothing_that_is_not_whole() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    prebake(
        root.path(),
        &format!("fetch {AMD64} {} {}", registry.reference("demo/hello:1.0"), registry.reference("demo/zstd:1.0")),
    )
    .expect(0);
    let largest = blobs(root.path()).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    fs::remove_file(crate::support::prebake::blobs_dir(root.path()).join(&largest)).unwrap();
    let run = prebake(root.path(), "bootstrap").expect(1);
    assert!(run.stderr.lines().last().unwrap().contains(&largest), "{}", run.stderr);
    assert!(names(root.path(), "").iter().all(|name| !name.contains("zstd")));
    assert_eq!(names(root.path(), "").len(), 3);
    prebake(root.path(), "check").expect(0);
}

#[test]
fn one_record_in_other_namespaces_and_pins() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let reference = registry.reference("demo/hello:1.0");
    prebake(root.path(), &format!("bake {AMD64} --namespace moby {reference}")).expect(0);
    assert_eq!(names(root.path(), "--namespace moby"), std::slice::from_ref(&reference));
    assert!(!records(root.path()).iter().any(|line| line.contains("io.cri-containerd")));
    prebake(root.path(), &format!("bake {AMD64} --pin {reference}")).expect(0);
    let pinned =
        records(root.path()).into_iter().filter(|line| line.ends_with("io.cri-containerd.pinned = pinned")).count();
    assert_eq!(pinned, 3);
    assert!(prebake(root.path(), "images").expect(0).stdout.contains("yes"));
    assert_eq!(names(root.path(), "").len(), 4);
}

#[test]
fn lists_of_images() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let list = format!(
        "# a list\n\n{}  # the first\n  {}\n",
        registry.reference("demo/hello:1.0"),
        registry.reference("demo/zstd:1.0")
    );
    let mut run = command();
    run.args(["bake", "--platform", "linux/amd64", "--file", "-", "--root"])
        .arg(root.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = run.spawn().unwrap();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(names(root.path(), "").len(), 6);

    let file = root.path().join("images.txt");
    fs::write(&file, format!("{list}Bad\nalso:bad:\n")).unwrap();
    let run = prebake(root.path(), &format!("bake --file {}", file.display())).expect(2);
    assert!(run.stderr.contains("images.txt:5: bad reference \"Bad\": character 1 ('B')"), "{}", run.stderr);
    assert!(run.stderr.contains("images.txt:6: "), "{}", run.stderr);
    let run = prebake(root.path(), "bake --file /nonexistent").expect(2);
    assert!(run.stderr.contains("/nonexistent"), "{}", run.stderr);
}

#[test]
fn bad_arguments() {
    let root = tempfile::tempdir().unwrap();
    for arguments in ["bake", "bake --platform linux a", "bake --namespace a--b a", "bake --concurrency 0 a", "bake A"]
    {
        prebake(root.path(), arguments).expect(2);
    }
    for command in ["images", "check", "bootstrap"] {
        prebake(&root.path().join("nothing"), command).expect(3);
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn a_running_containerd_is_named_within_a_second() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let reference = registry.reference("demo/hello:1.0");
    prebake(root.path(), &format!("bake {AMD64} {reference}")).expect(0);
    let file = fs::File::open(meta_db(root.path())).unwrap();
    file.lock().unwrap();
    for arguments in [
        format!("bake {AMD64} {reference}"),
        format!("fetch {AMD64} {reference}"),
        "bootstrap".into(),
        "check".into(),
        "images".into(),
    ] {
        let started = Instant::now();
        let run = prebake(root.path(), &arguments).expect(5);
        assert!(started.elapsed() < Duration::from_secs(1));
        assert!(run.stderr.contains(&format!("(pid {})", std::process::id())), "{}", run.stderr);
    }
    drop(file);
    prebake(root.path(), "check").expect(0);
}

/// containerd makes its database before it locks and fills it; a kill between leaves this.
#[test]
fn an_empty_file_is_an_empty_database() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(meta_db(root.path()).parent().unwrap()).unwrap();
    fs::write(meta_db(root.path()), "").unwrap();
    assert_eq!(prebake(root.path(), "images").expect(0).stdout.lines().count(), 1);
    prebake(root.path(), "check").expect(0);
    prebake(root.path(), &format!("bake {AMD64} {}", registry.reference("demo/hello:1.0"))).expect(0);
    assert_eq!(prebake(root.path(), "images --json").expect(0).stdout.lines().count(), 3);
}

/// Holds what came as events against their description.
fn documented(events: &[Value]) {
    let text = include_str!("../../docs/events.md");
    for event in events {
        let name = event["event"].as_str().unwrap();
        let (_, part) = text.split_once(&format!("\n### `{name}`\n")).unwrap();
        let part = part.split("\n### ").next().unwrap();
        for field in event.as_object().unwrap().keys().filter(|field| *field != "event") {
            assert!(part.contains(&format!("\n| `{field}` |")), "{name}: {field}");
        }
    }
}

/// On a slow way, what comes is told meanwhile: to programs every second, in logs every five.
#[test]
fn long_work_is_told_of() {
    let registry = TestRegistry::slow(large(), 40_000, Duration::from_millis(60));
    let root = tempfile::tempdir().unwrap();
    let arguments = format!("bake {AMD64} {}", registry.reference("large:1"));
    let run = prebake(root.path(), &format!("{arguments} --json")).expect(0);
    let events: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    documented(&events);
    let told: Vec<&Value> = events.iter().filter(|event| event["event"] == "progress").collect();
    assert!(told.len() >= 4, "{told:#?}");
    let last = told.last().unwrap();
    assert_eq!((&last["images"], &last["moving"], &last["waiting"]), (&1.into(), &1.into(), &0.into()));
    assert!(last["bytes"].as_u64() < last["total"].as_u64() && last["bytes_per_second"].as_u64().unwrap() > 0);
    assert!(told.windows(2).all(|two| two[0]["bytes"].as_u64() <= two[1]["bytes"].as_u64()));
    let again = tempfile::tempdir().unwrap();
    let run = prebake(again.path(), &arguments).expect(0);
    let line = run.stderr.lines().find(|line| line.starts_with("0 of 1 images done, 1 coming; ")).unwrap();
    assert!(line.contains(" of 3.8 MiB, ") && line.ends_with(" s left"), "{line}");
}

fn large() -> Content {
    build(
        "[layer.a]\nfiles = [{ path = \"a\", random = 4000000 }]\n[[image]]\nname = \"large:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"a\"]\n",
    )
}

#[test]
fn json_events_tell_the_whole_story() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let run = prebake(
        root.path(),
        &format!("bake {AMD64} --json {} {}", registry.reference("demo/hello:1.0"), registry.reference("demo/no:1")),
    )
    .expect(1);
    let events: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for kind in
        ["image_resolved", "blob_started", "blob_done", "image_fetched", "image_failed", "bootstrapped", "summary"]
    {
        assert!(events.iter().any(|event| event["event"] == kind), "no {kind} in {}", run.stdout);
    }
    let failed = events.iter().find(|event| event["event"] == "image_failed").unwrap();
    assert_eq!(failed["kind"], "not-found");
    assert_eq!((&events[0]["event"], &events[0]["version"]), (&Value::from("begin"), &Value::from(EVENTS_VERSION)));
    assert_eq!(events[1]["images"].as_array().unwrap().len(), 2);
    let planned = events.iter().find(|event| event["event"] == "planned").unwrap();
    let fetched = events.iter().filter(|event| event["event"] == "blob_started");
    assert_eq!(planned["fetch"], fetched.map(|event| event["size"].as_u64().unwrap()).sum::<u64>());
    documented(&events);
    assert_eq!(run.stderr, "");
    assert_eq!(run.last_json()["failed"], 1);
    let quiet =
        prebake(root.path(), &format!("bake {AMD64} --quiet {}", registry.reference("demo/hello:1.0"))).expect(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
}

#[test]
fn the_last_line_sums_up() {
    let registry = TestRegistry::start(build(
        "[layer.a]\nfiles = [{ path = \"a\", random = 2000000 }]\n[[image]]\nname = \"a:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"a\"]\n",
    ));
    let root = tempfile::tempdir().unwrap();
    let arguments = format!("bake {AMD64} {}", registry.reference("a:1"));
    let run = prebake(root.path(), &arguments).expect(0);
    let last = run.stdout.lines().last().unwrap();
    assert!(
        last.starts_with("1 images; 3 blobs, 1.9 MiB fetched, 0 B already there; ") && last.ends_with(" s"),
        "{last}"
    );
    let run = prebake(root.path(), &arguments).expect(0);
    assert!(run.stdout.contains("3 blobs, 0 B fetched, 1.9 MiB already there; "), "{}", run.stdout);
}

#[test]
fn a_containerd_root_elsewhere_and_a_damaged_blob() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let elsewhere = "--containerd-root /data/containerd";
    let arguments = format!("bake {AMD64} {elsewhere} {}", registry.reference("demo/hello:1.0"));
    prebake(root.path(), &arguments).expect(0);
    assert!(!containerd_root(root.path()).exists());
    prebake(root.path(), &format!("check {elsewhere}")).expect(0);
    // A blob that is damaged, and looks untouched to nobody but its mtime, is fetched again.
    let blobs = root.path().join("data/containerd/io.containerd.content.v1.content/blobs/sha256");
    let (path, size) = fs::read_dir(&blobs)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.path(), e.metadata().unwrap().len()))
        .max_by_key(|(_, size)| *size)
        .unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
    prebake(root.path(), &format!("check {elsewhere}")).expect(6);
    let run = prebake(root.path(), &arguments).expect(0);
    assert!(!run.stdout.contains(", 0 B fetched"), "{}", run.stdout);
    prebake(root.path(), &format!("check {elsewhere}")).expect(0);
}

#[test]
fn the_demo() {
    let dir = tempfile::tempdir().unwrap();
    let demo = || command().arg("demo").current_dir(dir.path()).output().unwrap();
    for _ in 0..2 {
        let run = crate::support::prebake::Run::from(demo()).expect(0);
        for words in ["5 images; ", "sound: ", "meta.db", "demo/hello:1.0", "containerd --root", "run --rm"] {
            assert!(run.stdout.contains(words), "{words} is not in\n{}", run.stdout);
        }
    }
    fs::remove_file(dir.path().join("prebake-demo/.prebake-demo")).unwrap();
    crate::support::prebake::Run::from(demo()).expect(2);
}
