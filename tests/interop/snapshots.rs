//! What a root says of an image's snapshots, in words that do not depend on who wrote it: no ids, no times, no counters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ::prebake::bolt::{Db, Item, MemStorage, Tx};
use ::prebake::metadata::{show, show_key};
use ::prebake::oci::Digest;

use crate::stack::Image;

const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.overlayfs";
const META_DB: &str = "io.containerd.metadata.v1.bolt/meta.db";
const NAMESPACE: &str = "k8s.io";
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.overlayfs";

/// An image's snapshots, the lowest first, and everything that is said of them.
pub struct Snapshots {
    /// Each layer's directory.
    pub dirs: Vec<PathBuf>,
    /// Each layer's inodes and bytes, as they are recorded.
    pub usages: Vec<(u64, u64)>,
    pub said: BTreeMap<String, String>,
}

/// Values of a bucket, readable.
type Values = BTreeMap<String, String>;

struct Database(Db);

impl Database {
    /// What a file holds, also while a daemon has it: between two transactions it does not change.
    fn open(path: &Path) -> Self {
        let mut bytes = fs::read(path).unwrap();
        loop {
            let again = fs::read(path).unwrap();
            if bytes == again {
                break;
            }
            bytes = again;
        }
        Self(Db::open(Box::new(MemStorage::new(bytes))).unwrap())
    }
}

fn values(tx: &Tx<'_>, path: &[&str]) -> Option<Values> {
    let keys: Vec<&[u8]> = path.iter().map(|key| key.as_bytes()).collect();
    let bucket = keys[keys.len() - 1];
    let items = tx.list(&keys).unwrap()?.into_iter();
    let readable = |(key, item): (Vec<u8>, Item)| match item {
        Item::Value(value) => (show_key(bucket, &key), show(bucket, &key, &value).to_string()),
        Item::Bucket => (show_key(bucket, &key), "[bucket]".to_owned()),
    };
    Some(items.map(readable).collect())
}

/// Takes out what every run writes differently, and says that it was there.
fn settle(values: &mut Values) {
    for key in ["createdat", "updatedat", "id"] {
        if let Some(value) = values.get_mut(key) {
            "present".clone_into(value);
        }
    }
}

impl Snapshots {
    /// Reads what a containerd root says of an image.
    pub fn read(root: &Path, image: &Image) -> Self {
        let mut meta = Database::open(&root.join(META_DB));
        let mut backend = Database::open(&root.join(SNAPSHOTTER).join("metadata.db"));
        let (meta, backend) = (meta.0.begin().unwrap(), backend.0.begin().unwrap());
        let mut found = Self { dirs: Vec::new(), usages: Vec::new(), said: BTreeMap::new() };
        let chains = image.chains();
        for (i, (blob, _)) in image.layers.iter().enumerate() {
            let labels = values(&meta, &["v1", NAMESPACE, "content", "blob", blob.as_str(), "labels"]);
            let label = labels.unwrap_or_default().remove(UNCOMPRESSED);
            found.say(i, "blob's uncompressed", label);
            found.snapshot(&meta, &backend, root, &chains, i);
        }
        let config = ["v1", NAMESPACE, "content", "blob", image.config.as_str(), "labels"];
        let label = values(&meta, &config).unwrap_or_default().remove(SNAPSHOT);
        found.said.insert("config's snapshot".to_owned(), label.unwrap_or("none".to_owned()));
        found
    }

    fn say(&mut self, layer: usize, what: &str, value: Option<String>) {
        self.said.insert(format!("layer {layer}: {what}"), value.unwrap_or("none".to_owned()));
    }

    fn snapshot(&mut self, meta: &Tx<'_>, backend: &Tx<'_>, root: &Path, chains: &[Digest], i: usize) {
        let chain = chains[i].as_str();
        let path = ["v1", NAMESPACE, "snapshots", "overlayfs", chain];
        let below = |bucket| [path.as_slice(), &[bucket]].concat();
        let Some(mut record) = values(meta, &path) else { return self.say(i, "record", None) };
        let name = record.insert("name".to_owned(), "present".to_owned()).unwrap_or_default();
        // NAMESPACE/NUMBER/CHAIN: the number is a counter.
        let named = name.split('/').collect::<Vec<_>>();
        self.say(i, "name", Some(format!("{} {} parts {}", named[0], named.len(), named[named.len() - 1])));
        settle(&mut record);
        // Where a layer above was refused, containerd leaves an empty bucket of children.
        record.remove("children");
        self.say(i, "record", Some(format!("{record:?}")));
        self.say(i, "labels", values(meta, &below("labels")).map(|labels| format!("{labels:?}")));
        // Another image may have other layers on this one.
        let mut children = values(meta, &below("children")).unwrap_or_default();
        children.retain(|child, _| chains.iter().any(|chain| chain.as_str() == child));
        self.say(i, "children", Some(format!("{:?}", children.keys())));

        let stored = ["v1", "snapshots", name.as_str()];
        let Some(mut record) = values(backend, &stored) else { return self.say(i, "stored", None) };
        let id = record["id"].clone();
        let links = values(backend, &["v1", "parents"]).unwrap_or_default();
        let own: BTreeSet<&str> =
            links.iter().filter(|(key, _)| key.ends_with(&format!("> {id}"))).map(|(_, name)| name.as_str()).collect();
        self.say(i, "links of its own name", Some((own == BTreeSet::from([name.as_str()])).to_string()));
        if let Some(parent) = record.insert("parent".to_owned(), "present".to_owned()) {
            let parent_id = values(backend, &["v1", "snapshots", &parent]).map(|record| record["id"].clone());
            let link = links.get(&format!("{} > {id}", parent_id.unwrap_or_default())).map(|linked| *linked == name);
            self.say(i, "linked to its parent", Some(format!("{link:?}")));
            self.say(i, "stored parent", parent.rsplit('/').next().map(str::to_owned));
        } else {
            record.remove("parent");
        }
        settle(&mut record);
        let mut number = |key| record.remove(key).map_or(0, |n| n.parse().unwrap());
        self.usages.push((number("inodes"), number("size")));
        self.say(i, "stored", Some(format!("{record:?}")));
        let labels = values(backend, &[stored.as_slice(), &["labels"]].concat());
        self.say(i, "stored labels", labels.map(|labels| format!("{labels:?}")));

        let dir = root.join(SNAPSHOTTER).join("snapshots").join(id);
        for part in ["", "fs", "work"] {
            let meta = dir.join(part).symlink_metadata().ok();
            self.say(i, &format!("directory {part:?}"), meta.map(|meta| format!("{:o} {}", meta.mode(), meta.uid())));
        }
        self.dirs.push(dir);
    }
}
