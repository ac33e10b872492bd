//! A layer's bytes on their way: decompressed on one thread, hashed on another, written on a third.

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::apply::{Onto, apply};
use super::read::Reader;
use super::{Error, Result};
use crate::oci::{Digest, Hasher, media_type};

/// Bytes of a block that is handed from thread to thread.
const BLOCK: usize = 1 << 18;
/// Blocks on their way to a thread. With those the threads hold, a layer takes no more memory than this allows.
const BLOCKS: usize = 4;
/// The largest window of a zstd frame, as a power of two: what `zstd --ultra -22` makes.
const ZSTD_WINDOW_LOG: u32 = 27;
/// What zstd's own frames begin with, and frames to be skipped, but for four bits (RFC 8878, 3.1).
const ZSTD_MAGIC: u32 = 0xfd2f_b528;
const ZSTD_SKIPPABLE: u32 = 0x184d_2a50;
const OCI_NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
const DOCKER: &str = "application/vnd.docker.";
/// What a gzip member begins with (RFC 1952, 2.3.1).
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// What is to be made of a layer.
pub struct Job<'a> {
    /// The layer's media type.
    pub media_type: &'a str,
    /// What its archive has to be.
    pub diff_id: &'a Digest,
    /// Most bytes of its archive, and of the files in it.
    pub limit: u64,
    /// Whether nobody wants it any more.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// Unpacks a layer into a directory, and verifies that it is what the image's config says.
///
/// # Errors
/// [`Error`]; the directory is then to be thrown away.
pub fn unpack(source: impl Read + Send, job: &Job<'_>, dir: OwnedFd, onto: &Onto<'_>) -> Result<()> {
    let detect = detects(job.media_type)?;
    let (to_apply, received) = sync_channel(BLOCKS);
    let (to_hash, hashed) = sync_channel::<Arc<Vec<u8>>>(BLOCKS);
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
        let mut blocks = Blocks { received, block: Arc::default(), at: 0, failure: None };
        let applied = whole(&mut blocks, dir, onto, job.limit);
        if let Some(error) = blocks.failure.take() {
            return Err(error);
        }
        applied?;
        drop(blocks);
        let got = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if got == *job.diff_id { Ok(()) } else { Err(Error::WrongDiffId { expected: job.diff_id.clone(), got }) }
    })
}

/// Applies the archive, and reads what is behind it, which counts as well.
fn whole(blocks: &mut Blocks, dir: OwnedFd, onto: &Onto<'_>, limit: u64) -> Result<()> {
    apply(&mut Reader::new(&mut *blocks), dir, onto, limit)?;
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

type Sent = Result<Arc<Vec<u8>>>;

fn decode(
    mut source: impl Read + Send,
    detect: bool,
    job: &Job<'_>,
    to_apply: &SyncSender<Sent>,
    to_hash: &SyncSender<Arc<Vec<u8>>>,
) -> Result<()> {
    let mut start = Vec::new();
    source.by_ref().take(8).read_to_end(&mut start).map_err(Error::Source)?;
    let word = start.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let gzip = detect && start.starts_with(&GZIP_MAGIC);
    let zstd = detect && (word == ZSTD_MAGIC || start.len() == 8 && word & !0xf == ZSTD_SKIPPABLE);
    let input = Input { inner: io::Cursor::new(start).chain(source), failure: None };
    let mut sink = Sink { job, to_apply, to_hash, total: 0 };
    if gzip {
        let mut decoder = flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(BLOCK, input));
        let ended = sink.all("gzip", &mut decoder);
        decoder.get_mut().get_mut().or(ended)
    } else if zstd {
        let mut decoder = zstd::stream::read::Decoder::new(input).map_err(Error::Io)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(Error::Io)?;
        let ended = sink.all("zstd", &mut decoder);
        decoder.get_mut().get_mut().or(ended)
    } else {
        let mut input = input;
        let ended = sink.all("archive", &mut input);
        input.or(ended)
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

impl<R> Input<R> {
    /// The error of the input before that of what reads it.
    fn or(&mut self, ended: Result<()>) -> Result<()> {
        self.failure.take().map_or(ended, |failure| Err(Error::Source(failure)))
    }
}

/// Where decompressed bytes go.
struct Sink<'a> {
    job: &'a Job<'a>,
    to_apply: &'a SyncSender<Sent>,
    to_hash: &'a SyncSender<Arc<Vec<u8>>>,
    total: u64,
}

impl Sink<'_> {
    fn all(&mut self, kind: &'static str, decoder: &mut impl Read) -> Result<()> {
        loop {
            let mut block = Vec::with_capacity(BLOCK);
            decoder.take(BLOCK as u64).read_to_end(&mut block).map_err(|source| Error::Compression { kind, source })?;
            if block.is_empty() {
                return Ok(());
            }
            self.block(block)?;
        }
    }

    fn block(&mut self, block: Vec<u8>) -> Result<()> {
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
    block: Arc<Vec<u8>>,
    at: usize,
    /// Why there are no more of them.
    failure: Option<Error>,
}

impl BufRead for Blocks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.block.len() {
            match self.received.recv() {
                Ok(Ok(block)) => {
                    self.block = block;
                    self.at = 0;
                }
                Ok(Err(error)) => {
                    self.failure = Some(error);
                    return Err(io::Error::other("no more bytes"));
                }
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.block[self.at..])
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
