//! Bringing images' blobs to a shared cache, and nowhere else.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{StreamExt, iter};

use super::survey::{Survey, survey};
use super::{Event, Failure, Listener, Outcome, Request};
use crate::cache::{Stored, Usage};
use crate::kind::{Kind, chain};
use crate::oci::{Descriptor, Digest, Reference};

/// How often a blob is asked for that comes wrong.
const TRIES: u32 = 3;

/// What came of it.
#[derive(Debug)]
pub struct Warmed {
    /// Images that could not be found out, or of which a blob is not in the cache.
    pub failed: Vec<Outcome>,
    /// How many there are.
    pub images: usize,
    /// Blobs that were fetched, and their bytes.
    pub fetched: (u64, u64),
    /// Blobs that the cache had, and their bytes.
    pub present: (u64, u64),
    /// What the cache gave and took.
    pub usage: Usage,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Whether it was stopped.
    pub cancelled: bool,
}

/// Brings the blobs of images to the cache that the request names: those that `keep` says, each once. Nothing is written to a root.
///
/// # Errors
/// [`super::Error`] when nothing could be begun.
pub async fn warm(
    request: Request,
    keep: impl Fn(&Digest) -> bool,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> super::Result<Warmed> {
    let started = Instant::now();
    tokio::pin!(cancel);
    let survey = survey(&request, listener.clone(), cancel.as_mut()).await?;
    let mut seen = HashSet::new();
    let blobs = survey.images.iter().flat_map(|image| image.blobs.iter().map(|blob| (&image.wanted.reference, blob)));
    let documents = survey.documents();
    // Documents went there when they were read.
    let due: Vec<(&Reference, &Descriptor)> = blobs
        .filter(|(_, blob)| !documents.contains_key(&blob.digest) && keep(&blob.digest) && seen.insert(&blob.digest))
        .collect();
    listener.on(&Event::Planned { fetch: due.iter().map(|(_, blob)| blob.size).sum(), store: 0, snapshots: 0 });
    let (mut fetched, mut present, mut lost) = ((0, 0), (0, 0), Vec::new());
    let mut all = iter(due)
        .map(async |(reference, blob)| (reference, blob, one(&survey, reference, blob, &*listener).await))
        .buffer_unordered(request.concurrency);
    let mut cancelled = false;
    while !cancelled {
        tokio::select! {
            // First, for it may have come before there was any work.
            biased;
            () = &mut cancel => cancelled = true,
            next = all.next() => {
                let Some((_, blob, result)) = next else { break };
                match result {
                    Ok(was_fetched) => {
                        let (count, bytes) = if was_fetched { &mut fetched } else { &mut present };
                        *count += 1;
                        *bytes += blob.size;
                        listener.on(&Event::BlobDone { digest: &blob.digest, size: blob.size, fetched: was_fetched });
                    }
                    Err(failure) => lost.push((blob.digest.clone(), failure)),
                }
            }
        }
    }
    drop(all);
    survey.sources().settle().await?;
    let usage = survey.sources().cache().map(|cache| cache.usage()).unwrap_or_default();
    let images = survey.images.len() + survey.failed.len();
    let mut failed = survey.failed;
    for image in &survey.images {
        let lost = lost.iter().find(|(digest, _)| image.blobs.iter().any(|blob| blob.digest == *digest));
        failed.extend(lost.map(|(_, failure)| Outcome {
            name: image.wanted.reference.to_string(),
            namespace: image.wanted.namespace.clone(),
            failure: Some(failure.clone()),
        }));
    }
    Ok(Warmed { failed, images, fetched, present, usage, seconds: started.elapsed().as_secs_f64(), cancelled })
}

/// Whether a blob had to be fetched.
async fn one(
    survey: &Survey,
    reference: &Reference,
    blob: &Descriptor,
    listener: &dyn Listener,
) -> Result<bool, Failure> {
    let image = &reference.to_string();
    listener.on(&Event::BlobStarted { digest: &blob.digest, size: blob.size, image });
    let came = |bytes| listener.on(&Event::BlobProgress { digest: &blob.digest, bytes });
    for _ in 0..TRIES {
        match survey.sources().bring_to_cache(reference, blob, &came).await {
            Ok(None) => return Ok(false),
            Ok(Some(Stored::Whole)) => return Ok(true),
            Ok(Some(Stored::Wrong)) => {
                listener.on(&Event::BlobRetried { digest: &blob.digest, lost: blob.size, reason: "wrong bytes" });
            }
            Ok(Some(Stored::Not)) => {
                let message = format!("{} was not stored in the cache", blob.digest);
                return Err(Failure { kind: Kind::Unavailable, message });
            }
            Err(error) => return Err(Failure { kind: Kind::from(&error), message: chain(&error) }),
        }
    }
    Err(Failure { kind: Kind::Corrupt, message: format!("{} came wrong {TRIES} times", blob.digest) })
}
