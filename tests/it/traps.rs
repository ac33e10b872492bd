//! What would make containerd fail, recognised: each malformation of a snapshotter's state and of the records beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use prebake::bolt::{Db, FileStorage, FreelistForm, Lock, Tx};
use prebake::metadata::{self, Image, Labels, MetaDb, Wait, labels::MAX_LABEL};
use prebake::oci::{Descriptor, Digest, media_type};
use prebake::root::{CONTAINERD_ROOT, Root};
use serde_json::Value;

use crate::support::prebake::{containerd_root, meta_db, prebake, records};

const SNAPSHOTS: [&[u8]; 2] = [b"v1", b"snapshots"];

fn overlayfs(root: &Path) -> PathBuf {
    containerd_root(root).join("io.containerd.snapshotter.v1.overlayfs")
}

/// The key of a link from a parent to its child.
fn link(parent: u8, child: u8) -> [u8; 3] {
    [parent, 0, child]
}

/// A root with two committed snapshots, one on the other, as containerd leaves them.
fn unpacked() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), "bootstrap").expect(0);
    for id in ["1", "2"] {
        fs::create_dir_all(overlayfs(root.path()).join("snapshots").join(id).join("fs")).unwrap();
    }
    for dir in ["", "snapshots"] {
        fs::set_permissions(overlayfs(root.path()).join(dir), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let file = FileStorage::create(&overlayfs(root.path()).join("metadata.db"), 0o600).unwrap();
    drop(Db::create(Box::new(file), FreelistForm::Persisted).unwrap());
    change(&overlayfs(root.path()).join("metadata.db"), |tx| {
        tx.set_sequence(&SNAPSHOTS, 2).unwrap();
        tx.put(&[b"v1", b"parents"], &link(1, 2), b"k8s.io/4/b").unwrap();
        for (name, id, parent) in [("k8s.io/2/a", 1, ""), ("k8s.io/4/b", 2, "k8s.io/2/a")] {
            let path = [SNAPSHOTS[0], SNAPSHOTS[1], name.as_bytes()];
            tx.put(&path, b"id", &[id]).unwrap();
            tx.put(&path, b"kind", &[3]).unwrap();
            if !parent.is_empty() {
                tx.put(&path, b"parent", parent.as_bytes()).unwrap();
            }
        }
    });
    change(&meta_db(root.path()), |tx| {
        for (key, name, parent) in [("a", "k8s.io/2/a", ""), ("b", "k8s.io/4/b", "a")] {
            let path: [&[u8]; 5] = [b"v1", b"k8s.io", b"snapshots", b"overlayfs", key.as_bytes()];
            tx.put(&path, b"name", name.as_bytes()).unwrap();
            tx.put(&path, b"parent", parent.as_bytes()).unwrap();
        }
        let owner: [&[u8]; 4] = [b"v1", b"k8s.io", b"snapshots", b"overlayfs"];
        tx.put(&[&owner[..], &[b"a", b"children"]].concat(), b"b", b"").unwrap();
        tx.set_sequence(&owner, 4).unwrap();
    });
    prebake(root.path(), "check").expect(0);
    root
}

fn change(db: &Path, f: impl FnOnce(&mut Tx<'_>)) {
    let mut db = Db::open(Box::new(FileStorage::open(db, Lock::Exclusive).unwrap())).unwrap();
    let mut tx = db.begin().unwrap();
    f(&mut tx);
    tx.commit().unwrap();
}

/// Does something to an unpacked root; `check` must then say these words, as an error or as a warning.
#[track_caller]
fn finds(severity: &str, words: &str, harm: impl FnOnce(&Path, &Path)) {
    let root = unpacked();
    harm(root.path(), &overlayfs(root.path()));
    let run = prebake(root.path(), "check --json");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let found = report["findings"].as_array().unwrap();
    assert_eq!(run.code, if found.iter().any(|finding| finding["severity"] == "error") { 6 } else { 0 });
    let remedied = |f: &&Value| f["remedy"].as_str() == Some("prebake repair");
    assert!(severity == "warning" || found.iter().any(|f| remedied(&f)), "{}", run.stdout);
    let found = found.iter().filter(|finding| finding["severity"] == severity);
    let text = |f: &Value| {
        let words = ["object", "problem", "consequence"].map(|key| f[key].as_str().unwrap());
        format!("{}: {}; {}", words[0], words[1], words[2])
    };
    let texts: Vec<String> = found.map(text).collect();
    assert!(texts.iter().any(|text| text.contains(words)), "{words:?} is not in {texts:#?}, {}", run.stdout);
}

#[test]
fn of_the_snapshotters_database() {
    let db = |dir: &Path| dir.join("metadata.db");
    let row = |name: &'static [u8]| [SNAPSHOTS[0], SNAPSHOTS[1], name];
    finds("error", "fails to make new snapshots, and deletes those in its way", |_, dir| {
        change(&db(dir), |tx| tx.set_sequence(&SNAPSHOTS, 1).unwrap());
    });
    finds("error", "gave out ids up to 2, and 77 is in use", |_, dir| {
        fs::create_dir(dir.join("snapshots/77")).unwrap();
    });
    finds("error", "has no records of 2 directories and 2 snapshots in meta.db", |_, dir| {
        fs::remove_file(db(dir)).unwrap();
    });
    finds("error", "has no records of 2 directories", |_, dir| {
        change(&db(dir), |tx| assert!(tx.delete(&[], b"v1").unwrap()));
    });
    finds("error", "crashes at its first garbage collection", |_, dir| {
        change(&db(dir), |tx| assert!(tx.delete(&[b"v1"], b"snapshots").unwrap()));
    });
    finds("error", "would remove the parent under it", |_, dir| {
        change(&db(dir), |tx| assert!(tx.delete(&[b"v1"], b"parents").unwrap()));
    });
    finds("error", "has no directory snapshots/2", |_, dir| fs::remove_dir_all(dir.join("snapshots/2")).unwrap());
    finds("error", "has the id 1 of another", |_, dir| {
        change(&db(dir), |tx| tx.put(&row(b"k8s.io/4/b"), b"id", &[1]).unwrap());
    });
    finds("error", "has no valid id and kind", |_, dir| {
        change(&db(dir), |tx| tx.put(&row(b"k8s.io/4/b"), b"kind", &[9]).unwrap());
    });
    finds("error", "has a parent that does not exist: gone", |_, dir| {
        change(&db(dir), |tx| tx.put(&row(b"k8s.io/4/b"), b"parent", b"gone").unwrap());
    });
    finds("error", "is in meta.db and not in metadata.db", |_, dir| {
        change(&db(dir), |tx| assert!(tx.delete(&SNAPSHOTS, b"k8s.io/4/b").unwrap()));
    });
    finds("error", "overlayfs/metadata.db: page ", |_, dir| {
        let mut bytes = fs::read(db(dir)).unwrap();
        for page in (2..bytes.len() / 4096).map(|page| page * 4096) {
            bytes[page + 8..page + 10].fill(0xff);
        }
        fs::write(db(dir), bytes).unwrap();
    });
    finds("error", "overlayfs/metadata.db: ", |_, dir| fs::write(db(dir), "").unwrap());
    finds("error", "containerd fails to use the snapshotter", |_, dir| fs::write(db(dir), vec![1; 20_000]).unwrap());
    finds("error", "overlayfs: has nothing of the 2 snapshots in meta.db", |_, dir| fs::remove_dir_all(dir).unwrap());
    finds("warning", "(pid", |_, dir| {
        let file = fs::File::open(db(dir)).unwrap();
        file.lock().unwrap();
        // Open as long as the test runs.
        std::mem::forget(file);
    });
    finds("warning", "snapshots/new-123: has no record", |_, dir| {
        fs::create_dir(dir.join("snapshots/new-123")).unwrap();
    });
    finds("warning", "is in metadata.db and not in meta.db", |root, _| {
        change(&meta_db(root), |tx| {
            assert!(tx.delete(&[b"v1", b"k8s.io", b"snapshots", b"overlayfs"], b"b").unwrap());
        });
    });
}

#[test]
fn of_the_records() {
    let name: &[u8] = b"example.org/a:1";
    let image: [&[u8]; 4] = [b"v1", b"k8s.io", b"images", name];
    let target: [&[u8]; 5] = [b"v1", b"k8s.io", b"images", name, b"target"];
    let put_image = |tx: &mut Tx<'_>| {
        tx.put(&target, b"digest", Digest::of(b"").as_str().as_bytes()).unwrap();
        tx.put(&target, b"mediatype", media_type::OCI_MANIFEST.as_bytes()).unwrap();
        tx.put(&target, b"size", &[8]).unwrap();
    };
    finds("error", "is missing", |root, _| change(&meta_db(root), put_image));
    finds("error", "at which containerd exits", |root, _| {
        change(&meta_db(root), |tx| tx.create_bucket(&image).unwrap());
    });
    finds("error", "at which containerd panics", |root, _| {
        change(&meta_db(root), |tx| tx.put(&image[..3], b"plain", b"key").unwrap());
    });
    finds("error", "a bucket where a value is expected", |root, _| {
        change(&meta_db(root), |tx| {
            put_image(tx);
            tx.delete(&target, b"size").unwrap();
            tx.create_bucket(&[target[0], target[1], target[2], name, b"target", b"size"]).unwrap();
        });
    });
    finds("error", "so long that containerd refuses every update", |root, _| {
        change(&meta_db(root), |tx| {
            put_image(tx);
            tx.put(&[image[0], image[1], image[2], name, b"labels"], b"key", &vec![b'x'; MAX_LABEL]).unwrap();
        });
    });
    finds("error", "has no name, media type or size", |root, _| {
        change(&meta_db(root), |tx| {
            put_image(tx);
            tx.put(&target, b"size", &[0]).unwrap();
        });
    });
    finds("warning", "is the same snapshot as", |root, _| {
        change(&meta_db(root), |tx| {
            tx.put(&[b"v1", b"k8s.io", b"snapshots", b"overlayfs", b"b"], b"name", b"k8s.io/2/a").unwrap();
        });
    });
    finds("warning", "in meta.db elsewhere; not looked at", |root, _| {
        change(&meta_db(root), |tx| tx.put(&[b"v1", b"k8s.io", b"snapshots", b"stargz", b"a"], b"name", b"x").unwrap());
    });
    finds("warning", "containerd 2 deletes it", |root, _| {
        change(&meta_db(root), |tx| tx.put(&[b"other"], b"key", b"value").unwrap());
    });
    finds("warning", "no name containerd accepts for a namespace", |root, _| {
        change(&meta_db(root), |tx| tx.create_bucket(&[b"v1", b"two words"]).unwrap());
    });
    // containerd 1.7 keeps its sandboxes beside the rest.
    let root = unpacked();
    change(&meta_db(root.path()), |tx| tx.create_bucket(&[b"k8s.io", b"sandboxes"]).unwrap());
    assert!(!prebake(root.path(), "check").expect(0).stdout.contains("warnings"));
}

#[test]
fn what_containerd_would_refuse_is_never_written() {
    let root = unpacked();
    let before = records(root.path());
    for namespace in ["", "two words", "-a", "version", &"x".repeat(77)] {
        let mut bake = crate::support::prebake::command();
        bake.args(["bake", "localhost:1/a", "--root"]).arg(root.path()).args(["--namespace", namespace]);
        assert_eq!(bake.output().unwrap().status.code(), Some(2), "{namespace:?}");
        let at = Root::new(root.path(), CONTAINERD_ROOT);
        let error = prebake::bake::bootstrap(&at, namespace, None, &(), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("bad namespace"), "{error}");
    }
    let wait = Wait { timeout: Duration::ZERO, tell: &|_| {}, stop: &AtomicBool::new(false) };
    let mut meta = MetaDb::lock(&Root::new(root.path(), CONTAINERD_ROOT), Lock::Exclusive, &wait).unwrap();
    let target = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(b""), 1);
    let labels = Labels::from([("key".to_owned(), "x".repeat(MAX_LABEL - 2))]);
    let image = Image { name: "example.org/a:1", target: &target, labels: &labels };
    let now = chrono::Utc::now();
    let error = meta.write(|tx| metadata::put_image(tx, "k8s.io", &image, now)).unwrap_err();
    assert!(error.to_string().contains("more than 4096 bytes"), "{error}");
    drop(meta);
    assert_eq!(records(root.path()), before);
}
