//! Damages to a root: a table of kinds, each done at a place that a seed draws.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ::prebake::bolt::{Db, FileStorage, Item, Lock, Tx};

use super::prebake::{blobs_dir, containerd_root, meta_db};
use super::rng::Rng;

const V1: &[u8] = b"v1";
const K8S: &[u8] = b"k8s.io";
const OVERLAYFS: &str = "io.containerd.snapshotter.v1.overlayfs";
const PAGE: usize = 4096;

/// What a root is like.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    pub name: &'static str,
    pub unpacked: bool,
    /// Whether it has the compressed layers.
    pub layers: bool,
    /// Whether it was baked; else pulled by containerd, and no catalog knows of it.
    pub baked: bool,
}

impl Made {
    pub const FETCHED: Self = Self { name: "fetched", unpacked: false, layers: true, baked: true };
    pub const UNPACKED: Self = Self { name: "unpacked", unpacked: true, ..Self::FETCHED };
    pub const DISCARDED: Self = Self { name: "discarded", layers: false, ..Self::UNPACKED };
}

/// What a damage is done to.
pub struct Root<'r> {
    pub path: &'r Path,
    pub made: Made,
}

/// A kind of damage.
pub struct Damage {
    pub name: &'static str,
    /// Whether only a comparison of snapshots with their layers finds it.
    pub contents: bool,
    /// Does it, and says what; `None`: there is nothing in this root that it could be done to.
    harm: fn(&Root<'_>, &mut Rng) -> Option<String>,
}

impl Damage {
    pub fn harm(&self, root: &Root<'_>, seed: u64) -> Option<String> {
        (self.harm)(root, &mut Rng::new(seed))
    }
}

fn change<R>(db: &Path, f: impl FnOnce(&mut Tx<'_>) -> R) -> R {
    let mut db = Db::open(Box::new(FileStorage::open(db, Lock::Exclusive).unwrap())).unwrap();
    let mut tx = db.begin().unwrap();
    let result = f(&mut tx);
    tx.commit().unwrap();
    result
}

impl Root<'_> {
    fn metadata_db(&self) -> PathBuf {
        containerd_root(self.path).join(OVERLAYFS).join("metadata.db")
    }

    fn snapshots(&self) -> PathBuf {
        containerd_root(self.path).join(OVERLAYFS).join("snapshots")
    }

    fn is_unpacked(&self) -> bool {
        self.made.unpacked
    }

    /// Whether the catalog could replace the records.
    fn has_catalog(&self) -> bool {
        self.made.layers && self.made.baked
    }

    /// The names in a bucket of meta.db.
    fn keys(&self, path: &[&[u8]]) -> Vec<Vec<u8>> {
        let list = change(&meta_db(self.path), |tx| tx.list(path).unwrap());
        list.unwrap_or_default().into_iter().filter(|(_, item)| *item == Item::Bucket).map(|(key, _)| key).collect()
    }

    /// A blob that has a record, as hex digits.
    fn blob(&self, rng: &mut Rng) -> String {
        let keys = self.keys(&[V1, K8S, b"content", b"blob"]);
        let key = String::from_utf8(keys[rng.below(keys.len())].clone()).unwrap();
        key.trim_start_matches("sha256:").to_owned()
    }

    fn blob_path(&self, rng: &mut Rng) -> PathBuf {
        blobs_dir(self.path).join(self.blob(rng))
    }

    /// Blobs' records with labels of this beginning, and one such label with its value.
    fn labelled(&self, start: &str) -> Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        let keys = self.keys(&[V1, K8S, b"content", b"blob"]);
        change(&meta_db(self.path), |tx| {
            let mut found = Vec::new();
            for key in keys {
                let labels = tx.list(&[V1, K8S, b"content", b"blob", &key, b"labels"]).unwrap();
                for (label, item) in labels.unwrap_or_default() {
                    if let Item::Value(value) = item
                        && label.starts_with(start.as_bytes())
                    {
                        found.push((key.clone(), label, value));
                    }
                }
            }
            found
        })
    }

    fn labelled_with(&self, start: &str, value: &[u8]) {
        let all = self.labelled(start);
        change(&meta_db(self.path), |tx| {
            for (key, label, _) in &all {
                tx.put(&[V1, K8S, b"content", b"blob", key, b"labels"], label, value).unwrap();
            }
        });
    }

    fn images(&self) -> Vec<Vec<u8>> {
        self.keys(&[V1, K8S, b"images"])
    }

    fn image(&self, rng: &mut Rng) -> Vec<u8> {
        let images = self.images();
        images[rng.below(images.len())].clone()
    }

    /// An image's name with its tag.
    fn tag(&self, rng: &mut Rng) -> Vec<u8> {
        let mut images = self.images();
        images.retain(|name| !name.starts_with(b"sha256:") && !name.contains(&b'@'));
        images[rng.below(images.len())].clone()
    }

    /// Snapshots of layers that have records in meta.db, those with a parent if asked for.
    fn layer(&self, rng: &mut Rng, with_parent: bool) -> Option<Vec<u8>> {
        let owner: [&[u8]; 4] = [V1, K8S, b"snapshots", b"overlayfs"];
        let keys = self.keys(&owner);
        let keys: Vec<Vec<u8>> = change(&meta_db(self.path), |tx| {
            let is_fit = |key: &Vec<u8>| {
                let path = [&owner[..], &[key]].concat();
                key.starts_with(b"sha256:") && (!with_parent || tx.get(&path, b"parent").unwrap().is_some())
            };
            keys.into_iter().filter(is_fit).collect()
        });
        (!keys.is_empty()).then(|| keys[rng.below(keys.len())].clone())
    }

    /// Names and ids in metadata.db, of committed snapshots.
    fn stored(&self) -> BTreeMap<Vec<u8>, u8> {
        if !self.is_unpacked() {
            return BTreeMap::new();
        }
        change(&self.metadata_db(), |tx| {
            let all = tx.list(&[V1, b"snapshots"]).unwrap().unwrap_or_default();
            let mut found = BTreeMap::new();
            for (name, _) in all {
                let path: [&[u8]; 3] = [V1, b"snapshots", &name];
                if tx.get(&path, b"kind").unwrap() == Some(vec![3]) {
                    found.insert(name.clone(), tx.get(&path, b"id").unwrap().unwrap()[0]);
                }
            }
            found
        })
    }

    fn one_stored(&self, rng: &mut Rng) -> Option<(Vec<u8>, u8)> {
        let all: Vec<_> = self.stored().into_iter().collect();
        (!all.is_empty()).then(|| all[rng.below(all.len())].clone())
    }

    fn id_dir(&self, rng: &mut Rng) -> Option<PathBuf> {
        self.one_stored(rng).map(|(_, id)| self.snapshots().join(id.to_string()))
    }

    /// Something of a kind in the files of snapshots.
    fn inside(&self, rng: &mut Rng, is_fit: impl Fn(&fs::Metadata, &Path) -> bool) -> Option<PathBuf> {
        if !self.made.unpacked || !self.made.layers {
            return None;
        }
        let mut found = Vec::new();
        for id in self.stored().values() {
            let mut todo = vec![self.snapshots().join(id.to_string()).join("fs")];
            while let Some(dir) = todo.pop() {
                for entry in fs::read_dir(dir).unwrap() {
                    let path = entry.unwrap().path();
                    let meta = fs::symlink_metadata(&path).unwrap();
                    if meta.is_dir() {
                        todo.push(path.clone());
                    }
                    if is_fit(&meta, &path) {
                        found.push(path);
                    }
                }
            }
        }
        found.sort();
        (!found.is_empty()).then(|| found[rng.below(found.len())].clone())
    }
}

#[allow(clippy::unnecessary_wraps, reason = "what every damage gives")]
fn say(what: impl std::fmt::Display) -> Option<String> {
    Some(what.to_string())
}

fn say_path(path: &Path) -> Option<String> {
    say(path.display())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Writes over a file without changing what else is known of it.
fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let meta = fs::metadata(path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
}

fn flip(path: &Path, rng: &mut Rng) -> Option<String> {
    let mut bytes = fs::read(path).unwrap();
    if bytes.is_empty() {
        return None;
    }
    let at = rng.below(bytes.len());
    bytes[at] ^= 1 << rng.below(8);
    overwrite(path, at as u64, &bytes[at..=at]);
    say(format!("{} at {at}", path.display()))
}

fn remove(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

fn swap(a: &Path, b: &Path) {
    let aside = a.with_extension("aside");
    fs::rename(a, &aside).unwrap();
    fs::rename(b, a).unwrap();
    fs::rename(&aside, b).unwrap();
}

fn mode(path: &Path, mode: u32) -> Option<String> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    say_path(path)
}

/// Page 0 or 1, which has the last commit.
fn newest_meta(bytes: &[u8]) -> usize {
    let txid = |page: usize| u64::from_le_bytes(bytes[page * PAGE + 64..page * PAGE + 72].try_into().unwrap());
    usize::from(txid(1) > txid(0))
}

/// The pages of a kind that are in use, by a walk that follows nothing: those whose header fits them.
fn pages(bytes: &[u8], flags: u16) -> Vec<usize> {
    let is_it = |page: &usize| {
        let head = &bytes[page * PAGE..page * PAGE + 16];
        head[..8] == (*page as u64).to_le_bytes() && head[8..10] == flags.to_le_bytes()
    };
    (2..bytes.len() / PAGE).filter(is_it).collect()
}

fn reachable_leaf(db: &Path, rng: &mut Rng) -> Option<usize> {
    // A page is in use when breaking it is found.
    let bytes = fs::read(db).unwrap();
    let all = pages(&bytes, 2);
    let used: Vec<usize> = all
        .into_iter()
        .filter(|page| {
            let mut broken = bytes.clone();
            broken[page * PAGE] ^= 0x80;
            !Db::check(&::prebake::bolt::MemStorage::new(broken)).unwrap().findings.is_empty()
        })
        .collect();
    (!used.is_empty()).then(|| used[rng.below(used.len())])
}

fn image_path(name: &[u8]) -> [&[u8]; 4] {
    [V1, K8S, b"images", name]
}

fn meta_tx<R>(root: &Root<'_>, f: impl FnOnce(&mut Tx<'_>) -> R) -> R {
    change(&meta_db(root.path), f)
}

/// A database that something is to be done to.
fn database(root: &Root<'_>, meta: bool) -> Option<PathBuf> {
    if meta { root.has_catalog().then(|| meta_db(root.path)) } else { root.is_unpacked().then(|| root.metadata_db()) }
}

fn db_edit(root: &Root<'_>, meta: bool, edit: impl FnOnce(&mut Vec<u8>)) -> Option<String> {
    let path = database(root, meta)?;
    let mut bytes = fs::read(&path).unwrap();
    edit(&mut bytes);
    fs::write(&path, bytes).unwrap();
    say_path(&path)
}

fn db_page(root: &Root<'_>, rng: &mut Rng, meta: bool, edit: impl FnOnce(&mut [u8])) -> Option<String> {
    let path = database(root, meta)?;
    let page = reachable_leaf(&path, rng)?;
    db_edit(root, meta, |bytes| edit(&mut bytes[page * PAGE..(page + 1) * PAGE]));
    say(format!("{} page {page}", path.display()))
}

fn snapshot_path(key: &[u8]) -> [&[u8]; 5] {
    [V1, K8S, b"snapshots", b"overlayfs", key]
}

fn stored_tx<R>(root: &Root<'_>, f: impl FnOnce(&mut Tx<'_>) -> R) -> R {
    change(&root.metadata_db(), f)
}

macro_rules! damages {
    ($($name:literal $(+ $contents:ident)? => $harm:expr,)*) => {
        /// All kinds.
        pub const DAMAGES: &[Damage] = &[$(Damage {
            name: $name,
            contents: damages!(@ $($contents)?),
            harm: $harm,
        }),*];
    };
    (@ contents) => { true };
    (@) => { false };
}

damages! {
    "a bit of a blob" => |root, rng| flip(&root.blob_path(rng), rng),
    "half of a blob" => |root, rng| {
        let path = root.blob_path(rng);
        let len = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
        say_path(&path)
    },
    "a blob without bytes" => |root, rng| {
        let path = root.blob_path(rng);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        say_path(&path)
    },
    "a blob with a byte more" => |root, rng| {
        let path = root.blob_path(rng);
        let len = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", len).unwrap();
        say_path(&path)
    },
    "a blob of zeros" => |root, rng| {
        let path = root.blob_path(rng);
        let len = fs::metadata(&path).unwrap().len();
        overwrite(&path, 0, &vec![0; usize::try_from(len).unwrap()]);
        say_path(&path)
    },
    "no blob" => |root, rng| {
        let path = root.blob_path(rng);
        remove(&path);
        say_path(&path)
    },
    "no blobs at all" => |root, _| {
        let path = blobs_dir(root.path);
        remove(&path);
        say_path(&path)
    },
    "a directory for a blob" => |root, rng| {
        let path = root.blob_path(rng);
        remove(&path);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), "x").unwrap();
        say_path(&path)
    },
    "a link for a blob" => |root, rng| {
        let path = root.blob_path(rng);
        remove(&path);
        symlink("/etc/passwd", &path).unwrap();
        say_path(&path)
    },
    "two blobs swapped" => |root, rng| {
        let (a, b) = (root.blob_path(rng), root.blob_path(rng));
        if a == b {
            return None;
        }
        swap(&a, &b);
        say(format!("{} and {}", a.display(), b.display()))
    },
    "a blob that all may write" => |root, rng| mode(&root.blob_path(rng), 0o666),
    "a stranger with a name of its own" => |root, _| {
        fs::write(blobs_dir(root.path).join(".partial-x"), "x").unwrap();
        say(".partial-x")
    },
    "a stranger that is a directory" => |root, _| {
        fs::create_dir_all(blobs_dir(root.path).join("tmp/below")).unwrap();
        say("tmp/below")
    },
    "a stranger named nearly like a blob" => |root, rng| {
        let name = root.blob(rng).to_uppercase();
        fs::write(blobs_dir(root.path).join(&name[1..]), "x").unwrap();
        say(name)
    },
    "an orphan whose bytes are wrong" => |root, rng| {
        let path = blobs_dir(root.path).join(hex::encode(rng.bytes(32)));
        fs::write(&path, "x").unwrap();
        mode(&path, 0o444)
    },
    "a write without a name" => |root, _| {
        let dir = containerd_root(root.path).join("io.containerd.content.v1.content/ingest/0123");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("data"), "x").unwrap();
        say_path(&dir)
    },
    "a file for the directory of blobs" => |root, _| {
        let path = blobs_dir(root.path);
        remove(&path);
        fs::write(&path, "x").unwrap();
        say_path(&path)
    },
    "a file for the directory of ingests" => |root, _| {
        let path = containerd_root(root.path).join("io.containerd.content.v1.content/ingest");
        remove(&path);
        fs::write(&path, "x").unwrap();
        say_path(&path)
    },
    "a content store that all may write" => |root, _| {
        mode(&containerd_root(root.path).join("io.containerd.content.v1.content"), 0o777)
    },
    "a meta.db that all may write" => |root, _| mode(&meta_db(root.path), 0o666),
    "a catalog of garbage" => |root, rng| {
        let path = root.path.join("var/lib/prebake/catalog.redb");
        if !path.exists() {
            return None;
        }
        fs::write(&path, rng.bytes(5000)).unwrap();
        say_path(&path)
    },

    "an image without a target" => |root, rng| {
        let name = root.image(rng);
        meta_tx(root, |tx| tx.delete(&image_path(&name), b"target").unwrap());
        say(text(&name))
    },
    "a plain key among the images" => |root, _| {
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"images"], b"plain", b"x").unwrap());
        say("plain")
    },
    "an image of nothing at all" => |root, _| {
        meta_tx(root, |tx| tx.create_bucket(&image_path(b"example.org/none:1")).unwrap());
        say("example.org/none:1")
    },
    "an image with another target" => |root, rng| {
        let name = root.image(rng);
        let digest = format!("sha256:{}", hex::encode(rng.bytes(32)));
        let target = [&image_path(&name)[..], &[b"target"]].concat();
        meta_tx(root, |tx| tx.put(&target, b"digest", digest.as_bytes()).unwrap());
        say(text(&name))
    },
    "an image whose target is no digest" => |root, rng| {
        let name = root.image(rng);
        let target = [&image_path(&name)[..], &[b"target"]].concat();
        meta_tx(root, |tx| tx.put(&target, b"digest", b"sha256:x").unwrap());
        say(text(&name))
    },
    "an image with another size" => |root, rng| {
        let name = root.image(rng);
        let target = [&image_path(&name)[..], &[b"target"]].concat();
        meta_tx(root, |tx| tx.put(&target, b"size", &[8]).unwrap());
        say(text(&name))
    },
    "an image without a size" => |root, rng| {
        let name = root.image(rng);
        let target = [&image_path(&name)[..], &[b"target"]].concat();
        meta_tx(root, |tx| tx.delete(&target, b"size").unwrap());
        say(text(&name))
    },
    "an image of another media type" => |root, rng| {
        let name = root.image(rng);
        let target = [&image_path(&name)[..], &[b"target"]].concat();
        let kinds: [&[u8]; 3] = [b"text/plain", b"", b"application/vnd.oci.image.layer.v1.tar"];
        meta_tx(root, |tx| tx.put(&target, b"mediatype", kinds[rng.below(3)]).unwrap());
        say(text(&name))
    },
    "a value for all images" => |root, _| {
        if !root.has_catalog() {
            return None;
        }
        meta_tx(root, |tx| {
            tx.delete(&[V1, K8S], b"images").unwrap();
            tx.put(&[V1, K8S], b"images", b"x").unwrap();
        });
        say("images")
    },
    "no record of an image" => |root, rng| {
        if !root.has_catalog() {
            return None;
        }
        let name = root.tag(rng);
        meta_tx(root, |tx| tx.delete(&[V1, K8S, b"images"], &name).unwrap());
        say(text(&name))
    },
    "no records at all" => |root, _| {
        if !root.has_catalog() {
            return None;
        }
        meta_tx(root, |tx| tx.delete(&[], V1).unwrap());
        say("v1")
    },
    "a label of an image that is too long" => |root, rng| {
        let name = root.image(rng);
        let labels = [&image_path(&name)[..], &[b"labels"]].concat();
        meta_tx(root, |tx| tx.put(&labels, b"long", &vec![b'x'; 5000]).unwrap());
        say(text(&name))
    },

    "no record of a blob" => |root, rng| {
        let blob = format!("sha256:{}", root.blob(rng));
        meta_tx(root, |tx| tx.delete(&[V1, K8S, b"content", b"blob"], blob.as_bytes()).unwrap());
        say(blob)
    },
    "no records of blobs" => |root, _| {
        meta_tx(root, |tx| tx.delete(&[V1, K8S], b"content").unwrap());
        say("content")
    },
    "a record of a blob with another size" => |root, rng| {
        let blob = format!("sha256:{}", root.blob(rng));
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"content", b"blob", blob.as_bytes()], b"size", &[0x08]).unwrap());
        say(blob)
    },
    "a record of a blob without a size" => |root, rng| {
        let blob = format!("sha256:{}", root.blob(rng));
        meta_tx(root, |tx| tx.delete(&[V1, K8S, b"content", b"blob", blob.as_bytes()], b"size").unwrap());
        say(blob)
    },
    "a record of a blob that nobody has" => |root, rng| {
        let blob = format!("sha256:{}", hex::encode(rng.bytes(32)));
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"content", b"blob", blob.as_bytes()], b"size", &[8]).unwrap());
        say(blob)
    },
    "a record of a blob with no digest" => |root, _| {
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"content", b"blob", b"x"], b"size", &[8]).unwrap());
        say("x")
    },
    "a plain key among the blobs" => |root, _| {
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"content", b"blob"], b"plain", b"x").unwrap());
        say("plain")
    },
    "a bucket for the size of a blob" => |root, rng| {
        let blob = format!("sha256:{}", root.blob(rng));
        let path: [&[u8]; 5] = [V1, K8S, b"content", b"blob", blob.as_bytes()];
        meta_tx(root, |tx| {
            tx.delete(&path, b"size").unwrap();
            tx.create_bucket(&[&path[..], &[b"size"]].concat()).unwrap();
        });
        say(blob)
    },
    "no labels of a document" => |root, rng| {
        let all = root.labelled("containerd.io/gc.ref.content.config");
        let (key, ..) = &all[rng.below(all.len())];
        meta_tx(root, |tx| tx.delete(&[V1, K8S, b"content", b"blob", key], b"labels").unwrap());
        say(text(key))
    },
    "a reference that leads elsewhere" => |root, rng| {
        let all = root.labelled("containerd.io/gc.ref.content.");
        let (key, label, _) = &all[rng.below(all.len())];
        let other = format!("sha256:{}", hex::encode(rng.bytes(32)));
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"content", b"blob", key, b"labels"], label, other.as_bytes()).unwrap());
        say(format!("{} {}", text(key), text(label)))
    },
    "a label of a blob that is too long" => |root, rng| {
        let blob = format!("sha256:{}", root.blob(rng));
        let labels: [&[u8]; 6] = [V1, K8S, b"content", b"blob", blob.as_bytes(), b"labels"];
        meta_tx(root, |tx| tx.put(&labels, b"long", &vec![b'x'; 5000]).unwrap());
        say(blob)
    },
    "a layer that says it unpacks to something else" => |root, rng| {
        let all = root.labelled("containerd.io/uncompressed");
        let (key, label, _) = all.get(rng.below(all.len().max(1)))?;
        let other = format!("sha256:{}", hex::encode(rng.bytes(32)));
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"content", b"blob", key, b"labels"], label, other.as_bytes()).unwrap());
        say(text(key))
    },

    "a config that does not keep its snapshots" => |root, _| {
        let all = root.labelled("containerd.io/gc.ref.snapshot.");
        if all.is_empty() {
            return None;
        }
        meta_tx(root, |tx| {
            for (key, label, _) in &all {
                tx.delete(&[V1, K8S, b"content", b"blob", key, b"labels"], label).unwrap();
            }
        });
        say("all")
    },
    "a config that keeps another snapshot" => |root, rng| {
        let key = root.layer(rng, false)?;
        let all = root.labelled("containerd.io/gc.ref.snapshot.");
        let (config, label, value) = all.into_iter().find(|(_, _, value)| *value != key)?;
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"content", b"blob", &config, b"labels"], &label, &key).unwrap());
        say(format!("{} for {}", text(&key), text(&value)))
    },
    "configs that keep snapshots that are not there" => |root, rng| {
        if root.labelled("containerd.io/gc.ref.snapshot.").is_empty() {
            return None;
        }
        root.labelled_with("containerd.io/gc.ref.snapshot.", format!("sha256:{}", hex::encode(rng.bytes(32))).as_bytes());
        say("all")
    },
    "no record of a snapshot in meta.db" => |root, rng| {
        let key = root.layer(rng, false)?;
        meta_tx(root, |tx| tx.delete(&[V1, K8S, b"snapshots", b"overlayfs"], &key).unwrap());
        say(text(&key))
    },
    "no records of snapshots in meta.db" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        meta_tx(root, |tx| tx.delete(&[V1, K8S, b"snapshots"], b"overlayfs").unwrap());
        say("overlayfs")
    },
    "a value for all snapshots in meta.db" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        meta_tx(root, |tx| {
            tx.delete(&[V1, K8S], b"snapshots").unwrap();
            tx.put(&[V1, K8S], b"snapshots", b"x").unwrap();
        });
        say("snapshots")
    },
    "a plain key among the snapshots" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"snapshots", b"overlayfs"], b"plain", b"x").unwrap());
        say("plain")
    },
    "a snapshot on another in meta.db" => |root, rng| {
        let key = root.layer(rng, true)?;
        let parent = format!("sha256:{}", hex::encode(rng.bytes(32)));
        meta_tx(root, |tx| tx.put(&snapshot_path(&key), b"parent", parent.as_bytes()).unwrap());
        say(text(&key))
    },
    "a snapshot on nothing in meta.db" => |root, rng| {
        let key = root.layer(rng, true)?;
        meta_tx(root, |tx| tx.delete(&snapshot_path(&key), b"parent").unwrap());
        say(text(&key))
    },
    "a snapshot with another name" => |root, rng| {
        let key = root.layer(rng, false)?;
        let name = format!("k8s.io/{}/{}", 900 + rng.below(100), text(&key));
        meta_tx(root, |tx| tx.put(&snapshot_path(&key), b"name", name.as_bytes()).unwrap());
        say(text(&key))
    },
    "a snapshot with another one's name" => |root, rng| {
        let key = root.layer(rng, false)?;
        let (name, _) = root.stored().into_iter().find(|(name, _)| !name.ends_with(&key))?;
        meta_tx(root, |tx| tx.put(&snapshot_path(&key), b"name", &name).unwrap());
        say(text(&key))
    },
    "a snapshot without a name" => |root, rng| {
        let key = root.layer(rng, false)?;
        meta_tx(root, |tx| tx.delete(&snapshot_path(&key), b"name").unwrap());
        say(text(&key))
    },
    "a child that is not among its parent's" => |root, rng| {
        let key = root.layer(rng, true)?;
        meta_tx(root, |tx| {
            let parent = tx.get(&snapshot_path(&key), b"parent").unwrap().unwrap();
            tx.delete(&[&snapshot_path(&parent)[..], &[b"children"]].concat(), &key).unwrap();
        });
        say(text(&key))
    },
    "a child of one that it is not on" => |root, rng| {
        let (key, other) = (root.layer(rng, true)?, root.layer(rng, true)?);
        meta_tx(root, |tx| {
            let parent = tx.get(&snapshot_path(&key), b"parent").unwrap().unwrap();
            if parent == other {
                return None;
            }
            tx.put(&[&snapshot_path(&other)[..], &[b"children"]].concat(), &key, b"").unwrap();
            say(text(&key))
        })
    },
    "numbers of snapshots from the beginning" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        meta_tx(root, |tx| tx.set_sequence(&[V1, K8S, b"snapshots", b"overlayfs"], 0).unwrap());
        say("0")
    },
    "a lease of what is not there" => |root, rng| {
        let kinds: [&[&[u8]]; 4] = [&[b"content"], &[b"snapshots", b"overlayfs"], &[b"ingests"], &[b"images"]];
        let lease: [&[u8]; 4] = [V1, K8S, b"leases", b"l"];
        let path = [&lease[..], kinds[rng.below(4)]].concat();
        meta_tx(root, |tx| tx.put(&path, format!("sha256:{}", hex::encode(rng.bytes(32))).as_bytes(), b"").unwrap());
        say(text(&path.concat()))
    },
    "a plain key among the leases" => |root, _| {
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"leases"], b"plain", b"x").unwrap());
        say("plain")
    },
    "a plain key among the containers" => |root, _| {
        meta_tx(root, |tx| tx.put(&[V1, K8S, b"containers"], b"plain", b"x").unwrap());
        say("plain")
    },

    "a meta.db without bytes" => |root, _| db_edit(root, true, Vec::clear),
    "no meta.db" => |root, _| {
        let path = database(root, true)?;
        remove(&path);
        say_path(&path)
    },
    "half of meta.db" => |root, _| db_edit(root, true, |bytes| bytes.truncate(bytes.len() / 2 / PAGE * PAGE)),
    "a meta.db of garbage" => |root, rng| {
        let garbage = rng.bytes(20_000);
        db_edit(root, true, |bytes| *bytes = garbage)
    },
    "a directory for meta.db" => |root, _| {
        let path = database(root, true)?;
        remove(&path);
        fs::create_dir(&path).unwrap();
        say_path(&path)
    },
    "no last commit of meta.db" => |root, _| db_edit(root, true, |bytes| {
        let page = newest_meta(bytes);
        bytes[page * PAGE..(page + 1) * PAGE].fill(0xff);
    }),
    "no commit at all of meta.db" => |root, _| db_edit(root, true, |bytes| bytes[..2 * PAGE].fill(0)),
    "a wrong checksum in meta.db" => |root, _| {
        let path = meta_db(root.path);
        let mut bytes = fs::read(&path).unwrap();
        let page = newest_meta(&bytes);
        bytes[page * PAGE + 16 + 56] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        say_path(&path)
    },
    "a page of meta.db with another's id" => |root, rng| db_page(root, rng, true, |page| page[0] ^= 0x10),
    "a page of meta.db of another kind" => |root, rng| db_page(root, rng, true, |page| page[8] = 0x40),
    "a page of meta.db with more elements" => |root, rng| db_page(root, rng, true, |page| page[11] = 0xff),
    "a page of meta.db of zeros" => |root, rng| db_page(root, rng, true, |page| page.fill(0)),

    "a metadata.db without bytes" => |root, _| db_edit(root, false, Vec::clear),
    "no metadata.db" => |root, _| {
        let path = database(root, false)?;
        remove(&path);
        say_path(&path)
    },
    "half of metadata.db" => |root, _| db_edit(root, false, |bytes| bytes.truncate(bytes.len() / 2 / PAGE * PAGE)),
    "a metadata.db of garbage" => |root, rng| {
        let garbage = rng.bytes(20_000);
        db_edit(root, false, |bytes| *bytes = garbage)
    },
    "a directory for metadata.db" => |root, _| {
        let path = database(root, false)?;
        remove(&path);
        fs::create_dir(&path).unwrap();
        say_path(&path)
    },
    "no last commit of metadata.db" => |root, _| db_edit(root, false, |bytes| {
        let page = newest_meta(bytes);
        bytes[page * PAGE..(page + 1) * PAGE].fill(0xff);
    }),
    "no commit at all of metadata.db" => |root, _| db_edit(root, false, |bytes| bytes[..2 * PAGE].fill(0)),
    "a wrong checksum in metadata.db" => |root, _| db_edit(root, false, |bytes| {
        let page = newest_meta(bytes);
        bytes[page * PAGE + 16 + 56] ^= 0x40;
    }),
    "a page of metadata.db with another's id" => |root, rng| db_page(root, rng, false, |page| page[0] ^= 0x10),
    "a page of metadata.db of another kind" => |root, rng| db_page(root, rng, false, |page| page[8] = 0x40),
    "a page of metadata.db of zeros" => |root, rng| db_page(root, rng, false, |page| page.fill(0)),
    "a freelist of metadata.db that names what is in use" => |root, rng| {
        let path = database(root, false)?;
        let page = reachable_leaf(&path, rng)?;
        let bytes = fs::read(&path).unwrap();
        let newest = newest_meta(&bytes) * PAGE;
        let list = u64::from_le_bytes(bytes[newest + 48..newest + 56].try_into().unwrap());
        if list == u64::MAX {
            return None;
        }
        db_edit(root, false, |bytes| {
            let at = usize::try_from(list).unwrap() * PAGE;
            bytes[at + 10..at + 12].copy_from_slice(&1_u16.to_le_bytes());
            bytes[at + 16..at + 24].copy_from_slice(&(page as u64).to_le_bytes());
        })
    },
    "no v1 in metadata.db" => |root, _| {
        database(root, false)?;
        stored_tx(root, |tx| tx.delete(&[], V1).unwrap());
        say("v1")
    },
    "no snapshots in metadata.db" => |root, _| {
        database(root, false)?;
        stored_tx(root, |tx| tx.delete(&[V1], b"snapshots").unwrap());
        say("snapshots")
    },
    "a value for the snapshots in metadata.db" => |root, _| {
        database(root, false)?;
        stored_tx(root, |tx| {
            tx.delete(&[V1], b"snapshots").unwrap();
            tx.put(&[V1], b"snapshots", b"x").unwrap();
        });
        say("snapshots")
    },
    "no parents in metadata.db" => |root, _| {
        database(root, false)?;
        stored_tx(root, |tx| tx.delete(&[V1], b"parents").unwrap());
        say("parents")
    },
    "ids from the beginning" => |root, _| {
        database(root, false)?;
        stored_tx(root, |tx| tx.set_sequence(&[V1, b"snapshots"], 0).unwrap());
        say("0")
    },
    "no record of a snapshot in metadata.db" => |root, rng| {
        let (name, _) = root.one_stored(rng)?;
        stored_tx(root, |tx| tx.delete(&[V1, b"snapshots"], &name).unwrap());
        say(text(&name))
    },
    "a snapshot with the id of another" => |root, rng| {
        let (name, id) = root.one_stored(rng)?;
        let other = root.stored().into_values().find(|other| *other != id)?;
        stored_tx(root, |tx| tx.put(&[V1, b"snapshots", &name], b"id", &[other]).unwrap());
        say(format!("{}: {other} for {id}", text(&name)))
    },
    "a snapshot with an id that nothing has" => |root, rng| {
        let (name, _) = root.one_stored(rng)?;
        stored_tx(root, |tx| tx.put(&[V1, b"snapshots", &name], b"id", &[99]).unwrap());
        say(text(&name))
    },
    "a snapshot without an id" => |root, rng| {
        let (name, _) = root.one_stored(rng)?;
        stored_tx(root, |tx| tx.delete(&[V1, b"snapshots", &name], b"id").unwrap());
        say(text(&name))
    },
    "a snapshot of no kind" => |root, rng| {
        let (name, _) = root.one_stored(rng)?;
        let kind = [9, 0][rng.below(2)];
        stored_tx(root, |tx| tx.put(&[V1, b"snapshots", &name], b"kind", &[kind]).unwrap());
        say(text(&name))
    },
    "a layer that is not committed" => |root, rng| {
        let (name, _) = root.one_stored(rng)?;
        stored_tx(root, |tx| tx.put(&[V1, b"snapshots", &name], b"kind", &[2]).unwrap());
        say(text(&name))
    },
    "a snapshot on another in metadata.db" => |root, rng| {
        let (name, _) = root.one_stored(rng)?;
        let parent = [&b"gone"[..], b"k8s.io/1/x"][rng.below(2)];
        stored_tx(root, |tx| tx.put(&[V1, b"snapshots", &name], b"parent", parent).unwrap());
        say(text(&name))
    },
    "a snapshot on nothing in metadata.db" => |root, _| {
        let all = root.stored();
        let name = stored_tx_opt(root, |tx| {
            all.keys().find(|name| tx.get(&[V1, b"snapshots", name], b"parent").unwrap().is_some()).cloned()
        })?;
        stored_tx(root, |tx| tx.delete(&[V1, b"snapshots", &name], b"parent").unwrap());
        say(text(&name))
    },
    "a link that is missing" => |root, rng| {
        database(root, false)?;
        stored_tx(root, |tx| {
            let links = tx.list(&[V1, b"parents"]).unwrap()?;
            let (key, _) = links.get(rng.below(links.len().max(1)))?.clone();
            tx.delete(&[V1, b"parents"], &key).unwrap();
            say(format!("{key:?}"))
        })
    },
    "a link that is none" => |root, _| {
        database(root, false)?;
        stored_tx(root, |tx| tx.put(&[V1, b"parents"], &[1, 0, 99], b"k8s.io/1/x").unwrap());
        say("1 > 99")
    },

    "no directory of a snapshot" => |root, rng| {
        let path = root.id_dir(rng)?;
        remove(&path);
        say_path(&path)
    },
    "no files of a snapshot" => |root, rng| {
        let path = root.id_dir(rng)?.join("fs");
        remove(&path);
        say_path(&path)
    },
    "a file for a snapshot" => |root, rng| {
        let path = root.id_dir(rng)?;
        remove(&path);
        fs::write(&path, "x").unwrap();
        say_path(&path)
    },
    "a file for the files of a snapshot" => |root, rng| {
        let path = root.id_dir(rng)?.join("fs");
        remove(&path);
        fs::write(&path, "x").unwrap();
        say_path(&path)
    },
    "no directories of snapshots" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        remove(&root.snapshots());
        say_path(&root.snapshots())
    },
    "a file for the directory of snapshots" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        remove(&root.snapshots());
        fs::write(root.snapshots(), "x").unwrap();
        say_path(&root.snapshots())
    },
    "a snapshot that nobody knows" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        fs::create_dir_all(root.snapshots().join("77/fs")).unwrap();
        say("77")
    },
    "a snapshot that was being made" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        fs::create_dir_all(root.snapshots().join("new-123/fs")).unwrap();
        say("new-123")
    },
    "snapshots that all may enter" => |root, _| {
        if !root.is_unpacked() {
            return None;
        }
        mode(&root.snapshots(), 0o755)
    },

    "two snapshots swapped" + contents => |root, rng| {
        root.inside(rng, |_, _| true)?;
        let ids: Vec<u8> = root.stored().into_values().collect();
        let (a, b) = (ids.first()?, ids.get(1)?);
        swap(&root.snapshots().join(a.to_string()), &root.snapshots().join(b.to_string()));
        say(format!("{a} and {b}"))
    },
    "a bit of a file" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_file() && meta.len() > 0)?;
        flip(&path, rng)
    },
    "a file cut off" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_file() && meta.len() > 1)?;
        let meta = fs::metadata(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(meta.len() / 2).unwrap();
        file.set_modified(meta.modified().unwrap()).unwrap();
        say_path(&path)
    },
    "no file" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_file())?;
        remove(&path);
        say_path(&path)
    },
    "a file more" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_dir())?.join("more");
        fs::write(&path, "more").unwrap();
        say_path(&path)
    },
    "another mode of a file" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_file())?;
        mode(&path, 0o4777)
    },
    "another mode of a directory" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_dir())?;
        mode(&path, 0o700)
    },
    "another owner" + contents => |root, rng| {
        let path = root.inside(rng, |_, _| true)?;
        std::os::unix::fs::lchown(&path, Some(1234), Some(1234)).unwrap();
        say_path(&path)
    },
    "another time" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_file())?;
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(12345);
        fs::File::open(&path).unwrap().set_modified(then).unwrap();
        say_path(&path)
    },
    "an extended attribute" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_file() || meta.is_dir())?;
        let (name, value): (&str, &[u8]) = [("trusted.overlay.opaque", &b"y"[..]), ("user.x", b"1")][rng.below(2)];
        rustix::fs::lsetxattr(&path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
        say_path(&path)
    },
    "a link that leads elsewhere" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_symlink())?;
        remove(&path);
        symlink("elsewhere", &path).unwrap();
        say_path(&path)
    },
    "a directory for a file" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_file())?;
        remove(&path);
        fs::create_dir(&path).unwrap();
        say_path(&path)
    },
    "a file for a directory" + contents => |root, rng| {
        let path = root.inside(rng, |meta, _| meta.is_dir())?;
        remove(&path);
        fs::write(&path, "x").unwrap();
        say_path(&path)
    },
    "a whiteout that is gone" + contents => |root, rng| {
        use std::os::unix::fs::FileTypeExt;
        let path = root.inside(rng, |meta, _| meta.file_type().is_char_device())?;
        remove(&path);
        say_path(&path)
    },
    "a snapshot's own directory that all may write" + contents => |root, rng| {
        root.inside(rng, |_, _| true)?;
        mode(&root.id_dir(rng)?.join("fs"), 0o777)
    },
}

fn stored_tx_opt<R>(root: &Root<'_>, f: impl FnOnce(&mut Tx<'_>) -> Option<R>) -> Option<R> {
    if root.is_unpacked() { stored_tx(root, f) } else { None }
}
