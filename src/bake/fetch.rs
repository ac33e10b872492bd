//! Documents and blobs of many images, each once, into the content store.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::{FuturesUnordered, StreamExt, iter};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc};
use tokio::task::spawn_blocking;

use super::resolve::{candidates, check_config, children, platforms, ref_kind};
use super::{Error, Event, Failure, Listener, Request, Totals};
use crate::catalog::{Catalog, ImageBlob, ImageRecord};
use crate::content::{self, Started, Store};
use crate::metadata::labels;
use crate::oci::{Config, Descriptor, Digest, Document, MAX_DOCUMENT, Manifest, Platform, Reference, media_type};
use crate::registry::{self, Client};

/// How often a blob or document is asked for when what comes is broken.
const TRIES: usize = 2;
/// Chunks between the network and the disk, for each blob. A chunk is what one read of a connection gives, at most 400 KiB
/// or so: this, times the blobs under way, is nearly all of prebake's memory.
const CHUNKS: usize = 4;
/// Indexes inside an index.
const MAX_INDEX_DEPTH: usize = 4;

type Result<T, E = Error> = std::result::Result<T, E>;
/// How far each image came; `None` where it was stopped.
type Results = Vec<Option<Result<ImageRecord, Failure>>>;

/// One bake's fetching.
pub(super) struct Fetcher(Arc<Shared>);

struct Shared {
    client: Client,
    store: Store,
    catalog: Arc<Catalog>,
    namespace: String,
    platform: Platform,
    pin: bool,
    permits: Semaphore,
    images_at_once: usize,
    listener: Arc<dyn Listener>,
    /// One lock a blob, so that images that share it wait for it; `true` once it is in place.
    blobs: Mutex<HashMap<Digest, Arc<AsyncMutex<bool>>>>,
    totals: Mutex<Totals>,
}

impl Fetcher {
    pub(super) fn new(
        request: &Request,
        store: Store,
        catalog: Arc<Catalog>,
        listener: Arc<dyn Listener>,
    ) -> Result<Self> {
        Ok(Self(Arc::new(Shared {
            client: Client::new(request.registry.clone())?,
            store,
            catalog,
            namespace: request.namespace.clone(),
            platform: request.platform.clone(),
            pin: request.pin,
            permits: Semaphore::new(request.concurrency),
            images_at_once: request.concurrency.max(2),
            listener,
            blobs: Mutex::default(),
            totals: Mutex::default(),
        })))
    }

    /// Fetches all images; whether `cancel` came first.
    pub(super) async fn all(&self, references: &[Reference], cancel: impl Future<Output = ()>) -> (Results, bool) {
        let mut results: Results = references.iter().map(|_| None).collect();
        let mut images = iter(references.iter().enumerate())
            .map(|(i, reference)| async move { (i, self.0.image(reference).await) })
            .buffer_unordered(self.0.images_at_once);
        tokio::pin!(cancel);
        loop {
            let (i, result) = tokio::select! {
                next = images.next() => match next {
                    Some(done) => done,
                    None => break,
                },
                () = &mut cancel => return (results, true),
            };
            let result = result.map_err(|error| Failure::new(&error));
            let image = &references[i].to_string();
            self.0.listener.on(&match &result {
                Ok(record) => Event::ImageFetched { image, digest: &record.target.digest },
                Err(failure) => Event::ImageFailed { image, kind: failure.kind, error: &failure.message },
            });
            results[i] = Some(result);
        }
        drop(images);
        (results, false)
    }

    pub(super) fn totals(&self) -> Totals {
        *self.0.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an image consists of.
struct Resolved {
    target: Descriptor,
    /// Documents from the target down, then the config and the layers.
    blobs: Vec<ImageBlob>,
    config: Digest,
}

/// A document, in the store.
struct Stored {
    descriptor: Descriptor,
    document: Document,
}

impl Shared {
    async fn image(self: &Arc<Self>, reference: &Reference) -> Result<ImageRecord> {
        let name = reference.to_string();
        let resolved = self.resolve(reference).await?;
        let bytes = resolved.blobs.iter().map(|blob| blob.descriptor.size).sum();
        self.listener.on(&Event::ImageResolved {
            image: &name,
            digest: &resolved.target.digest,
            platform: &self.platform,
            blobs: resolved.blobs.len(),
            bytes,
        });
        let mut all: FuturesUnordered<_> =
            resolved.blobs.iter().map(|blob| self.ensure(reference, &blob.descriptor)).collect();
        while all.try_next().await?.is_some() {}
        drop(all);
        let mut aliases = vec![reference.digest_name(&resolved.target.digest), resolved.config.to_string()];
        aliases.retain(|alias| *alias != name);
        let record = ImageRecord {
            name,
            aliases,
            target: resolved.target,
            platform: self.platform.clone(),
            pinned: self.pin,
            blobs: resolved.blobs,
            source: (reference.registry_host().to_owned(), reference.repository().to_owned()),
        };
        let shared = self.clone();
        blocking(move || {
            let mut verified = Vec::new();
            for blob in &record.blobs {
                if let Some(stat) = shared.store.stat(&blob.descriptor.digest)? {
                    verified.push((blob.descriptor.digest.clone(), stat));
                }
            }
            shared.catalog.record(&shared.namespace, std::slice::from_ref(&record), &verified)?;
            Ok(record)
        })
        .await
    }

    async fn resolve(self: &Arc<Self>, reference: &Reference) -> Result<Resolved> {
        let root = self.root(reference).await?;
        let target = root.descriptor.clone();
        let mut path = Vec::new();
        let manifest = self.descend(reference, root, None, 0, &mut path).await?;
        let mut blobs: Vec<ImageBlob> = Vec::new();
        let config = manifest.config.digest.clone();
        for child in path.into_iter().chain([leaf(manifest.config)]).chain(manifest.layers.into_iter().map(leaf)) {
            // A layer may occur several times in an image.
            if !blobs.iter().any(|blob| blob.descriptor.digest == child.descriptor.digest) {
                blobs.push(child);
            }
        }
        Ok(Resolved { target, blobs, config })
    }

    /// Walks from a document to the platform's manifest, whose config fits; the documents on the way go to `path`.
    /// `said` is what the index says of the document.
    fn descend<'a>(
        self: &'a Arc<Self>,
        reference: &'a Reference,
        stored: Stored,
        said: Option<Platform>,
        depth: usize,
        path: &'a mut Vec<ImageBlob>,
    ) -> Pin<Box<dyn Future<Output = Result<Manifest>> + Send + 'a>> {
        Box::pin(async move {
            if depth > MAX_INDEX_DEPTH {
                return Err(Error::TooDeep);
            }
            path.push(ImageBlob {
                children: labels::children(&children(&stored.document)),
                descriptor: stored.descriptor,
            });
            let index = match stored.document {
                Document::Manifest(manifest) => {
                    if media_type::is_image_config(&manifest.config.media_type) {
                        let bytes = self.config(reference, &manifest.config).await?;
                        let config =
                            Config::parse(&bytes).map_err(|source| unusable(&manifest.config.digest, source))?;
                        check_config(&config, said.as_ref(), &self.platform)?;
                    }
                    return Ok(manifest);
                }
                Document::Index(index) => index,
            };
            let mut has = platforms(&index);
            for entry in candidates(&index, &self.platform) {
                let before = path.len();
                let child = self.document(reference, entry).await?;
                match self.descend(reference, child, entry.platform(), depth + 1, path).await {
                    Err(Error::NoPlatform { has: more, .. }) => {
                        has = [has, more].into_iter().filter(|list| !list.is_empty()).collect::<Vec<_>>().join(", ");
                        path.truncate(before);
                    }
                    other => return other,
                }
            }
            Err(Error::NoPlatform { wanted: self.platform.clone(), has })
        })
    }

    /// The document the reference names.
    async fn root(self: &Arc<Self>, reference: &Reference) -> Result<Stored> {
        if let Some(digest) = reference.digest()
            && let Some(stat) = self.store.stat(digest)?
            && stat.size <= MAX_DOCUMENT
            && self.is_whole(&Descriptor::new("", digest.clone(), stat.size)).await?
        {
            let known = self.catalog.images(&self.namespace)?.into_iter().find(|image| image.target.digest == *digest);
            let declared = known.map(|image| image.target.media_type).unwrap_or_default();
            return Self::parse(digest.clone(), &self.read(digest).await?, &declared);
        }
        let mut last = None;
        for _ in 0..TRIES {
            match self.root_once(reference).await {
                Err(error) if is_passing(&error) => last = Some(error),
                other => return other,
            }
        }
        Err(last.unwrap_or(Error::Task))
    }

    async fn root_once(self: &Arc<Self>, reference: &Reference) -> Result<Stored> {
        let raw = self.client.document(reference, reference.target(), MAX_DOCUMENT).await?;
        let digest = match reference.digest() {
            Some(digest) => digest.clone(),
            None => Digest::of(&raw.bytes),
        };
        let stored = Self::parse(digest, &raw.bytes, &raw.media_type)?;
        let slot = self.slot(&stored.descriptor);
        let mut in_place = slot.lock().await;
        if !*in_place {
            let there = self.is_whole(&stored.descriptor).await?;
            if !there {
                self.keep(&stored.descriptor, raw.bytes).await?;
            }
            self.done(&stored.descriptor, &mut in_place, !there);
        }
        Ok(stored)
    }

    /// A document by its descriptor, from the store or else from the registry.
    async fn document(self: &Arc<Self>, reference: &Reference, descriptor: &Descriptor) -> Result<Stored> {
        let bytes = self.small(reference, descriptor, true).await?;
        Self::parse(descriptor.digest.clone(), &bytes, &descriptor.media_type)
    }

    async fn config(self: &Arc<Self>, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes> {
        self.small(reference, descriptor, false).await
    }

    async fn small(self: &Arc<Self>, reference: &Reference, descriptor: &Descriptor, document: bool) -> Result<Bytes> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > MAX_DOCUMENT {
            return Err(Error::TooLarge { digest: digest.clone(), size: *size });
        }
        let slot = self.slot(descriptor);
        let mut in_place = slot.lock().await;
        if *in_place || self.is_whole(descriptor).await? {
            self.done(descriptor, &mut in_place, false);
            return self.read(digest).await;
        }
        let mut last = None;
        for _ in 0..TRIES {
            let got = async {
                let bytes = if document {
                    self.client.document(reference, digest.as_str(), *size).await?.bytes
                } else {
                    self.client.small_blob(reference, digest, *size).await?
                };
                self.keep(descriptor, bytes.clone()).await.map(|()| bytes)
            };
            match got.await {
                Ok(bytes) => {
                    self.done(descriptor, &mut in_place, true);
                    return Ok(bytes);
                }
                Err(error) if is_passing(&error) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(Error::Task))
    }

    fn parse(digest: Digest, bytes: &[u8], declared: &str) -> Result<Stored> {
        let (document, media_type) = Document::parse(bytes, declared).map_err(|source| unusable(&digest, source))?;
        let descriptor = Descriptor::new(media_type, digest, bytes.len() as u64);
        Ok(Stored { descriptor, document })
    }

    async fn read(self: &Arc<Self>, digest: &Digest) -> Result<Bytes> {
        let (shared, digest) = (self.clone(), digest.clone());
        blocking(move || Ok(shared.store.read(&digest, MAX_DOCUMENT)?.into())).await
    }

    /// Verifies bytes and puts them in place, unless they are there.
    async fn keep(self: &Arc<Self>, descriptor: &Descriptor, bytes: Bytes) -> Result<()> {
        let (shared, descriptor) = (self.clone(), descriptor.clone());
        blocking(move || {
            match shared.store.ingest(&shared.namespace, ref_kind(&descriptor.media_type), &descriptor)? {
                Started::Whole(blob) => blob.commit()?,
                Started::New(mut ingest) => {
                    ingest.write(&bytes)?;
                    ingest.verify()?.commit()?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Makes sure that a blob is in place.
    async fn ensure(self: &Arc<Self>, reference: &Reference, descriptor: &Descriptor) -> Result<()> {
        let slot = self.slot(descriptor);
        let mut in_place = slot.lock().await;
        if *in_place {
            return Ok(());
        }
        let _permit = self.permits.acquire().await.map_err(|_| Error::Task)?;
        if self.is_whole(descriptor).await? {
            self.done(descriptor, &mut in_place, false);
            return Ok(());
        }
        self.listener.on(&Event::BlobStarted { digest: &descriptor.digest, size: descriptor.size });
        let mut tries = 1;
        loop {
            let came = Arc::new(AtomicU64::new(0));
            match self.transfer(reference, descriptor, &came).await {
                Err(error) if is_passing(&error) && tries < TRIES => {
                    let (lost, reason) = (came.load(Ordering::Relaxed), &crate::kind::chain(&error));
                    self.listener.on(&Event::BlobRetried { digest: &descriptor.digest, lost, reason });
                    tries += 1;
                }
                other => {
                    other?;
                    self.done(descriptor, &mut in_place, true);
                    return Ok(());
                }
            }
        }
    }

    /// Moves a blob from the network to the store: one task reads, one thread hashes and writes.
    async fn transfer(
        self: &Arc<Self>,
        reference: &Reference,
        descriptor: &Descriptor,
        came: &AtomicU64,
    ) -> Result<()> {
        let (chunks, mut received) = mpsc::channel::<Bytes>(CHUNKS);
        let (shared, blob) = (self.clone(), descriptor.clone());
        let started =
            blocking(move || Ok(shared.store.ingest(&shared.namespace, ref_kind(&blob.media_type), &blob)?)).await?;
        let mut ingest = match started {
            Started::Whole(whole) => return blocking(move || Ok(whole.commit()?)).await,
            Started::New(ingest) => ingest,
        };
        let mut body = self.client.blob(reference, &descriptor.digest).await?;
        let writer = spawn_blocking(move || -> Result<(), content::Error> {
            while let Some(chunk) = received.blocking_recv() {
                ingest.write(&chunk)?;
            }
            ingest.verify()?.commit()
        });
        let mut broken = None;
        loop {
            match body.chunk().await {
                Ok(Some(chunk)) => {
                    let bytes = chunk.len() as u64;
                    if chunks.send(chunk).await.is_err() {
                        break;
                    }
                    came.fetch_add(bytes, Ordering::Relaxed);
                    self.listener.on(&Event::BlobProgress { digest: &descriptor.digest, bytes });
                }
                Ok(None) => break,
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(chunks);
        let written = writer.await.map_err(|_| Error::Task)?;
        match (broken, written) {
            (_, Ok(())) => Ok(()),
            // A short body is what a broken connection looks like to the writer.
            (Some(error), Err(content::Error::TooShort { .. })) => Err(error.into()),
            (_, Err(error)) => Err(error.into()),
        }
    }

    /// Whether the blob's file is there and right: known to the catalog, or hashed now.
    async fn is_whole(self: &Arc<Self>, descriptor: &Descriptor) -> Result<bool> {
        let (shared, descriptor) = (self.clone(), descriptor.clone());
        blocking(move || {
            let Some(stat) = shared.store.stat(&descriptor.digest)? else { return Ok(false) };
            if stat.size != descriptor.size {
                return Ok(false);
            }
            if shared.catalog.is_verified(&descriptor.digest, stat)? {
                return Ok(true);
            }
            match shared.store.verify(&descriptor.digest) {
                Ok(()) => Ok(true),
                Err(content::Error::WrongDigest { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// The blob's lock; the first to ask makes it known.
    fn slot(&self, descriptor: &Descriptor) -> Arc<AsyncMutex<bool>> {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs
            .entry(descriptor.digest.clone())
            .or_insert_with(|| {
                self.listener.on(&Event::BlobAdded { digest: &descriptor.digest, size: descriptor.size });
                Arc::default()
            })
            .clone()
    }

    /// Counts a blob that is in place now, once.
    fn done(&self, descriptor: &Descriptor, in_place: &mut bool, fetched: bool) {
        if std::mem::replace(in_place, true) {
            return;
        }
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let (blobs, bytes) = if fetched {
            let Totals { fetched_blobs, fetched_bytes, .. } = &mut *totals;
            (fetched_blobs, fetched_bytes)
        } else {
            let Totals { present_blobs, present_bytes, .. } = &mut *totals;
            (present_blobs, present_bytes)
        };
        *blobs += 1;
        *bytes += descriptor.size;
        drop(totals);
        self.listener.on(&Event::BlobDone { digest: &descriptor.digest, size: descriptor.size, fetched });
    }
}

fn leaf(descriptor: Descriptor) -> ImageBlob {
    ImageBlob { descriptor, children: Vec::new() }
}

fn unusable(digest: &Digest, source: crate::oci::DocumentError) -> Error {
    Error::Document { what: digest.to_string(), source }
}

/// Whether asking once more may help: the network failed, or what came was not what was promised.
fn is_passing(error: &Error) -> bool {
    match error {
        // Longer than its descriptor says; a document over the limit stays over it.
        Error::Registry(registry::Error::TooLarge { limit, .. }) => *limit < MAX_DOCUMENT,
        Error::Registry(error) => error.is_passing(),
        Error::Content(error) => matches!(
            error,
            content::Error::TooShort { .. } | content::Error::TooLong { .. } | content::Error::WrongDigest { .. }
        ),
        _ => false,
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(f).await.map_err(|_| Error::Task)?
}
