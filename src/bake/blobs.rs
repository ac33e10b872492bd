//! Blobs and documents of many images, each once, into the content store.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::coming::{Begin, Coming, Piped, Progress};
use super::event::notices;
use super::resolve::ref_kind;
use super::{Error, Event, Listener, Request, Totals, Wanted};
use crate::catalog::{Catalog, ImageBlob};
use crate::content::{self, Growing, Started, Stat, Store};
use crate::kind::chain;
use crate::layer;
use crate::metadata::K8S_NAMESPACE;
use crate::oci::{Descriptor, Digest, MAX_DOCUMENT, Reference, media_type};
use crate::registry::{self, RawDocument, Room};
use crate::source::{self, Sources};
use crate::times::Times;

/// How often a blob or document is asked for when what comes is not what its digest names. Broken connections and servers
/// are the registry client's own business.
const TRIES: usize = 4;
/// A connection whose bytes nobody takes for so long is given up, to be opened again.
const PAUSE: Duration = Duration::from_secs(2);
/// Chunks between the network and the disk, of all blobs together. A chunk is what one read of a connection gives, at most
/// 400 KiB or so: this, and one more a blob on either side, is nearly all of prebake's memory.
const CHUNKS: usize = 24;

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// The lock of a blob: the blob's size once it is in place. Whatever writes the blob holds it, even when nobody waits for
/// the result any more, so that two never write one ingest.
type Guard = OwnedMutexGuard<Option<u64>>;

/// A blob as far as this bake got with it.
#[derive(Default)]
struct Slot {
    lock: Arc<AsyncMutex<Option<u64>>>,
    coming: watch::Sender<Coming>,
}

/// What there is of a blob.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnDisk {
    /// No file of its size.
    Nothing,
    /// A file that is to be hashed.
    File,
    /// Its file, as it was when it was last found to be right.
    Known,
}

/// How to ask for something small.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Small {
    Document,
    Blob,
}

/// Where documents go.
pub(super) enum Place {
    /// Into the root's store; the catalog remembers what was verified.
    Root(Arc<Catalog>),
    /// Nowhere but here: the root is only looked at.
    Memory(Mutex<HashMap<Digest, Bytes>>),
}

pub(super) struct Blobs {
    pub(super) store: Store,
    place: Place,
    /// In which ingests are made.
    namespace: String,
    pub(super) listener: Arc<dyn Listener>,
    pub(super) sources: Sources,
    permits: Semaphore,
    chunks: usize,
    slots: Mutex<HashMap<Digest, Arc<Slot>>>,
    /// Blobs that are in place as the catalog has them.
    known: Mutex<HashSet<Digest>>,
    /// Media types of targets that came before, by namespace.
    declared: Mutex<HashMap<String, HashMap<Digest, String>>>,
    totals: Mutex<Totals>,
}

impl Blobs {
    pub(super) fn new(request: &Request, store: Store, place: Place, listener: Arc<dyn Listener>) -> Result<Self> {
        let namespace = request.images.first().map_or(K8S_NAMESPACE, |image| &image.namespace);
        let mut blobs = Self::with(request.registry.clone(), request.concurrency, namespace, store, place, listener)?;
        for Wanted { reference, from, .. } in &request.images {
            if let Some((local, held)) = from {
                blobs.sources.put(reference.clone(), local.clone(), held.clone());
            }
        }
        Ok(blobs)
    }

    /// Without a request.
    pub(super) fn with(
        registry: registry::Options,
        concurrency: usize,
        namespace: &str,
        store: Store,
        place: Place,
        listener: Arc<dyn Listener>,
    ) -> Result<Self> {
        Ok(Self {
            sources: Sources::new(registry, notices(listener.clone()))?,
            store,
            place,
            namespace: namespace.to_owned(),
            permits: Semaphore::new(concurrency),
            chunks: (CHUNKS / concurrency.max(1)).clamp(1, 4),
            listener,
            slots: Mutex::default(),
            known: Mutex::default(),
            declared: Mutex::default(),
            totals: Mutex::default(),
        })
    }

    pub(super) fn catalog(&self) -> Option<&Arc<Catalog>> {
        match &self.place {
            Place::Root(catalog) => Some(catalog),
            Place::Memory(_) => None,
        }
    }

    /// The documents that are kept in memory.
    pub(super) fn documents(&self) -> HashMap<Digest, Bytes> {
        match &self.place {
            Place::Root(_) => HashMap::new(),
            Place::Memory(documents) => documents.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(super) fn totals(&self) -> Totals {
        let cache = self.sources.cache().map(|cache| cache.usage());
        Totals { cache, ..*self.totals.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Waits for everything that is still being written; then the blobs that are new in place, with their times.
    pub(super) async fn settled(&self, times: &Times) -> Result<Vec<(Digest, Stat)>> {
        let slots: Vec<_> = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.iter().map(|(digest, slot)| (digest.clone(), slot.clone())).collect()
        };
        let mut in_place = Vec::new();
        for (digest, slot) in slots {
            if slot.lock.lock().await.is_some() {
                in_place.push(digest);
            }
        }
        self.sources.settle().await?;
        self.new_of(in_place.iter(), times)
    }

    /// Gives blobs that are new in place their times; what their files are like.
    pub(super) fn new_of<'d>(
        &self,
        digests: impl Iterator<Item = &'d Digest>,
        times: &Times,
    ) -> Result<Vec<(Digest, Stat)>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Vec::new();
        for digest in digests.filter(|digest| !known.contains(*digest)) {
            let stat = self.store.date(digest, times.part(digest).timestamp())?;
            new.extend(stat.map(|stat| (digest.clone(), stat)));
        }
        Ok(new)
    }

    /// What a tag or digest names, with its media type; verified when it is a digest, and put in place.
    pub(super) async fn target(self: &Arc<Self>, wanted: &Wanted) -> Result<(Descriptor, RawDocument)> {
        let Wanted { reference, namespace, .. } = wanted;
        let catalog = self.catalog();
        let before = catalog.map(|catalog| catalog.image(namespace, &reference.to_string())).transpose()?.flatten();
        let before = before.map(|image| image.target);
        let digest = match reference.digest() {
            Some(digest) => Some(digest.clone()),
            // What came under this name before may still be what it names; to ask for that costs no pull.
            None if before.is_some() => self.sources.head(reference).await?,
            None => None,
        };
        if let Some(digest) = &digest
            && let Some(stat) = self.store.stat(digest)?
            && stat.size <= MAX_DOCUMENT
            && let room = self.sources.room(stat.size).await
            && let Some(bytes) = self.read_whole(&Descriptor::new("", digest.clone(), stat.size)).await?
        {
            let declared = match (before.filter(|target| target.digest == *digest), catalog) {
                (Some(target), _) => target.media_type,
                (None, Some(catalog)) => self.declared(catalog, namespace, digest)?,
                (None, None) => String::new(),
            };
            return Ok((Descriptor::new(declared, digest.clone(), stat.size), RawDocument::new(bytes, room)));
        }
        let mut tries = 1;
        loop {
            match self.target_once(reference).await {
                Err(error) if is_passing(&error) && tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// The media type under which a target came to the namespace before; empty where that is not known.
    fn declared(&self, catalog: &Catalog, namespace: &str, digest: &Digest) -> Result<String> {
        let mut known = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(namespace) {
            let targets = catalog.images(namespace)?.into_iter().map(|image| image.target);
            known.insert(namespace.to_owned(), targets.map(|target| (target.digest, target.media_type)).collect());
        }
        Ok(known[namespace].get(digest).cloned().unwrap_or_default())
    }

    /// The digest of what a name leads to now.
    pub(super) async fn leads_to(self: &Arc<Self>, reference: &Reference) -> Result<Digest> {
        if let Some(digest) = reference.digest() {
            return Ok(digest.clone());
        }
        match self.sources.head(reference).await? {
            Some(digest) => Ok(digest),
            None => Ok(self.target_once(reference).await?.0.digest),
        }
    }

    async fn target_once(self: &Arc<Self>, reference: &Reference) -> Result<(Descriptor, RawDocument)> {
        let raw = self.sources.document(reference, reference.target(), MAX_DOCUMENT, None).await?;
        let got = Digest::of_as(&raw.bytes, reference.digest());
        if let Some(expected) = reference.digest()
            && got != *expected
        {
            return Err(content::Error::WrongDigest { expected: expected.clone(), got }.into());
        }
        Ok((Descriptor::new(raw.media_type.clone(), got, raw.bytes.len() as u64), raw))
    }

    /// Puts verified bytes in place, unless they are there.
    pub(super) async fn keep(self: &Arc<Self>, descriptor: &Descriptor, bytes: Bytes) -> Result<()> {
        let guard = self.lock(descriptor).await?;
        if guard.is_some() {
            return Ok(());
        }
        if self.is_whole(descriptor).await? {
            self.done(descriptor, guard, false);
            return Ok(());
        }
        let (guard, written) = self.write(descriptor, bytes, guard).await?;
        written?;
        self.done_at_once(descriptor, guard);
        Ok(())
    }

    /// The bytes of a document or config, from the store or else from the registry.
    pub(super) async fn small(
        self: &Arc<Self>,
        reference: &Reference,
        descriptor: &Descriptor,
        kind: Small,
    ) -> Result<RawDocument> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > MAX_DOCUMENT {
            return Err(Error::TooLarge { digest: digest.clone(), size: *size });
        }
        // Before the lock: whoever has room never waits for somebody who waits for room.
        let room = self.sources.room(*size).await;
        let guard = self.lock(descriptor).await?;
        if guard.is_some() {
            return self.read(descriptor, room).await;
        }
        if let Some(bytes) = self.read_whole(descriptor).await? {
            self.done(descriptor, guard, false);
            return Ok(RawDocument::new(bytes, room));
        }
        let (bytes, guard) = self.small_blob(reference, descriptor, kind, guard, &room).await?;
        self.done_at_once(descriptor, guard);
        Ok(RawDocument::new(bytes, room))
    }

    async fn small_blob(
        self: &Arc<Self>,
        reference: &Reference,
        descriptor: &Descriptor,
        kind: Small,
        mut guard: Guard,
        room: &Room,
    ) -> Result<(Bytes, Guard)> {
        let Descriptor { digest, size, .. } = descriptor;
        let mut tries = 1;
        loop {
            let room = Some(room.clone());
            let got = match kind {
                Small::Document => self.sources.document(reference, digest.as_str(), *size, room).await,
                Small::Blob => self.sources.small_blob(reference, digest, *size, room).await,
            };
            let result = match got {
                Err(error) => Err(error.into()),
                Ok(raw) => {
                    let written;
                    (guard, written) = self.write(descriptor, raw.bytes.clone(), guard).await?;
                    written.map(|()| raw.bytes.clone())
                }
            };
            match result {
                Err(error) if is_passing(&error) && tries < TRIES => tries += 1,
                Err(error) => return Err(error),
                Ok(bytes) => return Ok((bytes, guard)),
            }
        }
    }

    /// Makes sure that the blobs of an image are in place.
    pub(super) async fn ensure_all(self: &Arc<Self>, reference: &Reference, blobs: &[ImageBlob]) -> Result<()> {
        let (this, all) = (self.clone(), blobs.iter().map(|blob| blob.descriptor.clone()).collect::<Vec<_>>());
        let found = blocking(move || all.iter().map(|blob| this.find(blob)).collect::<Result<Vec<_>>>()).await?;
        let each = blobs.iter().zip(found).map(|(blob, found)| self.ensure(reference, &blob.descriptor, found));
        let mut all: FuturesUnordered<_> = each.collect();
        while all.try_next().await?.is_some() {}
        Ok(())
    }

    /// Makes sure that a blob is in place, of which this was found before.
    async fn ensure(self: &Arc<Self>, reference: &Reference, descriptor: &Descriptor, found: OnDisk) -> Result<()> {
        let guard = self.lock(descriptor).await?;
        if guard.is_some() {
            return Ok(());
        }
        if found == OnDisk::Known {
            self.done(descriptor, guard, false);
            return Ok(());
        }
        let mut permit = self.permit().await?;
        if found == OnDisk::File && self.is_whole(descriptor).await? {
            self.done(descriptor, guard, false);
            return Ok(());
        }
        // While another baker brings it to the cache, this one is at something else.
        while let Some(waiting) = self.sources.waits_for(reference, descriptor).await? {
            drop(permit);
            waiting.over().await;
            permit = self.permit().await?;
        }
        self.bring(reference, descriptor, guard).await
    }

    /// Brings a blob, whatever is in its place.
    pub(super) async fn again(self: &Arc<Self>, reference: &Reference, descriptor: &Descriptor) -> Result<()> {
        let guard = self.lock(descriptor).await?;
        if guard.is_some() {
            return Ok(());
        }
        let kind = &descriptor.media_type;
        if media_type::is_index(kind) || media_type::is_manifest(kind) {
            let room = self.sources.room(descriptor.size).await;
            let (_, guard) = self.small_blob(reference, descriptor, Small::Document, guard, &room).await?;
            self.done_at_once(descriptor, guard);
            return Ok(());
        }
        let _permit = self.permits.acquire().await.map_err(|_| Error::Task)?;
        self.bring(reference, descriptor, guard).await
    }

    async fn bring(self: &Arc<Self>, reference: &Reference, descriptor: &Descriptor, mut guard: Guard) -> Result<()> {
        self.started(reference, descriptor);
        let progress = Progress::new(&*self.listener, &descriptor.digest);
        let mut tries = 1;
        loop {
            let moved;
            (guard, moved) = self.transfer(reference, descriptor, guard, &progress).await?;
            match moved {
                Err(error) => {
                    self.once_more(reference, &progress, tries, error)?;
                    tries += 1;
                }
                Ok(fetched) => {
                    progress.done();
                    self.done(descriptor, guard, fetched);
                    return Ok(());
                }
            }
        }
    }

    fn started(&self, reference: &Reference, Descriptor { digest, size, .. }: &Descriptor) {
        self.listener.on(&Event::BlobStarted { digest, size: *size, image: &reference.to_string() });
    }

    /// After bytes that were not what was promised; gives the error back when asking once more is of no use.
    fn once_more(&self, reference: &Reference, progress: &Progress<'_>, tries: usize, error: Error) -> Result<()> {
        // What lies in a place stays as it is.
        if !is_passing(&error) || tries >= TRIES || self.sources.is_local(reference) {
            return Err(error);
        }
        self.sources.gave_wrong(reference, progress.digest);
        progress.retried(&chain(&error));
        Ok(())
    }

    /// Moves a blob from the network to the store: one task reads, one thread hashes and writes. Whether bytes came: what
    /// an earlier run left whole needs none.
    async fn transfer(
        self: &Arc<Self>,
        reference: &Reference,
        descriptor: &Descriptor,
        guard: Guard,
        progress: &Progress<'_>,
    ) -> Result<(Guard, Result<bool>)> {
        let (chunks, mut received) = mpsc::channel::<Bytes>(self.chunks);
        let (ready, begin) = oneshot::channel();
        let (tell, mut told) = oneshot::channel();
        let (blobs, blob, slot) = (self.clone(), descriptor.clone(), self.slot(descriptor));
        let write = move || -> Result<bool, content::Error> {
            match blobs.store.ingest(&blobs.namespace, ref_kind(&blob.media_type), &blob)? {
                Started::Whole(whole) => whole.commit().map(|()| false),
                Started::New(mut ingest) => {
                    let here = if ingest.written() > 0 { Some(ingest.file()?) } else { None };
                    let _ =
                        ready.send(Begin { from: ingest.written(), tag: ingest.entity_tag(), tell: Some(tell), here });
                    let (growing, writer) = Growing::new(ingest.file()?, ingest.written());
                    // What an earlier run left is looked at by nobody before its digest is.
                    if ingest.written() == 0 {
                        slot.coming.send_replace(Coming::Growing(growing));
                    }
                    while let Some(chunk) = received.blocking_recv() {
                        ingest.write(&chunk)?;
                        writer.grew(chunk.len() as u64);
                        if let Ok(tag) = told.try_recv() {
                            ingest.tag(&tag)?;
                        }
                    }
                    ingest.verify()?.commit()?;
                    writer.finish();
                    Ok(true)
                }
            }
        };
        let writer = spawn_blocking(move || {
            let written = write();
            (guard, written)
        });
        let moved = match begin.await {
            Ok(begin) => self.receive(reference, descriptor, begin, chunks, progress).await,
            // Nothing is wanted, or the writer says why not.
            Err(_) => Ok(()),
        };
        let (guard, written) = writer.await.map_err(|_| Error::Task)?;
        Ok((
            guard,
            match (moved, written) {
                (_, Ok(fetched)) => Ok(fetched),
                // A short body is what a broken connection looks like to the writer.
                (Err(error), Err(content::Error::TooShort { .. })) => Err(error.into()),
                (_, Err(error)) => Err(error.into()),
            },
        ))
    }

    /// Gives what comes of a blob to whoever takes it, until he takes no more.
    async fn receive(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        begin: Begin,
        chunks: mpsc::Sender<Bytes>,
        progress: &Progress<'_>,
    ) -> Result<(), source::Error> {
        let Begin { from, tag, mut tell, here } = begin;
        progress.add(from);
        let mut body = self.sources.blob(reference, descriptor, from, tag);
        if let Some(here) = here {
            body.begins_in(here);
        }
        let mut host = None;
        while let Some(chunk) = body.chunk().await? {
            let bytes = chunk.len() as u64;
            if body.host() != host.as_deref() {
                host = body.host().map(str::to_owned);
                let host = host.as_deref().unwrap_or_default();
                self.listener.on(&Event::BlobFrom { digest: &descriptor.digest, host });
            }
            if let (Some(tag), Some(tell)) = (body.entity_tag(), tell.take()) {
                let _ = tell.send(tag.to_owned());
            }
            let room = if let Ok(room) = timeout(PAUSE, chunks.reserve()).await {
                room
            } else {
                // Who takes the bytes may wait for another layer, which waits for its turn at the host.
                body.pause();
                chunks.reserve().await
            };
            let Ok(room) = room else { break };
            room.send(chunk);
            progress.add(bytes);
        }
        Ok(())
    }

    /// Takes one of the places for blobs under way.
    pub(super) async fn permit(&self) -> Result<SemaphorePermit<'_>> {
        self.permits.acquire().await.map_err(|_| Error::Task)
    }

    /// Gives a blob to a reader, who verifies it, and to nobody else.
    pub(super) async fn stream(
        self: &Arc<Self>,
        reference: &Reference,
        descriptor: &Descriptor,
        read: impl Fn(Piped) -> layer::Result<()> + Clone + Send + 'static,
    ) -> Result<()> {
        self.slot(descriptor);
        self.started(reference, descriptor);
        let progress = Progress::new(&*self.listener, &descriptor.digest);
        let mut tries = 1;
        loop {
            let (chunks, received) = mpsc::channel::<Bytes>(self.chunks);
            let read = read.clone();
            let reader = spawn_blocking(move || read(Piped::new(received)));
            let failed = self.receive(reference, descriptor, Begin::default(), chunks, &progress).await.err();
            let error = match (reader.await.map_err(|_| Error::Task)?, failed) {
                (Ok(()), _) => {
                    progress.done();
                    self.count(descriptor, true);
                    return Ok(());
                }
                (Err(layer::Error::Source(_)), Some(error)) => error.into(),
                (Err(source), _) => Error::Layer { digest: descriptor.digest.clone(), source },
            };
            self.once_more(reference, &progress, tries, error)?;
            tries += 1;
        }
    }

    /// Keeps bytes that are all here.
    async fn write(
        self: &Arc<Self>,
        descriptor: &Descriptor,
        bytes: Bytes,
        guard: Guard,
    ) -> Result<(Guard, Result<()>)> {
        if let Place::Memory(documents) = &self.place {
            let (expected, got) = (descriptor.digest.clone(), Digest::of_as(&bytes, Some(&descriptor.digest)));
            if got != expected {
                return Ok((guard, Err(content::Error::WrongDigest { expected, got }.into())));
            }
            documents.lock().unwrap_or_else(PoisonError::into_inner).insert(expected, bytes);
            return Ok((guard, Ok(())));
        }
        let (blobs, blob) = (self.clone(), descriptor.clone());
        let write = move || -> Result<(), content::Error> {
            match blobs.store.ingest(&blobs.namespace, ref_kind(&blob.media_type), &blob)? {
                Started::Whole(whole) => whole.commit(),
                Started::New(mut ingest) => {
                    ingest.write(&bytes)?;
                    ingest.verify()?.commit()
                }
            }
        };
        let written = spawn_blocking(move || {
            let written = write();
            (guard, written)
        });
        let (guard, written) = written.await.map_err(|_| Error::Task)?;
        Ok((guard, written.map_err(Error::from)))
    }

    async fn read(self: &Arc<Self>, descriptor: &Descriptor, room: Room) -> Result<RawDocument> {
        let (blobs, digest) = (self.clone(), descriptor.digest.clone());
        if let Place::Memory(documents) = &self.place
            && let Some(bytes) = documents.lock().unwrap_or_else(PoisonError::into_inner).get(&digest)
        {
            return Ok(RawDocument::new(bytes.clone(), room));
        }
        let bytes = blocking(move || Ok(blobs.store.read(&digest, MAX_DOCUMENT)?.into())).await?;
        Ok(RawDocument::new(bytes, room))
    }

    /// The bytes of a blob that is there and right.
    async fn read_whole(self: &Arc<Self>, descriptor: &Descriptor) -> Result<Option<Bytes>> {
        let (blobs, Descriptor { digest, size, .. }) = (self.clone(), descriptor.clone());
        blocking(move || {
            if blobs.store.stat(&digest)?.is_none_or(|stat| stat.size != size) {
                return Ok(None);
            }
            match blobs.store.read(&digest, MAX_DOCUMENT) {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(content::Error::WrongDigest { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Whether the blob's file is there and right: known to the catalog, or hashed now.
    pub(super) async fn is_whole(self: &Arc<Self>, descriptor: &Descriptor) -> Result<bool> {
        let (blobs, descriptor) = (self.clone(), descriptor.clone());
        blocking(move || match blobs.find(&descriptor)? {
            OnDisk::Known => Ok(true),
            OnDisk::Nothing => Ok(false),
            OnDisk::File => match blobs.store.verify(&descriptor.digest) {
                Ok(()) => Ok(true),
                Err(content::Error::WrongDigest { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            },
        })
        .await
    }

    fn find(&self, Descriptor { digest, size, .. }: &Descriptor) -> Result<OnDisk> {
        let Some(stat) = self.store.stat(digest)?.filter(|stat| stat.size == *size) else { return Ok(OnDisk::Nothing) };
        let Some(catalog) = self.catalog() else {
            // Who only looks does not hash layers.
            return Ok(if *size > MAX_DOCUMENT { OnDisk::Known } else { OnDisk::File });
        };
        if !catalog.is_verified(digest, stat)? {
            return Ok(OnDisk::File);
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone());
        Ok(OnDisk::Known)
    }

    /// What is known of a blob; the first to ask makes it known.
    fn slot(&self, descriptor: &Descriptor) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(descriptor.digest.clone()).or_default().clone()
    }

    /// Where a blob can be read, and will be.
    pub(super) fn coming(&self, descriptor: &Descriptor) -> watch::Receiver<Coming> {
        self.slot(descriptor).coming.subscribe()
    }

    /// Takes the blob's lock. A blob in place has one size: a descriptor that says another is wrong.
    async fn lock(&self, descriptor: &Descriptor) -> Result<Guard> {
        let guard = self.slot(descriptor).lock.clone().lock_owned().await;
        let (digest, expected) = (descriptor.digest.clone(), descriptor.size);
        match *guard {
            Some(size) if size < expected => Err(content::Error::TooShort { digest, expected, got: size }.into()),
            Some(size) if size > expected => Err(content::Error::TooLong { digest, expected }.into()),
            _ => Ok(guard),
        }
    }

    fn done_at_once(&self, descriptor: &Descriptor, guard: Guard) {
        self.listener.on(&Event::BlobProgress { digest: &descriptor.digest, bytes: descriptor.size });
        self.done(descriptor, guard, true);
    }

    /// Counts a blob that is in place now.
    fn done(&self, descriptor: &Descriptor, mut guard: Guard, fetched: bool) {
        *guard = Some(descriptor.size);
        self.slot(descriptor).coming.send_replace(Coming::InPlace);
        self.count(descriptor, fetched);
    }

    fn count(&self, descriptor: &Descriptor, fetched: bool) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let (blobs, bytes) = match (&mut *totals, fetched) {
            (Totals { fetched_blobs, fetched_bytes, .. }, true) => (fetched_blobs, fetched_bytes),
            (Totals { present_blobs, present_bytes, .. }, false) => (present_blobs, present_bytes),
        };
        *blobs += 1;
        *bytes += descriptor.size;
        drop(totals);
        self.listener.on(&Event::BlobDone { digest: &descriptor.digest, size: descriptor.size, fetched });
    }
}

/// Whether asking once more may help: what came was not what was promised.
fn is_passing(error: &Error) -> bool {
    match error {
        // Longer than its descriptor says; a document over the limit stays over it.
        Error::Source(source::Error::Registry(registry::Error::TooLarge { limit, .. })) => *limit < MAX_DOCUMENT,
        Error::Source(source::Error::Registry(error)) => matches!(error, registry::Error::WrongClaim { .. }),
        Error::Content(error) => matches!(
            error,
            content::Error::TooShort { .. } | content::Error::TooLong { .. } | content::Error::WrongDigest { .. }
        ),
        Error::Layer { source, .. } => matches!(source, layer::Error::Source(_)),
        _ => false,
    }
}

pub(super) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(f).await.map_err(|_| Error::Task)?
}
