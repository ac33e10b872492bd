//! A blob's bytes on their way.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};

use super::{Event, Listener};
use crate::content::Growing;
use crate::oci::Digest;

/// Where a blob's bytes can be read.
#[derive(Clone, Default)]
pub(super) enum Coming {
    /// Nowhere yet.
    #[default]
    No,
    /// From its ingest, while they come.
    Growing(Arc<Growing>),
    /// From the store.
    InPlace,
}

/// The bytes of a blob that is not kept.
pub(super) struct Piped {
    received: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Piped {
    pub(super) fn new(received: mpsc::Receiver<Bytes>) -> Self {
        Self { received, chunk: Bytes::new() }
    }
}

impl Read for Piped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.received.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.chunk.len());
        self.chunk.split_to(n).copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// Bytes of a transfer that came and do not count until it is done; dropped before that, they are reported as lost.
pub(super) struct Progress<'a> {
    listener: &'a dyn Listener,
    pub(super) digest: &'a Digest,
    came: AtomicU64,
}

impl<'a> Progress<'a> {
    pub(super) fn new(listener: &'a dyn Listener, digest: &'a Digest) -> Self {
        Self { listener, digest, came: AtomicU64::new(0) }
    }

    /// They count.
    pub(super) fn done(&self) {
        self.came.store(0, Ordering::Relaxed);
    }

    /// They do not count, and are asked for again.
    pub(super) fn retried(&self, reason: &str) {
        let lost = self.came.swap(0, Ordering::Relaxed);
        self.listener.on(&Event::BlobRetried { digest: self.digest, lost, reason });
    }

    pub(super) fn add(&self, bytes: u64) {
        self.came.fetch_add(bytes, Ordering::Relaxed);
        self.listener.on(&Event::BlobProgress { digest: self.digest, bytes });
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        let lost = self.came.load(Ordering::Relaxed);
        if lost > 0 {
            self.listener.on(&Event::BlobFailed { digest: self.digest, lost });
        }
    }
}

/// Where a transfer begins.
#[derive(Default)]
pub(super) struct Begin {
    pub(super) from: u64,
    /// The entity tag of what is there.
    pub(super) tag: Option<String>,
    /// Takes that of what comes.
    pub(super) tell: Option<oneshot::Sender<String>>,
    /// What is there.
    pub(super) here: Option<File>,
}
