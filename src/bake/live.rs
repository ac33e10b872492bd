//! Baking, and bootstrapping, through a containerd that runs on the root: prebake's own lock alone, a store beside
//! containerd's, and containerd's own hand for every record and snapshot.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::blobs::{Blobs, Place};
use super::each::{Images, each, tell_names};
use super::existing::stack;
use super::fetch::Fetcher;
use super::plan::Ground;
use super::record::Baked;
use super::settle::times_of;
use super::unpack::Stack;
use super::{Error, Event, Failure, Listener, Outcome, Report, Request, Result, Totals, details, due, waited, wanted};
use crate::bootstrap::live::{self, Client, Done, Image, Layer, Notice, Unpack};
use crate::catalog::{Catalog, ImageRecord};
use crate::content::Store;
use crate::metadata::{self, Turn};
use crate::oci::Digest;
use crate::root::Root;

/// What a running containerd is to get to know.
pub struct LiveRequest {
    /// Its socket.
    pub address: PathBuf,
    /// Its root, with what was fetched.
    pub root: Root,
    /// Its namespace.
    pub namespace: String,
    /// Images smaller than this, in compressed bytes, are unpacked.
    pub unpack_under: Option<u64>,
    /// How long to wait for another prebake on the root.
    pub lock_timeout: Duration,
}

/// Makes everything in the catalog's namespace that is whole known to a running containerd; the others fail one by one.
///
/// # Errors
/// [`Error`] when nothing could be begun.
pub async fn bootstrap_live(
    request: LiveRequest,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Report> {
    let started = Instant::now();
    let LiveRequest { address, root, namespace, unpack_under, lock_timeout } = request;
    metadata::check_namespace(&namespace)?;
    tokio::pin!(cancel);
    let report = |images, totals, cancelled| Report {
        images,
        totals,
        elapsed: started.elapsed(),
        cancelled,
        left: BTreeSet::new(),
        details: Vec::new(),
    };
    let Some(_turn) = waited(&root, lock_timeout, &listener, cancel.as_mut(), Turn::take).await? else {
        return Ok(report(Vec::new(), Totals::default(), true));
    };
    let client = Client::connect(&address).await?;
    let records = Catalog::open(&root.make_state_dir()?)?.images(&namespace)?;
    if records.is_empty() {
        return Ok(report(Vec::new(), Totals::default(), false));
    }
    let store = Store::create_beside(&root)?;
    // Before anything else: what a collection takes from here on is kept.
    for blob in records.iter().flat_map(|record| &record.blobs) {
        store.stat(&blob.descriptor.digest)?;
    }
    let unpacks = |record: &ImageRecord| {
        let size: u64 = record.blobs.iter().map(|blob| blob.descriptor.size).sum();
        unpack_under.is_some_and(|under| size < under)
    };
    let baked = |record: ImageRecord| {
        let stack = if unpacks(&record) { stack(&store, &record).map_err(|error| Failure::new(&error))? } else { None };
        Ok(Baked { stack: stack.map(Arc::new), ..Baked::fetched(&namespace, record) })
    };
    let images: Images<Baked> = records.into_iter().map(|record| (record.name.clone(), Some(baked(record)))).collect();
    tell_names(&images, &*listener);
    let names: Vec<String> = images.iter().map(|(name, _)| name.clone()).collect();
    let recorder = Recorder::new(&client, &root, &store, &*listener);
    tokio::select! {
        outcomes = recorder.record(images) => Ok(report(outcomes?, recorder.totals(Totals::default()), false)),
        () = cancel => {
            let outcomes = names.into_iter().map(|name| Outcome::of((name, None::<Result<(), _>>))).collect();
            Ok(report(outcomes, recorder.totals(Totals::default()), true))
        }
    }
}

/// As [`run`](super::run), on a root on which a containerd runs that answers at `address`.
///
/// # Errors
/// [`Error`] when nothing could be begun. Images whose layers are to be discarded fail.
pub async fn run_live(
    mut request: Request,
    address: &Path,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Report> {
    let mut wanted = wanted(&request)?;
    let started = Instant::now();
    tokio::pin!(cancel);
    let Some(_turn) = waited(&request.root, request.lock_timeout, &listener, cancel.as_mut(), Turn::take).await? else {
        return Ok(Report::stopped(&request, started));
    };
    let client = Client::connect(address).await?;
    let catalog = Arc::new(Catalog::open(&request.root.make_state_dir()?)?);
    let store = Store::create_beside(&request.root)?;
    let policies = &request.policies;
    let unpacks = policies.may_unpack(&request.images);
    let keys = due(&mut wanted, &request, &catalog, &*listener)?;
    let blobs = Blobs::new(&request, store.clone(), Place::Root(catalog.clone()), listener.clone())?;
    let fetcher = Fetcher::new(&request, blobs);
    request.images = Vec::new();
    let mut cancelled = false;
    let resolve = |image| fetcher.resolve(image, unpacks);
    let mut images = each(wanted, fetcher.pace(), &*listener, cancel.as_mut(), &mut cancelled, resolve).await;
    // Which snapshots there are, the running containerd alone knows.
    let ground =
        Ground { root: &request.root, store: &store, present: &|_, _| Vec::new(), snapshots: None, part: None };
    let plan = ground.plan(policies, None, &mut images)?;
    plan.check(policies)?;
    listener.on(&Event::Planned { fetch: plan.fetch, store: plan.store, snapshots: plan.snapshots.bytes });
    let details = if request.detailed { details(plan, &images) } else { Vec::new() };
    let times = Arc::new(times_of(request.epoch, &images));
    let complete = |image| fetcher.complete(image, None, &times);
    let images = each(images, fetcher.pace(), &*listener, cancel.as_mut(), &mut cancelled, complete).await;
    fetcher.settled(&times).await?;
    let fetched = fetcher.totals();
    drop(fetcher);

    let recorder = Recorder::new(&client, &request.root, &store, &*listener);
    let names: Vec<String> = images.iter().map(|(name, _)| name.clone()).collect();
    let mut outcomes: Vec<Outcome> = if cancelled {
        images.into_iter().map(Outcome::of).collect()
    } else {
        tokio::select! {
            outcomes = recorder.record(images) => outcomes?,
            () = cancel => {
                cancelled = true;
                names.into_iter().map(|name| Outcome::of((name, None::<Result<(), _>>))).collect()
            }
        }
    };
    for (image, (namespace, _)) in outcomes.iter_mut().zip(&keys) {
        image.namespace.clone_from(namespace);
    }
    let failed: Vec<_> = keys.into_iter().zip(outcomes.iter().map(|image| image.failure.is_some())).collect();
    catalog.remember(&failed)?;
    catalog.save()?;
    let totals = recorder.totals(fetched);
    Ok(Report { images: outcomes, totals, elapsed: started.elapsed(), cancelled, left: BTreeSet::new(), details })
}

/// What lets a running containerd know, and counts what it unpacks.
struct Recorder<'r> {
    client: &'r Client,
    store: &'r Store,
    owner: String,
    listener: &'r dyn Listener,
    layers: AtomicU64,
    bytes: AtomicU64,
}

impl<'r> Recorder<'r> {
    fn new(client: &'r Client, root: &Root, store: &'r Store, listener: &'r dyn Listener) -> Self {
        let owner = fs::canonicalize(root.path()).unwrap_or_else(|_| root.path().to_owned()).display().to_string();
        Self { client, store, owner, listener, layers: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn totals(&self, fetched: Totals) -> Totals {
        let (layers, bytes) = (self.layers.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        Totals { unpacked_layers: layers, unpacked_bytes: bytes, ..fetched }
    }

    fn notice(&self, notice: &Notice<'_>) {
        match *notice {
            Notice::Unpacking { layer, chain } => self.listener.on(&Event::LayerStarted { digest: layer, chain }),
            Notice::Unpacked { layer, chain, bytes } => {
                self.layers.fetch_add(bytes.is_some().into(), Ordering::Relaxed);
                self.bytes.fetch_add(bytes.unwrap_or(0), Ordering::Relaxed);
                self.listener.on(&Event::LayerEnded { digest: layer, chain, unpacked: bytes });
            }
        }
    }

    /// Gives the images that are whole their records, one namespace after another; then lets go of their blobs.
    async fn record(&self, images: Images<Baked>) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        let mut namespaces: BTreeMap<String, (Vec<usize>, Vec<Image>)> = BTreeMap::new();
        for (i, (name, image)) in images.into_iter().enumerate() {
            let failure = match image.unwrap_or_else(|| Err(Failure::stopped())) {
                Ok(Baked { namespace, record, stack }) => {
                    let (places, images) = namespaces.entry(namespace).or_default();
                    places.push(i);
                    images.push(Image { record, unpack: stack.map(|stack| unpack(&stack)) });
                    None
                }
                Err(failure) => Some(failure),
            };
            outcomes.push(Outcome { name, namespace: String::new(), failure });
        }
        let mut done: HashSet<Digest> = HashSet::new();
        for (namespace, (places, images)) in namespaces {
            let (store, owner) = (self.store, self.owner.as_str());
            let request = live::Request { namespace: &namespace, images: &images, store, owner };
            let Done { images: results, changed } =
                live::bootstrap(self.client, &request, &|notice| self.notice(notice)).await?;
            let whole = results.iter().filter(|result| result.is_ok()).count();
            for ((i, image), result) in places.into_iter().zip(&images).zip(results) {
                match result {
                    Ok(()) => done.extend(image.record.blobs.iter().map(|blob| blob.descriptor.digest.clone())),
                    Err(error) => outcomes[i].failure = Some(self.failed(&image.record.name, &error.into())),
                }
            }
            self.listener.on(&Event::Bootstrapped { namespace: &namespace, images: whole, changed });
        }
        // What others fail by, the next run has need of.
        let all = outcomes.iter().all(|outcome| outcome.failure.is_none());
        self.store.let_go(|held| !all && !done.contains(held))?;
        Ok(outcomes)
    }

    fn failed(&self, image: &str, error: &Error) -> Failure {
        let failure = Failure::new(error);
        self.listener.on(&Event::ImageFailed { image, kind: failure.kind, error: &failure.message });
        failure
    }
}

/// What containerd is to do where prebake unpacks offline.
fn unpack(Stack { config, layers, .. }: &Stack) -> Unpack {
    let layer = |layer: &super::unpack::Layer| Layer {
        descriptor: layer.descriptor.clone(),
        diff_id: layer.diff_id.clone(),
        chain: layer.chain.clone(),
        labels: layer.labels.clone(),
    };
    Unpack { config: config.clone(), layers: layers.iter().map(layer).collect() }
}
