//! Baking: references in, a root that containerd starts on out.
//!
//! Locks, then blobs, then the catalog, then the metadata in one commit: a kill at any moment leaves what was there, plus
//! blobs that the next run takes over.

mod blobs;
mod coming;
mod each;
mod event;
mod existing;
mod fetch;
#[cfg(feature = "live")]
mod live;
mod lock;
mod part;
mod plan;
mod policy;
mod record;
mod referrers;
mod refetch;
mod report;
mod resolve;
mod settle;
mod survey;
mod unpack;
mod warm;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use blobs::{Blobs, Place};
use each::{Images, each, tell_names};
pub use event::notices;
pub use event::{EVENTS_VERSION, Event, Listener};
pub use existing::{UnpackRequest, unpack};
use fetch::{Fetcher, Resolved};
#[cfg(feature = "live")]
pub use live::{LiveRequest, bootstrap_live, run_live};
use lock::of_lock;
pub use lock::{Moved, lock as lock_images, moved};
pub use part::Part;
use plan::Ground;
pub use plan::{Estimate, Plan, Planned, plan};
pub use policy::{DEFAULT_MAX_UNPACKED, Policies};
use record::{Baked, Snapshots, record};
pub use refetch::{Lost, refetch};
pub use report::{Detail, Recorder};
pub(crate) use resolve::{candidates, platforms};
use settle::{Before, add_times, times_of};
pub use survey::{Survey, Surveyed, survey};
use unpack::{Stack, Unpacker};
pub use warm::{Warmed, warm};

use crate::bolt::Lock;
use crate::bootstrap::offline;
use crate::cache::Usage;
use crate::catalog::{self, Catalog};
use crate::content::{self, Store};
use crate::kind::{Kind, chain};
use crate::metadata::{self, DEFAULT_LOCK_TIMEOUT, MetaDb, Wait};
use crate::oci::{Digest, DocumentError, MAX_DOCUMENT, Platform, Reference};
use crate::root::{Root, RootError};
use crate::snapshot::Stored;
use crate::source::{self, Held, Local};
use crate::spec::{LockedImage, Policy};
use crate::times::Times;
use crate::trust::PublicKey;
use crate::{layer, registry, snapshot};

/// Blobs under way at a time, unless asked otherwise.
pub const DEFAULT_CONCURRENCY: u8 = 6;

/// Why an image, or a whole bake, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry, or the place an image is in, did not give something.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// A blob did not come right, or could not be stored.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// containerd's metadata could not be locked or written.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// The records could not be written.
    #[error(transparent)]
    Bootstrap(#[from] offline::Error),
    /// A running containerd did not get to know something.
    #[cfg(feature = "live")]
    #[error(transparent)]
    Live(#[from] crate::bootstrap::live::Error),
    /// The root cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A document that cannot be used.
    #[error("{what} cannot be used")]
    Document {
        /// Which document.
        what: String,
        /// Why.
        source: DocumentError,
    },
    /// The image does not exist for the platform.
    #[error("there is no image for {wanted}; there is one for {}", if has.is_empty() { "no platform at all" } else { has })]
    NoPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What there is, joined by commas.
        has: String,
    },
    /// containerd 2.2 and later would silently not unpack such an image.
    #[error("the index says {index} and the image's config says {config}; containerd would not unpack it")]
    PlatformMismatch {
        /// What the index says.
        index: String,
        /// What the config says.
        config: String,
    },
    /// A descriptor promises a document of more than [`MAX_DOCUMENT`] bytes.
    #[error("{digest} is a document of {size} bytes; prebake reads at most {MAX_DOCUMENT}")]
    TooLarge {
        /// Which one.
        digest: Digest,
        /// The promised size, in bytes.
        size: u64,
    },
    /// Indexes within indexes within indexes.
    #[error("its indexes nest too deep")]
    TooDeep,
    /// More documents than prebake looks into in search of a manifest.
    #[error("it leads to too many documents")]
    TooManyDocuments,
    /// A layer cannot be unpacked.
    #[error("unpacking layer {digest} failed")]
    Layer {
        /// Its blob.
        digest: Digest,
        /// Why.
        source: layer::Error,
    },
    /// The config and the manifest do not fit each other.
    #[error("the manifest has {layers} layers and the config {diff_ids} diffIDs; containerd would not unpack it")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// diffIDs of the config.
        diff_ids: usize,
    },
    /// containerd's own pull fails at such a layer (`content.Copy`).
    #[error("layer {0} has no bytes at all; containerd refuses such an image")]
    EmptyLayer(Digest),
    /// Somebody needs the layers that were to be discarded.
    #[error("its layers cannot be discarded: {why}; unpack it without --discard-layers")]
    Discard {
        /// Who.
        why: String,
    },
    /// Snapshots cannot be made.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// The file system has too little space for all of it.
    #[error(
        "about {} MiB are needed, {} of them for blobs, and {} MiB are free; free some, or try with --ignore-space",
        (store + snapshots) >> 20, store >> 20, free >> 20
    )]
    NoSpace {
        /// Bytes that blobs need.
        store: u64,
        /// Bytes that snapshots need, as far as can be told.
        snapshots: u64,
        /// What is free, in bytes.
        free: u64,
    },
    /// The file system has too few inodes for all of it.
    #[error("about {needs} inodes are needed, and {free} are free; try with --ignore-space if you know better")]
    NoInodes {
        /// What is needed, as far as can be told.
        needs: u64,
        /// What is free.
        free: u64,
    },
    /// The images would take more than they may.
    #[error("the root's images would take about {} MiB, and --max-store allows {}", would >> 20, limit >> 20)]
    OverLimit {
        /// What they would take, in bytes.
        would: u64,
        /// What they may take.
        limit: u64,
    },
    /// An image that was to be unpacked is not in the root.
    #[error("the root has no image {0:?}; `prebake images` lists those it has")]
    NoImage(String),
    /// A blob that is needed is not in the root.
    #[error("blob {0} is not in the content store; fetch the image again")]
    Absent(Digest),
    /// The image's documents are not all in the root.
    #[error(transparent)]
    Walk(#[from] content::WalkError),
    /// Nobody who is trusted has signed the image.
    #[error("{digest} is not admitted: {}", lack(*signatures, *keys))]
    Unsigned {
        /// What the name leads to.
        digest: Digest,
        /// Signatures that were found.
        signatures: usize,
        /// Keys that were named for it.
        keys: usize,
    },
    /// A thread of prebake's own was lost.
    #[error("an internal task failed")]
    Task,
}

fn lack(signatures: usize, keys: usize) -> String {
    match signatures {
        0 => "it has no signature".to_owned(),
        n => format!("none of its {n} signatures is by one of the {keys} keys for it"),
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// What is to be baked, and how.
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct Request {
    /// Into which root.
    pub root: Root,
    /// Which images; of those that are named twice in a namespace, the first counts.
    pub images: Vec<Wanted>,
    /// Blobs under way at a time.
    pub concurrency: usize,
    /// How to talk to registries.
    pub registry: registry::Options,
    /// Whether containerd gets to know of them, or only the catalog.
    pub bootstrap: bool,
    /// Which blobs are brought, where other runs bring the others, and nothing is bootstrapped; all of them without.
    pub part: Option<Part>,
    /// Whether what refers to the images comes along: of these types, or of any if none is named.
    pub referrers: Option<Vec<String>>,
    /// Who must have signed which images.
    pub trusted: Vec<Trusted>,
    /// What becomes of layers.
    pub policies: Policies,
    /// Whether the report is to tell what images are made of.
    pub detailed: bool,
    /// Whether the first failure ends it; what is complete by then is kept.
    pub fail_fast: bool,
    /// Whether only those images are baked that the root's catalog knows to have failed.
    pub retry_failed: bool,
    /// When everything in the root was made, in seconds since 1970 (`SOURCE_DATE_EPOCH`); else the images tell.
    pub epoch: Option<u32>,
    /// How long to wait for another prebake on the root.
    pub lock_timeout: Duration,
}

impl Request {
    /// Images that containerd is to know of, and nothing besides: fetched only, by nobody's rules, with no one's signature asked for.
    pub fn new(root: Root, images: Vec<Wanted>) -> Self {
        Self {
            root,
            images,
            concurrency: DEFAULT_CONCURRENCY.into(),
            registry: registry::Options::default(),
            bootstrap: true,
            part: None,
            referrers: None,
            trusted: Vec::new(),
            policies: Policies::default(),
            detailed: false,
            fail_fast: false,
            retry_failed: false,
            epoch: None,
            lock_timeout: DEFAULT_LOCK_TIMEOUT,
        }
    }
}

/// An image that is to be baked.
#[derive(Clone)]
pub struct Wanted {
    /// Its name.
    pub reference: Reference,
    /// containerd's namespace.
    pub namespace: String,
    /// For which machines, at least one; layers are unpacked for the first.
    pub platforms: Vec<Platform>,
    /// What becomes of its layers, whatever rules say.
    pub policy: Option<Policy>,
    /// Whether kubelet must never remove it, whatever rules say.
    pub pin: Option<bool>,
    /// Further names of it.
    pub names: Vec<Reference>,
    /// Labels of its records.
    pub labels: BTreeMap<String, String>,
    /// Keys of which one must have signed it; without any, [`Request::trusted`] counts.
    pub keys: Vec<PublicKey>,
    /// What its name led to when it was locked; it is not asked for again.
    pub locked: Option<Arc<LockedImage>>,
    /// The place it comes from, and what it is there; without one, its registry is asked.
    pub from: Option<(Arc<Local>, Held)>,
}

impl Wanted {
    /// Namespace and name.
    fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.reference.to_string())
    }

    /// One of which nothing but its name is said.
    pub fn new(reference: Reference, namespace: impl Into<String>, platform: Platform) -> Self {
        Self {
            reference,
            namespace: namespace.into(),
            platforms: vec![platform],
            policy: None,
            pin: None,
            names: Vec::new(),
            labels: BTreeMap::new(),
            keys: Vec::new(),
            locked: None,
            from: None,
        }
    }
}

/// A key that must have signed images, or one of several such.
#[derive(Debug, Clone)]
pub struct Trusted {
    /// Which images, by their names; `*` stands for anything.
    pub pattern: String,
    /// The key.
    pub key: PublicKey,
}

/// What a bake came to.
#[derive(Debug)]
pub struct Report {
    /// Each image in the order asked for.
    pub images: Vec<Outcome>,
    /// What was moved.
    pub totals: Totals,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether it was stopped before its end.
    pub cancelled: bool,
    /// Images of which something is not in place that other runs bring, by namespace and name.
    pub left: BTreeSet<(String, String)>,
    /// What images are made of, of those of which it is known; only where [`Request::detailed`].
    pub details: Vec<Detail>,
}

impl Report {
    /// Of a bake that was stopped before it began.
    fn stopped(request: &Request, started: Instant) -> Self {
        let outcome = |image: &Wanted| Outcome::of((image.reference.to_string(), None::<Result<(), _>>));
        let images = request.images.iter().map(outcome).collect();
        let (totals, left, details) = (Totals::default(), BTreeSet::new(), Vec::new());
        Self { images, totals, elapsed: started.elapsed(), cancelled: true, left, details }
    }
}

/// What became of one image.
#[derive(Debug)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// containerd's namespace.
    pub namespace: String,
    /// How it failed, if it did.
    pub failure: Option<Failure>,
}

impl Outcome {
    fn of<T>((name, image): (String, Option<Result<T, Failure>>)) -> Self {
        Self { name, namespace: String::new(), failure: image.unwrap_or_else(|| Err(Failure::stopped())).err() }
    }
}

/// Why an image failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What kind of failure.
    pub kind: Kind,
    /// The whole chain of causes in one line.
    pub message: String,
}

impl Failure {
    fn new(error: &Error) -> Self {
        Self { kind: error.into(), message: chain(error) }
    }

    fn stopped() -> Self {
        Self { kind: Kind::Unavailable, message: "stopped before it was complete".to_owned() }
    }
}

/// Counts of blobs and bytes; a blob counts once, however many images share it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blobs that came over the network.
    pub fetched_blobs: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Blobs that were there already.
    pub present_blobs: u64,
    /// Their bytes.
    pub present_bytes: u64,
    /// Layers that were unpacked.
    pub unpacked_layers: u64,
    /// What they take, in bytes on disk.
    pub unpacked_bytes: u64,
    /// What the shared cache gave and took, where there is one.
    pub cache: Option<Usage>,
}

/// Bakes, until done or until `cancel` resolves; finished blobs stay either way. Images fail one by one, in the report.
///
/// # Errors
/// [`Error`] when nothing could be begun, or the metadata could not be written.
pub async fn run(
    mut request: Request,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Report> {
    let mut wanted = wanted(&request)?;
    let started = Instant::now();
    tokio::pin!(cancel);
    let before = Before::look(&request.root)?;
    // Held to the end: no containerd starts on the root meanwhile.
    let Some(mut meta) = lock(&request.root, request.lock_timeout, &listener, cancel.as_mut()).await? else {
        return Ok(Report::stopped(&request, started));
    };
    let catalog = Arc::new(Catalog::open(&request.root.make_state_dir()?)?);
    let store = Store::create(&request.root)?;
    let policies = &request.policies;
    let unpacks = request.bootstrap && policies.may_unpack(&request.images);
    let snapshots = unpacks.then(|| Snapshots::open(&request.root, &mut meta)).transpose()?;
    let keys = due(&mut wanted, &request, &catalog, &*listener)?;
    let blobs = Blobs::new(&request, store.clone(), Place::Root(catalog.clone()), listener.clone())?;
    let fetcher = Fetcher::new(&request, blobs);
    // Locks are large; those who need one have it.
    request.images = Vec::new();
    let mut cancelled = false;
    let present = |namespace: &str, stack: &Stack| {
        snapshots.as_ref().map_or(Vec::new(), |snapshots| snapshots.present(namespace, stack))
    };
    let unpacked = policies.max_store.map(|_| unpacked_bytes(&request.root, snapshots.as_ref())).transpose()?;
    let part = request.part.as_ref();
    let ground = Ground { root: &request.root, store: &store, present: &present, snapshots: unpacked, part };
    if let Some(mut images) = of_lock(&wanted)
        && !ground.has_room(policies, &images)?
    {
        // Before anything is asked of anybody.
        ground.plan(policies, Some(&mut meta), &mut images)?.check(policies)?;
    }
    let resolve = |image| fetcher.resolve(image, snapshots.is_some());
    let mut images = each(wanted, fetcher.pace(), &*listener, cancel.as_mut(), &mut cancelled, resolve).await;
    let plan = ground.plan(policies, Some(&mut meta), &mut images)?;
    plan.check(policies)?;
    listener.on(&Event::Planned { fetch: plan.fetch, store: plan.store, snapshots: plan.snapshots.bytes });
    let details = if request.detailed { details(plan, &images) } else { Vec::new() };
    let times = Arc::new(times_of(request.epoch, &images));
    let unpacker = snapshots.as_ref().map(|snapshots| {
        let (dirs, listener) = (snapshots.dirs(), listener.clone());
        Arc::new(Unpacker::new(dirs, store.clone(), listener, policies.max_unpacked, times.clone()))
    });
    let complete = |image: Resolved| {
        let present = |(stack, all): (&Arc<Stack>, &Snapshots)| all.present(&image.wanted.namespace, stack);
        let present = image.stack.iter().zip(&snapshots).map(present).next();
        fetcher.complete(image, unpacker.as_ref().zip(present), &times)
    };
    let images = each(images, fetcher.pace(), &*listener, cancel, &mut cancelled, complete).await;
    if let Some(unpacker) = &unpacker {
        unpacker.settled().await;
    }
    fetcher.settled(&times).await?;
    let totals = unpacker.as_ref().map_or(fetcher.totals(), |unpacker| unpacker.add_totals(fetcher.totals()));
    let left = std::mem::take(&mut *fetcher.left.lock().unwrap_or_else(PoisonError::into_inner));
    // What it knows of blobs takes room that the records need.
    drop(fetcher);

    let mut images = if request.bootstrap && !cancelled {
        let unpacked = snapshots.zip(unpacker.as_deref());
        record(&request.root, &store, &mut meta, images, unpacked, &times, &*listener)?
    } else {
        images.into_iter().map(Outcome::of).collect()
    };
    for (image, (namespace, _)) in images.iter_mut().zip(&keys) {
        image.namespace.clone_from(namespace);
    }
    let failed: Vec<_> = keys.into_iter().zip(images.iter().map(|image| image.failure.is_some())).collect();
    catalog.remember(&failed)?;
    catalog.save()?;
    before.settle(&request.root, times.latest())?;
    Ok(Report { images, totals, elapsed: started.elapsed(), cancelled, left, details })
}

/// What the snapshots of a root take, in bytes on disk.
fn unpacked_bytes(root: &Root, snapshots: Option<&Snapshots>) -> Result<u64> {
    match snapshots {
        Some(snapshots) => Ok(snapshots.bytes()),
        None => Ok(Stored::of_root(root)?.map_or(0, |stored| stored.bytes())),
    }
}

fn details(plan: Plan, images: &Images<Resolved>) -> Vec<Detail> {
    let resolved = images.iter().map(|(_, image)| image.as_ref()?.as_ref().ok());
    plan.images.into_iter().zip(resolved).filter_map(|(planned, image)| Some(Detail::of(planned, image?))).collect()
}

/// The images, each once.
fn wanted(request: &Request) -> Result<Images<Arc<Wanted>>> {
    for image in &request.images {
        metadata::check_namespace(&image.namespace)?;
    }
    let mut seen = HashSet::new();
    let new = |image: &&Wanted| seen.insert((image.namespace.clone(), image.reference.clone()));
    let start = |image: &Wanted| (image.reference.to_string(), Some(Ok(Arc::new(image.clone()))));
    Ok(request.images.iter().filter(new).map(start).collect())
}

/// Leaves only the images whose turn it is, and tells which they are; their namespaces and names.
fn due(
    wanted: &mut Images<Arc<Wanted>>,
    request: &Request,
    catalog: &Catalog,
    listener: &dyn Listener,
) -> Result<Vec<(String, String)>> {
    if request.retry_failed {
        let failed = catalog.failed()?;
        wanted.retain(|(_, image)| matches!(image, Some(Ok(image)) if failed.contains(&image.key())));
    }
    tell_names(wanted, listener);
    Ok(wanted.iter().filter_map(|(_, image)| Some(image.as_ref()?.as_ref().ok()?.key())).collect())
}

/// Locks the root; `None` when `cancel` came first.
async fn lock(
    root: &Root,
    timeout: Duration,
    listener: &Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Option<MetaDb>, Error> {
    waited(root, timeout, listener, cancel, |root, wait| MetaDb::lock(root, Lock::Exclusive, wait)).await
}

/// Takes a lock, waiting for another prebake; `None` when `cancel` came first.
async fn waited<T: Send + 'static>(
    root: &Root,
    timeout: Duration,
    listener: &Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
    take: fn(&Root, &Wait<'_>) -> metadata::Result<T>,
) -> Result<Option<T>, Error> {
    let (root, listener) = (root.clone(), listener.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let lock = tokio::task::spawn_blocking(move || {
        let tell = |holder: &str| listener.on(&Event::Waiting { holder });
        take(&root, &Wait { timeout, tell: &tell, stop: &stopped })
    });
    tokio::select! {
        lock = lock => Ok(Some(lock.map_err(|_| Error::Task)??)),
        () = cancel => {
            stop.store(true, Ordering::Relaxed);
            Ok(None)
        }
    }
}

/// Writes the records of everything in the catalog's namespace that is whole; the others fail one by one. `epoch` as in
/// [`Request`].
///
/// # Errors
/// [`Error`] when the metadata could not be written.
pub fn bootstrap(
    root: &Root,
    namespace: &str,
    epoch: Option<u32>,
    listener: &dyn Listener,
    lock_timeout: Duration,
) -> Result<Vec<Outcome>, Error> {
    metadata::check_namespace(namespace)?;
    let tell = |holder: &str| listener.on(&Event::Waiting { holder });
    let wait = Wait { timeout: lock_timeout, tell: &tell, stop: &AtomicBool::new(false) };
    let before = Before::look(root)?;
    let mut meta = MetaDb::lock(root, Lock::Exclusive, &wait)?;
    let Some(dir) = root.state_dir()? else { return Ok(Vec::new()) };
    let records = Catalog::open(&dir)?.images(namespace)?;
    let store = Store::open(root)?;
    let mut times = Times::new(epoch);
    for record in &records {
        add_times(&mut times, record.created.as_deref(), &record.blobs, None);
    }
    let fetched =
        records.into_iter().map(|record| (record.name.clone(), Some(Ok(Baked::fetched(namespace, record))))).collect();
    let outcomes = record(root, &store, &mut meta, fetched, None, &times, listener)?;
    before.settle(root, times.latest())?;
    Ok(outcomes)
}
