//! What differs between two roots, or two locks: images, their layers, and the files in them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::Result;
use super::image::Image;
use super::prune::is_by_digest;
use super::whole::Whole;
use crate::bolt::Lock;
use crate::content::Store;
use crate::layer::{self, Buffers, Entry, EntryKind, Job};
use crate::metadata::{MetaDb, Wait};
use crate::oci::{Config, Descriptor, Digest, Document, Platform};
use crate::root::Root;
use crate::source::{Held, Local};

/// What a whiteout's name begins with, and the one that hides a whole directory (image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Indexes inside an index.
const MAX_DEPTH: usize = 5;

/// One of two sides.
#[derive(Default)]
pub struct Side {
    /// Its images by name.
    pub images: BTreeMap<String, SideImage>,
    /// Where its layers are, if they are anywhere.
    blobs: Option<Blobs>,
}

/// Where layers are.
enum Blobs {
    Store(Store),
    Place(Arc<Local>),
}

impl Blobs {
    fn open(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>> {
        match self {
            Self::Store(store) => match store.stat(digest)? {
                Some(_) => Ok(Some(Box::new(store.open_blob(digest)?))),
                None => Ok(None),
            },
            Self::Place(local) => match local.size(digest)? {
                Some(_) => Ok(Some(local.read(digest, 0)?)),
                None => Ok(None),
            },
        }
    }
}

/// An image of a side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideImage {
    /// What the name leads to.
    pub target: Digest,
    /// Its layers, the lowest first, with the digests of their archives where those are known.
    pub layers: Vec<(Descriptor, Option<Digest>)>,
}

/// What differs.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Names that only the first side has, with what they lead to.
    pub only_first: Vec<(String, Digest)>,
    /// Names that only the second has.
    pub only_second: Vec<(String, Digest)>,
    /// Names that lead to something else.
    pub changed: Vec<Changed>,
    /// How many are the same.
    pub same: usize,
}

/// A name that leads to something else.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// The image name.
    pub name: String,
    /// What it leads to on the first side.
    pub first: Digest,
    /// What it leads to on the second.
    pub second: Digest,
    /// Layers that only the first has, with their bytes.
    pub layers_gone: Vec<(Digest, u64)>,
    /// Layers that only the second has.
    pub layers_new: Vec<(Digest, u64)>,
    /// Files that differ; absent where nobody asked, or where a side does not have the layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<FileChange>>,
}

/// A file that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Its path.
    pub path: String,
    /// `new`, `gone`, or what of it differs, joined by commas.
    pub what: String,
}

impl Side {
    /// A side with images alone.
    pub fn of_images(images: BTreeMap<String, SideImage>) -> Self {
        Self { images, blobs: None }
    }

    /// The images of a namespace of a root, by names that say more than a digest, where they have one.
    ///
    /// # Errors
    /// [`super::Error::Unsound`] when something in the root is damaged.
    pub fn of_root(root: &Root, namespace: &str, wait: &Wait<'_>) -> Result<Self> {
        let mut meta = MetaDb::lock(root, Lock::Shared, wait)?;
        let whole = Whole::read(root, &mut meta)?;
        let mut images = BTreeMap::new();
        for image in whole.namespace(namespace).map_or(Vec::new(), |contents| Image::all(&whole, contents)) {
            let layers = image.anatomy.chosen().map_or(Vec::new(), |body| {
                let diff_ids = body.config.as_ref().and_then(|config| config.diff_ids.clone()).unwrap_or_default();
                let diff_ids = diff_ids.into_iter().map(Some).chain(std::iter::repeat(None));
                body.manifest.layers.iter().cloned().zip(diff_ids).collect()
            });
            let side = SideImage { target: image.target.digest.clone(), layers };
            let named = image.rows.iter().any(|row| !is_by_digest(&row.name));
            let names = image.rows.iter().filter(|row| !named || !is_by_digest(&row.name));
            images.extend(names.map(|row| (row.name.clone(), side.clone())));
        }
        Ok(Self { images, blobs: Some(Blobs::Store(whole.store)) })
    }

    /// The images of a place, as they are for this machine, or else for the first one that is there.
    ///
    /// # Errors
    /// [`super::Error::Source`] when it cannot be read.
    pub fn of_place(local: Local) -> Result<Self> {
        let mut images = BTreeMap::new();
        for held in local.chosen()? {
            let Some(name) = &held.name else { continue };
            images
                .insert(name.clone(), SideImage { target: held.target.digest.clone(), layers: layers(&local, &held)? });
        }
        Ok(Self { images, blobs: Some(Blobs::Place(Arc::new(local))) })
    }

    /// The files of an image, by path; `None` where its layers are not all here.
    fn files(&self, image: &SideImage) -> Result<Option<Files>> {
        let Some(blobs) = &self.blobs else { return Ok(None) };
        let mut files = Files::default();
        let buffers = Arc::new(Buffers::default());
        for (layer, diff_id) in &image.layers {
            let (Some(diff_id), Some(blob)) = (diff_id, blobs.open(&layer.digest)?) else { return Ok(None) };
            let job = Job {
                media_type: &layer.media_type,
                diff_id,
                limit: u64::MAX,
                time: 0,
                buffers: &buffers,
                stop: &|| false,
            };
            files.begin();
            layer::entries(blob, &job, &mut |entry, digest| files.add(entry, digest))
                .map_err(|source| super::Error::Layer { digest: layer.digest.clone(), source })?;
        }
        Ok(Some(files))
    }
}

/// The layers of an image of a place, with the digests of their archives where those are known.
fn layers(local: &Local, held: &Held) -> Result<Vec<(Descriptor, Option<Digest>)>> {
    let host = Platform::host();
    let mut target = held.target.clone();
    for _ in 0..MAX_DEPTH {
        let manifest = match Document::parse(&local.small(&target.digest)?, &target.media_type) {
            Err(_) => break,
            Ok((Document::Manifest(manifest), _)) => manifest,
            Ok((Document::Index(index), _)) => {
                let mut there = Vec::new();
                for entry in index.manifests {
                    if local.size(&entry.digest)?.is_some() {
                        there.push(entry);
                    }
                }
                let own = there.iter().position(|entry| entry.platform().as_ref() == Some(&host)).unwrap_or(0);
                if there.is_empty() {
                    break;
                }
                target = there.swap_remove(own);
                continue;
            }
        };
        let config = match local.size(&manifest.config.digest)? {
            Some(_) => Config::parse(&local.small(&manifest.config.digest)?).ok(),
            None => None,
        };
        let diff_ids = config.and_then(|config| config.diff_ids).unwrap_or_default().into_iter().map(Some);
        return Ok(manifest.layers.into_iter().zip(diff_ids.chain(std::iter::repeat(None))).collect());
    }
    Ok(Vec::new())
}

/// Compares two sides; the files of images that changed as well, where that is asked for.
///
/// # Errors
/// [`super::Error::Layer`] for a layer that cannot be read.
pub fn diff(first: &Side, second: &Side, files: bool) -> Result<Difference> {
    let mut found = Difference::default();
    let only = |this: &Side, other: &Side| -> Vec<(String, Digest)> {
        let only = this.images.iter().filter(|(name, _)| !other.images.contains_key(*name));
        only.map(|(name, image)| (name.clone(), image.target.clone())).collect()
    };
    found.only_first = only(first, second);
    found.only_second = only(second, first);
    for (name, a) in &first.images {
        let Some(b) = second.images.get(name) else { continue };
        if a.target == b.target {
            found.same += 1;
            continue;
        }
        let files = match files.then(|| Ok::<_, super::Error>((first.files(a)?, second.files(b)?))).transpose()? {
            Some((Some(a), Some(b))) => Some(a.changes(&b)),
            _ => None,
        };
        found.changed.push(Changed {
            name: name.clone(),
            first: a.target.clone(),
            second: b.target.clone(),
            layers_gone: others(a, b),
            layers_new: others(b, a),
            files,
        });
    }
    Ok(found)
}

/// Layers that only the first of two images has.
fn others(this: &SideImage, other: &SideImage) -> Vec<(Digest, u64)> {
    let had: BTreeSet<&Digest> = other.layers.iter().map(|(layer, _)| &layer.digest).collect();
    let new = this.layers.iter().filter(|(layer, _)| !had.contains(&layer.digest));
    new.map(|(layer, _)| (layer.digest.clone(), layer.size)).collect()
}

/// The files of a stack of layers.
#[derive(Default)]
struct Files {
    all: BTreeMap<PathBuf, (Entry, Option<Digest>)>,
    /// Paths of the layer that is being read: an opaque directory hides what is below it, and not these.
    own: BTreeSet<PathBuf>,
}

impl Files {
    fn begin(&mut self) {
        self.own.clear();
    }

    fn add(&mut self, mut entry: Entry, digest: Option<Digest>) {
        let path = clean(&entry.path);
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), name(&path));
        if name == OPAQUE {
            let own = &self.own;
            self.all.retain(|at, _| at == parent || !at.starts_with(parent) || own.contains(at));
            return;
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.remove(&parent.join(as_path(hidden)));
            return;
        }
        if path.as_os_str().is_empty() || entry.kind == EntryKind::Global {
            return;
        }
        let mut digest = digest;
        if entry.kind == EntryKind::HardLink {
            // It is the file that it names, with the owner and times it says itself.
            if let Some((target, contents)) = self.all.get(&clean(&entry.link)) {
                (entry.kind, entry.size, entry.xattrs) = (target.kind, target.size, target.xattrs.clone());
                entry.link.clone_from(&target.link);
                digest.clone_from(contents);
            }
        }
        if entry.kind != EntryKind::Directory {
            self.remove(&path);
        }
        self.own.insert(path.clone());
        self.all.insert(path, (entry, digest));
    }

    fn remove(&mut self, path: &Path) {
        let gone: Vec<PathBuf> = self
            .all
            .range(path.to_owned()..)
            .map(|(at, _)| at)
            .take_while(|at| at.starts_with(path))
            .cloned()
            .collect();
        for at in gone {
            self.all.remove(&at);
        }
    }

    fn changes(&self, other: &Self) -> Vec<FileChange> {
        let mut changes = Vec::new();
        let mut note = |path: &Path, what: &str| {
            changes.push(FileChange { path: path.display().to_string(), what: what.to_owned() });
        };
        let paths: BTreeSet<&PathBuf> = self.all.keys().chain(other.all.keys()).collect();
        for path in paths {
            match (self.all.get(path), other.all.get(path)) {
                (Some(_), None) => note(path, "gone"),
                (None, _) => note(path, "new"),
                (Some((a, contents)), Some((b, others))) => {
                    let differs = [
                        ("type", a.kind != b.kind),
                        ("contents", contents != others),
                        ("link", a.link != b.link),
                        ("mode", a.mode & 0o7777 != b.mode & 0o7777),
                        ("owner", (a.uid, a.gid) != (b.uid, b.gid)),
                        ("device", a.device != b.device),
                        ("attributes", a.xattrs != b.xattrs),
                        ("time", a.mtime != b.mtime),
                    ];
                    let what: Vec<&str> =
                        differs.iter().filter(|(_, differs)| *differs).map(|(what, _)| *what).collect();
                    if !what.is_empty() {
                        note(path, &what.join(", "));
                    }
                }
            }
        }
        changes
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn name(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.file_name().unwrap_or_default().as_bytes()
}

/// A path without names that lead nowhere.
fn clean(path: &[u8]) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in as_path(path).components() {
        match part {
            std::path::Component::Normal(part) => clean.push(part),
            std::path::Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}
