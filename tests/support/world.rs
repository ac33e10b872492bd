//! Roots made record by record, as containerd would have them: small, and with anything in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ::prebake::bolt::{Db, FileStorage, Lock, Tx};
use ::prebake::metadata::{
    self, Blob, Committed, Image, Labels, MetaDb, Snapshot, SnapshotterDb, Wait, put_blob, put_image, put_snapshot,
};
use ::prebake::oci::{Descriptor, Digest, media_type};
use ::prebake::root::{CONTAINERD_ROOT, Root};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::prebake::{blobs_dir, containerd_root, meta_db};

/// Labels from pairs.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A root to be filled.
pub struct World {
    root: PathBuf,
    /// What is to be written into meta.db, in order.
    writes: Vec<Write>,
    snapshots: BTreeMap<String, Vec<Committed>>,
    kinds: BTreeMap<String, u8>,
    ids: BTreeMap<(String, String), u64>,
}

/// What an image consists of.
pub struct Unpacked {
    pub target: Descriptor,
    pub config: Digest,
    pub chain: Digest,
}

type Write = Box<dyn FnOnce(&mut Tx<'_>)>;

/// A time so many hours from now, as labels have it.
pub fn hours(from_now: i64) -> String {
    (Utc::now() + TimeDelta::hours(from_now)).to_rfc3339()
}

/// Go's binary form of a time in UTC.
fn go_time(at: DateTime<Utc>) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend((at.timestamp() + 62_135_596_800).to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0xff, 0xff]);
    bytes
}

impl World {
    pub fn new(root: &Path) -> Self {
        let (writes, snapshots, kinds, ids) = Default::default();
        Self { root: root.to_owned(), writes, snapshots, kinds, ids }
    }

    fn write(&mut self, write: impl FnOnce(&mut Tx<'_>) + 'static) {
        self.writes.push(Box::new(write));
    }

    /// A value at a path.
    pub fn put(&mut self, path: &[&str], key: &str, value: &[u8]) {
        let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
        let (key, value) = (key.to_owned(), value.to_owned());
        self.write(move |tx| {
            let path: Vec<&[u8]> = path.iter().map(String::as_bytes).collect();
            tx.put(&path, key.as_bytes(), &value).unwrap();
        });
    }

    fn put_labels(&mut self, path: &[&str], labels: &Labels) {
        for (key, value) in labels {
            self.put(&[path, &["labels"]].concat(), key, value.as_bytes());
        }
    }

    /// The file of a blob with these bytes.
    pub fn file(&self, bytes: &str) -> Digest {
        let digest = Digest::of(bytes.as_bytes());
        fs::create_dir_all(blobs_dir(&self.root)).unwrap();
        fs::write(blobs_dir(&self.root).join(digest.hex()), bytes).unwrap();
        digest
    }

    /// A blob with these bytes, and its file.
    pub fn blob(&mut self, namespace: &str, bytes: &str, labels: &Labels) -> Digest {
        let digest = self.file(bytes);
        let (namespace, own, labels, size) = (namespace.to_owned(), digest.clone(), labels.clone(), bytes.len() as u64);
        self.write(move |tx| {
            let blob = Blob { digest: &own, size, labels: &labels, source: None };
            put_blob(tx, &namespace, &blob, Utc::now()).unwrap();
        });
        digest
    }

    /// An image record.
    pub fn name(&mut self, namespace: &str, name: &str, target: &Descriptor, labels: &Labels) {
        let (namespace, name, target, labels) = (namespace.to_owned(), name.to_owned(), target.clone(), labels.clone());
        self.write(move |tx| {
            let image = Image { name: &name, target: &target, labels: &labels };
            put_image(tx, &namespace, &image, Utc::now() - TimeDelta::hours(48)).unwrap();
        });
    }

    /// A whole image of one layer, unpacked, all of it named after `seed`.
    pub fn image(&mut self, namespace: &str, seed: &str) -> Unpacked {
        let layer = self.blob(namespace, &format!("layer of {seed}"), &Labels::new());
        let diff_id = Digest::of(format!("archive of {seed}").as_bytes());
        let text = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": {"seed": seed}},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
        let snapshot = [("containerd.io/gc.ref.snapshot.overlayfs", diff_id.as_str())];
        let config = self.blob(namespace, &text.to_string(), &labels(&snapshot));
        let descriptor =
            |kind: &str, digest: &Digest, size: usize| json!({"mediaType": kind, "digest": digest, "size": size});
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG, &config, text.to_string().len()),
            "layers": [descriptor(media_type::OCI_LAYER, &layer, format!("layer of {seed}").len())]})
        .to_string();
        let children = [
            ("containerd.io/gc.ref.content.config", config.as_str()),
            ("containerd.io/gc.ref.content.l.0", layer.as_str()),
        ];
        let digest = self.blob(namespace, &manifest, &labels(&children));
        self.snapshot(namespace, "overlayfs", diff_id.as_str(), "", &Labels::new());
        let target = Descriptor::new(media_type::OCI_MANIFEST, digest, manifest.len() as u64);
        Unpacked { target, config, chain: diff_id }
    }

    /// A committed snapshot with its directory.
    pub fn snapshot(&mut self, namespace: &str, snapshotter: &str, key: &str, parent: &str, labels: &Labels) {
        let all = self.snapshots.entry(snapshotter.to_owned()).or_default();
        let id = all.len() as u64 + 1;
        let number = id * 2;
        let name = format!("{namespace}/{number}/{key}");
        let below = self.ids.get(&(format!("{namespace}/{snapshotter}"), parent.to_owned())).copied();
        let below = below.map(|id| (all.iter().find(|row| row.id == id).unwrap().name.clone(), id));
        self.ids.insert((format!("{namespace}/{snapshotter}"), key.to_owned()), id);
        all.push(Committed {
            name: name.clone(),
            id,
            parent: below,
            inodes: 1,
            size: 4096,
            labels: Arc::default(),
            created: Utc::now(),
        });
        let dir =
            containerd_root(&self.root).join(format!("io.containerd.snapshotter.v1.{snapshotter}/snapshots/{id}"));
        fs::create_dir_all(dir.join("fs")).unwrap();
        let snapshot = Snapshot {
            namespace: namespace.to_owned(),
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            name,
        };
        let labels = labels.clone();
        self.write(move |tx| put_snapshot(tx, &snapshot, number, &labels, Utc::now()).unwrap());
    }

    /// A snapshot that is written to.
    pub fn active(&mut self, namespace: &str, snapshotter: &str, key: &str, parent: &str) {
        self.snapshot(namespace, snapshotter, key, parent, &Labels::new());
        self.kinds.insert(self.snapshots[snapshotter].last().unwrap().name.clone(), 2);
    }

    /// A lease that holds things: kind and key, of snapshots `snapshots/<snapshotter>`.
    pub fn lease(&mut self, namespace: &str, id: &str, labels: &Labels, holds: &[(&str, &str)]) {
        let path = ["v1", namespace, "leases", id];
        self.put(&path, "createdat", &go_time(Utc::now()));
        self.put_labels(&path, labels);
        for (kind, key) in holds {
            let kind: Vec<&str> = kind.split('/').collect();
            self.put(&[&path[..], &kind].concat(), key, b"");
        }
    }

    /// A container of an image, with a snapshot or without.
    pub fn container(
        &mut self,
        namespace: &str,
        id: &str,
        image: &str,
        snapshot: Option<(&str, &str)>,
        labels: &Labels,
    ) {
        let path = ["v1", namespace, "containers", id];
        self.put(&path, "createdat", &go_time(Utc::now()));
        self.put(&path, "updatedat", &go_time(Utc::now()));
        self.put(&path, "image", image.as_bytes());
        self.put(&[&path[..], &["runtime"]].concat(), "name", b"io.containerd.runc.v2");
        if let Some((snapshotter, key)) = snapshot {
            self.put(&path, "snapshotter", snapshotter.as_bytes());
            self.put(&path, "snapshotKey", key.as_bytes());
        }
        self.put_labels(&path, labels);
    }

    /// A sandbox of containerd 2.
    pub fn sandbox(&mut self, namespace: &str, id: &str, labels: &Labels) {
        let path = ["v1", namespace, "sandboxes", id];
        self.put(&path, "createdat", &go_time(Utc::now()));
        self.put(&path, "updatedat", &go_time(Utc::now()));
        self.put_labels(&path, labels);
    }

    /// A write that is not over, with its directory.
    pub fn ingest(&mut self, namespace: &str, reference: &str, expires_in: i64, expected: Option<&Digest>) {
        let backend = format!("{namespace}/1/{reference}");
        let path = ["v1", namespace, "content", "ingests", reference];
        self.put(&path, "expireat", &go_time(Utc::now() + TimeDelta::hours(expires_in)));
        if let Some(expected) = expected {
            self.put(&path, "expected", expected.as_str().as_bytes());
            return;
        }
        self.put(&path, "ref", backend.as_bytes());
        self.ingest_dir(&backend);
    }

    /// The directory of a write.
    pub fn ingest_dir(&self, backend: &str) {
        let dir = containerd_root(&self.root)
            .join("io.containerd.content.v1.content/ingest")
            .join(Digest::of(backend.as_bytes()).hex());
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in [("ref", backend), ("startedat", &hours(0)), ("updatedat", &hours(0)), ("data", "some")] {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    /// Writes all of it.
    pub fn finish(self) {
        let root = Root::new(&self.root, CONTAINERD_ROOT);
        let wait = Wait { timeout: Duration::ZERO, tell: &|_| {}, stop: &AtomicBool::new(false) };
        for (snapshotter, committed) in self.snapshots {
            let dir = containerd_root(&self.root).join(format!("io.containerd.snapshotter.v1.{snapshotter}"));
            for dir in [dir.clone(), dir.join("snapshots")] {
                fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
            }
            let mut db = SnapshotterDb::open(&dir).unwrap();
            db.write(committed.len() as u64, &committed).unwrap();
            drop(db);
            let kinds = self.kinds.iter().filter(|(name, _)| committed.iter().any(|row| row.name == **name));
            let file = FileStorage::open(&dir.join("metadata.db"), Lock::Exclusive).unwrap();
            let mut db = Db::open(Box::new(file)).unwrap();
            let mut tx = db.begin().unwrap();
            for (name, kind) in kinds {
                tx.put(&[b"v1", b"snapshots", name.as_bytes()], b"kind", &[*kind]).unwrap();
            }
            tx.commit().unwrap();
        }
        let mut meta = MetaDb::lock(&root, Lock::Exclusive, &wait).unwrap();
        meta.write(|tx| {
            self.writes.into_iter().for_each(|write| write(tx));
            Ok(())
        })
        .unwrap();
    }
}

/// Everything in a root that a collection may remove, a line each: records, files, directories.
pub fn things(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut db = Db::open(Box::new(FileStorage::open(&meta_db(root), Lock::Shared).unwrap())).unwrap();
    let tx = db.begin().unwrap();
    for namespace in metadata::namespaces(&tx).unwrap() {
        let all = metadata::contents(&tx, &namespace).unwrap();
        assert!(all.wrong.is_empty(), "{:?}", all.wrong);
        let mut add = |kind: &str, key: &str| {
            found.insert(format!("{namespace} {kind} {key}"));
        };
        all.images.iter().for_each(|row| add("image", &row.name));
        all.blobs.keys().for_each(|digest| add("blob", digest.as_str()));
        all.snapshots.iter().for_each(|(row, _)| add("snapshot", &format!("{}/{}", row.snapshotter, row.key)));
        all.leases.iter().for_each(|row| add("lease", &row.id));
        all.ingests.iter().for_each(|row| add("ingest", &row.reference));
        all.containers.iter().for_each(|row| add("container", &row.id));
    }
    let mut list = |dir: PathBuf, kind: &str| {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            found.insert(format!("{kind} {}", entry.file_name().to_string_lossy()));
        }
    };
    list(blobs_dir(root), "file");
    list(containerd_root(root).join("io.containerd.content.v1.content/ingest"), "directory of ingest");
    for snapshotter in ["overlayfs", "native"] {
        let dir = containerd_root(root).join(format!("io.containerd.snapshotter.v1.{snapshotter}/snapshots"));
        list(dir, &format!("directory of {snapshotter}"));
    }
    found
}
