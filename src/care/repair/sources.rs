//! Where a blob can be had: the registries of the images that have it, or a directory.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::care::anatomy::Anatomy;
use crate::care::state::{Space, State};
use crate::content::{self, Started, Store};
use crate::kind::chain;
use crate::metadata::K8S_NAMESPACE;
use crate::metadata::labels::DISTRIBUTION_SOURCE;
use crate::oci::{Descriptor, Digest, Reference};

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

/// Copies blobs from a directory into the store; of each, why it did not come, if it did not.
pub(super) fn copy(store: &Store, from: &Path, missing: &[Missing]) -> Vec<Option<String>> {
    let one = |Missing { descriptor, .. }: &Missing| {
        let Some(path) = find(from, &descriptor.digest) else {
            return Some(format!("{} has no such blob", from.display()));
        };
        copy_one(store, &path, descriptor).err().map(|error| chain(&error))
    };
    missing.iter().map(one).collect()
}

fn find(from: &Path, digest: &Digest) -> Option<PathBuf> {
    let name = format!("{}/{}", digest.algorithm().name(), digest.hex());
    PLACES.iter().map(|place| from.join(place).join(&name)).find(|path| path.is_file())
}

fn copy_one(store: &Store, path: &Path, blob: &Descriptor) -> Result<(), content::Error> {
    let error = |action| move |source| content::Error::Io { action, path: path.to_owned(), source };
    let mut file = File::open(path).map_err(error("opening"))?;
    let size = file.metadata().map_err(error("opening"))?.len();
    // What a record says of its size may be what is wrong.
    let blob = Descriptor::new(blob.media_type.clone(), blob.digest.clone(), size);
    let mut ingest = match store.ingest(K8S_NAMESPACE, "blob", &blob)? {
        Started::Whole(whole) => return whole.commit(),
        Started::New(ingest) => ingest,
    };
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(ingest.written())).map_err(error("reading"))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer).map_err(error("reading"))? {
            0 => break,
            n => ingest.write(&buffer[..n])?,
        }
    }
    ingest.verify()?.commit()
}
