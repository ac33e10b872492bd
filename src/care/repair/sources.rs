//! Where a blob can be had: the registries of the images that have it, or a directory.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::care::anatomy::Anatomy;
use crate::care::state::{Space, State};
use crate::content::{self, Started, Store};
use crate::kind::chain;
use crate::metadata::K8S_NAMESPACE;
use crate::metadata::labels::DISTRIBUTION_SOURCE;
use crate::oci::{Descriptor, Digest, Reference};
use crate::source::Local;

/// Bytes that are copied at a time.
const BUFFER: usize = 1 << 18;
/// Where blobs lie below what `--from` may name: a layout, containerd's state, a root.
const PLACES: [&str; 3] =
    ["blobs", "io.containerd.content.v1.content/blobs", "var/lib/containerd/io.containerd.content.v1.content/blobs"];

/// A blob that is to be fetched.
#[derive(Debug, Clone)]
pub struct Missing {
    /// Which. Its media type is empty, and its size may be wrong, where nothing but a record names it.
    pub descriptor: Descriptor,
    /// Images that have it, whose registries may be asked for it.
    pub references: Vec<Reference>,
}

/// The references of each blob.
pub(super) struct Sources {
    all: BTreeMap<Digest, Vec<Reference>>,
    /// Blobs that only a label tells of, which has no port.
    by_label: HashSet<Digest>,
}

impl Sources {
    /// By the names of images that lead to it, by the catalog, and by what its record says.
    pub(super) fn new(state: &State) -> Self {
        let mut sources = Self { all: BTreeMap::new(), by_label: HashSet::new() };
        for space in &state.spaces {
            for row in &space.all.images {
                let Ok(reference) = row.name.parse::<Reference>() else { continue };
                if row.name.parse::<Digest>().is_ok() {
                    continue;
                }
                let anatomy = Anatomy::new(&state.store, &row.target, &|digest| space.recorded(digest));
                sources.add(&row.target.digest, &reference);
                for child in anatomy.documents.iter().flat_map(|node| &node.children) {
                    sources.add(&child.digest, &reference);
                }
            }
        }
        for (_, image) in &state.fetched {
            let Ok(reference) = image.name.parse::<Reference>() else { continue };
            image.blobs.iter().for_each(|blob| sources.add(&blob.descriptor.digest, &reference));
        }
        state.spaces.iter().for_each(|space| sources.labels(space));
        sources
    }

    fn add(&mut self, digest: &Digest, reference: &Reference) {
        let known = self.all.entry(digest.clone()).or_default();
        let same = |other: &Reference| {
            (other.registry(), other.repository()) == (reference.registry(), reference.repository())
        };
        if !known.iter().any(same) {
            known.push(reference.clone());
        }
    }

    fn labels(&mut self, space: &Space) {
        for blob in space.all.blobs.values() {
            for (key, value) in &blob.labels {
                let Some(host) = key.strip_prefix(DISTRIBUTION_SOURCE) else { continue };
                // Who is known by a name is asked by that.
                let known: HashSet<&str> =
                    self.all.get(&blob.digest).into_iter().flatten().map(Reference::registry_host).collect();
                if known.contains(host) {
                    continue;
                }
                if known.is_empty() {
                    self.by_label.insert(blob.digest.clone());
                }
                for repository in value.split(',') {
                    if let Ok(reference) = format!("{host}/{repository}@{}", blob.digest).parse() {
                        self.add(&blob.digest, &reference);
                    }
                }
            }
        }
    }

    /// Whether the name of an image tells where a blob can be had.
    pub(super) fn is_named(&self, digest: &Digest) -> bool {
        self.all.contains_key(digest) && !self.by_label.contains(digest)
    }

    pub(super) fn of(&self, descriptor: Descriptor) -> Missing {
        let references = self.all.get(&descriptor.digest).cloned().unwrap_or_default();
        Missing { descriptor, references }
    }
}

/// Where blobs can be had, besides registries.
pub enum From {
    /// Another root, containerd's state of one, or an OCI layout; whatever else may be wrong with it.
    Dir(PathBuf),
    /// A place that holds images.
    Place(Arc<Local>),
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => path.display().fmt(f),
            Self::Place(local) => f.write_str(local.place()),
        }
    }
}

/// A blob that was found.
struct Found {
    /// In bytes.
    size: u64,
    /// Where.
    path: PathBuf,
    reader: Box<dyn Read>,
}

impl From {
    /// A blob, and how many bytes it has; `None` where there is none.
    fn open(&self, digest: &Digest) -> Result<Option<Found>, String> {
        match self {
            Self::Place(local) => {
                let place = |error: crate::source::Error| chain(&error);
                let Some(size) = local.size(digest).map_err(place)? else { return Ok(None) };
                let reader = local.read(digest, 0).map_err(place)?;
                Ok(Some(Found { size, path: local.place().into(), reader }))
            }
            Self::Dir(dir) => {
                let paths = PLACES.iter().map(|place| dir.join(place).join(digest.path()));
                let Some(path) = paths.into_iter().find(|path| path.is_file()) else { return Ok(None) };
                let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
                let (size, file) = opened.map_err(|error| format!("opening {} failed: {error}", path.display()))?;
                Ok(Some(Found { size, path, reader: Box::new(file) }))
            }
        }
    }
}

/// Copies blobs into the store; of each, why it did not come, if it did not.
pub(super) fn copy(store: &Store, from: &From, missing: &[Missing]) -> Vec<Option<String>> {
    let one = |Missing { descriptor, .. }: &Missing| match from.open(&descriptor.digest) {
        Ok(None) => Some(format!("{from} has no such blob")),
        Ok(Some(Found { size, path, reader })) => {
            // What a record says of its size may be what is wrong.
            let blob = Descriptor::new(descriptor.media_type.clone(), descriptor.digest.clone(), size);
            copy_one(store, &path, reader, &blob).err().map(|error| chain(&error))
        }
        Err(why) => Some(why),
    };
    missing.iter().map(one).collect()
}

fn copy_one(store: &Store, path: &Path, mut reader: impl Read, blob: &Descriptor) -> Result<(), content::Error> {
    let error = |source| content::Error::Io { action: "reading", path: path.to_owned(), source };
    let mut ingest = match store.ingest(K8S_NAMESPACE, "blob", blob)? {
        Started::Whole(whole) => return whole.commit(),
        Started::New(ingest) => ingest,
    };
    // What an earlier run got is here.
    std::io::copy(&mut reader.by_ref().take(ingest.written()), &mut std::io::sink()).map_err(error)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match reader.read(&mut buffer).map_err(error)? {
            0 => break,
            n => ingest.write(&buffer[..n])?,
        }
    }
    ingest.verify()?.commit()
}
