//! What is to become of an image's layers, and whether there is room for it. Pure, but for the look at what the root keeps.

use std::collections::{HashMap, HashSet};

use super::fetch::Resolved;
use super::{Error, Result};
use crate::metadata::{self, MetaDb, labels};
use crate::oci::{Digest, media_type};
use crate::snapshot::OVERLAYFS;

/// Most bytes that a layer may unpack to, unless asked otherwise.
pub const DEFAULT_MAX_UNPACKED: u64 = 64 << 30;
/// How many tenths of its size a compressed layer takes when it is unpacked, before anything is known of it: what layers of
/// Debian's packages come to.
const EXPANSION_TENTHS: u64 = 25;

/// What becomes of an image's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They are kept; containerd unpacks them at first use.
    Fetch,
    /// They are kept and unpacked.
    Unpack,
    /// They are unpacked and not kept.
    UnpackDiscard,
}

/// Which images are unpacked, and how.
#[derive(Debug, Clone)]
pub struct Unpacking {
    /// Only images of fewer compressed bytes; all without it.
    pub under: Option<u64>,
    /// Whether layers that are unpacked are not kept.
    pub discard: bool,
    /// The snapshotters that containers on this root will use.
    pub snapshotters: Vec<String>,
    /// Most bytes that a layer may unpack to.
    pub max_unpacked: u64,
    /// Whether to begin even when the file system has too little space by what is known before.
    pub ignore_space: bool,
}

impl Default for Unpacking {
    /// All images, for overlayfs alone, and nothing is discarded.
    fn default() -> Self {
        Self {
            under: None,
            discard: false,
            snapshotters: vec![OVERLAYFS.to_owned()],
            max_unpacked: DEFAULT_MAX_UNPACKED,
            ignore_space: false,
        }
    }
}

impl Unpacking {
    /// What it asks for an image, whatever keeps its layers.
    pub(super) fn policy(&self, image: &Resolved) -> Policy {
        match self.under {
            _ if image.stack.is_none() => Policy::Fetch,
            Some(limit) if image.size() >= limit => Policy::Fetch,
            _ if self.discard => Policy::UnpackDiscard,
            _ => Policy::Unpack,
        }
    }

    /// Gives an image its policy.
    ///
    /// # Errors
    /// [`Error::Discard`] where its layers are needed.
    pub(super) fn apply(&self, image: &mut Resolved, keepers: &Keepers) -> Result<()> {
        image.policy = self.policy(image);
        if image.policy == Policy::UnpackDiscard {
            if let Some(other) = self.snapshotters.iter().find(|name| *name != OVERLAYFS) {
                let why = format!("snapshotter {other} needs them to unpack the image again");
                return Err(Error::Discard { why });
            }
            if let Some((digest, keeper)) = image.blobs.iter().find_map(|blob| {
                let digest = &blob.descriptor.digest;
                keepers.0.get(digest).map(|keeper| (digest, keeper))
            }) {
                return Err(Error::Discard { why: format!("{keeper} keeps {digest}") });
            }
            image.discard_layers();
        }
        Ok(())
    }
}

/// Which layers are kept, and by whom.
#[derive(Debug, Default)]
pub(super) struct Keepers(HashMap<Digest, String>);

impl Keepers {
    /// Layers that manifests in the root's metadata refer to.
    ///
    /// # Errors
    /// [`Error::Metadata`].
    pub(super) fn of_root(meta: &mut MetaDb) -> Result<Self> {
        let found = meta.read(|tx| {
            let mut keepers = HashMap::new();
            for namespace in metadata::namespaces(tx)? {
                for blob in metadata::blobs(tx, &namespace)? {
                    let blob = blob?;
                    for (_, layer) in blob.labels.iter().filter(|(key, _)| labels::is_layer_ref(key)) {
                        if let Ok(layer) = layer.parse() {
                            keepers.insert(layer, format!("manifest {} in namespace {namespace}", blob.digest));
                        }
                    }
                }
            }
            Ok(keepers)
        })?;
        Ok(Self(found.unwrap_or_default()))
    }

    /// An image of this bake keeps its layers.
    pub(super) fn add(&mut self, name: &str, image: &Resolved) {
        let layers = image.blobs.iter().filter(|blob| media_type::is_layer(&blob.descriptor.media_type));
        self.0.extend(layers.map(|blob| (blob.descriptor.digest.clone(), name.to_owned())));
    }
}

/// What images will take that is not there yet, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Blobs.
    pub store: u64,
    /// Snapshots, as far as can be told before they are made.
    pub snapshots: u64,
}

impl Needs {
    /// Of these images; `has_blob` and `has_chain` say what is there.
    pub(super) fn of<'r>(
        images: impl Iterator<Item = &'r Resolved>,
        has_blob: impl Fn(&Digest) -> bool,
        has_chain: impl Fn(&Digest) -> bool,
    ) -> Self {
        let mut needs = Self::default();
        let (mut blobs, mut chains) = (HashSet::new(), HashSet::new());
        for image in images {
            for blob in &image.blobs {
                let digest = &blob.descriptor.digest;
                if blobs.insert(digest) && !has_blob(digest) {
                    needs.store += blob.descriptor.size;
                }
            }
            if image.policy == Policy::Fetch {
                continue;
            }
            for layer in image.stack.iter().flat_map(|stack| &stack.layers) {
                if chains.insert(&layer.chain) && !has_chain(&layer.chain) {
                    let kind = &layer.descriptor.media_type;
                    let compressed = kind.ends_with("gzip") || kind.ends_with("zstd");
                    let size = layer.descriptor.size;
                    needs.snapshots += if compressed { size.saturating_mul(EXPANSION_TENTHS) / 10 } else { size };
                }
            }
        }
        needs
    }
}
