//! What names lead to, to be taken again: making a lock, comparing it with the registries, and planning by it alone.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::sync::Arc;

use super::each::{Images, each};
use super::fetch::{Fetcher, Found, Origin, Resolved, leaf, parse};
use super::unpack::Stack;
use super::{Listener, Outcome, Request, Result, Wanted};
use crate::content::Store;
use crate::metadata::labels;
use crate::oci::{Descriptor, Digest, Manifest, media_type};
use crate::spec::{Choice, LockedImage, LockedPlatform, Policy, Reason};

/// Finds out what the names of a request lead to. Nothing is written. The images that could not be resolved, besides.
///
/// # Errors
/// [`super::Error`] when nothing could be begun.
pub async fn lock(
    request: Request,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<(BTreeMap<String, LockedImage>, Vec<Outcome>)> {
    tokio::pin!(cancel);
    let fetcher = Fetcher::that_looks(&request, Store::open(&request.root)?, listener.clone())?;
    let one = async |wanted: Arc<Wanted>| Ok((wanted.reference.to_string(), fetcher.lock(&wanted).await?));
    let found = each(super::wanted(&request)?, fetcher.pace(), &*listener, cancel, &mut false, one).await;
    fetcher.blobs.sources.settle().await?;
    let mut images: BTreeMap<String, LockedImage> = BTreeMap::new();
    let mut failed = Vec::new();
    for (name, image) in found {
        match image {
            Some(Ok((name, image))) => match images.get_mut(&name) {
                // Asked for in another namespace as well, perhaps for other machines.
                Some(known) => known.platforms.extend(image.platforms),
                None => drop(images.insert(name, image)),
            },
            other => failed.push(Outcome::of((name, other.map(|image| image.map(drop))))),
        }
    }
    Ok((images, failed))
}

/// A name that leads to something else than when it was locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Its name.
    pub name: String,
    /// What it led to.
    pub from: Digest,
    /// What it leads to.
    pub to: Digest,
}

/// Asks the registries whether locked names still lead to the same. The images that could not be asked for, besides.
///
/// # Errors
/// [`super::Error`] when nothing could be begun.
pub async fn moved(
    request: Request,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<(Vec<Moved>, Vec<Outcome>)> {
    tokio::pin!(cancel);
    let fetcher = Fetcher::that_looks(&request, Store::open(&request.root)?, listener.clone())?;
    let one = async |wanted: Arc<Wanted>| {
        let Some(locked) = &wanted.locked else { return Ok(None) };
        let to = fetcher.blobs.leads_to(&wanted.reference).await?;
        let (name, from) = (wanted.reference.to_string(), locked.target.digest.clone());
        Ok((to != from).then_some(Moved { name, from, to }))
    };
    let found = each(super::wanted(&request)?, fetcher.pace(), &*listener, cancel, &mut false, one).await;
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    for (name, image) in found {
        match image {
            Some(Ok(moved)) => all.extend(moved),
            other => failed.push(Outcome::of((name, other.map(|image| image.map(drop))))),
        }
    }
    Ok((all, failed))
}

impl Fetcher {
    async fn lock(&self, wanted: &Wanted) -> Result<LockedImage> {
        let reference = &wanted.reference;
        let (declared, raw) = self.blobs.target(wanted).await?;
        let (document, media_type) = parse(&declared.digest, &raw.bytes, &declared.media_type)?;
        let target = Descriptor::new(media_type, declared.digest, declared.size);
        drop(raw);
        let mut platforms = BTreeMap::new();
        for platform in &wanted.platforms {
            let Found { path, manifest, config } = self.find(reference, platform, &target, &document).await?;
            let stack = config.map(|config| Stack::new(&manifest, &config)).transpose()?.flatten();
            let mut diff_ids = stack.into_iter().flat_map(|stack| stack.layers).map(|layer| layer.diff_id);
            let Manifest { config, layers } = manifest;
            let layer = |layer: Descriptor| {
                let diff_id = if media_type::is_layer(&layer.media_type) { diff_ids.next() } else { None };
                (layer.plain(), diff_id)
            };
            let documents = path.iter().skip(1).map(|blob| blob.descriptor.plain()).collect();
            let locked =
                LockedPlatform { documents, config: config.plain(), layers: layers.into_iter().map(layer).collect() };
            platforms.insert(platform.to_string(), locked);
        }
        Ok(LockedImage { target, platforms, documents: Vec::new(), blobs: Vec::new() })
    }
}

/// What is known of images by their locks, without looking at a document; `None` when one of them is not locked.
pub(super) fn of_lock(wanted: &Images<Arc<Wanted>>) -> Option<Images<Resolved>> {
    let one = |(name, wanted): &(String, Option<_>)| {
        let Some(Ok(wanted)) = wanted else { return None };
        Some((name.clone(), Some(Ok(resolved(wanted)?))))
    };
    wanted.iter().map(one).collect()
}

fn resolved(wanted: &Arc<Wanted>) -> Option<Resolved> {
    let LockedImage { target, platforms, .. } = wanted.locked.as_deref()?;
    let mut blobs = vec![leaf(target.clone())];
    let mut seen = HashSet::from([target.digest.clone()]);
    let mut first = None;
    for platform in &wanted.platforms {
        let locked = platforms.get(&platform.to_string())?;
        let manifest = locked.documents.last().unwrap_or(target).digest.clone();
        blobs.extend(locked.blobs().filter(|blob| seen.insert(blob.digest.clone())).cloned().map(leaf));
        let parts: Vec<Descriptor> =
            std::iter::once(&locked.config).chain(locked.layers.iter().map(|(layer, _)| layer)).cloned().collect();
        if let Some(own) = blobs.iter_mut().find(|blob| blob.descriptor.digest == manifest) {
            own.children = labels::children(&parts);
        }
        first = first.or(Some((manifest, locked)));
    }
    let (manifest, locked) = first?;
    let choice = Choice { policy: Policy::Fetch, reason: Reason::Default, pin: false };
    let stack = Stack::of_lock(locked).map(Arc::new);
    let (config, origin) = (locked.config.digest.clone(), Origin::default());
    Some(Resolved { wanted: wanted.clone(), blobs, manifest, config, stack, origin, choice })
}
