//! What becomes of layers: kept, unpacked, discarded; once each; and what is refused before anything is fetched.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ::prebake::fixture::Content;

use crate::bake::listed;
use crate::cri;
use crate::hostile::{snapshots, snapshots_dir};
use crate::peers::{Containerd, Tmpfs, run};
use crate::support::content::{build, demo};
use crate::support::prebake::{Run, blobs, command, containerd_root, prebake, records, start};
use crate::support::registry::TestRegistry;

/// Three images; `a` and `b` share their lowest layer.
fn images() -> Content {
    let layer = |i: u32| format!("[layer.l{i}]\nfiles = [{{ path = \"f{i}\", random = {} }}]\n", 300_000 * (i + 1));
    let image = |name: &str, layers: &str| {
        format!("[[image]]\nname = \"{name}:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [{layers}]\n")
    };
    build(&format!(
        "{}{}{}{}",
        (0..5).map(layer).collect::<String>(),
        image("a", r#""l0", "l1""#),
        image("b", r#""l0", "l2""#),
        image("c", r#""l3", "l4""#)
    ))
}

fn policy(root: &Path, name: &str) -> String {
    listed(root)[name]["policy"].as_str().unwrap().to_owned()
}

/// Layers that were unpacked in a run with `--json`.
fn unpacked(run: &Run) -> u64 {
    let ended = run.stdout.lines().filter(|line| line.contains(r#""event":"layer_ended""#)).count() as u64;
    let total = run.last_json()["unpacked_layers"].as_u64().unwrap();
    assert_eq!(ended, total, "{}", run.stdout);
    total
}

/// Inodes and times of change of all directories of snapshots.
fn identity(root: &Path) -> Vec<(String, u64, i64)> {
    let look = |name: String| {
        let meta = fs::metadata(snapshots_dir(root).join(&name).join("fs")).unwrap();
        (name, meta.ino(), meta.ctime_nsec())
    };
    snapshots(root).into_iter().map(look).collect()
}

#[test]
fn a_layer_is_unpacked_once() {
    let registry = TestRegistry::start(images());
    let [a, b, c] = ["a:1", "b:1", "c:1"].map(|name| registry.reference(name));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let first = prebake(root, &format!("bake --json --unpack {a} {b}")).expect(0);
    assert_eq!((unpacked(&first), snapshots(root).len()), (3, 3), "{}", first.stdout);
    let (before, said) = (identity(root), records(root));
    let again = prebake(root, &format!("bake --json --unpack {a} {b}")).expect(0);
    assert_eq!((unpacked(&again), identity(root), records(root)), (0, before.clone(), said));
    let more = prebake(root, &format!("bake --json --unpack {a} {c}")).expect(0);
    assert_eq!(unpacked(&more), 2);
    assert_eq!(identity(root)[..3], before[..]);
    prebake(root, "check").expect(0);

    // Their sizes: a and b share one layer, compressed and unpacked.
    let images = listed(root);
    let number = |name: &str, key: &str| images[name][key].as_u64().unwrap();
    let shared = number(&a, "shared");
    assert_eq!(shared, number(&b, "shared"));
    let layer = 300_000 + 300_000_u64;
    assert!((layer..layer + 50_000).contains(&shared), "{shared}");
    assert_eq!(number(&c, "shared"), 0);
    assert!(number(&c, "unpacked") > 1_200_000 + 1_500_000);
    let table = prebake(root, "images").expect(0).stdout;
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAMESPACE", "NAME", "TARGET", "POLICY", "COMPRESSED", "UNPACKED", "SHARED", "PINNED"]);
}

#[test]
fn what_containerd_unpacked_is_not_unpacked_again() {
    let registry = TestRegistry::start(images());
    let [a, b] = ["a:1", "b:1"].map(|name| registry.reference(name));
    for release in ["1.6.20", "2.1.9"] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let mut containerd = Containerd::start(release, &containerd_root(&root), &dir.path().join("work"));
        cri::pull_image(&containerd.socket(), &a).unwrap();
        containerd.stop();
        let before = identity(&root);
        assert_eq!(before.len(), 2);
        let run = prebake(&root, &format!("bake --json --unpack {a} {b}")).expect(0);
        assert_eq!(unpacked(&run), 1, "{release}: {}", run.stdout);
        assert_eq!(identity(&root)[..2], before[..], "{release}");
        prebake(&root, "check").expect(0);
        // And the other way round.
        containerd.launch();
        cri::pull_image(&containerd.socket(), &b).unwrap();
        assert_eq!(identity(&root).len(), 3, "{release}");
        containerd.stop();
        prebake(&root, "check").expect(0);
    }
}

#[test]
fn small_images_are_unpacked_and_large_ones_fetched() {
    let registry = TestRegistry::start(images());
    let [a, c] = ["a:1", "c:1"].map(|name| registry.reference(name));
    let dir = tempfile::tempdir().unwrap();
    let run = prebake(dir.path(), &format!("bake --json --unpack-under 1MiB {a} {c}")).expect(0);
    assert_eq!(unpacked(&run), 2);
    assert_eq!([&a, &c].map(|name| policy(dir.path(), name)), ["unpack", "fetch"]);
    assert_eq!(snapshots(dir.path()).len(), 2);
    // Later, what was fetched.
    let run = prebake(dir.path(), &format!("unpack --json {c}")).expect(0);
    assert_eq!(unpacked(&run), 2);
    assert_eq!(policy(dir.path(), &c), "unpack");
    prebake(dir.path(), "check").expect(0);
}

#[test]
fn unpack_takes_what_was_fetched_before() {
    let registry = TestRegistry::start(images());
    let [a, b, c] = ["a:1", "b:1", "c:1"].map(|name| registry.reference(name));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    prebake(root, &format!("fetch {a}")).expect(0);
    prebake(root, &format!("bake {b}")).expect(0);
    prebake(root, &format!("bake {c}")).expect(0);
    registry.asked();
    // What only containerd's metadata knows counts as well.
    fs::remove_file(root.join("var/lib/prebake/catalog.redb")).unwrap();
    let missing = prebake(root, "unpack nowhere.example/x:1").expect(3);
    assert!(missing.stderr.contains("the root has no image \"nowhere.example/x:1\""), "{}", missing.stderr);
    let run = prebake(root, &format!("unpack --json {b}")).expect(0);
    assert_eq!(unpacked(&run), 2);
    let run = prebake(root, "unpack --json").expect(0);
    assert_eq!(unpacked(&run), 2, "c: {}", run.stdout);
    assert_eq!(registry.asked(), Vec::<String>::new(), "nothing is asked of a registry");
    assert_eq!([&b, &c].map(|name| policy(root, name)), ["unpack", "unpack"]);
    let run = prebake(root, "unpack --json").expect(0);
    assert_eq!(unpacked(&run), 0);
    // An image that was only fetched becomes known to containerd by it.
    prebake(root, &format!("fetch {a}")).expect(0);
    assert!(!listed(root).contains_key(&a));
    let run = prebake(root, "unpack --json").expect(0);
    assert_eq!(unpacked(&run), 1);
    assert_eq!(policy(root, &a), "unpack");
    prebake(root, "check").expect(0);
}

#[test]
fn discarded_layers_are_never_written() {
    let registry = TestRegistry::start(images());
    let [a, b, c] = ["a:1", "b:1", "c:1"].map(|name| registry.reference(name));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    prebake(root, &format!("bake --unpack --discard-layers {a} {b}")).expect(0);
    assert!(blobs(root).values().all(|bytes| bytes.len() < 100_000), "no layer is there");
    let said = records(root);
    assert!(said.iter().any(|line| line.contains("gc.ref.content.config")));
    assert!(!said.iter().any(|line| line.contains("gc.ref.content.l.")), "{said:#?}");
    assert_eq!([&a, &b].map(|name| policy(root, name)), ["unpack-discard"; 2]);
    assert_eq!(listed(root)[&a]["size"].as_u64().unwrap() / 900_000, 1, "what it would take compressed");
    prebake(root, "check").expect(0);
    // Nothing to do, and nothing is asked for again.
    registry.asked();
    prebake(root, &format!("bake --unpack --discard-layers {a} {b}")).expect(0);
    assert!(!registry.asked().iter().any(|path| path.contains("/blobs/")));
    prebake(root, "unpack").expect(0);
    assert_eq!(policy(root, &a), "unpack-discard");

    // Another snapshotter needs them.
    let flags = "--unpack --discard-layers --snapshotters overlayfs,overlaybd";
    let refused = prebake(root, &format!("bake {flags} {c}")).expect(2);
    assert!(refused.stderr.contains("snapshotter overlaybd needs them"), "{}", refused.stderr);
    // Another image keeps them: one of the root, and one of the same bake.
    prebake(root, &format!("bake {c}")).expect(0);
    let refused = prebake(root, &format!("bake --unpack --discard-layers {c}")).expect(2);
    assert!(refused.stderr.contains("its layers cannot be discarded: manifest sha256:"), "{}", refused.stderr);
    let other = tempfile::tempdir().unwrap();
    let run = prebake(other.path(), &format!("bake --unpack-under 1MiB --discard-layers {a} {b}")).expect(1);
    assert!(run.stderr.contains(&format!("failed: {a}: its layers cannot be discarded: {b} keeps sha256:")), "{run:?}");
    prebake(other.path(), "check").expect(0);
    for wrong in ["--discard-layers", "--unpack --snapshotters native"] {
        prebake(root, &format!("bake {wrong} {c}")).expect(2);
    }
}

#[test]
fn discarding_takes_no_more_than_stays() {
    let content = images();
    let dir = tempfile::tempdir().unwrap();
    for (flags, more) in [("--discard-layers", false), ("", true)] {
        let registry = TestRegistry::slow(content.clone(), 30_000, Duration::from_millis(2));
        let disk = Tmpfs::mount(dir.path().join("disk"), "size=64m");
        let used = || {
            let stat = rustix::fs::statvfs(&disk.0).unwrap();
            (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        };
        let mut bake = start(&disk.0, &format!("bake --unpack {flags} {}", registry.reference("c:1")));
        let mut peak = 0;
        while bake.try_wait().unwrap().is_none() {
            peak = peak.max(used());
            std::thread::sleep(Duration::from_micros(300));
        }
        assert!(bake.wait().unwrap().success());
        let last = used();
        let layers = 1_200_000 + 1_500_000;
        // The catalog and the databases are made in steps.
        assert!(peak <= last + 200_000, "{flags}: at most {peak}, and {last} at the end");
        assert_eq!(last > 2 * layers, more, "{flags}: {last}");
        eprintln!("{flags}: {peak} bytes at most, {last} at the end, {layers} of layers");
    }
}

#[test]
fn the_environment_of_an_image_fetcher() {
    let registry = TestRegistry::start(images());
    let a = registry.reference("a:1");
    let dir = tempfile::tempdir().unwrap();
    let bake = |root: &str, only: &str, flags: &[&str]| -> Run {
        let mut command = command();
        command.args(["bake", "--root"]).arg(dir.path().join(root)).args(flags).arg(&a);
        command.env("IMAGE_FETCH_ONLY", only).env("CONTAINERD_NAMESPACE", "other").output().unwrap().into()
    };
    bake("fetched", "true", &["--unpack"]).expect(0);
    bake("unpacked", "1", &["--unpack"]).expect(0);
    for (root, expected) in [("fetched", "fetch"), ("unpacked", "unpack")] {
        let image = &listed(&dir.path().join(root))[&a];
        assert_eq!((image["policy"].as_str().unwrap(), image["namespace"].as_str().unwrap()), (expected, "other"));
    }
    let refused = bake("none", "true", &["--unpack", "--discard-layers"]).expect(2);
    assert!(refused.stderr.contains("IMAGE_FETCH_ONLY=true is set"), "{}", refused.stderr);
}

#[test]
fn what_is_needed_is_said_before_anything_is_fetched() {
    let registry = TestRegistry::start(images());
    let a = registry.reference("a:1");
    let dir = tempfile::tempdir().unwrap();
    // Nobody.
    let root = dir.path().join("nobody");
    fs::create_dir(&root).unwrap();
    run(Command::new("chmod").arg("777").args([dir.path(), &root]));
    let mut nobody = command();
    nobody.args(["bake", "--unpack", "--root"]).arg(&root).arg(&a).uid(65534).gid(65534);
    let refused = Run::from(nobody.output().unwrap()).expect(2);
    for word in ["CAP_CHOWN", "CAP_MKNOD", "CAP_SYS_ADMIN", "run as root"] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    // In a user namespace, capabilities are not what they say.
    let mut shared = Command::new("unshare");
    shared.args(["--user", "--map-root-user"]).arg(env!("CARGO_BIN_EXE_prebake"));
    shared.args(["bake", "--unpack", "--root"]).arg(dir.path().join("mapped")).arg(&a);
    let refused = Run::from(shared.output().unwrap()).expect(2);
    assert!(
        refused.stderr.contains("layers cannot be unpacked there: giving a file away failed"),
        "{}",
        refused.stderr
    );
    // A file system without extended attributes.
    let plain = Tmpfs::mount_as("ramfs", dir.path().join("plain"), "size=64m");
    let refused = prebake(&plain.0, &format!("bake --unpack {a}")).expect(2);
    assert!(refused.stderr.contains("setting a user.* attribute failed"), "{}", refused.stderr);
    // Too little space.
    let small = Tmpfs::mount(dir.path().join("small"), "size=2m");
    registry.asked();
    let refused = prebake(&small.0, &format!("bake --unpack {a}")).expect(7);
    assert!(refused.stderr.contains("MiB are free; free some, or try with --ignore-space"), "{}", refused.stderr);
    assert_eq!(registry.asked().iter().filter(|path| path.contains("/blobs/")).count(), 1, "only the config");
    // Found out only on the way; blobs that are kept stay for the next run, and so only the other way leaves room.
    let c = registry.reference("c:1");
    let kept = Tmpfs::mount(dir.path().join("kept"), "size=2m");
    for (root, how) in [(&kept.0, ""), (&small.0, "--discard-layers")] {
        let refused = prebake(root, &format!("bake --unpack --ignore-space {how} {c}")).expect(7);
        assert!(refused.stderr.contains("No space left on device"), "{}", refused.stderr);
        assert_eq!(snapshots(root), Vec::<String>::new());
    }
    prebake(&small.0, &format!("bake --unpack --ignore-space --discard-layers {a}")).expect(0);
    prebake(&small.0, "check").expect(0);
}

#[test]
fn another_platform_is_unpacked_as_well() {
    let registry = TestRegistry::start(demo());
    let dir = tempfile::tempdir().unwrap();
    let hello = registry.reference("demo/hello:1.0");
    prebake(dir.path(), &format!("bake --unpack --platform linux/arm64 {hello}")).expect(0);
    assert_eq!(policy(dir.path(), &hello), "unpack");
    prebake(dir.path(), "check").expect(0);
}

/// Layers that are not kept, where one waits for the one below it, at a host that gives one connection.
#[test]
fn layers_that_wait_for_each_other_share_a_connection() {
    // The upper layer has a file in a directory that only the lower one describes, and is soon there.
    let spec = "[layer.low]\nfiles = [{ path = \"d/large\", random = 40000000 }]\n[layer.high]\nfiles = [{ path = \"d/other\", random = 9000000 }]\n[[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"low\", \"high\"]\n";
    let registry = TestRegistry::start(build(spec));
    for how in ["--unpack", "--unpack --discard-layers"] {
        let root = tempfile::tempdir().unwrap();
        prebake(
            root.path(),
            &format!("bake --platform linux/amd64 --per-host 1 {how} {}", registry.reference("app:1")),
        )
        .expect(0);
        prebake(root.path(), "check").expect(0);
    }
}
