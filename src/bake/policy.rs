//! What is to become of an image's layers, and whether there is room for it. Pure, but for the look at what the root keeps.

use std::collections::HashMap;

use super::fetch::Resolved;
use super::{Error, Result, Wanted};
use crate::metadata::{self, MetaDb, labels};
use crate::oci::{Descriptor, Digest, media_type};
use crate::snapshot::OVERLAYFS;
use crate::spec::{Choice, Policy, Reason, Rule, Sizes, choose};

/// Most bytes that a layer may unpack to, unless asked otherwise.
pub const DEFAULT_MAX_UNPACKED: u64 = 64 << 30;
/// How many tenths of its size a compressed layer takes when it is unpacked, before anything is known of it: what layers of
/// Debian's packages come to.
const EXPANSION_TENTHS: u64 = 25;

/// What becomes of images' layers, and within which limits.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Rules, of which the first that fits counts.
    pub rules: Vec<Rule>,
    /// What no rule is about.
    pub default: Policy,
    /// Whether kubelet must never remove images of which nothing else is said.
    pub pin: bool,
    /// The snapshotters that containers on this root will use.
    pub snapshotters: Vec<String>,
    /// Most bytes that a layer may unpack to.
    pub max_unpacked: u64,
    /// Most bytes that the root's images may take, with what is there.
    pub max_store: Option<u64>,
    /// Whether to begin even when the file system has too little space by what is known before.
    pub ignore_space: bool,
}

impl Default for Policies {
    /// Everything is fetched, for overlayfs alone.
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            default: Policy::Fetch,
            pin: false,
            snapshotters: vec![OVERLAYFS.to_owned()],
            max_unpacked: DEFAULT_MAX_UNPACKED,
            max_store: None,
            ignore_space: false,
        }
    }
}

impl Policies {
    /// Whether any of these images may come to be unpacked.
    pub(super) fn may_unpack(&self, images: &[Wanted]) -> bool {
        let asked = images.iter().map(|image| image.policy).chain(self.rules.iter().map(|rule| rule.policy));
        asked.flatten().chain([self.default]).any(|policy| policy != Policy::Fetch)
    }

    /// What is asked for an image, whatever keeps its layers.
    pub(super) fn choose(&self, image: &Resolved) -> Choice {
        let sizes = Sizes { compressed: image.size(), unpacked: image.unpacked() };
        let own = (image.wanted.policy, image.wanted.pin);
        let choice = choose(own, &self.rules, (self.default, self.pin), &image.wanted.reference, sizes);
        match &image.stack {
            None if choice.policy != Policy::Fetch => {
                Choice { policy: Policy::Fetch, reason: Reason::NoLayers, ..choice }
            }
            _ => choice,
        }
    }

    /// Leaves out the layers of an image that is not to keep them. Nobody is asked who keeps them where a containerd runs.
    ///
    /// # Errors
    /// [`Error::Discard`] where its layers are needed.
    pub(super) fn apply(&self, image: &mut Resolved, keepers: Option<&Keepers>) -> Result<()> {
        if image.choice.policy == Policy::UnpackDiscard {
            let Some(keepers) = keepers else {
                let why = "the containerd that runs on the root unpacks them, and keeps them".to_owned();
                return Err(Error::Discard { why });
            };
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

/// What a layer takes unpacked, as far as its descriptor tells, in bytes.
pub(super) fn estimate(layer: &Descriptor) -> u64 {
    let compressed = layer.media_type.ends_with("gzip") || layer.media_type.ends_with("zstd");
    if compressed { layer.size.saturating_mul(EXPANSION_TENTHS) / 10 } else { layer.size }
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
