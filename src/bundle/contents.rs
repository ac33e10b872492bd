//! What a bundle says of itself, in `prebake/bundle.json` before its blobs. Its signature, beside it, is one of these bytes:
//! names, policies and digests of everything are under it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::{Descriptor, Digest, Platform, Reference};
use crate::spec::{Policy, Shard};

/// Where it is in the archive.
pub(super) const CONTENTS: &str = "prebake/bundle.json";
/// Where its signature is.
pub(super) const SIGNATURE: &str = "prebake/bundle.sig";
/// The version that is written and read.
pub(super) const VERSION: u32 = 1;

/// What is in a bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// Of the format: 1.
    pub version: u32,
    /// The inventory of the receiver that it is made for, where it has only what that one lacks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since: Option<Digest>,
    /// Which shard of how many it is, where the layers that are not here are in the others' bundles.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub shard: Option<String>,
    /// Its images, in the order asked for.
    pub images: Vec<BundledImage>,
    /// Every blob that its images need.
    pub blobs: Vec<BundledBlob>,
}

/// An image of a bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledImage {
    /// Its name.
    pub name: String,
    /// containerd's namespace.
    pub namespace: String,
    /// What becomes of its layers.
    pub policy: Policy,
    /// Whether kubelet must never remove it.
    pub pin: bool,
    /// Further names of it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub names: Vec<String>,
    /// Labels of its records.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
    /// For which machines.
    pub platforms: Vec<Platform>,
    /// What the name leads to.
    pub target: Descriptor,
    /// Which of the bundle's blobs it needs, by their places among them.
    pub blobs: Vec<usize>,
}

/// A blob that is needed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledBlob {
    /// Which.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Whether it is in the bundle; the receiver has it otherwise, or another shard's bundle.
    pub here: bool,
}

impl Contents {
    /// Images of which something is not in it.
    pub fn left(&self) -> usize {
        self.images.iter().filter(|image| image.blobs.iter().any(|blob| !self.blobs[*blob].here)).count()
    }

    /// What is wrong with it, if something is.
    pub(super) fn wrong(&self) -> Option<String> {
        if self.version != VERSION {
            return Some(format!("it is of version {}; prebake knows {VERSION}", self.version));
        }
        if let Some(shard) = &self.shard
            && let Err(error) = shard.parse::<Shard>()
        {
            return Some(error.to_string());
        }
        for image in &self.images {
            let names = std::iter::once(&image.name).chain(&image.names);
            for name in names {
                if name.parse::<Reference>().map(|parsed| parsed.to_string()).as_ref() != Ok(name) {
                    return Some(format!("{name:?} is no full name of an image"));
                }
            }
            if image.platforms.is_empty() || image.blobs.iter().any(|n| *n >= self.blobs.len()) {
                return Some(format!("what it says of {} does not fit", image.name));
            }
        }
        None
    }
}
