//! What prebake bakes, judged by real containerd.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::prebake::oci::{Digest, media_type};
use serde_json::{Value, json};

use crate::cri;
use crate::peers::{self, Containerd, RELEASES, Registry, Tmpfs, run};
use crate::support::content::demo;
use crate::support::prebake::{blobs, containerd_root, prebake, records};

const LINE: &str = "hello from an image that prebake baked";

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// An image of real content that runs `command`: the debootstrap tree as gzip, zstd and plain layers.
pub fn push_debian(registry: &Registry, work: &Path, name: &str, command: &[&str]) -> String {
    let dir = work.join(name.replace(['/', ':'], "-"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    let add = |kind: &str, bytes: &[u8], name: Option<&str>| -> Value {
        let digest = Digest::of(bytes);
        fs::write(dir.join(name.unwrap_or(digest.hex())), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for (i, (command, suffix)) in [("gzip -1", "+gzip"), ("zstd -q", "+zstd"), ("cat", "")].into_iter().enumerate() {
        let tar = peers::dir().join(format!("debian/layer{i}.tar"));
        let packed = work.join("packed");
        run(Command::new("sh").args(["-c", &format!("{command} <{} >{}", tar.display(), packed.display())]));
        diff_ids.push(Digest::of(&fs::read(tar).unwrap()));
        layers.push(add(&format!("{}{suffix}", media_type::OCI_LAYER), &fs::read(packed).unwrap(), None));
    }
    let size: u64 = layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    assert!(size > 80 << 20, "the real image has only {size} bytes");
    let arch = run(Command::new("dpkg").arg("--print-architecture"));
    let config = json!({"architecture": arch.trim(), "os": "linux", "config": {"Cmd": command, "Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = add(media_type::OCI_CONFIG, config.to_string().as_bytes(), None);
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers});
    add(media_type::OCI_MANIFEST, manifest.to_string().as_bytes(), Some("manifest.json"));
    let reference = format!("{}/{name}", registry.name());
    Registry::push_dir(&dir, &reference);
    reference
}

/// What `prebake images --json` says, by name.
pub fn listed(root: &Path) -> BTreeMap<String, Value> {
    let run = prebake(root, "images --json").expect(0);
    run.stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|row| (row["name"].as_str().unwrap().to_owned(), row))
        .collect()
}

/// `ctr`'s way to print a size, to the precision it prints.
fn same_size(printed: &str, bytes: u64) -> bool {
    let (number, unit) = printed.split_once(' ').unwrap();
    let factor = ["B", "KiB", "MiB", "GiB"]
        .iter()
        .position(|u| *u == unit)
        .map(|power| 1024f64.powi(i32::try_from(power).unwrap()));
    #[allow(clippy::cast_precision_loss)]
    let exact = bytes as f64 / factor.unwrap();
    (number.parse::<f64>().unwrap() - exact).abs() <= 0.051
}

/// Everything that must hold of a containerd that started on a baked root.
pub fn everything_is_there(containerd: &Containerd, images: &BTreeMap<String, Value>, blobs: &BTreeSet<String>) {
    // ctr images ls: REF TYPE DIGEST SIZE PLATFORMS LABELS
    let table = containerd.ctr("images ls");
    let rows: BTreeMap<String, Vec<String>> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .map(|row| (row[0].clone(), row))
        .collect();
    assert_eq!(rows.keys().collect::<Vec<_>>(), images.keys().collect::<Vec<_>>());
    for (name, image) in images {
        let row = &rows[name];
        assert_eq!(row[2], image["digest"].as_str().unwrap(), "{name}");
        assert!(
            same_size(&format!("{} {}", row[3], row[4]), image["size"].as_u64().unwrap()),
            "{name}: {row:?} {image}"
        );
        assert!(row.last().unwrap().contains("io.cri-containerd.image=managed"), "{row:?}");
    }
    // ctr images check: REF TYPE DIGEST STATUS (n/n) SIZE/SIZE UNPACKED
    for row in containerd.ctr("images check").lines().skip(1) {
        assert!(row.contains(" complete ("), "{row}");
    }
    // CRI knows every image by tag, digest and id.
    let cri = cri::list_images(&containerd.socket());
    for image in images.values() {
        let name = image["name"].as_str().unwrap();
        let found = cri.iter().any(|known| {
            known.id == name
                || known.tags.iter().any(|tag| tag == name)
                || known.digests.iter().any(|digest| digest == name)
        });
        assert!(found, "CRI does not list {name}: {cri:#?}");
    }
    for known in cri.iter().filter(|known| !known.tags.iter().any(|tag| tag.contains("/chart:"))) {
        let image = &images[&known.id];
        assert!(known.size > 0 && known.size <= image["size"].as_u64().unwrap(), "{known:?} {image}");
        assert_eq!(known.tags.len(), 1, "{known:?}");
        assert_eq!(known.digests.len(), 1, "{known:?}");
    }
    let content: BTreeSet<String> =
        containerd.ctr("content ls -q").lines().map(|line| line.trim_start_matches("sha256:").to_owned()).collect();
    assert_eq!(content, *blobs);
}

#[test]
fn three_releases_start_on_a_baked_root() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let mut references = registry.push(&demo());
    let debian = push_debian(&registry, dir.path(), "real/debian:12", &["/bin/sh"]);
    let baked = dir.path().join("baked");
    prebake(&baked, &format!("bake {}", references.join(" "))).expect(0);
    prebake(&baked, &format!("bake --pin {debian}")).expect(0);
    references.push(debian.clone());
    prebake(&baked, "check").expect(0);
    let images = listed(&baked);
    assert_eq!(images.len(), 3 * references.len());
    let all: BTreeSet<String> = blobs(&baked).into_keys().collect();

    for release in RELEASES {
        let root = dir.path().join(format!("root-{release}"));
        copy(&baked, &root);
        let mut containerd = Containerd::start(release, &containerd_root(&root), &dir.path().join(release));
        everything_is_there(&containerd, &images, &all);
        for name in ["hello", "docker", "zstd", "plain"] {
            // containerd 1.6 cannot read a layer of Docker's zstd type; all of these are OCI's or gzip.
            let output = containerd.run(&format!("{}/demo/{name}:1.0", registry.name()), name, &[]);
            assert_eq!(output.trim(), LINE, "{release} {name}");
        }
        let output =
            containerd.run(&format!("{}/real/debian:12", registry.name()), "real", &["cat", "/etc/debian_version"]);
        assert!(output.starts_with("12."), "{release}: {output}");
        let busy = prebake(&root, &format!("bake {}", references[0])).expect(5);
        assert!(busy.stderr.contains("is locked by containerd (pid "), "{}", busy.stderr);
        // 1.6.20 knows no pins.
        let pinned: Vec<String> =
            cri::list_images(&containerd.socket()).into_iter().filter(|i| i.pinned).flat_map(|i| i.tags).collect();
        assert_eq!(pinned, if release == "1.6.20" { vec![] } else { vec![debian.clone()] }, "{release}");
        containerd.collect_garbage();
        everything_is_there(&containerd, &images, &all);
        containerd.restart();
        containerd.collect_garbage();
        everything_is_there(&containerd, &images, &all);
        exports(&containerd, &registry, &images, &dir.path().join(format!("export-{release}")));
        assert!(!containerd.log().contains("level=fatal"));
        containerd.stop();
        prebake(&root, "check").expect(0);
    }
}

/// What containerd exports has the digests that were baked; skopeo reads it.
fn exports(containerd: &Containerd, registry: &Registry, images: &BTreeMap<String, Value>, work: &Path) {
    fs::create_dir_all(work).unwrap();
    for name in ["real/debian:12", "demo/hello:1.0"] {
        let reference = format!("{}/{name}", registry.name());
        let tar = work.join("image.tar");
        run(containerd.ctr_command().args(["images", "export"]).arg(&tar).arg(&reference));
        let layout = work.join(name.replace(['/', ':'], "-"));
        fs::create_dir_all(&layout).unwrap();
        run(Command::new("tar").arg("-C").arg(&layout).arg("-xf").arg(&tar));
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], images[&reference]["digest"], "{name}");
        let copied = work.join("copied");
        let _ = fs::remove_dir_all(&copied);
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--preserve-digests"])
            .args([format!("oci:{}", layout.display()), format!("dir:{}", copied.display())]));
        let manifest = run(Command::new("skopeo").args(["manifest-digest"]).arg(copied.join("manifest.json")));
        let blob: PathBuf = layout.join("blobs/sha256").join(manifest.trim().trim_start_matches("sha256:"));
        assert!(blob.exists(), "{name}: {manifest}");
    }
}

/// Records that only unpacking makes; a fetched image gets them when a container first needs it.
fn made_by_unpacking(line: &str) -> bool {
    let unpacked = ["> snapshots", "containerd.io/uncompressed = ", "containerd.io/gc.ref.snapshot.overlayfs = "];
    // Left behind empty by the pull itself.
    let transient = ["k8s.io > leases [", "k8s.io > content > ingests ["];
    unpacked.iter().chain(&transient).any(|part| line.contains(part))
}

#[test]
fn the_same_blobs_and_records_as_a_cri_pull() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let content = demo();
    let mut references: Vec<String> =
        registry.push(&content).into_iter().filter(|reference| !reference.contains("/chart:")).collect();
    // A pull by digest leaves no record by tag.
    let docker = &content.tags[&("demo/docker".to_owned(), "1.0".to_owned())];
    references.retain(|reference| !reference.contains("/docker:"));
    references.push(format!("{}/demo/docker@{docker}", registry.name()));
    // One image a root: where images share a layer, CRI passes over the second one's blob once the first is unpacked.
    for (i, reference) in references.iter().enumerate() {
        let baked = dir.path().join(format!("baked-{i}"));
        prebake(&baked, &format!("bake {reference}")).expect(0);
        for release in RELEASES {
            let work = dir.path().join(format!("{release}-{i}"));
            let pulled = work.join("root");
            let mut containerd = Containerd::start(release, &containerd_root(&pulled), &work);
            cri::pull_image(&containerd.socket(), reference)
                .unwrap_or_else(|error| panic!("{release}: {error}\n{}", containerd.log()));
            containerd.stop();
            assert_eq!(
                blobs(&pulled).keys().collect::<Vec<_>>(),
                blobs(&baked).keys().collect::<Vec<_>>(),
                "{release} {reference}"
            );
            assert!(blobs(&pulled) == blobs(&baked), "{release} {reference}: blobs differ in their bytes");
            let compared = |root: &Path| -> Vec<String> {
                records(root)
                    .into_iter()
                    .filter(|line| !line.starts_with("v1 > version") && !made_by_unpacking(line))
                    .collect()
            };
            let (ours, theirs) = (compared(&baked), compared(&pulled));
            assert!(ours.len() > 20);
            let only =
                |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
            let (ours, theirs) = (only(&ours, &theirs), only(&theirs, &ours));
            assert!(ours.is_empty() && theirs.is_empty(), "{release}: only ours: {ours:#?}\nonly theirs: {theirs:#?}");
        }
    }
}

#[test]
fn memory_stays_flat() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let reference = push_debian(&registry, dir.path(), "real/debian:12", &["/bin/sh"]);
    let mut measured = Command::new("/usr/bin/time");
    measured.args(["-f", "%M", env!("CARGO_BIN_EXE_prebake"), "bake", "--quiet", "--root"]);
    let output = measured.arg(dir.path().join("root")).arg(&reference).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let kib: u64 = stderr.trim().parse().unwrap();
    assert!(kib <= 64 << 10, "{kib} KiB at the peak");
}

#[test]
fn a_full_disk_costs_nothing_and_the_next_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let references = registry.push(&demo());
    let find = |name: &str| references.iter().find(|reference| reference.contains(name)).unwrap();
    let root = Tmpfs::mount(dir.path().join("small"), "size=2m");
    let hello = format!("bake {}", find("/hello:"));
    prebake(&root.0, &hello).expect(0);
    let before = records(&root.0);
    // Its largest layer does not fit.
    let run = prebake(&root.0, &format!("bake {}", find("/docker:"))).expect(7);
    assert!(run.stderr.contains(" are free; free some, or try with --ignore-space"), "{}", run.stderr);
    let run = prebake(&root.0, &format!("bake --ignore-space {}", find("/docker:"))).expect(7);
    assert!(run.stderr.lines().last().unwrap().contains("No space left on device"), "{}", run.stderr);
    prebake(&root.0, "check").expect(0);
    assert_eq!(records(&root.0), before);
    let resize = |size: &str| {
        peers::run(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&root.0));
    };
    // The blobs fit and the records do not.
    resize("16m");
    prebake(&root.0, &format!("fetch {}", find("/zstd:"))).expect(0);
    let used = peers::run(Command::new("df").args(["--output=used", "-k"]).arg(&root.0));
    resize(&format!("{}k", used.lines().nth(1).unwrap().trim()));
    let run = prebake(&root.0, "bootstrap").expect(7);
    assert!(run.stderr.contains("meta.db: ") && run.stderr.contains("No space left on device"), "{}", run.stderr);
    assert_eq!(records(&root.0), before);
    resize("16m");
    prebake(&root.0, "bootstrap").expect(0);
    prebake(&root.0, &format!("bake {}", find("/docker:"))).expect(0);
    prebake(&root.0, "check").expect(0);
}

#[test]
fn the_program_for_arm64_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("program");
    fs::write(&file, ::prebake::fixture::program("arm64", LINE).unwrap()).unwrap();
    run(Command::new("chmod").arg("755").arg(&file));
    assert_eq!(run(Command::new("qemu-aarch64").arg(&file)).trim(), LINE);
}
