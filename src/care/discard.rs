//! Letting go of layers that are unpacked: only where nobody needs them again, since what is discarded cannot be unpacked
//! for another snapshotter, exported, or pushed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::Utc;
use serde::Serialize;

use super::anatomy::Body;
use super::gc::{Changes, Collect, Collected, Sweep};
use super::image::Image;
use super::used::{Need, Uses};
use super::whole::Whole;
use super::{Error, Result};
use crate::bolt::Lock;
use crate::metadata::{Contents, KIND_COMMITTED, MetaDb, Wait, labels};
use crate::oci::{Digest, Reference};
use crate::root::Root;
use crate::snapshot::OVERLAYFS;

/// Whose layers are to go.
pub struct Discard<'p> {
    /// containerd's namespace.
    pub namespace: String,
    /// Names of images; without any, all that can do without.
    pub names: Vec<String>,
    /// The snapshotters that containers on this root will use.
    pub snapshotters: Vec<String>,
    /// Why an image with this name and so many bytes, compressed and unpacked, is to keep its layers, by somebody's rules.
    pub protects: &'p dyn Fn(&Reference, u64, u64) -> Option<String>,
    /// How the collection behind it goes.
    pub collect: Collect,
}

/// What becomes of an image's layers, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Discarded {
    /// Its names.
    pub names: Vec<String>,
    /// Digest of its target.
    pub digest: String,
    /// Whether its layers go.
    pub discarded: bool,
    /// Why not; or what goes.
    pub why: String,
}

/// What letting go of layers came to, or would.
#[derive(Debug, Serialize)]
pub struct Discards {
    /// Each image that was looked at.
    pub images: Vec<Discarded>,
    /// What a collection removes then.
    #[serde(flatten)]
    pub collected: Collected,
}

/// Lets go of the layers of images that are unpacked: their manifests' labels for layers, and then the blobs that nobody else
/// keeps.
///
/// # Errors
/// [`Error::NoImage`] for a name; [`Error::Unsound`] when something in the root is damaged: then nothing is removed.
pub fn discard_layers(root: &Root, request: &Discard<'_>, wait: &Wait<'_>) -> Result<Discards> {
    let lock = if request.collect.dry_run { Lock::Shared } else { Lock::Exclusive };
    let mut meta = MetaDb::lock(root, lock, wait)?;
    let mut whole = Whole::read(root, &mut meta)?;
    let mut found = Vec::new();
    let mut changes = Changes::default();
    let mut missing: BTreeSet<&String> = request.names.iter().collect();
    if let Some(contents) = whole.namespace(&request.namespace) {
        let uses = Uses::new(&whole, Utc::now());
        let elsewhere = Elsewhere::new(&whole, &request.namespace);
        for image in Image::all(&whole, contents) {
            let named = |text: &&String| {
                let normal = text.parse::<Reference>().map(|reference| reference.to_string()).ok();
                image.rows.iter().any(|row| row.name == **text || Some(&row.name) == normal.as_ref())
            };
            let own: Vec<&String> = missing.iter().filter(|text| named(text)).copied().collect();
            if !request.names.is_empty() && own.is_empty() {
                continue;
            }
            missing.retain(|name| !own.contains(name));
            let verdict =
                Look { contents, image: &image, request, uses: &uses, elsewhere: &elsewhere, whole: &whole }.verdict();
            let (discarded, why) = match verdict {
                Ok((why, mut labels)) => {
                    changes.labels.append(&mut labels);
                    let names = image.rows.iter().map(|row| (image.namespace.to_owned(), row.name.clone()));
                    changes.forget.extend(names);
                    (true, why)
                }
                Err(why) => (false, why),
            };
            let names = image.rows.iter().map(|row| row.name.clone()).collect();
            found.push(Discarded { names, digest: image.target.digest.to_string(), discarded, why });
        }
    }
    if let Some(name) = missing.into_iter().next() {
        return Err(Error::NoImage(name.clone()));
    }
    found.sort_unstable();
    let mut sweep = Sweep::new(root, &mut whole, changes, request.collect)?;
    if !request.collect.dry_run {
        sweep.execute(root, &whole, &mut meta)?;
    }
    Ok(Discards { images: found, collected: sweep.collected })
}

/// Layers that manifests of other namespaces keep.
struct Elsewhere<'w>(BTreeMap<&'w str, &'w str>);

impl<'w> Elsewhere<'w> {
    fn new(whole: &'w Whole, namespace: &str) -> Self {
        let mut kept = BTreeMap::new();
        for contents in whole.contents.iter().filter(|contents| contents.namespace != namespace) {
            let labels = contents.blobs.values().flat_map(|blob| &blob.labels);
            for (_, layer) in labels.filter(|(key, _)| labels::is_layer_ref(key)) {
                kept.insert(layer.as_str(), contents.namespace.as_str());
            }
        }
        Self(kept)
    }
}

struct Look<'l, 'w> {
    whole: &'w Whole,
    contents: &'w Contents,
    image: &'l Image<'w>,
    request: &'l Discard<'l>,
    uses: &'l Uses,
    elsewhere: &'l Elsewhere<'w>,
}

/// Labels of blobs, by namespace.
type LabelsToGo = Vec<(String, Digest, String)>;

impl Look<'_, '_> {
    /// Which labels go, and what that means; or why none may.
    fn verdict(&self) -> std::result::Result<(String, LabelsToGo), String> {
        if let Some(other) = self.request.snapshotters.iter().find(|name| *name != OVERLAYFS) {
            return Err(format!("snapshotter {other} needs them to unpack the image again"));
        }
        let manifests: Vec<&Body> = self
            .image
            .anatomy
            .manifests
            .iter()
            .filter(|body| body.manifest.layers.iter().any(|layer| self.has(&layer.digest)))
            .collect();
        if manifests.is_empty() {
            return Err("it has none, or they are discarded already".to_owned());
        }
        let mut to_go = LabelsToGo::new();
        for body in &manifests {
            self.may_go(body)?;
            let labels = self.contents.blobs.get(&body.digest).into_iter().flat_map(|blob| blob.labels.keys());
            let layers = labels.filter(|key| labels::is_layer_ref(key));
            to_go.extend(layers.map(|key| (self.contents.namespace.clone(), body.digest.clone(), key.clone())));
        }
        if to_go.is_empty() {
            return Err("they are discarded already; somebody else keeps them".to_owned());
        }
        let layers: HashSet<&Digest> =
            manifests.iter().flat_map(|body| &body.manifest.layers).map(|layer| &layer.digest).collect();
        let bytes: u64 = layers.iter().filter_map(|digest| self.whole.files.get(digest)).map(|stat| stat.disk).sum();
        Ok((format!("{} layers, {bytes} bytes, are unpacked", layers.len()), to_go))
    }

    fn has(&self, digest: &Digest) -> bool {
        self.contents.blobs.contains_key(digest)
    }

    /// # Errors
    /// Why the layers of a manifest must stay.
    fn may_go(&self, body: &Body) -> std::result::Result<(), String> {
        let chain = body.chain();
        if chain.is_empty() || chain.len() != body.manifest.layers.len() {
            return Err("no config that is here says what they unpack to".to_owned());
        }
        let unpacked = self.unpacked();
        if let Some(missing) = chain.iter().find(|key| !unpacked.contains(key.as_str())) {
            return Err(format!("it is not unpacked for {OVERLAYFS}: there is no snapshot {missing}"));
        }
        let config = self.contents.blobs.get(&body.manifest.config.digest);
        let snapshotter = |key: &String| {
            let name = key.strip_prefix(labels::GC_REF_SNAPSHOT)?.split('/').next().unwrap_or_default();
            (name != OVERLAYFS).then(|| name.to_owned())
        };
        if let Some(other) = config.into_iter().flat_map(|config| config.labels.keys()).find_map(snapshotter) {
            return Err(format!("it is unpacked for snapshotter {other} as well, which may need them again"));
        }
        for layer in &body.manifest.layers {
            if let Some(namespace) = self.elsewhere.0.get(layer.digest.as_str()) {
                return Err(format!("namespace {namespace} keeps {}", layer.digest));
            }
        }
        let unfinished = |need: &Need| matches!(need, Need::Snapshot { key, .. } if key.starts_with("extract-"));
        if let Some(need) = self.uses.of(self.image).image.into_iter().find(unfinished) {
            return Err(format!("it is being unpacked: {need}"));
        }
        let compressed = body.manifest.layers.iter().map(|layer| layer.size).sum();
        let sizes = self.sizes();
        let unpacked = chain.iter().filter_map(|key| sizes.get(key.as_str())).sum();
        let references = self.image.rows.iter().filter_map(|row| row.name.parse::<Reference>().ok());
        match references.into_iter().find_map(|name| (self.request.protects)(&name, compressed, unpacked)) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Keys of the namespace's overlayfs snapshots that are committed and have their directories.
    fn unpacked(&self) -> HashSet<&str> {
        let snapshotter = self.whole.snapshotters.iter().find(|snapshotter| snapshotter.name == OVERLAYFS);
        let records = snapshotter.and_then(|snapshotter| snapshotter.records());
        let dirs: HashSet<&str> =
            snapshotter.iter().flat_map(|snapshotter| &snapshotter.dirs).map(String::as_str).collect();
        let is_whole = |name: &str| {
            let stored = records.and_then(|records| records.snapshots.get(name));
            stored.is_some_and(|stored| {
                stored.kind == Some(KIND_COMMITTED)
                    && stored.id.is_some_and(|id| dirs.contains(id.to_string().as_str()))
            })
        };
        let rows =
            self.contents.snapshots.iter().filter(|(row, _)| row.snapshotter == OVERLAYFS && is_whole(&row.name));
        rows.map(|(row, _)| row.key.as_str()).collect()
    }

    /// What snapshots take by their records, by key.
    fn sizes(&self) -> BTreeMap<&str, u64> {
        let snapshotter = self.whole.snapshotters.iter().find(|snapshotter| snapshotter.name == OVERLAYFS);
        let records = snapshotter.and_then(|snapshotter| snapshotter.records());
        let size = |name: &str| records?.snapshots.get(name)?.size;
        let rows = self.contents.snapshots.iter().filter(|(row, _)| row.snapshotter == OVERLAYFS);
        rows.filter_map(|(row, _)| Some((row.key.as_str(), size(&row.name)?))).collect()
    }
}
