//! Whatever moment the end comes while layers are unpacked: the next run finishes, the root is sound, and nothing is left
//! over.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ::prebake::fixture::Content;
use serde_json::Value;

use crate::hostile::{snapshots, snapshots_dir};
use crate::support::content::build;
use crate::support::prebake::{Run, command, containerd_root, prebake, records};
use crate::support::registry::TestRegistry;
use crate::support::rng::Rng;

/// Three images of many small files and some large ones; `a` and `b` share their lowest layer.
fn images() -> Content {
    let layer = |i: u32| {
        let files: String = (0..150)
            .map(|n| format!("{{ path = \"d{i}/e{}/f{n}\", random = {} }},", n % 7, if n == 0 { 400_000 } else { 700 }))
            .collect();
        format!("[layer.l{i}]\nfiles = [{files}]\n")
    };
    let image = |name: &str, layers: &str| {
        format!("[[image]]\nname = \"{name}:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [{layers}]\n")
    };
    build(&format!(
        "{}{}{}{}",
        (0..6).map(layer).collect::<String>(),
        image("a", r#""l0", "l1", "l2""#),
        image("b", r#""l0", "l3""#),
        image("c", r#""l4", "l5""#)
    ))
}

fn bake(root: &Path, registry: &TestRegistry, flags: &str) -> Child {
    let mut bake = command();
    bake.args(["bake", "--unpack", "--root"]).arg(root).args(flags.split_whitespace());
    bake.args(["a:1", "b:1", "c:1"].map(|name| registry.reference(name)));
    bake.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs to the end; how long it took.
fn whole(root: &Path, registry: &TestRegistry, flags: &str) -> Duration {
    let start = Instant::now();
    Run::from(bake(root, registry, flags).wait_with_output().unwrap()).expect(0);
    start.elapsed()
}

/// What a finished root has, whoever was interrupted on the way: nothing but what it should have.
fn is_finished(root: &Path) {
    let check = prebake(root, "check --json").expect(0);
    assert_eq!(check.last_json()["findings"], Value::Array(Vec::new()), "{}", check.stdout);
    let names = snapshots(root);
    assert_eq!(names.len(), 6, "{names:?}");
    for name in names {
        let mut inside: Vec<_> =
            fs::read_dir(snapshots_dir(root).join(&name)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        inside.sort();
        assert_eq!(inside, ["fs", "work"], "{name}");
    }
    let ingest = containerd_root(root).join("io.containerd.content.v1.content/ingest");
    assert_eq!(fs::read_dir(ingest).unwrap().count(), 0);
    let listed = prebake(root, "images --json").expect(0);
    assert_eq!(listed.stdout.matches(r#""policy":"unpack"#).count(), 9, "{}", listed.stdout);
}

#[test]
fn killed_at_any_moment() {
    let registry = TestRegistry::start(images());
    let kills: u64 = std::env::var("PREBAKE_KILLS").map_or(14, |n| n.parse().unwrap());
    let mut rng = Rng::new(kills);
    let (mut staged, mut published) = (0, 0);
    for flags in ["", "--discard-layers"] {
        let dir = tempfile::tempdir().unwrap();
        let took = whole(dir.path(), &registry, flags).as_micros();
        let took = u64::try_from(took).unwrap();
        is_finished(dir.path());
        for _ in 0..kills / 2 {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            // Several kills on one root.
            for _ in 0..=rng.below(3) {
                let mut child = bake(root, &registry, flags);
                std::thread::sleep(Duration::from_micros(rng.next() % (took + took / 8)));
                child.kill().unwrap();
                child.wait().unwrap();
                if !snapshots_dir(root).exists() {
                    continue;
                }
                let names = snapshots(root);
                staged += u64::from(names.iter().any(|name| name.starts_with("new-prebake-")));
                published += u64::from(names.iter().any(|name| name.parse::<u64>().is_ok()));
                // Sound at any moment: leftovers are warnings.
                prebake(root, "check").expect(0);
            }
            whole(root, &registry, flags);
            is_finished(root);
            let (before, said) = (times(root), records(root));
            whole(root, &registry, flags);
            assert!(before == times(root) && said == records(root), "finished means that nothing is left to do");
        }
    }
    eprintln!("of {kills} roots, kills left staged layers {staged} times, and published ones {published} times");
    assert!(staged >= kills / 3, "{staged}");
}

fn times(root: &Path) -> Vec<(String, i64, i64)> {
    let time = |name: String| {
        let meta = fs::metadata(snapshots_dir(root).join(&name)).unwrap();
        (name, meta.ctime(), meta.ctime_nsec())
    };
    snapshots(root).into_iter().map(time).collect()
}

#[test]
fn a_signal_leaves_nothing_staged() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let registry = TestRegistry::slow(images(), 20_000, Duration::from_millis(10));
        let dir = tempfile::tempdir().unwrap();
        let child = bake(dir.path(), &registry, "");
        let deadline = Instant::now() + Duration::from_secs(20);
        let staged = |root: &Path| {
            snapshots_dir(root).exists()
                && snapshots(root).iter().any(|name| name.starts_with("new-prebake-") && !name.ends_with("probe"))
        };
        while !staged(dir.path()) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
        crate::peers::run(std::process::Command::new("kill").args(["-s", signal, &child.id().to_string()]));
        Run::from(child.wait_with_output().unwrap()).expect(code);
        assert_eq!(snapshots(dir.path()), Vec::<String>::new());
        assert_eq!(records(dir.path()), Vec::<String>::new());
        whole(dir.path(), &registry, "");
        is_finished(dir.path());
    }
}

/// The states between renames and commits, which a kill seldom meets.
#[test]
fn between_the_commits() {
    let registry = TestRegistry::start(images());
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    whole(&root, &registry, "");
    let copy = |name: &str| {
        let copy = dir.path().join(name);
        crate::peers::run(std::process::Command::new("cp").arg("-a").args([&root, &copy]));
        copy
    };
    let meta_db = "io.containerd.metadata.v1.bolt/meta.db";
    let metadata_db = "io.containerd.snapshotter.v1.overlayfs/metadata.db";
    let remove = |root: &Path, file: &str| fs::remove_file(containerd_root(root).join(file)).unwrap();

    // The snapshotter has its records, and containerd's metadata does not name them: they are adopted.
    let adopted = copy("adopted");
    remove(&adopted, meta_db);
    fs::remove_file(adopted.join("var/lib/prebake/catalog.redb")).unwrap();
    let before = times(&adopted);
    whole(&adopted, &registry, "");
    assert_eq!(times(&adopted), before);
    is_finished(&adopted);

    // Directories have their ids and marks, and the snapshotter has no records of them: they are made anew.
    let renamed = copy("renamed");
    remove(&renamed, meta_db);
    remove(&renamed, metadata_db);
    for name in snapshots(&renamed) {
        fs::write(snapshots_dir(&renamed).join(name).join(".prebake"), "").unwrap();
    }
    whole(&renamed, &registry, "");
    is_finished(&renamed);

    // All is written, and the marks are still there: they go.
    let marked = copy("marked");
    fs::write(snapshots_dir(&marked).join("3/.prebake"), "").unwrap();
    whole(&marked, &registry, "");
    is_finished(&marked);

    // A blob is in place, and the rest of its ingest is still there: it goes.
    let placed = copy("placed");
    let ingest = containerd_root(&placed).join("io.containerd.content.v1.content/ingest/d1");
    fs::create_dir(&ingest).unwrap();
    fs::write(ingest.join("ref"), "k8s.io/1/layer-sha256:d1").unwrap();
    whole(&placed, &registry, "");
    is_finished(&placed);

    // Directories that are somebody else's are left alone, and no id of theirs is given out.
    let foreign = copy("foreign");
    remove(&foreign, meta_db);
    remove(&foreign, metadata_db);
    whole(&foreign, &registry, "");
    let ids: Vec<u64> = snapshots(&foreign).iter().map(|name| name.parse().unwrap()).collect();
    assert_eq!(ids.len(), 12, "{ids:?}");
    prebake(&foreign, "check").expect(0);
}
