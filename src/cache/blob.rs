//! Blobs out of a cache and into it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Duration, timeout};

use super::claim::Claim;
use super::{Cache, Error, Object, Result, Stream, blob_key, lock};
use crate::oci::{Digest, Hasher};

/// Bytes that are stored at a time: the least that S3 takes as a part. What is not longer is stored at once.
const PART: usize = 5 << 20;
/// Stores take at most so many parts of an object (S3: 10,000).
const MOST_PARTS: u64 = 9_000;
/// And no part is larger: it is held in memory. What would need larger ones, stores do not take.
const MOST_PART: usize = 128 << 20;
/// A store that takes nothing for so long is given up for this blob.
const STUCK: Duration = Duration::from_secs(15);
/// Chunks between whoever gets a blob and whoever stores it.
const CHUNKS: usize = 2;
/// Bytes that are read at a time of what is here already.
const READ: usize = 1 << 20;

/// A blob on its way out of a cache. Who reads it verifies it.
pub struct Reader {
    cache: Arc<Cache>,
    digest: Digest,
    stream: Stream,
    object: Object,
    at: u64,
}

impl Cache {
    /// A blob's bytes, from one on; `None` where it is not there, or not of this size.
    ///
    /// # Errors
    /// [`Error`], where the cache is required.
    pub async fn read(self: &Arc<Self>, digest: &Digest, size: u64, from: u64) -> Result<Option<Reader>> {
        match self.store.get(&blob_key(digest), from).await {
            // As in `is_here`: whoever names it may be wrong about its size.
            Ok(Some((object, _))) if object.size != size => match self.resolve_doubt(digest).await {
                Ok(_) => Ok(None),
                Err(error) => self.or_nothing(error),
            },
            Ok(Some((object, stream))) => {
                lock(&self.used).insert(digest.clone());
                Ok(Some(Reader { cache: self.clone(), digest: digest.clone(), stream, object, at: from }))
            }
            Ok(None) => Ok(None),
            Err(error) => self.or_nothing(error),
        }
    }

    /// Something small, which is what its digest says and has at most `limit` bytes; `None` where it is not there.
    ///
    /// # Errors
    /// [`Error`], where the cache is required.
    pub async fn small(self: &Arc<Self>, digest: &Digest, limit: u64) -> Result<Option<Bytes>> {
        match self.try_small(digest, limit).await {
            Err(error) => self.or_nothing(error),
            found => found,
        }
    }

    async fn try_small(self: &Arc<Self>, digest: &Digest, limit: u64) -> Result<Option<Bytes>> {
        if !self.is_on().await? || lock(&self.ignored).contains(digest) {
            return Ok(None);
        }
        let bytes = match self.store.get_small(&blob_key(digest), limit).await? {
            None => return Ok(None),
            Some((_, None)) => return self.resolve_doubt(digest).await.map(|_| None),
            Some((_, Some(bytes))) => bytes,
        };
        self.worked();
        if Digest::of_as(&bytes, Some(digest)) != *digest {
            self.discard(digest).await;
            return Ok(None);
        }
        self.hit(digest, bytes.len() as u64);
        Ok(Some(bytes))
    }

    fn or_nothing<T>(&self, error: Error) -> Result<Option<T>> {
        if self.required {
            return Err(error);
        }
        self.failed(&error);
        Ok(None)
    }

    /// Whether what is stored is what its digest says; `None` where nothing is.
    pub(super) async fn is_right(&self, digest: &Digest) -> Result<Option<bool>> {
        let Some((_, mut stream)) = self.store.get(&blob_key(digest), 0).await? else { return Ok(None) };
        let mut hasher = Hasher::new(digest.algorithm());
        while let Some(chunk) = stream.next().await {
            hasher.update(&chunk?);
        }
        Ok(Some(hasher.finish() == *digest))
    }
}

impl Reader {
    /// The next bytes; `None` when all that is stored came, or it broke off.
    ///
    /// # Errors
    /// [`Error`], where the cache is required.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        match self.stream.next().await {
            Some(Ok(chunk)) => {
                self.at += chunk.len() as u64;
                return Ok(Some(chunk));
            }
            Some(Err(error)) => return self.cache.or_nothing(error),
            None => {}
        }
        if self.at == self.object.size {
            self.cache.worked();
            self.cache.hit(&self.digest, self.object.size);
        }
        Ok(None)
    }
}

/// A blob on its way into a cache, beside whoever gets it. Nothing wrong is ever completed. Dropped before its end, it leaves
/// nothing.
pub struct Writer {
    chunks: Option<mpsc::Sender<Bytes>>,
    given_up: Arc<AtomicBool>,
    stored: oneshot::Receiver<Stored>,
}

/// What came of storing a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// The cache has it.
    Whole,
    /// What came is not what its digest says.
    Wrong,
    /// The cache did not take it.
    Not,
}

impl Claim {
    /// Begins to store the blob; `here` has its first bytes, of which so many are not going to be written.
    pub fn writer(self, size: u64, here: Option<(File, u64)>) -> Writer {
        let (chunks, coming) = mpsc::channel(CHUNKS);
        let (tell, stored) = oneshot::channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let (cache, is_given_up) = (self.cache.clone(), given_up.clone());
        cache.behind(async move {
            let _ = tell.send(self.receive(size, here, coming, &is_given_up).await);
        });
        Writer { chunks: Some(chunks), given_up, stored }
    }

    /// Stores something that is all here, if it is what its digest says.
    pub fn store(self, bytes: Bytes) {
        let cache = self.cache.clone();
        cache.behind(async move {
            let size = bytes.len() as u64;
            if Digest::of_as(&bytes, Some(&self.digest)) == self.digest {
                match self.cache.store.put(&blob_key(&self.digest), vec![bytes]).await {
                    Ok(()) => self.cache.stored(&self.digest, size),
                    Err(error) => self.cache.failed_to_store(error),
                }
            }
        });
    }

    async fn receive(
        self,
        size: u64,
        here: Option<(File, u64)>,
        coming: mpsc::Receiver<Bytes>,
        is_given_up: &AtomicBool,
    ) -> Stored {
        let mut sink = Sink::new(&self, size);
        let stored = match sink.take_all(here, coming).await {
            Ok(Stored::Wrong) if is_given_up.load(Ordering::Relaxed) => {
                let place = self.cache.place().to_owned();
                self.cache.failed_to_store(Error::Slow { what: blob_key(&self.digest), place });
                Stored::Not
            }
            Ok(stored) => stored,
            Err(error) => {
                self.cache.failed_to_store(error);
                Stored::Not
            }
        };
        match stored {
            Stored::Whole => self.cache.stored(&self.digest, size),
            Stored::Wrong | Stored::Not => sink.abort().await,
        }
        stored
    }
}

impl Writer {
    /// Takes the next bytes; whether it did. Where the store takes nothing, the blob is not stored.
    pub async fn write(&mut self, chunk: Bytes) -> bool {
        let Some(chunks) = &self.chunks else { return false };
        let sent = timeout(STUCK, chunks.send(chunk)).await;
        if sent.is_err() {
            self.given_up.store(true, Ordering::Relaxed);
        }
        if !matches!(sent, Ok(Ok(()))) {
            self.chunks = None;
        }
        self.chunks.is_some()
    }

    /// What came of it, once that is known.
    pub async fn stored(mut self) -> Stored {
        self.chunks = None;
        self.stored.await.unwrap_or(Stored::Not)
    }
}

/// Bytes that are gathered to parts.
struct Sink<'c> {
    claim: &'c Claim,
    key: String,
    part: usize,
    size: u64,
    taken: u64,
    /// Always there but while it is at work.
    hasher: Option<Hasher>,
    gathered: Vec<Bytes>,
    bytes: usize,
    upload: Option<super::store::Parts<'c>>,
}

impl<'c> Sink<'c> {
    fn new(claim: &'c Claim, size: u64) -> Self {
        let part = usize::try_from(size / MOST_PARTS + 1).unwrap_or(MOST_PART).clamp(PART, MOST_PART);
        let (key, hasher) = (blob_key(&claim.digest), Some(Hasher::new(claim.digest.algorithm())));
        Self { claim, key, part, size, taken: 0, hasher, gathered: Vec::new(), bytes: 0, upload: None }
    }

    async fn take_all(&mut self, here: Option<(File, u64)>, mut coming: mpsc::Receiver<Bytes>) -> Result<Stored> {
        if let Some((file, until)) = here {
            let file = Arc::new(file);
            while self.taken < until {
                let (file, at) = (file.clone(), self.taken);
                let len = usize::try_from(until - at).unwrap_or(READ).min(READ);
                let read = spawn_blocking(move || {
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
                });
                let Ok(Ok(bytes)) = read.await else { return Ok(Stored::Not) };
                self.take(bytes).await?;
            }
        }
        while let Some(chunk) = coming.recv().await {
            self.take(chunk).await?;
        }
        let last = self.hashed().await;
        let got = self.hasher.take().map(Hasher::finish);
        if self.taken != self.size || got.as_ref() != Some(&self.claim.digest) {
            return Ok(Stored::Wrong);
        }
        match &mut self.upload {
            Some(upload) => {
                upload.part(last).await?;
                upload.complete().await?;
            }
            None => self.claim.cache.store.put(&self.key, last).await?,
        }
        Ok(Stored::Whole)
    }

    async fn take(&mut self, mut chunk: Bytes) -> Result<()> {
        self.claim.is_alive();
        self.taken += chunk.len() as u64;
        // Some stores want all parts but the last to be equally long.
        while self.bytes + chunk.len() > self.part {
            let rest = chunk.split_off(self.part - self.bytes);
            self.gathered.push(chunk);
            self.flush().await?;
            chunk = rest;
        }
        self.bytes += chunk.len();
        self.gathered.push(chunk);
        Ok(())
    }

    /// What was gathered, after it was hashed: not on the thread of the network.
    async fn hashed(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        let (gathered, hasher) = (std::mem::take(&mut self.gathered), self.hasher.take());
        let hash = spawn_blocking(move || {
            let hasher = hasher.map(|mut hasher| {
                for chunk in &gathered {
                    hasher.update(chunk);
                }
                hasher
            });
            (gathered, hasher)
        });
        // Without a hasher, nothing is completed.
        let Ok((gathered, hasher)) = hash.await else { return Vec::new() };
        self.hasher = hasher;
        gathered
    }

    async fn flush(&mut self) -> Result<()> {
        let part = self.hashed().await;
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => self.upload.insert(self.claim.cache.store.begin(&self.key).await?),
        };
        upload.part(part).await
    }

    async fn abort(mut self) {
        if let Some(upload) = &mut self.upload {
            // What it leaves, the store's own rules for unfinished uploads remove.
            let _ = upload.abort().await;
        }
    }
}
