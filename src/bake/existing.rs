//! Unpacking what was fetched before.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::coming::Coming;
use super::each::{Images, Pace, each, tell_names};
use super::record::{Baked, Snapshots, record};
use super::referrers::referring;
use super::settle::{Before, add_times};
use super::unpack::{Source, Stack, Unpacker};
use super::{Error, Failure, Listener, Outcome, Report, Result, Totals, lock};
use crate::catalog::{Catalog, ImageBlob, ImageRecord};
use crate::content::{Store, walk};
use crate::metadata::{self, ImageRow, MetaDb, labels};
use crate::oci::{Config, Descriptor, Digest, Document, MAX_DOCUMENT, Manifest, media_type};
use crate::root::Root;
use crate::times::Times;

/// Images that are unpacked at a time; how many layers are is another matter.
const PACE: Pace = Pace { at_once: 4, fail_fast: false };

/// What is to be unpacked.
pub struct UnpackRequest {
    /// In which root.
    pub root: Root,
    /// Names of images; all of the namespace's without any.
    pub names: Vec<String>,
    /// containerd's namespace.
    pub namespace: String,
    /// Most bytes that a layer may unpack to.
    pub max_unpacked: u64,
    /// When everything in the root was made, in seconds since 1970 (`SOURCE_DATE_EPOCH`); else the images tell.
    pub epoch: Option<u32>,
    /// How long to wait for another prebake on the root.
    pub lock_timeout: Duration,
}

/// Unpacks images whose layers are in the root, and gives them their records; until done or until `cancel` resolves. Images
/// fail one by one, in the report.
///
/// # Errors
/// [`Error`] when nothing could be begun, or the metadata could not be written.
pub async fn unpack(
    request: UnpackRequest,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Report> {
    metadata::check_namespace(&request.namespace)?;
    let started = Instant::now();
    tokio::pin!(cancel);
    let report = |images, totals, cancelled| Report {
        images,
        totals,
        elapsed: started.elapsed(),
        cancelled,
        left: BTreeSet::new(),
        details: Vec::new(),
    };
    let before = Before::look(&request.root)?;
    let Some(mut meta) = lock(&request.root, request.lock_timeout, &listener, cancel.as_mut()).await? else {
        return Ok(report(Vec::new(), Totals::default(), true));
    };
    let store = Store::create(&request.root)?;
    let snapshots = Snapshots::open(&request.root, &mut meta)?;
    let images = images(&request, &store, &mut meta)?;
    tell_names(&images, &*listener);
    let mut times = Times::new(request.epoch);
    let with_stack = |(name, image): (String, Option<Result<ImageRecord, Failure>>)| {
        let with_stack = |mut image: ImageRecord| {
            let stack = stack(&store, &image).map_err(|error| Failure::new(&error))?.map(Arc::new);
            image.created = image.created.or_else(|| stack.as_ref()?.created.clone());
            add_times(&mut times, image.created.as_deref(), &image.blobs, stack.as_deref());
            Ok((image, stack))
        };
        (name, image.map(|image| image.and_then(with_stack)))
    };
    let images: Images<_> = images.into_iter().map(with_stack).collect();
    let times = Arc::new(times);
    let (dirs, of_unpacker) = (snapshots.dirs(), times.clone());
    let unpacker = Unpacker::new(dirs, store.clone(), listener.clone(), request.max_unpacked, of_unpacker);
    let unpacker = Arc::new(unpacker);
    let mut cancelled = false;
    let one = async |(image, stack)| unpack_one(&request.namespace, &store, &snapshots, &unpacker, image, stack).await;
    let images = each(images, PACE, &*listener, cancel, &mut cancelled, one).await;
    unpacker.settled().await;
    let totals = unpacker.add_totals(Totals::default());
    if cancelled {
        return Ok(report(images.into_iter().map(Outcome::of).collect(), totals, true));
    }
    let unpacked = Some((snapshots, &*unpacker));
    let images = record(&request.root, &store, &mut meta, images, unpacked, &times, &*listener)?;
    before.settle(&request.root, times.latest())?;
    Ok(report(images, totals, false))
}

async fn unpack_one(
    namespace: &str,
    store: &Store,
    snapshots: &Snapshots,
    unpacker: &Arc<Unpacker>,
    mut image: ImageRecord,
    stack: Option<Arc<Stack>>,
) -> Result<Baked> {
    let Some(stack) = stack else { return Ok(Baked::fetched(namespace, image)) };
    let present = snapshots.present(namespace, &stack);
    if present.len() == stack.layers.len() {
        // Layers that were discarded are not missed.
        let mut gone = HashSet::new();
        for layer in &stack.layers {
            if store.stat(&layer.descriptor.digest)?.is_none() {
                gone.insert(&layer.descriptor.digest);
            }
        }
        image.blobs.retain(|blob| !gone.contains(&blob.descriptor.digest));
        for blob in &mut image.blobs {
            blob.children.retain(|(_, child)| !gone.contains(child));
        }
    } else {
        for layer in &stack.layers[present.len()..] {
            if store.stat(&layer.descriptor.digest)?.is_none() {
                return Err(Error::Absent(layer.descriptor.digest.clone()));
            }
        }
        unpacker.image(namespace, &stack, &present, |_| Source::Blob(watch::channel(Coming::InPlace).1)).await?;
    }
    Ok(Baked { stack: Some(stack), ..Baked::fetched(namespace, image) })
}

/// The images asked for, each with its blobs: from the catalog, else as containerd's metadata has them.
fn images(request: &UnpackRequest, store: &Store, meta: &mut MetaDb) -> Result<Images<ImageRecord>> {
    let fetched = Catalog::open(&request.root.make_state_dir()?)?.images(&request.namespace)?;
    let rows: Vec<ImageRow> = meta
        .read(|tx| metadata::images(tx, &request.namespace)?.into_iter().collect::<metadata::Result<_>>())?
        .unwrap_or_default();
    let failed = |error: &Error| Some(Err(Failure::new(error)));
    let from_row =
        |row: &ImageRow| (row.name.clone(), image_of(store, row).map_or_else(|e| failed(&e), |i| Some(Ok(i))));
    if request.names.is_empty() {
        let mut known: HashSet<Digest> = fetched.iter().map(|image| image.target.digest.clone()).collect();
        let mut all: Vec<_> = fetched.into_iter().map(|image| (image.name.clone(), Some(Ok(image)))).collect();
        // Of several names of one image the tag is told; CRI's third record is named by the config's digest.
        let mut rows: Vec<&ImageRow> = rows.iter().filter(|row| row.name.parse::<Digest>().is_err()).collect();
        rows.sort_by_key(|row| row.name.contains('@'));
        all.extend(rows.into_iter().filter(|row| known.insert(row.target.digest.clone())).map(from_row));
        return Ok(all);
    }
    let find = |name: &String| {
        let fetched =
            fetched.iter().find(|image| image.name == *name).map(|image| (name.clone(), Some(Ok(image.clone()))));
        let row = || rows.iter().find(|row| row.name == *name).map(from_row);
        fetched.or_else(row).unwrap_or_else(|| (name.clone(), failed(&Error::NoImage(name.clone()))))
    };
    Ok(request.names.iter().map(find).collect())
}

/// An image that only containerd's metadata knows.
fn image_of(store: &Store, row: &ImageRow) -> Result<ImageRecord> {
    let walk = walk(store, &row.target, &|digest| store.stat(digest).is_ok_and(|stat| stat.is_some()))?;
    let mut blobs = Vec::new();
    for (descriptor, children) in walk.documents {
        blobs.push(ImageBlob { children: labels::children(&children), descriptor });
    }
    let leaves = walk.manifest.into_iter().flat_map(|manifest| std::iter::once(manifest.config).chain(manifest.layers));
    for descriptor in leaves {
        if blobs.iter().all(|known| known.descriptor.digest != descriptor.digest) {
            blobs.push(ImageBlob { descriptor, children: Vec::new() });
        }
    }
    let (name, target) = (row.name.clone(), row.target.clone());
    let (aliases, names, labels, source, created) = (Vec::new(), Vec::new(), BTreeMap::new(), None, None);
    Ok(ImageRecord { name, created, aliases, target, names, labels, pinned: false, blobs, source })
}

/// The layers of an image, from its documents in the store; `None` when there is nothing to unpack.
pub(super) fn stack(store: &Store, image: &ImageRecord) -> Result<Option<Stack>> {
    let read = |digest: &Digest| {
        if store.stat(digest)?.is_none() {
            return Err(Error::Absent(digest.clone()));
        }
        Ok(store.read(digest, MAX_DOCUMENT)?)
    };
    let unusable = |digest: &Digest| {
        let what = digest.to_string();
        |source| Error::Document { what, source }
    };
    let documents = image.blobs.iter().map(|blob| &blob.descriptor);
    let referring = referring(&image.blobs);
    let is_own = |blob: &&Descriptor| media_type::is_manifest(&blob.media_type) && !referring.contains(&blob.digest);
    let Some(manifest) = documents.rev().find(is_own) else {
        return Ok(None);
    };
    let document =
        Document::parse(&read(&manifest.digest)?, &manifest.media_type).map_err(unusable(&manifest.digest))?.0;
    let Document::Manifest(manifest) = document else { return Ok(None) };
    let Manifest { config, .. } = &manifest;
    if !media_type::is_image_config(&config.media_type) {
        return Ok(None);
    }
    Stack::new(&manifest, &Config::parse(&read(&config.digest)?).map_err(unusable(&config.digest))?)
}
