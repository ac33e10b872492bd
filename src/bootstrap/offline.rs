//! Bootstrap without a containerd: records straight into `meta.db`, as a CRI pull leaves them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::catalog::{ImageBlob, ImageRecord};
use crate::content::{self, Store};
use crate::metadata::{
    self, Blob, Image, K8S_NAMESPACE, Labels, MetaDb, Snapshot, Tx, labels, put_blob, put_image, put_snapshot,
};
use crate::oci::Digest;
use crate::snapshot::OVERLAYFS;
use crate::times::Times;

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
pub struct Ready {
    namespace: String,
    image: ImageRecord,
    /// Its snapshots, when it has some.
    pub unpacked: Option<Unpacked>,
}

/// An image's layers in snapshots, the lowest first. The snapshotter has them already.
#[derive(Debug)]
pub struct Unpacked {
    /// The image's config, whose record keeps them.
    pub config: Digest,
    /// Each layer.
    pub layers: Vec<UnpackedLayer>,
}

/// A layer in its snapshot.
#[derive(Debug)]
pub struct UnpackedLayer {
    /// Its blob.
    pub blob: Digest,
    /// The digest of its archive.
    pub diff_id: Digest,
    /// The snapshot's key.
    pub chain: Digest,
    /// The snapshot's name in the snapshotter.
    pub name: String,
    /// The number in that name.
    pub number: u64,
    /// The snapshot's labels.
    pub labels: Arc<Labels>,
}

impl Ready {
    /// containerd's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// Makes sure that every blob of the image is in the store with its size.
///
/// # Errors
/// [`Error::MissingBlob`] with the first that is not.
pub fn ready(store: &Store, namespace: &str, image: ImageRecord) -> Result<Ready, Error> {
    for blob in &image.blobs {
        let stat = store.stat(&blob.descriptor.digest)?;
        if stat.is_none_or(|stat| stat.size != blob.descriptor.size) {
            return Err(Error::MissingBlob { image: image.name.clone(), digest: blob.descriptor.digest.clone() });
        }
    }
    Ok(Ready { namespace: namespace.to_owned(), image, unpacked: None })
}

/// Writes the records of images, made at these times, all in one commit; `false` when they were all there.
///
/// # Errors
/// [`Error::Metadata`].
pub fn bootstrap(meta: &mut MetaDb, images: &[Ready], times: &Times) -> Result<bool, Error> {
    if images.is_empty() {
        return Ok(false);
    }
    let mut namespaces: BTreeMap<&str, Vec<&Ready>> = BTreeMap::new();
    for ready in images {
        namespaces.entry(&ready.namespace).or_default().push(ready);
    }
    let changed = meta.write(|tx| {
        for (namespace, images) in &namespaces {
            put(tx, namespace, images, times)?;
        }
        Ok(())
    })?;
    Ok(changed)
}

fn put(tx: &mut Tx<'_>, namespace: &str, images: &[&Ready], times: &Times) -> metadata::Result<()> {
    let mut by_unpacking: HashMap<&Digest, Vec<(String, String)>> = HashMap::new();
    for Unpacked { config, layers } in images.iter().flat_map(|ready| &ready.unpacked) {
        for layer in layers {
            by_unpacking.entry(&layer.blob).or_default().push((labels::UNCOMPRESSED.into(), layer.diff_id.to_string()));
        }
        let keeps = format!("{}{OVERLAYFS}", labels::GC_REF_SNAPSHOT);
        let top = layers.last().map(|layer| layer.chain.to_string());
        by_unpacking.entry(config).or_default().extend(top.map(|top| (keeps, top)));
    }
    // In the order of their keys: records then go to the end of what is loaded.
    let mut blobs: Vec<(&ImageBlob, &ImageRecord)> =
        images.iter().flat_map(|Ready { image, .. }| image.blobs.iter().map(move |blob| (blob, image))).collect();
    blobs.sort_by(|(a, _), (b, _)| a.descriptor.digest.cmp(&b.descriptor.digest));
    for (blob, image) in blobs {
        let digest = &blob.descriptor.digest;
        let mut labels: Labels = blob.children.iter().map(|(key, digest)| (key.clone(), digest.to_string())).collect();
        labels.extend(by_unpacking.get(digest).into_iter().flatten().cloned());
        let record = Blob {
            digest,
            size: blob.descriptor.size,
            labels: &labels,
            source: image.source.as_ref().map(|(host, repository)| (host.as_str(), repository.as_str())),
        };
        put_blob(tx, namespace, &record, times.part(digest))?;
    }
    // Images that share a config share a record, which the last of them gets, as with CRI; it is written once.
    let by_name: BTreeMap<&str, &ImageRecord> =
        images.iter().flat_map(|Ready { image, .. }| names(namespace, image).map(move |name| (name, image))).collect();
    for (name, image) in by_name {
        let labels = image_labels(namespace, image);
        let created = times.image(image.created.as_deref());
        put_image(tx, namespace, &Image { name, target: &image.target, labels: &labels }, created)?;
    }
    for Unpacked { layers, .. } in images.iter().flat_map(|ready| &ready.unpacked) {
        let mut parent = String::new();
        for UnpackedLayer { chain, name, number, labels, .. } in layers {
            let key = chain.to_string();
            let (namespace, snapshotter) = (namespace.to_owned(), OVERLAYFS.to_owned());
            let snapshot = Snapshot { namespace, snapshotter, key: key.clone(), parent, name: name.clone() };
            put_snapshot(tx, &snapshot, *number, labels, times.part(chain))?;
            parent = key;
        }
    }
    Ok(())
}

/// CRI keeps a record by name, by digest and by config digest in Kubernetes' namespace; others hold the names only.
pub(super) fn names<'i>(namespace: &str, image: &'i ImageRecord) -> impl Iterator<Item = &'i str> {
    let aliases: &[String] = if namespace == K8S_NAMESPACE { &image.aliases } else { &[] };
    std::iter::once(&image.name).chain(&image.names).chain(aliases).map(String::as_str)
}

/// What the image's records are to have.
pub(super) fn image_labels(namespace: &str, image: &ImageRecord) -> Labels {
    let managed = (namespace == K8S_NAMESPACE).then_some(labels::CRI_MANAGED);
    let pinned = image.pinned.then_some(labels::CRI_PINNED);
    let own = managed.into_iter().chain(pinned).map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(image.labels.clone()).collect()
}
