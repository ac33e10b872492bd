//! What goes out: hashed as it passes, and its last bytes held back until all are right, so that nothing wrong is ever completed.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};

use super::gate::Bandwidth;
use super::{Error, Result, lock};
use crate::oci::{Descriptor, Hasher};

/// Bytes that are handed to a connection at a time.
const PIECE: usize = 64 << 10;

/// Why the bytes of a blob cannot be read.
pub type ReadError = Box<dyn std::error::Error + Send + Sync>;
/// The bytes of a blob, from the first one on.
pub type BlobBytes = Pin<Box<dyn Stream<Item = Result<Bytes, ReadError>> + Send>>;

/// How a body goes out.
#[derive(Default)]
pub(super) struct Passing {
    moved: AtomicU64,
    /// For bytes that are still to come from somewhere else.
    waiting: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Passing {
    /// Why a body ended before its time.
    pub(super) fn failure(&self) -> Option<Error> {
        lock(&self.failure).take()
    }

    /// Whether anything moved since it was last asked, or cannot.
    pub(super) fn is_moving(&self, before: &mut u64) -> bool {
        let moved = self.moved.load(Ordering::Relaxed);
        moved != std::mem::replace(before, moved) || self.waiting.load(Ordering::Relaxed)
    }
}

/// Bytes that are hashed while they pass. The last of them come only when all are right.
pub(super) struct Verified {
    source: BlobBytes,
    /// Until the end.
    hasher: Option<Hasher>,
    descriptor: Descriptor,
    what: String,
    got: u64,
    held: Option<Bytes>,
    bandwidth: Arc<Bandwidth>,
}

impl Verified {
    pub(super) fn new(source: BlobBytes, descriptor: Descriptor, what: String, bandwidth: Arc<Bandwidth>) -> Self {
        let hasher = Some(Hasher::new(descriptor.digest.algorithm()));
        Self { source, hasher, descriptor, what, got: 0, held: None, bandwidth }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        let Self { source, hasher, descriptor, what, got, held, bandwidth } = self;
        let wrong = |got: String| Error::WrongBytes { what: what.clone(), got };
        while let Some(hashing) = hasher {
            match source.next().await {
                Some(Ok(chunk)) => {
                    *got += chunk.len() as u64;
                    if *got > descriptor.size {
                        return Err(wrong(format!("more than {} bytes", descriptor.size)));
                    }
                    hashing.update(&chunk);
                    let before = if chunk.is_empty() { None } else { held.replace(chunk) };
                    if let Some(ready) = before {
                        bandwidth.pay(ready.len()).await;
                        return Ok(Some(ready));
                    }
                }
                Some(Err(source)) => return Err(Error::Read { what: what.clone(), source }),
                None => {
                    let digest = hasher.take().map(Hasher::finish);
                    if *got != descriptor.size {
                        return Err(wrong(format!("{got} of {} bytes", descriptor.size)));
                    }
                    if let Some(digest) = digest.filter(|digest| *digest != descriptor.digest) {
                        return Err(wrong(digest.to_string()));
                    }
                }
            }
        }
        Ok(held.take())
    }
}

/// A body of what comes; a failure breaks the request off, and is kept.
pub(super) fn passing_through(bytes: Verified, passing: Arc<Passing>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(Some(bytes), move |bytes| {
        let passing = passing.clone();
        async move {
            let mut bytes = bytes?;
            passing.waiting.store(true, Ordering::Relaxed);
            let next = bytes.next().await;
            passing.waiting.store(false, Ordering::Relaxed);
            match next {
                Ok(None) => None,
                Ok(Some(chunk)) => {
                    passing.moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    Some((Ok(chunk), Some(bytes)))
                }
                Err(error) => {
                    *lock(&passing.failure) = Some(error);
                    Some((Err(io::Error::other("there is no more of it")), None))
                }
            }
        }
    })
}

/// A body of a chunk.
pub(super) fn pieces(chunk: Bytes, passing: Arc<Passing>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(chunk, move |mut rest| {
        let piece = rest.split_to(rest.len().min(PIECE));
        passing.moved.fetch_add(piece.len() as u64, Ordering::Relaxed);
        std::future::ready((!piece.is_empty()).then_some((Ok(piece), rest)))
    })
}
