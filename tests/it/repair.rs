//! `repair` and `check --would-start` as commands: what they say, and their exit codes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::content::{app, build, demo};
use crate::support::prebake::{blobs, blobs_dir, meta_db, prebake};
use crate::support::registry::TestRegistry;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn baked(registry: &TestRegistry, flags: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let image = registry.reference("demo/zstd:1.0");
    prebake(root.path(), &format!("bake --platform linux/amd64 {flags} {image}")).expect(0);
    root
}

fn harm_a_layer(root: &Path) -> String {
    let (hex, _) = blobs(root).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    fs::remove_file(blobs_dir(root).join(&hex)).unwrap();
    format!("sha256:{hex}")
}

#[test]
fn what_is_missing_comes_from_the_registry() {
    let registry = TestRegistry::start(demo());
    let root = baked(&registry, "");
    let run = prebake(root.path(), "repair").expect(0);
    assert!(run.stdout.contains("sound: nothing to be mended"), "{run:?}");
    let layer = harm_a_layer(root.path());
    registry.asked();
    let run = prebake(root.path(), "repair --dry-run").expect(6);
    assert!(run.stdout.contains(&format!("{layer}: to be fetched from {}", registry.name())), "{run:?}");
    assert!(registry.asked().is_empty() && !blobs(root.path()).contains_key(&layer[7..]));
    let run = prebake(root.path(), "repair").expect(0);
    assert!(
        run.stdout.contains(&format!("{layer}: fetched again")) && run.stdout.contains("sound: 1 things"),
        "{run:?}"
    );
    // By its digest, and nothing else.
    let asked = registry.asked();
    assert!(asked.iter().all(|line| line.ends_with(&layer) || line == "GET /v2/"), "{asked:#?}");
    prebake(root.path(), "check").expect(0);
}

#[test]
fn what_nobody_has_remains() {
    let registry = TestRegistry::start(demo());
    let root = baked(&registry, "");
    let layer = harm_a_layer(root.path());
    drop(registry);
    let run = prebake(root.path(), "repair --tries 1 --json").expect(6);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(report["failed"][0]["object"].as_str().unwrap().contains(&layer), "{report:#}");
    let remaining = report["remaining"].as_array().unwrap();
    let found = remaining.iter().find(|finding| finding["object"].as_str().unwrap().contains(&layer)).unwrap();
    assert!(["problem", "consequence", "remedy"].iter().all(|key| found[key].is_string()), "{found:#}");
}

#[test]
fn another_root_and_a_layout_have_blobs_too() {
    let registry = TestRegistry::start(demo());
    let (root, other) = (baked(&registry, ""), baked(&registry, ""));
    drop(registry);
    let layout = tempfile::tempdir().unwrap();
    fs::create_dir(layout.path().join("blobs")).unwrap();
    let copied = layout.path().join("blobs/sha256");
    fs::create_dir(&copied).unwrap();
    for (hex, bytes) in blobs(other.path()) {
        fs::write(copied.join(hex), bytes).unwrap();
    }
    let dirs = [other.path().to_owned(), other.path().join("var/lib/containerd"), layout.path().to_owned()];
    for dir in &dirs {
        let layer = harm_a_layer(root.path());
        let run = prebake(root.path(), &format!("repair --from {}", dir.display())).expect(0);
        assert!(run.stdout.contains(&format!("{layer}: fetched again")), "{run:?}");
    }
    // Every byte is verified.
    let layer = harm_a_layer(root.path());
    fs::write(copied.join(&layer[7..]), "something else").unwrap();
    let run = prebake(root.path(), &format!("repair --from {}", layout.path().display())).expect(6);
    assert!(run.stderr.contains("have the digest"), "{run:?}");
}

#[test]
fn discarded_layers_come_back() {
    if !is_root() {
        return;
    }
    let registry = TestRegistry::start(demo());
    let root = baked(&registry, "--unpack --discard-layers");
    let before = blobs(root.path()).len();
    let run = prebake(root.path(), "check --snapshots").expect(0);
    assert!(run.stderr.contains("was discarded, and cannot be compared"), "{run:?}");
    let start = "check --would-start 2.1 --platform linux/amd64 --snapshotter";
    prebake(root.path(), &format!("{start} overlayfs")).expect(0);
    let run = prebake(root.path(), &format!("{start} erofs")).expect(6);
    assert!(run.stdout.contains("discarded: it is unpacked for overlayfs alone"), "{run:?}");
    prebake(root.path(), "repair --restore-layers").expect(0);
    assert_eq!(blobs(root.path()).len(), before + 4);
    let run = prebake(root.path(), "check --snapshots").expect(0);
    assert!(run.stdout.contains("4 snapshots compared") && !run.stderr.contains("discarded"), "{run:?}");
    let run = prebake(root.path(), &format!("{start} erofs")).expect(0);
    assert!(run.stdout.contains("unpacks first"), "{run:?}");
    // They are kept: containerd's collector would leave them.
    prebake(root.path(), "gc").expect(0);
    assert_eq!(blobs(root.path()).len(), before + 4);
}

#[test]
fn what_a_release_would_do() {
    let registry = TestRegistry::start(demo());
    let root = baked(&registry, "");
    let start = "check --platform linux/amd64 --would-start";
    let run = prebake(root.path(), &format!("{start} 1.6 --json")).expect(0);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(report["images"].as_array().unwrap().iter().all(|image| image["verdict"] == "unpacks"), "{report:#}");
    let run = prebake(root.path(), "check --platform linux/s390x --would-start 2.1").expect(6);
    assert!(run.stdout.contains("there is no manifest for linux/s390x here"), "{run:?}");
    harm_a_layer(root.path());
    let run = prebake(root.path(), &format!("{start} 2.1")).expect(6);
    assert!(run.stdout.contains("which is not here"), "{run:?}");
    fs::write(meta_db(root.path()), vec![7; 20_000]).unwrap();
    let run = prebake(root.path(), &format!("{start} 2.1")).expect(6);
    assert!(run.stderr.contains("containerd does not start: meta.db"), "{run:?}");
}

/// Docker's zstd layers; an index that calls an image another machine's than its config does.
#[test]
fn releases_differ() {
    let mut content = app();
    let zstd = build(
        "[layer.l]\ncompression = \"zstd\"\nfiles = [{ path = \"f\", random = 1000 }]\n\
         [[image]]\nname = \"app:zstd\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n",
    );
    let manifest = zstd.tags[&("app".to_owned(), "zstd".to_owned())].clone();
    let text = String::from_utf8(zstd.blobs[&manifest].1.to_vec()).unwrap();
    let text = text
        .replace("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.docker.image.rootfs.diff.tar.zstd")
        .replace("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
        .replace("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json");
    content.blobs.extend(zstd.blobs);
    let docker = content.add("application/vnd.docker.distribution.manifest.v2+json", text);
    crate::support::content::tag(&mut content, "docker", docker.digest);
    let registry = TestRegistry::start(content);
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("bake --platform linux/amd64 {}", registry.reference("app:docker"))).expect(0);
    let start = "check --platform linux/amd64 --would-start";
    let run = prebake(root.path(), &format!("{start} 1.7")).expect(6);
    assert!(run.stdout.contains("cannot unpack Docker's zstd layers"), "{run:?}");
    prebake(root.path(), &format!("{start} 2.0")).expect(0);
}

/// Gives an image an index that says something else of its platform.
fn say_of_platform(root: &Path, image: &str, from: &str, to: &str) {
    use prebake::bolt::Lock;
    use prebake::metadata::{self, Blob, Image, Labels, MetaDb, Wait};
    use prebake::oci::{Descriptor, Digest};
    let at = prebake::root::Root::new(root, prebake::root::CONTAINERD_ROOT);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let wait = Wait { timeout: std::time::Duration::ZERO, tell: &|_| {}, stop: &stop };
    let mut meta = MetaDb::lock(&at, Lock::Exclusive, &wait).unwrap();
    let rows = meta.read(|tx| metadata::images(tx, "k8s.io")).unwrap().unwrap();
    let target = rows.into_iter().flatten().find(|row| row.name == image).unwrap().target;
    let index = fs::read_to_string(blobs_dir(root).join(target.digest.hex())).unwrap();
    let index = index.replace(from, to);
    let digest = Digest::of(index.as_bytes());
    fs::write(blobs_dir(root).join(digest.hex()), &index).unwrap();
    let target = Descriptor::new(target.media_type, digest.clone(), index.len() as u64);
    let (labels, now) = (Labels::new(), chrono::Utc::now());
    let blob = Blob { digest: &digest, size: index.len() as u64, labels: &labels, source: None };
    meta.write(|tx| {
        metadata::put_blob(tx, "k8s.io", &blob, now)?;
        metadata::put_image(tx, "k8s.io", &Image { name: image, target: &target, labels: &labels }, now)
    })
    .unwrap();
}

#[test]
fn a_platform_that_index_and_config_see_differently() {
    let registry = TestRegistry::start(app());
    let root = tempfile::tempdir().unwrap();
    let image = registry.reference("app:1");
    prebake(root.path(), &format!("bake --platform linux/arm64 {image}")).expect(0);
    say_of_platform(root.path(), &image, "\"arm64\"", "\"s390x\"");
    let verdict = |release: &str| {
        let run = prebake(root.path(), &format!("check --platform linux/s390x --would-start {release} --json"));
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        let images = report["images"].as_array().unwrap();
        let found = images.iter().find(|one| one["image"] == image.as_str()).unwrap();
        format!("{}: {}", found["verdict"].as_str().unwrap(), found["why"].as_str().unwrap())
    };
    assert!(verdict("2.1").starts_with("unpacks: "), "{}", verdict("2.1"));
    assert!(verdict("2.2").contains("its index says linux/s390x and its config linux/arm64"), "{}", verdict("2.2"));
}

/// Where neither database nor catalog knows the images' names, what is theirs stays, and what to do is said.
#[test]
fn a_meta_db_beyond_reading_that_the_catalog_cannot_replace() {
    if !is_root() {
        return;
    }
    let registry = TestRegistry::start(demo());
    let root = baked(&registry, "--unpack --discard-layers");
    let before = blobs(root.path());
    fs::write(meta_db(root.path()), vec![7; 20_000]).unwrap();
    prebake(root.path(), "check").expect(6);
    let run = prebake(root.path(), "repair").expect(6);
    assert!(run.stderr.contains("`prebake bake` of them finds the blobs in place"), "{run:?}");
    assert_eq!(blobs(root.path()), before);
    registry.asked();
    let image = registry.reference("demo/zstd:1.0");
    prebake(root.path(), &format!("bake --platform linux/amd64 --unpack --discard-layers {image}")).expect(0);
    // The snapshots were kept as well: no layer is asked for.
    let asked = registry.asked();
    assert!(!asked.iter().any(|line| line.contains("/blobs/")), "{asked:#?}");
    prebake(root.path(), "check").expect(0);
}

/// Everything in a root: kind, mode, time and bytes.
fn everything(root: &Path) -> std::collections::BTreeMap<std::path::PathBuf, String> {
    use std::os::unix::fs::MetadataExt;
    let mut all = std::collections::BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            let digest = prebake::oci::Digest::of(&bytes);
            all.insert(path.clone(), format!("{:o} {} {digest}", meta.mode(), meta.uid()));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    all
}

#[test]
fn only_told_of_nothing_changes() {
    if !is_root() {
        return;
    }
    let registry = TestRegistry::start(demo());
    let root = baked(&registry, "--unpack");
    let sound = everything(root.path());
    prebake(root.path(), "check --snapshots").expect(0);
    prebake(root.path(), "repair --snapshots").expect(0);
    assert_eq!(everything(root.path()), sound, "what is sound is left alone");
    harm_a_layer(root.path());
    let snapshots = root.path().join("var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots");
    fs::write(snapshots.join("2/fs/bin/hello"), "x").unwrap();
    fs::remove_dir_all(snapshots.join("1")).unwrap();
    fs::create_dir(snapshots.join("99")).unwrap();
    let harmed = everything(root.path());
    prebake(root.path(), "repair --snapshots --dry-run").expect(6);
    assert_eq!(everything(root.path()), harmed);
}

/// A kill at any moment leaves what the next repair goes on with.
#[test]
fn killed_it_goes_on() {
    if !is_root() {
        return;
    }
    let registry = TestRegistry::start(demo());
    let base = baked(&registry, "--unpack");
    let dir = tempfile::tempdir().unwrap();
    let (mut killed, mut whole) = (0, Duration::ZERO);
    // The first one is not killed: it tells how long the others take.
    for turn in 0..=10 {
        let root = dir.path().join(turn.to_string());
        crate::support::campaign::copy(base.path(), &root);
        harm_a_layer(&root);
        let overlayfs = root.join("var/lib/containerd/io.containerd.snapshotter.v1.overlayfs");
        fs::write(overlayfs.join("snapshots/2/fs/bin/hello"), "x").unwrap();
        fs::remove_dir_all(overlayfs.join("snapshots/3")).unwrap();
        if turn % 2 == 0 {
            fs::remove_file(overlayfs.join("metadata.db")).unwrap();
        } else {
            let bytes = fs::read(meta_db(&root)).unwrap();
            fs::write(meta_db(&root), &bytes[..bytes.len() / 2]).unwrap();
        }
        if turn == 0 {
            let started = Instant::now();
            prebake(&root, "repair --snapshots").expect(0);
            whole = started.elapsed();
        } else {
            let mut child = crate::support::prebake::start(&root, "repair --snapshots");
            std::thread::sleep(whole * turn / 10);
            let _ = child.kill();
            killed += usize::from(!child.wait().unwrap().success());
        }
        prebake(&root, "repair --snapshots").expect(0);
        prebake(&root, "check --snapshots").expect(0);
    }
    assert!(killed >= 3, "{killed} of 10 were killed before their end");
}
