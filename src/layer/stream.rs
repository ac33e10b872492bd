//! A layer's bytes on their way: decompressed on one thread, hashed on another, written on a third.

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::apply::{Onto, apply};
use super::inflate::{Block, Buffers, Gunzip, GzipError};
use super::read::{Entry, EntryKind, Reader};
use super::{Error, Result};
use crate::oci::{Algorithm, Digest, Hasher, media_type};

/// Blocks on their way to a thread. With those the threads hold, a layer takes no more memory than this allows.
const BLOCKS: usize = 16;
/// The largest window of a zstd frame, as a power of two: what `zstd --ultra -22` makes.
pub(super) const ZSTD_WINDOW_LOG: u32 = 27;
/// What zstd's own frames begin with, and frames to be skipped, but for four bits (RFC 8878, 3.1).
pub(super) const ZSTD_MAGIC: u32 = 0xfd2f_b528;
pub(super) const ZSTD_SKIPPABLE: u32 = 0x184d_2a50;
const OCI_NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
const DOCKER: &str = "application/vnd.docker.";
/// What a gzip member begins with (RFC 1952, 2.3.1).
pub(super) const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// What is to be made of a layer.
pub struct Job<'a> {
    /// The layer's media type.
    pub media_type: &'a str,
    /// What its archive has to be.
    pub diff_id: &'a Digest,
    /// Most bytes of its archive, and of the files in it.
    pub limit: u64,
    /// When whatever it has no time for was made, in seconds since 1970: its root, directories that no entry makes, whiteouts.
    pub time: i64,
    /// Where decompressed bytes go on their way.
    pub buffers: &'a Arc<Buffers>,
    /// Whether nobody wants it any more.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// Unpacks a layer into a directory, and verifies that it is what the image's config says.
///
/// # Errors
/// [`Error`]; the directory is then to be thrown away.
pub fn unpack(source: impl Read + Send, job: &Job<'_>, dir: OwnedFd, onto: &Onto<'_>) -> Result<()> {
    archive(source, job, |blocks| apply(&mut Reader::new(blocks), dir, onto, job.limit, job.time))
}

/// Gives `visit` a layer's entries in their order, those of files with the digest of their contents, and verifies that the
/// layer is what the image's config says.
///
/// # Errors
/// [`Error`].
pub fn entries(source: impl Read + Send, job: &Job<'_>, visit: &mut dyn FnMut(Entry, Option<Digest>)) -> Result<()> {
    entries_keeping(source, job, &|_| false, &mut |entry, digest, _| visit(entry, digest))
}

/// As [`entries`], and with the contents of the files that `keep` names.
///
/// # Errors
/// [`Error`].
pub fn entries_keeping(
    source: impl Read + Send,
    job: &Job<'_>,
    keep: &(dyn Fn(&Entry) -> bool + Sync),
    visit: &mut dyn FnMut(Entry, Option<Digest>, Vec<u8>),
) -> Result<()> {
    archive(source, job, |blocks| {
        let mut reader = Reader::new(blocks);
        while let Some(entry) = reader.next_entry()? {
            let mut hasher = (entry.kind == EntryKind::Regular).then(|| Hasher::new(Algorithm::Sha256));
            let (kept, mut contents) = (keep(&entry), Vec::new());
            while let Some(hasher) = &mut hasher {
                let chunk = reader.chunk()?;
                let len = chunk.len();
                if len == 0 {
                    break;
                }
                hasher.update(chunk);
                if kept {
                    contents.extend_from_slice(chunk);
                }
                reader.advance(len);
            }
            visit(entry, hasher.map(Hasher::finish), contents);
        }
        Ok(())
    })
}

/// Gives `f` a layer's archive, and verifies that it is what the image's config says.
fn archive(source: impl Read + Send, job: &Job<'_>, f: impl FnOnce(&mut Blocks) -> Result<()>) -> Result<()> {
    let detect = detects(job.media_type)?;
    let (to_apply, received) = sync_channel(BLOCKS);
    let (to_hash, hashed) = sync_channel::<Arc<Block>>(BLOCKS);
    thread::scope(|scope| {
        let decode = move || {
            let end = decode(source, detect, job, &to_apply, &to_hash);
            if let Err(error) = end {
                // When nobody listens, they have an error of their own.
                let _ = to_apply.send(Err(error));
            }
        };
        let hash = || {
            let mut hasher = Hasher::new(job.diff_id.algorithm());
            for block in hashed {
                hasher.update(&block);
            }
            hasher.finish()
        };
        thread::Builder::new().name("decompress".into()).spawn_scoped(scope, decode)?;
        let hasher = thread::Builder::new().name("hash".into()).spawn_scoped(scope, hash)?;
        let mut blocks = Blocks { received, block: None, at: 0, failure: None };
        let read = f(&mut blocks).and_then(|()| end(&mut blocks));
        if let Some(error) = blocks.failure.take() {
            return Err(error);
        }
        read?;
        drop(blocks);
        let got = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if got == *job.diff_id { Ok(()) } else { Err(Error::WrongDiffId { expected: job.diff_id.clone(), got }) }
    })
}

/// Reads what is behind the archive, which counts as well.
fn end(blocks: &mut Blocks) -> Result<()> {
    loop {
        match blocks.fill_buf()?.len() {
            0 => return Ok(()),
            len => blocks.consume(len),
        }
    }
}

/// Whether the bytes tell how they are compressed, or are not compressed at all (containerd `images.DiffCompression`,
/// `compression.DecompressStream`).
fn detects(kind: &str) -> Result<bool> {
    let (base, suffix) = kind.split_once('+').unwrap_or((kind, ""));
    // containerd looks at the last one in alphabetical order.
    let suffix = suffix.split('+').max().unwrap_or_default();
    match base {
        media_type::OCI_LAYER | OCI_NONDISTRIBUTABLE => Ok(matches!(suffix, "gzip" | "zstd")),
        base if base.starts_with(DOCKER) && media_type::is_layer(base) => Ok(suffix.is_empty()),
        _ => Err(Error::UnknownMediaType(kind.to_owned())),
    }
}

type Sent = Result<Arc<Block>>;

fn decode(
    mut source: impl Read + Send,
    detect: bool,
    job: &Job<'_>,
    to_apply: &SyncSender<Sent>,
    to_hash: &SyncSender<Arc<Block>>,
) -> Result<()> {
    let mut start = Vec::new();
    source.by_ref().take(8).read_to_end(&mut start).map_err(Error::Source)?;
    let word = start.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let gzip = detect && start.starts_with(&GZIP_MAGIC);
    let zstd = detect && (word == ZSTD_MAGIC || start.len() == 8 && word & !0xf == ZSTD_SKIPPABLE);
    let mut source = io::Cursor::new(start).chain(source);
    let mut sink = Sink { job, to_apply, to_hash, total: 0 };
    let broken = |kind| move |source| Error::Compression { kind, source };
    if gzip {
        let mut blocks = Gunzip::new(source, Arc::clone(job.buffers));
        sink.all(|| {
            blocks.next_block().map_err(|error| match error {
                GzipError::Read(source) => Error::Source(source),
                other => broken("gzip")(io::Error::other(other)),
            })
        })
    } else if zstd {
        let mut input = Input { inner: source, failure: None };
        let mut decoder = zstd::stream::read::Decoder::new(&mut input).map_err(Error::Io)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(Error::Io)?;
        let ended = sink.all(|| Block::read(job.buffers, &mut decoder).map_err(broken("zstd")));
        drop(decoder);
        // Its own error, not what the decompressor made of it.
        input.failure.map_or(ended, |failure| Err(Error::Source(failure)))
    } else {
        sink.all(|| Block::read(job.buffers, &mut source).map_err(Error::Source))
    }
}

/// Bytes as they come, with the error that ended them.
struct Input<R> {
    inner: R,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failure = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })
    }
}

/// Where decompressed bytes go.
struct Sink<'a> {
    job: &'a Job<'a>,
    to_apply: &'a SyncSender<Sent>,
    to_hash: &'a SyncSender<Arc<Block>>,
    total: u64,
}

impl Sink<'_> {
    fn all(&mut self, mut next: impl FnMut() -> Result<Option<Block>>) -> Result<()> {
        while let Some(block) = next()? {
            self.block(block)?;
        }
        Ok(())
    }

    fn block(&mut self, block: Block) -> Result<()> {
        self.total += block.len() as u64;
        if self.total > self.job.limit {
            return Err(Error::TooLarge { limit: self.job.limit });
        }
        if (self.job.stop)() {
            return Err(Error::Stopped);
        }
        let block = Arc::new(block);
        self.to_hash.send(block.clone()).map_err(|_| Error::Stopped)?;
        self.to_apply.send(Ok(block)).map_err(|_| Error::Stopped)
    }
}

/// Decompressed bytes, read where they lie.
struct Blocks {
    received: Receiver<Sent>,
    block: Option<Arc<Block>>,
    at: usize,
    /// Why there are no more of them.
    failure: Option<Error>,
}

impl BufRead for Blocks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.block.as_ref().is_none_or(|block| self.at == block.len()) {
            // Given back before another one is waited for.
            self.block = None;
            self.at = 0;
            match self.received.recv() {
                Ok(Ok(block)) => self.block = Some(block),
                Ok(Err(error)) => {
                    self.failure = Some(error);
                    return Err(io::Error::other("no more bytes"));
                }
                Err(_) => return Ok(&[]),
            }
        }
        Ok(self.block.as_ref().map_or(&[], |block| &block[self.at..]))
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for Blocks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let n = bytes.len().min(buf.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        self.consume(n);
        Ok(n)
    }
}
