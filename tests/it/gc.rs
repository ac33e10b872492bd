//! Garbage is collected as each release of containerd does it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::content::demo;
use crate::support::prebake::{blobs, blobs_dir, containerd_root, prebake, records, start};
use crate::support::registry::TestRegistry;
use crate::support::situations;
use crate::support::world::{World, labels, things};

fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn each_case_by_the_rules_of_each_release() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let mut world = World::new(&made);
    let said = situations::all(&mut world);
    world.finish();
    let before = things(&made);
    for (thing, case, _) in &said {
        assert!(before.contains(thing), "{case}: {thing} was not made");
    }
    for release in [(1, 6), (1, 7), (2, 0), (2, 1), (2, 2), (2, 3)] {
        let root = dir.path().join(format!("{}.{}", release.0, release.1));
        copy(&made, &root);
        let arguments = format!("gc --containerd {}.{}", release.0, release.1);
        let told = prebake(&root, &format!("{arguments} --dry-run")).expect(0);
        assert_eq!(things(&root), before, "a dry run changes nothing");
        prebake(&root, &arguments).expect(0);
        let after = things(&root);
        for (thing, case, goes) in &said {
            assert_eq!(!after.contains(thing), goes(release), "{release:?}, {case}: {thing}\n{}", told.stdout);
        }
        assert!(prebake(&root, &arguments).expect(0).stdout.starts_with("nothing removed"), "it ends in one go");
        let findings = prebake(&root, "check --json").last_json();
        let of_snapshots = |finding: &serde_json::Value| finding["object"].as_str().unwrap().contains("overlayfs");
        let findings: Vec<_> = findings["findings"].as_array().unwrap().iter().filter(|f| of_snapshots(f)).collect();
        assert!(findings.is_empty(), "{findings:#?}");
    }
    // Without a release, only what every one of them would take.
    let root = dir.path().join("any");
    copy(&made, &root);
    prebake(&root, "gc").expect(0);
    let after = things(&root);
    let every = [(1, 6), (1, 7), (2, 0), (2, 1), (2, 2), (2, 3)];
    for (thing, case, goes) in &said {
        assert_eq!(!after.contains(thing), every.iter().all(|release| goes(*release)), "{case}: {thing}");
    }
}

#[test]
fn what_is_counted_is_what_is_freed() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let names = ["demo/zstd:1.0", "demo/docker:1.0"].map(|name| registry.reference(name));
    prebake(root.path(), &format!("bake --unpack {}", names.join(" "))).expect(0);
    let used = |root: &Path| -> u64 {
        let output = std::process::Command::new("du").args(["-s", "-B1"]).arg(containerd_root(root)).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    let before = used(root.path());
    let pruned = prebake(root.path(), &format!("rm --json {}", names[0])).expect(0).last_json();
    let freed = before - used(root.path());
    let counted = pruned["bytes"].as_u64().unwrap();
    // Directories that lose entries may shrink by a block.
    assert!(counted > 1_000_000 && freed.abs_diff(counted) <= 8192, "{freed} freed, {counted} counted");
    let sum = prebake(root.path(), "du --json").expect(0).last_json();
    assert_eq!(sum["containerd"].as_u64().unwrap(), used(root.path()));
    let parts = ["blobs", "snapshots", "other_blobs", "other_snapshots", "ingests", "rest"];
    let parts: u64 = parts.iter().map(|part| sum[*part].as_u64().unwrap()).sum();
    assert_eq!(parts, sum["containerd"].as_u64().unwrap());
}

#[test]
fn files_that_no_record_names() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut world = World::new(&root);
    world.snapshot("default", "overlayfs", "kept", "", &labels(&[("containerd.io/gc.root", "x")]));
    let orphan = world.file("nobody's");
    world.ingest_dir("default/1/nobody's");
    // One file that two namespaces name goes with neither.
    let shared = world.blob("default", "shared", &labels(&[("containerd.io/gc.root", "x")]));
    world.blob("other", "shared", &labels(&[]));
    world.finish();
    let snapshots = containerd_root(&root).join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    for name in ["7", "new-123", "rm-9"] {
        fs::create_dir_all(snapshots.join(name).join("fs")).unwrap();
    }
    let run = prebake(&root, "gc --json").expect(0);
    let gone: BTreeSet<String> = run.last_json()["removed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {}", one["kind"].as_str().unwrap(), one["name"].as_str().unwrap()))
        .collect();
    let expected = [
        format!("file {orphan}"),
        "ingest default/1/nobody's".to_owned(),
        "directory overlayfs/snapshots/7".to_owned(),
        "directory overlayfs/snapshots/new-123".to_owned(),
        "directory overlayfs/snapshots/rm-9".to_owned(),
        format!("blob {shared}"),
    ];
    assert_eq!(gone, expected.into_iter().collect());
    assert!(blobs_dir(&root).join(shared.hex()).exists(), "the other namespace has it");
    let left: Vec<_> = fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["1"]);
}

#[test]
fn what_was_only_fetched_waits_for_its_bootstrap() {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    let (known, new) = (registry.reference("demo/hello:1.0"), registry.reference("demo/plain:1.0"));
    prebake(root.path(), &format!("bake {known}")).expect(0);
    prebake(root.path(), &format!("fetch {new}")).expect(0);
    let all = blobs(root.path());
    let run = prebake(root.path(), "gc").expect(0);
    assert!(run.stdout.contains(&new), "{run:?}");
    assert_eq!(blobs(root.path()), all);
    // It cannot be sealed away, either.
    let sealed = prebake(root.path(), "seal").expect(2);
    assert!(sealed.stderr.contains(&new) && sealed.stderr.contains("bootstrap"), "{sealed:?}");
    prebake(root.path(), "gc --fetched").expect(0);
    assert!(blobs(root.path()).len() < all.len());
    prebake(root.path(), "check").expect(0);
    // What is taken away here does not come back from the catalog.
    prebake(root.path(), &format!("rm {known}")).expect(0);
    assert_eq!(records(root.path()).iter().filter(|line| line.contains("images > ")).count(), 0);
}

#[test]
fn a_damaged_root_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut world = World::new(&root);
    world.blob("default", "lone", &labels(&[]));
    world.put(&["v1", "default", "images"], "plain", b"value");
    world.finish();
    for command in ["gc", "prune --all", "rm x", "discard-layers", "seal", "why x", "du"] {
        let run = prebake(&root, command).expect(6);
        assert!(run.stderr.contains("plain key among the images"), "{run:?}");
    }
    assert_eq!(blobs(&root).len(), 1);
}

#[test]
fn killed_at_any_moment() {
    let kills: u64 = std::env::var("PREBAKE_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let mut world = World::new(&made);
    situations::all(&mut world);
    // Large enough to be killed in the middle of it.
    for n in 0..300 {
        world.blob("many", &format!("blob {n}"), &labels(&[]));
        world.snapshot("many", "overlayfs", &format!("s{n}"), "", &labels(&[]));
    }
    world.finish();
    let whole = dir.path().join("whole");
    copy(&made, &whole);
    prebake(&whole, "gc").expect(0);
    let (before, after) = (things(&made), things(&whole));
    let mut between = 0;
    for kill in 0..kills {
        let root = dir.path().join(format!("killed-{kill}"));
        copy(&made, &root);
        let mut child = start(&root, "gc");
        std::thread::sleep(std::time::Duration::from_micros(2000 + kill * 60_000 / kills));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = things(&root);
        between += usize::from(now != before && now != after);
        // Whatever a record names is there, and nothing that stays is gone.
        assert!(now.is_superset(&after), "{:?}", after.difference(&now).collect::<Vec<_>>());
        for blob in now.iter().filter_map(|thing| thing.split_once(" blob sha256:")).map(|(_, hex)| hex) {
            assert!(now.contains(&format!("file {blob}")), "{blob} has a record and no file");
        }
        prebake(&root, "gc").expect(0);
        assert_eq!(things(&root), after);
        fs::remove_dir_all(&root).unwrap();
    }
    assert!(between > 0, "no kill came in the middle");
}
