//! Baking: references in, a root that containerd starts on out.
//!
//! Locks, then blobs, then the catalog, then the metadata in one commit: a kill at any moment leaves what was there, plus
//! blobs that the next run takes over.

mod blobs;
mod event;
mod fetch;
mod resolve;

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blobs::Blobs;
pub use event::{Event, Listener};

use crate::bolt::Lock;
use crate::bootstrap::offline;
use crate::catalog::{self, Catalog, ImageRecord};
use crate::content::{self, Store};
use crate::kind::{Kind, chain};
use crate::metadata::{self, MetaDb, Wait};
use crate::oci::{Digest, DocumentError, MAX_DOCUMENT, Platform, Reference};
use crate::parallel;
use crate::registry;
use crate::root::{Root, RootError};

/// Blobs under way at a time, unless asked otherwise.
pub const DEFAULT_CONCURRENCY: u8 = 6;

/// Why an image, or a whole bake, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry did not give something.
    #[error(transparent)]
    Registry(#[from] registry::Error),
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
    #[error("its indexes lead to too many documents")]
    TooManyDocuments,
    /// A thread of prebake's own was lost.
    #[error("an internal task failed")]
    Task,
}

/// What is to be baked, and how.
pub struct Request {
    /// Into which root.
    pub root: Root,
    /// Which images.
    pub references: Vec<Reference>,
    /// containerd's namespace.
    pub namespace: String,
    /// For which machine.
    pub platform: Platform,
    /// Whether kubelet must never remove them.
    pub pin: bool,
    /// Blobs under way at a time.
    pub concurrency: usize,
    /// How to talk to registries.
    pub registry: registry::Options,
    /// Whether containerd gets to know of them, or only the catalog.
    pub bootstrap: bool,
    /// How long to wait for another prebake on the root.
    pub lock_timeout: Duration,
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
}

/// What became of one image.
#[derive(Debug)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// How it failed, if it did.
    pub failure: Option<Failure>,
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
}

/// Bakes, until done or until `cancel` resolves; finished blobs stay either way. Images fail one by one, in the report.
///
/// # Errors
/// [`Error`] when nothing could be begun, or the metadata could not be written.
pub async fn run(
    request: Request,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Report, Error> {
    metadata::check_namespace(&request.namespace)?;
    let started = Instant::now();
    tokio::pin!(cancel);
    let stopped = || Failure { kind: Kind::Unavailable, message: "stopped before it was complete".to_owned() };
    // Held to the end: no containerd starts on the root meanwhile.
    let Some(mut meta) = lock(&request, &listener, cancel.as_mut()).await? else {
        let outcome = |r: &Reference| Outcome { name: r.to_string(), failure: Some(stopped()) };
        let images = request.references.iter().map(outcome).collect();
        return Ok(Report { images, totals: Totals::default(), elapsed: started.elapsed(), cancelled: true });
    };
    let catalog = Arc::new(Catalog::open(&request.root.make_state_dir()?)?);
    let store = Store::create(&request.root)?;
    let mut seen = HashSet::new();
    let references: Vec<Reference> =
        request.references.iter().filter(|r| seen.insert(r.to_string())).cloned().collect();

    let fetcher = fetch::Fetcher::new(&request, Blobs::new(&request, store.clone(), catalog, listener.clone())?);
    let (results, cancelled) = fetcher.all(&references, cancel).await?;

    let fetched =
        references.iter().zip(results).map(|(r, result)| (r.to_string(), result.unwrap_or_else(|| Err(stopped()))));
    let images = if request.bootstrap && !cancelled {
        request.root.sync()?;
        record(&store, &mut meta, &request.namespace, fetched, &*listener)?
    } else {
        fetched.map(|(name, result)| Outcome { name, failure: result.err() }).collect()
    };
    Ok(Report { images, totals: fetcher.totals(), elapsed: started.elapsed(), cancelled })
}

/// Locks the root; `None` when `cancel` came first.
async fn lock(
    request: &Request,
    listener: &Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Option<MetaDb>, Error> {
    let (root, timeout, listener) = (request.root.clone(), request.lock_timeout, listener.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let lock = tokio::task::spawn_blocking(move || {
        let tell = |holder: &str| listener.on(&Event::Waiting { holder });
        MetaDb::lock(&root, Lock::Exclusive, &Wait { timeout, tell: &tell, stop: &stopped })
    });
    tokio::select! {
        meta = lock => Ok(Some(meta.map_err(|_| Error::Task)??)),
        () = cancel => {
            stop.store(true, Ordering::Relaxed);
            Ok(None)
        }
    }
}

/// Writes the records of everything in the catalog's namespace that is whole; the others fail one by one.
///
/// # Errors
/// [`Error`] when the metadata could not be written.
pub fn bootstrap(
    root: &Root,
    namespace: &str,
    listener: &dyn Listener,
    lock_timeout: Duration,
) -> Result<Vec<Outcome>, Error> {
    metadata::check_namespace(namespace)?;
    let tell = |holder: &str| listener.on(&Event::Waiting { holder });
    let wait = Wait { timeout: lock_timeout, tell: &tell, stop: &AtomicBool::new(false) };
    let mut meta = MetaDb::lock(root, Lock::Exclusive, &wait)?;
    let Some(dir) = root.state_dir()? else { return Ok(Vec::new()) };
    let records = Catalog::open(&dir)?.images(namespace)?;
    let store = Store::open(root)?;
    record(&store, &mut meta, namespace, records.into_iter().map(|record| (record.name.clone(), Ok(record))), listener)
}

/// Gives the images that are whole their records, all in one commit.
fn record(
    store: &Store,
    meta: &mut MetaDb,
    namespace: &str,
    images: impl Iterator<Item = (String, Result<ImageRecord, Failure>)>,
    listener: &dyn Listener,
) -> Result<Vec<Outcome>, Error> {
    let mut ready = Vec::new();
    let mut outcomes = Vec::new();
    let images = parallel::map(images.collect(), |(name, image): (String, Result<ImageRecord, Failure>)| {
        (name, image.and_then(|image| offline::ready(store, image).map_err(|error| Failure::new(&error.into()))))
    });
    for (name, image) in images {
        let failure = match image {
            Ok(image) => {
                ready.push(image);
                None
            }
            Err(failure) => Some(failure),
        };
        outcomes.push(Outcome { name, failure });
    }
    let changed = offline::bootstrap(meta, namespace, &ready)?;
    listener.on(&Event::Bootstrapped { namespace, images: ready.len(), changed });
    Ok(outcomes)
}
