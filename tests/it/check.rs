//! `check` finds what is off.

use std::fs;
use std::path::Path;

use prebake::bolt::{Db, FileStorage, Lock, Tx};
use serde_json::Value;

use crate::support::content::demo;
use crate::support::prebake::{blobs, blobs_dir, meta_db, prebake};
use crate::support::registry::TestRegistry;

const V1: &[u8] = b"v1";
const K8S: &[u8] = b"k8s.io";

fn baked() -> tempfile::TempDir {
    let registry = TestRegistry::start(demo());
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("bake --platform linux/amd64 {}", registry.reference("demo/zstd:1.0"))).expect(0);
    root
}

/// The problems `check` finds.
#[track_caller]
fn problems(root: &Path) -> Vec<String> {
    let run = prebake(root, "check --json").expect(6);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| format!("{}: {}; {}", f["object"], f["problem"], f["consequence"]))
        .collect()
}

#[track_caller]
fn finds(root: &Path, words: &str) {
    let problems = problems(root);
    assert!(problems.iter().any(|problem| problem.contains(words)), "{words:?} is not in {problems:#?}");
    let run = prebake(root, "check").expect(6);
    assert!(run.stderr.contains(words) && run.stdout.contains(" problems: "), "{run:?}");
}

fn change(root: &Path, f: impl FnOnce(&mut Tx<'_>)) {
    let mut db = Db::open(Box::new(FileStorage::open(&meta_db(root), Lock::Exclusive).unwrap())).unwrap();
    let mut tx = db.begin().unwrap();
    f(&mut tx);
    tx.commit().unwrap();
}

fn largest(root: &Path) -> std::path::PathBuf {
    blobs_dir(root).join(blobs(root).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0)
}

#[test]
fn a_flipped_bit_in_a_blob() {
    let root = baked();
    let path = largest(root.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    finds(root.path(), "have the digest");
}

#[test]
fn a_missing_blob() {
    let root = baked();
    fs::remove_file(largest(root.path())).unwrap();
    finds(root.path(), "has a record and no file");
}

#[test]
fn a_truncated_blob() {
    let root = baked();
    let path = largest(root.path());
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    finds(root.path(), "has 0 bytes; its record says");
}

#[test]
fn a_stranger_among_the_blobs() {
    let root = baked();
    fs::write(blobs_dir(root.path()).join(".partial"), "").unwrap();
    finds(root.path(), "garbage collection stops at it");
}

#[test]
fn labels_that_keep_nothing() {
    let root = baked();
    let digests: Vec<String> = blobs(root.path()).into_keys().map(|hex| format!("sha256:{hex}")).collect();
    change(root.path(), |tx| {
        for digest in &digests {
            tx.delete(&[V1, K8S, b"content", b"blob", digest.as_bytes()], b"labels").unwrap();
        }
    });
    finds(root.path(), "nothing keeps sha256:");
}

#[test]
fn an_image_at_which_containerd_exits() {
    let root = baked();
    change(root.path(), |tx| {
        tx.create_bucket(&[V1, K8S, b"images", b"bad"]).unwrap();
        tx.put(&[V1, K8S, b"images"], b"plain", b"x").unwrap();
    });
    finds(root.path(), "without a target");
    finds(root.path(), "plain key among the images");
}

/// containerd unpacks again from the layers, if they are there.
#[test]
fn a_snapshot_that_does_not_exist() {
    let root = baked();
    let layer = format!("sha256:{}", largest(root.path()).file_name().unwrap().to_str().unwrap());
    let label = |tx: &mut Tx<'_>| {
        for (digest, _) in tx.list(&[V1, K8S, b"content", b"blob"]).unwrap().unwrap() {
            let labels: [&[u8]; 6] = [V1, K8S, b"content", b"blob", &digest, b"labels"];
            tx.put(&labels, b"containerd.io/gc.ref.snapshot.overlayfs", b"sha256:x").unwrap();
        }
    };
    change(root.path(), label);
    let run = prebake(root.path(), "check").expect(0);
    assert!(run.stderr.contains("warning: ") && run.stderr.contains("snapshot that does not exist"), "{}", run.stderr);
    fs::remove_file(largest(root.path())).unwrap();
    change(root.path(), |tx| assert!(tx.delete(&[V1, K8S, b"content", b"blob"], layer.as_bytes()).unwrap()));
    finds(root.path(), &format!("{layer} is missing"));
}

#[test]
fn a_record_that_is_gone() {
    let root = baked();
    let hex = largest(root.path()).file_name().unwrap().to_str().unwrap().to_owned();
    change(root.path(), |tx| {
        assert!(tx.delete(&[V1, K8S, b"content", b"blob"], format!("sha256:{hex}").as_bytes()).unwrap());
    });
    finds(root.path(), &format!("sha256:{hex} has no record"));
}

#[test]
fn a_damaged_database() {
    let root = baked();
    let mut bytes = fs::read(meta_db(root.path())).unwrap();
    let good = bytes.clone();
    bytes[..8192].fill(0xff);
    fs::write(meta_db(root.path()), &bytes).unwrap();
    finds(root.path(), "not a bbolt database");
    bytes = good;
    let len = bytes.len();
    bytes[2 * 4096..len].fill(0);
    fs::write(meta_db(root.path()), &bytes).unwrap();
    finds(root.path(), "meta.db");
    prebake(root.path(), "images").expect(6);
}
