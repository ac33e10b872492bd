//! From an image's target through its documents in the store, as containerd walks them.

use super::{Error, Store};
use crate::oci::{Descriptor, Digest, Document, DocumentError, MAX_DOCUMENT, Manifest, Platform, media_type};

/// Indexes inside an index.
const MAX_INDEX_DEPTH: usize = 8;

/// What was found on the way down.
#[derive(Debug, Default)]
pub struct Walk {
    /// Each document with its children, from the target down.
    pub documents: Vec<(Descriptor, Vec<Descriptor>)>,
    /// The manifest at the end.
    pub manifest: Option<Manifest>,
}

/// Why the walk ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// A document is not here.
    #[error("{0} is missing")]
    Missing(Digest),
    /// A document cannot be read.
    #[error(transparent)]
    Content(#[from] Error),
    /// A document is not what it should be.
    #[error("{0} cannot be used: {1}")]
    Document(Digest, #[source] DocumentError),
    /// An index leads to no manifest that is here.
    #[error("none of the manifests of {0} is here")]
    NoManifest(Digest),
    /// Indexes within indexes within indexes.
    #[error("the indexes nest too deep")]
    TooDeep,
}

/// Walks down; in an index, to this machine's manifest if it has a record, else to the first that has one.
///
/// # Errors
/// [`WalkError`].
pub fn walk(store: &Store, target: &Descriptor, recorded: &dyn Fn(&Digest) -> bool) -> Result<Walk, WalkError> {
    let mut walk = Walk::default();
    let mut at = target.clone();
    for _ in 0..=MAX_INDEX_DEPTH {
        if store.stat(&at.digest)?.is_none() {
            return Err(WalkError::Missing(at.digest));
        }
        let bytes = store.read(&at.digest, MAX_DOCUMENT)?;
        let (document, _) =
            Document::parse(&bytes, &at.media_type).map_err(|e| WalkError::Document(at.digest.clone(), e))?;
        let index = match document {
            Document::Manifest(manifest) => {
                let children = std::iter::once(&manifest.config).chain(&manifest.layers).cloned().collect();
                walk.documents.push((at, children));
                walk.manifest = Some(manifest);
                return Ok(walk);
            }
            Document::Index(index) => index,
        };
        let document = |kind: &str| media_type::is_manifest(kind) || media_type::is_index(kind);
        let here: Vec<_> =
            index.manifests.iter().filter(|entry| document(&entry.media_type) && recorded(&entry.digest)).collect();
        let host = Some(Platform::host());
        let next = here.iter().find(|entry| entry.platform() == host).or(here.first()).map(|entry| (*entry).clone());
        let digest = at.digest.clone();
        walk.documents.push((at, index.manifests));
        at = next.ok_or(WalkError::NoManifest(digest))?;
    }
    Err(WalkError::TooDeep)
}

impl Walk {
    /// The size containerd lists (`Image.Size`): documents, config and layers, each as often as it is referred to.
    pub fn size(&self) -> u64 {
        let documents = self.documents.iter().map(|(descriptor, _)| descriptor.size);
        let rest = self.manifest.iter().flat_map(|manifest| std::iter::once(&manifest.config).chain(&manifest.layers));
        documents.chain(rest.map(|descriptor| descriptor.size)).sum()
    }
}
