//! Bootstrap through a running containerd: by its socket, without copying a byte of what is on its disk.
//!
//! ```text
//! Leases.Create          with containerd.io/gc.expire: whoever is killed is not waited for for ever
//! Content.Write STAT     of every blob: from the answer on, no collection takes it
//! Content.Write COMMIT   of every blob, with its labels, at the offset that was answered
//! Snapshots.Prepare, Diff.Apply, Snapshots.Commit    of every layer that is to be unpacked, from the lowest up
//! Content.Update         containerd.io/uncompressed of the layer, gc.ref.snapshot of the config
//! Images.Create          or Update: each image has the names and labels of an offline bootstrap
//! Leases.Delete          ours, and those that a kill left; answered when the collection that follows is over
//! ```
//!
//! Whatever is there already is as good as what is made, so each step can be repeated. An image whose blobs are not all
//! there gets no record, and does not keep others from theirs.

mod api;
mod blobs;
mod client;
mod images;
mod lease;
mod unpack;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::stream::{StreamExt, iter};
use tokio::task::spawn_blocking;

use blobs::{Announced, Known};
pub use client::Client;
use client::Session;
pub use lease::collect_garbage;
use unpack::Unpacker;

use super::offline;
use crate::catalog::ImageRecord;
use crate::content::{self, Store};
use crate::metadata::Labels;
use crate::oci::{Descriptor, Digest};

/// Calls under way: each waits for a commit of `meta.db`, of which containerd makes one after the other.
const AT_ONCE: usize = 16;
/// Images that are unpacked at a time, of each one layer: containerd decompresses, hashes and writes each on its own.
const UNPACKED_AT_ONCE: usize = 4;

/// Why a running containerd did not get to know something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers.
    #[error("connecting to containerd at {} failed; is it running, and is this its socket?", address.display())]
    Connect {
        /// The socket.
        address: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// containerd refused something.
    #[error("{action} {what} failed")]
    Call {
        /// What was being done.
        action: &'static str,
        /// To what.
        what: String,
        /// containerd's answer.
        source: Refusal,
    },
    /// The image's blobs are not all there: containerd would list what it cannot start.
    #[error("blob {digest} of {image} is not in the content store; fetch the image again")]
    MissingBlob {
        /// The image name.
        image: String,
        /// What is missing.
        digest: Digest,
    },
    /// A blob that other images may have as well.
    #[error(transparent)]
    Blob(Arc<Error>),
    /// A layer is not the one that its image was made of.
    #[error("layer {digest} unpacks to an archive with the digest {got}, and its image says {expected}")]
    WrongDiffId {
        /// Its blob.
        digest: Digest,
        /// What the image's config says.
        expected: Digest,
        /// What containerd found.
        got: String,
    },
    /// Somebody else makes and removes the same snapshot all the time.
    #[error("snapshot {chain} came and went under our hands; try again")]
    Contended {
        /// Its chainID.
        chain: Digest,
    },
    /// A blob cannot be read or linked.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// A thread of prebake's own was lost.
    #[error("an internal task failed")]
    Task,
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// What containerd answered instead of doing something.
#[derive(Debug)]
pub struct Refusal {
    /// Its kind of answer.
    pub code: tonic::Code,
    /// Its words.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "containerd answers: {} ({:?})", self.message, self.code)
    }
}

impl std::error::Error for Refusal {}

/// What is to become known in a namespace.
pub struct Request<'r> {
    /// The namespace.
    pub namespace: &'r str,
    /// The images.
    pub images: &'r [Image],
    /// Where their blobs are: a store beside containerd's.
    pub store: &'r Store,
    /// Whose leases may be released at the end: nobody else works under this name at the same time.
    pub owner: &'r str,
}

/// An image that is to become known.
#[derive(Debug)]
pub struct Image {
    /// Its names and blobs.
    pub record: ImageRecord,
    /// Its layers, when they are to be unpacked.
    pub unpack: Option<Unpack>,
}

/// Layers that containerd is to unpack, the lowest first.
#[derive(Debug)]
pub struct Unpack {
    /// The image's config, whose record keeps the snapshots.
    pub config: Digest,
    /// Each layer.
    pub layers: Vec<Layer>,
}

/// A layer that containerd is to unpack.
#[derive(Debug)]
pub struct Layer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// The digest of its archive.
    pub diff_id: Digest,
    /// The snapshot's key.
    pub chain: Digest,
    /// The snapshot's labels, besides containerd's own.
    pub labels: Labels,
}

/// What came of a request.
#[derive(Debug)]
pub struct Done {
    /// Of each image, why it got no record.
    pub images: Vec<Result<()>>,
    /// `false`: containerd knew all of it before.
    pub changed: bool,
}

/// Something worth telling while a request runs.
#[derive(Debug, Clone, Copy)]
pub enum Notice<'a> {
    /// containerd unpacks a layer.
    Unpacking {
        /// Its blob.
        layer: &'a Digest,
        /// Its chainID.
        chain: &'a Digest,
    },
    /// It does so no more.
    Unpacked {
        /// Its blob.
        layer: &'a Digest,
        /// Its chainID.
        chain: &'a Digest,
        /// Bytes on disk; `None`: nothing came of it.
        bytes: Option<u64>,
    },
}

/// Hears notices.
pub type Notify<'n> = dyn Fn(&Notice<'_>) + Sync + 'n;

/// Makes images known to a running containerd. Images fail one by one. What is held in the store stays held.
///
/// # Errors
/// [`Error::Call`] when the lease cannot be made or released.
pub async fn bootstrap(client: &Client, request: &Request<'_>, notify: &Notify<'_>) -> Result<Done> {
    let plain = client.session(request.namespace)?;
    let lease = lease::create(&plain, request.owner).await?;
    let session = plain.under(&lease)?;
    let failed = register(&session, request).await?;
    let unpacker = Unpacker::new(&session, &lease, notify);
    let mut images: Vec<(usize, Result<()>)> = iter(request.images.iter().enumerate())
        .map(async |(i, image)| match (image_is_whole(image, &failed), &image.unpack) {
            (Ok(()), Some(unpack)) => (i, unpacker.image(unpack).await),
            (whole, _) => (i, whole),
        })
        .buffer_unordered(UNPACKED_AT_ONCE)
        .collect()
        .await;
    images.sort_by_key(|(i, _)| *i);
    let images = name(&session, request, images.into_iter().map(|(_, result)| result).collect()).await;
    lease::release(&plain, request.owner).await?;
    Ok(Done { images, changed: session.changed() })
}

/// Announces all blobs, then commits all. Those that failed, or are absent (`None`).
async fn register(session: &Session, request: &Request<'_>) -> Result<HashMap<Digest, Option<Arc<Error>>>> {
    let known = blobs::of(request.images);
    let announced: Vec<((&Digest, &Known), Result<Announced>)> = iter(&known)
        .map(async |(digest, known)| ((digest, known), blobs::announce(session, request.store, digest, known).await))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let store = request.store.clone();
    // A record must not outlive, in a power cut, the name of its file.
    blocking(move || store.sync_offered()).await?;
    let committed: Vec<(&Digest, Result<bool>)> = iter(announced)
        .map(async |(blob, announced)| match announced {
            Ok(announced) => (blob.0, blobs::commit(session, request.store, blob, announced).await),
            Err(error) => (blob.0, Err(error)),
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut failed = HashMap::new();
    for (digest, committed) in committed {
        match committed {
            Ok(true) => {}
            Ok(false) => drop(failed.insert(digest.clone(), None)),
            Err(error) => drop(failed.insert(digest.clone(), Some(Arc::new(error)))),
        }
    }
    Ok(failed)
}

fn image_is_whole(Image { record, .. }: &Image, failed: &HashMap<Digest, Option<Arc<Error>>>) -> Result<()> {
    for blob in &record.blobs {
        match failed.get(&blob.descriptor.digest) {
            None => {}
            Some(None) => {
                let (image, digest) = (record.name.clone(), blob.descriptor.digest.clone());
                return Err(Error::MissingBlob { image, digest });
            }
            Some(Some(error)) => return Err(Error::Blob(error.clone())),
        }
    }
    Ok(())
}

/// Gives the images that are whole their records. Images that share a config share a record, which the last of them gets,
/// as with CRI.
async fn name(session: &Session, request: &Request<'_>, mut images: Vec<Result<()>>) -> Vec<Result<()>> {
    let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, Image { record, .. }) in request.images.iter().enumerate().filter(|(i, _)| images[*i].is_ok()) {
        by_name.extend(offline::names(request.namespace, record).map(|name| (name, i)));
    }
    let named: Vec<(usize, Result<()>)> = iter(by_name)
        .map(async |(name, i)| {
            let record = &request.images[i].record;
            let labels = offline::image_labels(request.namespace, record);
            (i, images::put(session, name, &record.target, labels).await)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for (i, named) in named {
        if named.is_err() {
            images[i] = named;
        }
    }
    images
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> content::Result<T> + Send + 'static) -> Result<T> {
    Ok(spawn_blocking(f).await.map_err(|_| Error::Task)??)
}
