//! Blobs from where they are into an archive or a layout, in a given order: those behind come while the one in front is written,
//! and none is kept anywhere else.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::output::{Output, Written};
use super::{Error, Result};
use crate::bake::{Event, Listener};
use crate::layer;
use crate::oci::{Descriptor, Digest, Hasher, Reference, media_type};
use crate::source::Sources;

/// What is smaller is got whole before its turn, in bytes.
const SMALL: u64 = 1 << 20;
/// Blobs that are got before their turn.
const AHEAD: usize = 8;
/// Pieces of blobs on their way to who writes them.
const PIECES: usize = 8;

/// A blob, and the image it is of.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) reference: Reference,
    pub(super) descriptor: Descriptor,
}

/// What files are written to, one after the other.
pub(super) trait Sink: Send + 'static {
    /// Begins a file.
    fn begin(&mut self, path: &str, size: u64) -> Result<()>;
    /// More of it.
    fn put(&mut self, bytes: Bytes) -> Result<()>;
    /// It is all there, and right.
    fn end(&mut self) -> Result<()>;
    /// All files are there.
    fn finish(self) -> Result<Vec<Written>>;
}

/// Files as members of an archive.
pub(super) struct Archive {
    output: Output,
    /// Of the file that is being written.
    size: u64,
}

impl Archive {
    pub(super) fn new(output: Output) -> Self {
        Self { output, size: 0 }
    }
}

impl Sink for Archive {
    fn begin(&mut self, path: &str, size: u64) -> Result<()> {
        self.size = size;
        let header = layer::member_header(path, size).map_err(|source| Error::Io {
            action: "writing",
            path: path.into(),
            source,
        })?;
        self.output.put(header.into())
    }

    fn put(&mut self, bytes: Bytes) -> Result<()> {
        self.output.put(bytes)
    }

    fn end(&mut self) -> Result<()> {
        self.output.put(vec![0; layer::padding(self.size)].into())
    }

    fn finish(mut self) -> Result<Vec<Written>> {
        // Two blocks of zeros are the end of an archive.
        self.output.put(vec![0; 1024].into())?;
        self.output.finish()
    }
}

enum Step {
    File(String, Bytes),
    Blob(Descriptor),
    Piece(Bytes),
    End,
    All,
}

/// Writes files that are known, and then blobs.
pub(super) async fn pack(
    files: Vec<(String, Bytes)>,
    items: &[Item],
    sources: &Sources,
    documents: &HashMap<Digest, Bytes>,
    sink: impl Sink,
    listener: &Arc<dyn Listener>,
) -> Result<Vec<Written>> {
    let (steps, received) = mpsc::channel(PIECES);
    let writer = tokio::task::spawn_blocking(move || write(sink, received));
    let sent = send(files, items, sources, documents, steps, &**listener).await;
    // Whoever writes knows best why no more is taken.
    let written = writer.await.map_err(|_| Error::Task)?;
    match (sent, written) {
        (Err(error), Ok(_) | Err(Error::Stopped)) => Err(error),
        (_, written) => written,
    }
}

async fn send(
    files: Vec<(String, Bytes)>,
    items: &[Item],
    sources: &Sources,
    documents: &HashMap<Digest, Bytes>,
    steps: mpsc::Sender<Step>,
    listener: &dyn Listener,
) -> Result<()> {
    let stopped = |_| Error::Stopped;
    for (path, bytes) in files {
        steps.send(Step::File(path, bytes)).await.map_err(stopped)?;
    }
    let ahead = |item| async move { (item, whole(item, sources, documents).await) };
    let mut all = futures_util::stream::iter(items).map(ahead).buffered(AHEAD);
    while let Some((Item { reference, descriptor }, whole)) = all.next().await {
        let Descriptor { digest, size, .. } = descriptor;
        listener.on(&Event::BlobStarted { digest, size: *size, image: &reference.to_string() });
        steps.send(Step::Blob(descriptor.clone())).await.map_err(stopped)?;
        if let Some(bytes) = whole? {
            steps.send(Step::Piece(bytes)).await.map_err(stopped)?;
            listener.on(&Event::BlobProgress { digest, bytes: *size });
        } else {
            let mut blob = sources.blob(reference, descriptor, 0, None);
            while let Some(piece) = blob.chunk().await? {
                let bytes = piece.len() as u64;
                steps.send(Step::Piece(piece)).await.map_err(stopped)?;
                listener.on(&Event::BlobProgress { digest, bytes });
            }
        }
        steps.send(Step::End).await.map_err(stopped)?;
        listener.on(&Event::BlobDone { digest, size: *size, fetched: true });
    }
    // Without it, the writer takes what it has for a part.
    steps.send(Step::All).await.map_err(stopped)
}

/// The bytes of a blob that is small, or known.
async fn whole(item: &Item, sources: &Sources, documents: &HashMap<Digest, Bytes>) -> Result<Option<Bytes>> {
    let Item { reference, descriptor: Descriptor { media_type, digest, size, .. } } = item;
    if let Some(bytes) = documents.get(digest) {
        return Ok(Some(bytes.clone()));
    }
    if media_type::is_index(media_type) || media_type::is_manifest(media_type) {
        return Ok(Some(sources.document(reference, digest.as_str(), *size, None).await?.bytes));
    }
    if *size > SMALL {
        return Ok(None);
    }
    Ok(Some(sources.small_blob(reference, digest, *size, None).await?.bytes))
}

fn write(mut sink: impl Sink, mut steps: mpsc::Receiver<Step>) -> Result<Vec<Written>> {
    let mut blob: Option<(Descriptor, Hasher, u64)> = None;
    while let Some(step) = steps.blocking_recv() {
        match (step, &mut blob) {
            (Step::File(path, bytes), _) => {
                sink.begin(&path, bytes.len() as u64)?;
                sink.put(bytes)?;
                sink.end()?;
            }
            (Step::Blob(descriptor), _) => {
                sink.begin(&blob_path(&descriptor.digest), descriptor.size)?;
                let hasher = Hasher::new(descriptor.digest.algorithm());
                blob = Some((descriptor, hasher, 0));
            }
            (Step::Piece(bytes), Some((descriptor, hasher, got))) => {
                *got += bytes.len() as u64;
                if *got > descriptor.size {
                    return Err(Error::Length { digest: descriptor.digest.clone(), size: descriptor.size, got: *got });
                }
                hasher.update(&bytes);
                sink.put(bytes)?;
            }
            (Step::End, Some(_)) => {
                let Some((Descriptor { digest, size, .. }, hasher, got)) = blob.take() else {
                    return Err(Error::Stopped);
                };
                if got < size {
                    return Err(Error::Length { digest, size, got });
                }
                let found = hasher.finish();
                if found != digest {
                    return Err(Error::WrongDigest { expected: digest, got: found });
                }
                sink.end()?;
            }
            (Step::All, None) => return sink.finish(),
            (Step::Piece(_) | Step::End | Step::All, _) => return Err(Error::Stopped),
        }
    }
    Err(Error::Stopped)
}

/// Where a blob lies in a layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.path())
}
