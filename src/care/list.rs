//! What containerd will list.

use serde::Serialize;

use super::walk::walk;
use super::{Error, Result};
use crate::bolt::Lock;
use crate::content::Store;
use crate::metadata::{self, MetaDb, labels};
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
/// [`Error::Metadata`] when the database cannot be read, or has a record at which containerd would fail.
pub fn images(root: &Root, namespace: Option<&str>) -> Result<Vec<ListedImage>> {
    let store = Store::open(root)?;
    let mut meta = MetaDb::lock(root, Lock::Shared)?;
    let rows = meta.read(|tx| {
        let namespaces = match namespace {
            Some(one) => vec![one.to_owned()],
            None => metadata::namespaces(tx)?,
        };
        let mut rows = Vec::new();
        for namespace in namespaces {
            for image in metadata::images(tx, &namespace)? {
                rows.push((namespace.clone(), image?));
            }
        }
        Ok(rows)
    })?;
    let listed = |(namespace, image): (String, metadata::ImageRow)| ListedImage {
        namespace,
        size: walk(&store, &image.target).ok().map(|walk| walk.size()),
        name: image.name,
        digest: image.target.digest.to_string(),
        media_type: image.target.media_type,
        pinned: image.labels.get(labels::CRI_PINNED.0).is_some_and(|value| value == labels::CRI_PINNED.1),
        created: image.created.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
    };
    Ok::<_, Error>(rows.unwrap_or_default().into_iter().map(listed).collect())
}
