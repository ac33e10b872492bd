//! What containerd will list.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::Result;
use crate::bolt::Lock;
use crate::content::Store;
use crate::content::walk;
use crate::metadata::{self, MetaDb, Wait, labels};
use crate::oci::{Descriptor, Digest};
use crate::parallel;
use crate::root::Root;

/// An image as containerd lists it.
#[derive(Debug, Clone, Serialize)]
pub struct ListedImage {
    /// containerd's namespace.
    pub namespace: String,
    /// The image name.
    pub name: String,
    /// Digest of its target.
    pub digest: String,
    /// The target's media type.
    pub media_type: String,
    /// Compressed, in bytes, with its documents; absent when its documents are not all here.
    pub size: Option<u64>,
    /// Whether kubelet must not remove it.
    pub pinned: bool,
    /// When the record was made (RFC 3339).
    pub created: Option<String>,
}

/// The images of one namespace, or of all.
///
/// # Errors
/// [`super::Error::Metadata`] when the database cannot be read, or has a record at which containerd would fail.
pub fn images(root: &Root, namespace: Option<&str>, wait: &Wait<'_>) -> Result<Vec<ListedImage>> {
    let mut meta = MetaDb::lock(root, Lock::Shared, wait)?;
    let store = Store::open(root)?;
    let rows = meta.read(|tx| {
        let namespaces = match namespace {
            Some(one) => vec![one.to_owned()],
            None => metadata::namespaces(tx)?,
        };
        let mut rows = Vec::new();
        for namespace in namespaces {
            let blobs = metadata::blob_digests(tx, &namespace)?;
            let images: Vec<_> = metadata::images(tx, &namespace)?.into_iter().collect::<Result<_, _>>()?;
            rows.push((namespace, blobs, images));
        }
        Ok(rows)
    })?;
    let mut listed = Vec::new();
    for (namespace, blobs, images) in rows.unwrap_or_default() {
        let sizes = sizes(&store, &images, &blobs);
        let row = |image: metadata::ImageRow| ListedImage {
            namespace: namespace.clone(),
            size: sizes.get(&image.target.digest).copied(),
            name: image.name,
            digest: image.target.digest.to_string(),
            media_type: image.target.media_type,
            pinned: image.labels.get(labels::CRI_PINNED.0).is_some_and(|value| value == labels::CRI_PINNED.1),
            created: image.created.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
        };
        listed.extend(images.into_iter().map(row));
    }
    Ok(listed)
}

/// Sizes of targets whose documents are all here. Several records share a target, and thousands of documents are read.
fn sizes(store: &Store, images: &[metadata::ImageRow], blobs: &HashSet<Digest>) -> HashMap<Digest, u64> {
    let mut seen = HashSet::new();
    let targets: Vec<&Descriptor> =
        images.iter().map(|i| &i.target).filter(|target| seen.insert(&target.digest)).collect();
    let size = |target: &Descriptor| {
        let walk = walk(store, target, &|digest| blobs.contains(digest)).ok()?;
        Some((target.digest.clone(), walk.size()))
    };
    parallel::map(targets, size).into_iter().flatten().collect()
}
