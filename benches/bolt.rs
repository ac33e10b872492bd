//! Metadata at scale: 10,000 images with 60,000 blobs. `cargo bench --bench bolt [IMAGES]` prints a table.
//!
//! Beside it, the real bbolt does the same puts in one transaction, where `tests/setup` has put its oracle.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use prebake::bolt::Lock;
use prebake::bootstrap::offline;
use prebake::catalog::{Catalog, ImageBlob, ImageRecord};
use prebake::content::Store;
use prebake::metadata::{K8S_NAMESPACE, MetaDb, Wait, labels};
use prebake::oci::{Descriptor, Digest, media_type};
use prebake::root::{CONTAINERD_ROOT, Root};
use prebake::times::Times;

/// Blobs of an image besides its manifest and config.
const LAYERS: usize = 4;

fn put(dir: &Path, kind: &str, bytes: &[u8]) -> Descriptor {
    let digest = Digest::of(bytes);
    fs::write(dir.join(digest.hex()), bytes).unwrap();
    Descriptor::new(kind, digest, bytes.len() as u64)
}

fn image(blobs: &Path, n: usize) -> ImageRecord {
    let config =
        put(blobs, media_type::OCI_CONFIG, format!(r#"{{"os":"linux","architecture":"amd64","n":{n}}}"#).as_bytes());
    let layer = |i| put(blobs, &format!("{}+gzip", media_type::OCI_LAYER), format!("layer {i} of {n}").as_bytes());
    let layers: Vec<Descriptor> = (0..LAYERS).map(layer).collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let target = put(blobs, media_type::OCI_MANIFEST, manifest.as_bytes());
    let children: Vec<Descriptor> = std::iter::once(config.clone()).chain(layers).collect();
    let parent = ImageBlob { children: labels::children(&children), descriptor: target.clone() };
    let rest = children.into_iter().map(|descriptor| ImageBlob { descriptor, children: Vec::new() });
    ImageRecord {
        name: format!("registry.example/team{}/app{n}:1.0", n % 50),
        created: None,
        aliases: vec![format!("registry.example/team{}/app{n}@{}", n % 50, target.digest), config.digest.to_string()],
        target,
        names: Vec::new(),
        labels: BTreeMap::new(),
        pinned: false,
        blobs: std::iter::once(parent).chain(rest).collect(),
        source: Some(("registry.example".to_owned(), format!("team{}/app{n}", n % 50))),
    }
}

/// Wall time and peak memory in MiB of a `prebake` command.
fn prebake(root: &Path, command: &str) -> (Duration, u64) {
    let started = Instant::now();
    let mut timed = Command::new("/usr/bin/time");
    timed.args(["-f", "%M", env!("CARGO_BIN_EXE_prebake"), command, "--root"]).arg(root).args(["--json"]);
    let output = timed.stdout(Stdio::null()).output().unwrap();
    let elapsed = started.elapsed();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    (elapsed, text.trim().parse::<u64>().unwrap() / 1024)
}

fn bbolt(dir: &Path, images: usize) -> Option<Duration> {
    let oracle = std::env::var_os("PREBAKE_PEERS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/peers"), PathBuf::from)
        .join("bbolt-oracle");
    let mut process = Command::new(oracle).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let started = Instant::now();
    writeln!(process.stdin.take()?, "puts {} {images}", dir.join("bbolt.db").display()).unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ok");
    Some(started.elapsed())
}

fn main() {
    let images: usize = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(10_000);
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path().join("root"), CONTAINERD_ROOT);
    Store::create(&root).unwrap();
    let blobs = dir.path().join("root").join(CONTAINERD_ROOT).join("io.containerd.content.v1.content/blobs/sha256");
    let records: Vec<ImageRecord> = (0..images).map(|n| image(&blobs, n)).collect();
    let catalog = Catalog::open(&root.make_state_dir().unwrap()).unwrap();
    catalog.record(K8S_NAMESPACE, &records, &[]).unwrap();
    catalog.save().unwrap();
    drop(records);
    assert!(Command::new("sync").status().unwrap().success());

    println!("| {images} images, {} blobs | time | peak MiB |\n|---|---|---|", images * (LAYERS + 2));
    let row = |what: &str, (time, memory): (Duration, u64)| println!("| {what} | {} ms | {memory} |", time.as_millis());
    row("prebake bootstrap, into an empty root", prebake(&dir.path().join("root"), "bootstrap"));
    let one = image(&blobs, images);
    let store = Store::open(&root).unwrap();
    for _ in 0..3 {
        let started = Instant::now();
        let wait = Wait { timeout: Duration::ZERO, tell: &|_| {}, stop: &AtomicBool::new(false) };
        let mut meta = MetaDb::lock(&root, Lock::Exclusive, &wait).unwrap();
        let one = [offline::ready(&store, K8S_NAMESPACE, one.clone()).unwrap()];
        offline::bootstrap(&mut meta, &one, &Times::new(None)).unwrap();
        println!("| one more image: lock, open, commit | {} ms | |", started.elapsed().as_millis());
    }
    row("prebake images", prebake(&dir.path().join("root"), "images"));
    match bbolt(dir.path(), images) {
        Some(time) => println!("| bbolt 1.3.6, the same puts in one transaction | {} ms | |", time.as_millis()),
        None => println!("| bbolt | not set up: run tests/setup | |"),
    }
}
