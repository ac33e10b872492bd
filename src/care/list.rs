//! What containerd will list.

use std::collections::HashSet;

use serde::Serialize;

use super::Result;
use super::walk::walk;
use crate::bolt::Lock;
use crate::content::Store;
use crate::metadata::{self, MetaDb, labels};
use crate::oci::Digest;
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
pub fn images(root: &Root, namespace: Option<&str>) -> Result<Vec<ListedImage>> {
    let store = Store::open(root)?;
    let mut meta = MetaDb::lock(root, Lock::Shared)?;
    let listed = meta.read(|tx| {
        let namespaces = match namespace {
            Some(one) => vec![one.to_owned()],
            None => metadata::namespaces(tx)?,
        };
        let mut listed = Vec::new();
        for namespace in namespaces {
            let blobs: HashSet<Digest> =
                metadata::blobs(tx, &namespace)?.into_iter().flatten().map(|blob| blob.digest).collect();
            for image in metadata::images(tx, &namespace)? {
                listed.push(row(&store, &namespace, image?, &blobs));
            }
        }
        Ok(listed)
    })?;
    Ok(listed.unwrap_or_default())
}

fn row(store: &Store, namespace: &str, image: metadata::ImageRow, blobs: &HashSet<Digest>) -> ListedImage {
    ListedImage {
        namespace: namespace.to_owned(),
        size: walk(store, &image.target, &|digest| blobs.contains(digest)).ok().map(|walk| walk.size()),
        name: image.name,
        digest: image.target.digest.to_string(),
        media_type: image.target.media_type,
        pinned: image.labels.get(labels::CRI_PINNED.0).is_some_and(|value| value == labels::CRI_PINNED.1),
        created: image.created.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
    }
}
