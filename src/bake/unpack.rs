//! Layers of many images into snapshots, each chain once, several at a time, while they come.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::spawn_blocking;

use super::blobs::{Blobs, Result};
use super::coming::Coming;
use super::{Error, Event, Listener, Totals};
use crate::content::{GrowingReader, Store};
use crate::layer::{self, Buffers, Job, Onto, Usage};
use crate::metadata::Labels;
use crate::oci::{Config, Descriptor, Digest, Hasher, Manifest, Reference, chain_ids, media_type};
use crate::snapshot::{Dirs, Present, Staged};
use crate::spec::LockedPlatform;
use crate::times::Times;

/// Layers that are unpacked at a time, for each core: while one waits for the disk or the network, another goes on.
const PER_CORE: usize = 2;
const MAX_AT_ONCE: usize = 8;
/// What a layer's annotations that its snapshot gets as labels begin with (containerd `snapshots.FilterInheritedLabels`).
const INHERITED: &str = "containerd.io/snapshot/";

/// The layers of an image, the lowest first.
#[derive(Debug)]
pub(super) struct Stack {
    /// The image's config, which names the snapshots.
    pub(super) config: Digest,
    /// When the image was made, as its config has it.
    pub(super) created: Option<String>,
    pub(super) layers: Vec<Layer>,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: Digest,
    /// It, and all layers below it.
    pub(super) chain: Digest,
    /// What its descriptor says for its snapshot.
    pub(super) labels: Labels,
}

impl Stack {
    /// The layers of a manifest with this config; `None` when containerd would unpack nothing.
    ///
    /// # Errors
    /// [`Error::LayerCount`] when the two do not fit each other.
    pub(super) fn new(manifest: &Manifest, config: &Config) -> Result<Option<Self>> {
        let Some(diff_ids) = &config.diff_ids else { return Ok(None) };
        let layers: Vec<&Descriptor> =
            manifest.layers.iter().filter(|layer| media_type::is_layer(&layer.media_type)).collect();
        if layers.len() != diff_ids.len() {
            return Err(Error::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() });
        }
        let stack = Self::of(&manifest.config.digest, layers.into_iter(), diff_ids);
        Ok(stack.map(|stack| Self { created: config.created.clone(), ..stack }))
    }

    /// As far as a lock tells.
    pub(super) fn of_lock(locked: &LockedPlatform) -> Option<Self> {
        let unpacked = || locked.layers.iter().filter_map(|(layer, diff_id)| Some((layer, diff_id.clone()?)));
        let diff_ids: Vec<Digest> = unpacked().map(|(_, diff_id)| diff_id).collect();
        Self::of(&locked.config.digest, unpacked().map(|(layer, _)| layer), &diff_ids)
    }

    fn of<'d>(config: &Digest, layers: impl Iterator<Item = &'d Descriptor>, diff_ids: &[Digest]) -> Option<Self> {
        let layer = |((descriptor, diff_id), chain): ((&Descriptor, &Digest), Digest)| Layer {
            descriptor: Descriptor::new(descriptor.media_type.clone(), descriptor.digest.clone(), descriptor.size),
            diff_id: diff_id.clone(),
            chain,
            labels: descriptor
                .annotations()
                .filter(|(key, _)| key.starts_with(INHERITED))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        };
        let layers: Vec<Layer> = layers.zip(diff_ids).zip(chain_ids(diff_ids)).map(layer).collect();
        (!layers.is_empty()).then(|| Self { config: config.clone(), created: None, layers })
    }

    pub(super) fn chain(&self) -> Vec<Digest> {
        self.layers.iter().map(|layer| layer.chain.clone()).collect()
    }
}

/// Where a layer's bytes come from.
pub(super) enum Source {
    /// A blob that is in the store, or will be.
    Blob(watch::Receiver<Coming>),
    /// The registry; they are not kept.
    Stream(Arc<Blobs>, Reference),
}

/// A chain as far as this bake got with it.
#[derive(Default)]
struct Slot {
    lock: Arc<AsyncMutex<()>>,
    turn: watch::Sender<Turn>,
    /// Where its files are, once they all are.
    fs: watch::Sender<Option<PathBuf>>,
    made: Mutex<Option<(Staged, Usage)>>,
}

/// Tells the layer above that it may begin, once.
fn may_begin(next: &mut Option<oneshot::Sender<()>>) {
    if let Some(next) = next.take() {
        // Nobody waits above the topmost layer.
        let _ = next.send(());
    }
}

impl Slot {
    /// Waits for the lock. Meanwhile the layer above may begin, if another image has begun with this one.
    async fn lock(&self, next: &mut Option<oneshot::Sender<()>>) -> OwnedMutexGuard<()> {
        let lock = self.lock.clone().lock_owned();
        tokio::pin!(lock);
        let mut turn = self.turn.subscribe();
        loop {
            // What it gives holds a lock of its own.
            let begun = async { turn.wait_for(|turn| turn.begun).await.map(drop) };
            tokio::select! {
                biased;
                lock = &mut lock => return lock,
                Ok(()) = begun, if next.is_some() => {
                    // Unless it ended just now.
                    let relied = self.turn.send_if_modified(|turn| {
                        turn.relied_on |= turn.begun;
                        turn.begun
                    });
                    if relied {
                        may_begin(next);
                    }
                }
            }
        }
    }
}

/// Whose turn it is with a chain. Layers above one that somebody has begun may begin as well, also those of other images.
#[derive(Debug, Default, Clone, Copy)]
struct Turn {
    /// Whoever has the lock has all else that is needed, too.
    begun: bool,
    /// Layers above rely on that: should it fail, the next one begins without a permit, which they may all have.
    relied_on: bool,
}

/// Held while a chain is unpacked, even when nobody waits for the result any more.
struct Held {
    slot: Arc<Slot>,
    _lock: OwnedMutexGuard<()>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.slot.turn.send_modify(|turn| turn.begun = false);
    }
}

/// What unpacks.
pub(super) struct Unpacker {
    dirs: Dirs,
    store: Store,
    listener: Arc<dyn Listener>,
    /// Most bytes of a layer.
    limit: u64,
    times: Arc<Times>,
    buffers: Arc<Buffers>,
    permits: Arc<Semaphore>,
    /// By namespace and chain.
    slots: Mutex<HashMap<(String, Digest), Arc<Slot>>>,
    layers: AtomicU64,
    bytes: AtomicU64,
}

impl Unpacker {
    pub(super) fn new(dirs: Dirs, store: Store, listener: Arc<dyn Listener>, limit: u64, times: Arc<Times>) -> Self {
        allow_open_files();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let permits = Arc::new(Semaphore::new((cores * PER_CORE).min(MAX_AT_ONCE)));
        Self {
            dirs,
            store,
            listener,
            limit,
            times,
            buffers: Buffers::new(),
            permits,
            slots: Mutex::default(),
            layers: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn slot(&self, namespace: &str, chain: &Digest) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry((namespace.to_owned(), chain.clone())).or_default().clone()
    }

    /// What was unpacked of a chain, to be published; `None` when it was there before, or is taken.
    pub(super) fn take(&self, namespace: &str, chain: &Digest) -> Option<(Staged, Usage)> {
        let slot =
            self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&(namespace.to_owned(), chain.clone()));
        slot?.made.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What was unpacked, on top of what was fetched.
    pub(super) fn add_totals(&self, fetched: Totals) -> Totals {
        let (unpacked_layers, unpacked_bytes) =
            (self.layers.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        Totals { unpacked_layers, unpacked_bytes, ..fetched }
    }

    /// Waits for everything that is still being written.
    pub(super) async fn settled(&self) {
        let slots: Vec<_> =
            self.slots.lock().unwrap_or_else(PoisonError::into_inner).values().map(|slot| slot.lock.clone()).collect();
        for slot in slots {
            drop(slot.lock().await);
        }
    }

    /// Makes sure that all layers of an image are unpacked; `present` are those that were before.
    pub(super) async fn image(
        self: &Arc<Self>,
        namespace: &str,
        stack: &Arc<Stack>,
        present: &[Present],
        source: impl Fn(&Descriptor) -> Source,
    ) -> Result<()> {
        for (layer, present) in stack.layers.iter().zip(present) {
            self.slot(namespace, &layer.chain).fs.send_replace(Some(self.dirs.fs(present.id)));
        }
        let stop = Stop(watch::Sender::new(false));
        let mut turn = None;
        let mut layers = FuturesUnordered::new();
        for i in present.len()..stack.layers.len() {
            let (next, after) = oneshot::channel();
            let source = source(&stack.layers[i].descriptor);
            let work = Work {
                unpacker: self.clone(),
                namespace: namespace.into(),
                stack: stack.clone(),
                i,
                slot: self.slot(namespace, &stack.layers[i].chain),
                stop: stop.0.subscribe(),
                handle: Handle::current(),
            };
            layers.push(self.layer(work, source, turn.replace(after), next));
        }
        while layers.try_next().await?.is_some() {}
        Ok(())
    }

    /// Unpacks one layer. Layers begin in their order, so that one that waits for those below it never keeps them from
    /// what they need.
    async fn layer(
        self: &Arc<Self>,
        work: Work,
        source: Source,
        turn: Option<oneshot::Receiver<()>>,
        next: oneshot::Sender<()>,
    ) -> Result<()> {
        if let Some(turn) = turn {
            // Without a turn, a layer below failed, and the image with it.
            turn.await.map_err(|_| Error::Task)?;
        }
        let slot = work.slot.clone();
        let mut next = Some(next);
        let lock = slot.lock(&mut next).await;
        if slot.fs.borrow().is_some() {
            may_begin(&mut next);
            return Ok(());
        }
        let relied_on = slot.turn.borrow().relied_on;
        let mut permit = None;
        if !relied_on {
            permit = Some(self.permits.clone().acquire_owned().await.map_err(|_| Error::Task)?);
        }
        let blobs = if let Source::Stream(blobs, _) = &source { Some(blobs.clone()) } else { None };
        let _blob_permit = match &blobs {
            Some(blobs) if !relied_on => Some(blobs.permit().await?),
            _ => None,
        };
        slot.turn.send_modify(|turn| turn.begun = true);
        may_begin(&mut next);
        let held = Held { slot, _lock: lock, _permit: permit };
        match source {
            Source::Blob(coming) => self.unpack_stored(work, coming, held).await,
            Source::Stream(blobs, reference) => unpack_streamed(work, &blobs, &reference, held).await,
        }
    }

    async fn unpack_stored(&self, work: Work, mut coming: watch::Receiver<Coming>, mut held: Held) -> Result<()> {
        let mut broken = None;
        loop {
            let another = |coming: &Coming| match (coming, &broken) {
                (Coming::No, _) => false,
                (Coming::Growing(growing), Some(broken)) => !Arc::ptr_eq(growing, broken),
                _ => true,
            };
            let came = coming.wait_for(another).await.map_err(|_| Error::Task)?.clone();
            let digest = &work.layer().descriptor.digest;
            let source = match &came {
                Coming::Growing(growing) => Blob::Growing(growing.reader()),
                _ => Blob::InPlace(self.store.open_blob(digest)?),
            };
            let again = work.clone();
            let unpack = move || {
                let result = again.unpack(source);
                (held, result)
            };
            let result;
            (held, result) = spawn_blocking(unpack).await.map_err(|_| Error::Task)?;
            broken = match (result, came) {
                // The blob is asked for once more, or its image fails by it.
                (Err(layer::Error::Source(_)), Coming::Growing(growing)) => Some(growing),
                (result, _) => return result.map_err(|source| work.error(source)),
            };
        }
    }
}

async fn unpack_streamed(work: Work, blobs: &Arc<Blobs>, reference: &Reference, held: Held) -> Result<()> {
    let descriptor = work.layer().descriptor.clone();
    let work = Arc::new((work, held));
    let unpack = move |piped| work.0.unpack(Verified::new(piped, &work.0.layer().descriptor));
    blobs.stream(reference, &descriptor, unpack).await
}

/// Layers keep directories open, their own and those of the layers below: as many as the system allows, not the fewer that
/// old programs can bear.
fn allow_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused, few images need it.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Tells whoever works for an image that it is over.
struct Stop(watch::Sender<bool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// The unpacking of one layer.
#[derive(Clone)]
struct Work {
    unpacker: Arc<Unpacker>,
    namespace: Arc<str>,
    stack: Arc<Stack>,
    i: usize,
    slot: Arc<Slot>,
    stop: watch::Receiver<bool>,
    handle: Handle,
}

impl Work {
    fn layer(&self) -> &Layer {
        &self.stack.layers[self.i]
    }

    fn error(&self, source: layer::Error) -> Error {
        Error::Layer { digest: self.layer().descriptor.digest.clone(), source }
    }

    /// On a thread of its own. What comes of a layer has to be read to its end: only there is known whether these are its
    /// bytes, and whose fault it is when they are not to be unpacked.
    fn unpack(&self, mut source: impl Read + Send) -> layer::Result<()> {
        let Layer { descriptor: Descriptor { digest, .. }, chain, .. } = self.layer();
        let listener = &self.unpacker.listener;
        listener.on(&Event::LayerStarted { digest, chain });
        let mut result = self.unpack_quietly(&mut source);
        if result.as_ref().is_err_and(layer::Error::is_of_bytes)
            && let Err(error) = io::copy(&mut source, &mut io::sink())
        {
            result = Err(layer::Error::Source(error));
        }
        let unpacked = result.as_ref().ok().copied();
        listener.on(&Event::LayerEnded { digest, chain, unpacked });
        self.unpacker.layers.fetch_add(unpacked.is_some().into(), Ordering::Relaxed);
        self.unpacker.bytes.fetch_add(unpacked.unwrap_or(0), Ordering::Relaxed);
        result.map(drop)
    }

    /// What it takes on disk.
    fn unpack_quietly(&self, source: impl Read + Send) -> layer::Result<u64> {
        let layer = self.layer();
        let staged =
            self.unpacker.dirs.stage(&format!("{}-{}", self.namespace, layer.chain.hex())).map_err(layer::Error::Io)?;
        let fs = staged.fs()?;
        let job = Job {
            media_type: &layer.descriptor.media_type,
            diff_id: &layer.diff_id,
            limit: self.unpacker.limit,
            time: self.unpacker.times.part(&layer.chain).timestamp(),
            buffers: &self.unpacker.buffers,
            stop: &|| *self.stop.borrow(),
        };
        let below = |n| self.below(n);
        let onto = if self.i == 0 { Onto::Nothing } else { Onto::Layers(&below) };
        layer::unpack(source, &job, fs.try_clone()?, &onto)?;
        let usage = layer::usage(&fs)?;
        let path = staged.fs_path();
        *self.slot.made.lock().unwrap_or_else(PoisonError::into_inner) = Some((staged, usage));
        self.slot.fs.send_replace(Some(path));
        Ok(usage.bytes)
    }

    /// The files of the nth layer below, once it is unpacked; `None` below the lowest.
    fn below(&self, n: usize) -> layer::Result<Option<OwnedFd>> {
        let Some(layer) = self.i.checked_sub(n + 1).map(|i| &self.stack.layers[i]) else { return Ok(None) };
        let mut fs = self.unpacker.slot(&self.namespace, &layer.chain).fs.subscribe();
        let mut stop = self.stop.clone();
        let path = self.handle.block_on(async {
            tokio::select! {
                path = fs.wait_for(Option::is_some) => path.ok().and_then(|path| path.clone()),
                _ = stop.wait_for(|stop| *stop) => None,
            }
        });
        Ok(Some(File::open(path.ok_or(layer::Error::Stopped)?)?.into()))
    }
}

/// A blob of the store.
enum Blob {
    Growing(GrowingReader),
    InPlace(File),
}

impl Read for Blob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Growing(reader) => reader.read(buf),
            Self::InPlace(file) => file.read(buf),
        }
    }
}

/// Bytes that are not kept, which have to be what their descriptor says.
struct Verified<R> {
    inner: R,
    hasher: Option<Hasher>,
    digest: Digest,
    left: u64,
}

impl<R> Verified<R> {
    fn new(inner: R, descriptor: &Descriptor) -> Self {
        let hasher = Some(Hasher::new(descriptor.digest.algorithm()));
        Self { inner, hasher, digest: descriptor.digest.clone(), left: descriptor.size }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other("more bytes than promised came"))?;
        if n > 0 {
            self.hasher.iter_mut().for_each(|hasher| hasher.update(&buf[..n]));
        } else if self.left > 0 {
            return Err(io::Error::other(format!("{} promised bytes did not come", self.left)));
        } else if let Some(got) = self.hasher.take().map(Hasher::finish)
            && got != self.digest
        {
            return Err(io::Error::other(format!("the bytes have the digest {got}")));
        }
        Ok(n)
    }
}
