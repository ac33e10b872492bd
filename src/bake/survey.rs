//! What images consist of, for whoever carries them elsewhere.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use super::blobs::Blobs;
use super::each::each;
use super::fetch::Fetcher;
use super::{Failure, Listener, Outcome, Request, Result, Wanted};
use crate::content::Store;
use crate::oci::{Descriptor, Digest};
use crate::source::Sources;
use crate::spec::Choice;

/// Images that were resolved, and where to get their blobs.
pub struct Survey {
    /// Those that could be, in the order asked for.
    pub images: Vec<Surveyed>,
    /// Those that could not.
    pub failed: Vec<Outcome>,
    blobs: Arc<Blobs>,
}

/// An image that was resolved.
pub struct Surveyed {
    /// As it was asked for.
    pub wanted: Arc<Wanted>,
    /// What would become of its layers.
    pub choice: Choice,
    /// From the target down: documents, config, layers; of one platform after another.
    pub blobs: Vec<Descriptor>,
}

impl Survey {
    /// Where the images come from.
    pub fn sources(&self) -> &Sources {
        &self.blobs.sources
    }

    /// The documents that were read.
    pub fn documents(&self) -> HashMap<Digest, Bytes> {
        self.blobs.documents()
    }
}

/// Finds out what images consist of. Nothing is written; documents alone are fetched.
///
/// # Errors
/// [`super::Error`] when nothing could be begun.
pub async fn survey(
    request: &Request,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Survey> {
    tokio::pin!(cancel);
    let fetcher = Fetcher::that_looks(request, Store::open(&request.root)?, listener.clone())?;
    let resolve = |image| fetcher.resolve(image, false);
    let found = each(super::wanted(request)?, fetcher.pace(), &*listener, cancel, &mut false, resolve).await;
    let (mut images, mut failed) = (Vec::new(), Vec::new());
    for (name, image) in found {
        match image {
            Some(Ok(image)) => images.push(Surveyed {
                choice: request.policies.choose(&image),
                wanted: image.wanted,
                blobs: image.blobs.into_iter().map(|blob| blob.descriptor).collect(),
            }),
            other => failed.push(Outcome::of((name, other.map(|image: Result<_, Failure>| image.map(drop))))),
        }
    }
    Ok(Survey { images, failed, blobs: fetcher.blobs })
}
