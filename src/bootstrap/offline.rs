//! Bootstrap without a containerd: records straight into `meta.db`, as a CRI pull leaves them.

use std::collections::BTreeMap;

use chrono::Utc;

use crate::catalog::{ImageBlob, ImageRecord};
use crate::content::{self, Store};
use crate::metadata::{self, Blob, Image, K8S_NAMESPACE, Labels, MetaDb, labels, put_blob, put_image};
use crate::oci::Digest;

/// Why an image did not get its records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image's blobs are not all there: containerd would list what it cannot start.
    #[error("blob {digest} of {image} is not in the content store; fetch the image again")]
    MissingBlob {
        /// The image name.
        image: String,
        /// What is missing.
        digest: Digest,
    },
    /// The content store cannot be read.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// `meta.db` cannot be written.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
}

/// An image whose blobs were all seen in the store: only [`ready`] makes one.
#[derive(Debug)]
pub struct Ready(ImageRecord);

/// Makes sure that every blob of the image is in the store with its size.
///
/// # Errors
/// [`Error::MissingBlob`] with the first that is not.
pub fn ready(store: &Store, image: ImageRecord) -> Result<Ready, Error> {
    for blob in &image.blobs {
        let stat = store.stat(&blob.descriptor.digest)?;
        if stat.is_none_or(|stat| stat.size != blob.descriptor.size) {
            return Err(Error::MissingBlob { image: image.name.clone(), digest: blob.descriptor.digest.clone() });
        }
    }
    Ok(Ready(image))
}

/// Writes the records of images into a namespace, all in one commit; `false` when they were all there.
///
/// # Errors
/// [`Error::Metadata`].
pub fn bootstrap(meta: &mut MetaDb, namespace: &str, images: &[Ready]) -> Result<bool, Error> {
    if images.is_empty() {
        return Ok(false);
    }
    let now = Utc::now();
    let changed = meta.write(|tx| {
        // In the order of their keys: records then go to the end of what is loaded.
        let mut blobs: Vec<(&ImageBlob, &ImageRecord)> =
            images.iter().flat_map(|Ready(image)| image.blobs.iter().map(move |blob| (blob, image))).collect();
        blobs.sort_by(|(a, _), (b, _)| a.descriptor.digest.cmp(&b.descriptor.digest));
        for (blob, image) in blobs {
            let labels: Labels = blob.children.iter().map(|(key, digest)| (key.clone(), digest.to_string())).collect();
            let record = Blob {
                digest: &blob.descriptor.digest,
                size: blob.descriptor.size,
                labels: &labels,
                source: (&image.source.0, &image.source.1),
            };
            put_blob(tx, namespace, &record, now)?;
        }
        // Images that share a config share a record, which the last of them gets, as with CRI; it is written once.
        let by_name: BTreeMap<&str, &ImageRecord> =
            images.iter().flat_map(|Ready(image)| names(namespace, image).map(move |name| (name, image))).collect();
        for (name, image) in by_name {
            let labels = image_labels(namespace, image.pinned);
            put_image(tx, namespace, &Image { name, target: &image.target, labels: &labels }, now)?;
        }
        Ok(())
    })?;
    Ok(changed)
}

/// CRI keeps a record by name, by digest and by config digest in Kubernetes' namespace; others hold the name only.
fn names<'i>(namespace: &str, image: &'i ImageRecord) -> impl Iterator<Item = &'i str> {
    let aliases: &[String] = if namespace == K8S_NAMESPACE { &image.aliases } else { &[] };
    std::iter::once(image.name.as_str()).chain(aliases.iter().map(String::as_str))
}

fn image_labels(namespace: &str, pinned: bool) -> Labels {
    let managed = (namespace == K8S_NAMESPACE).then_some(labels::CRI_MANAGED);
    let pinned = pinned.then_some(labels::CRI_PINNED);
    managed.into_iter().chain(pinned).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
