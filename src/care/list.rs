//! What containerd will list.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::Result;
use crate::bolt::Lock;
use crate::content::{Store, Walk, walk};
use crate::metadata::{self, MetaDb, Wait, labels, snapshotters};
use crate::oci::{Config, Descriptor, Digest, MAX_DOCUMENT, chain_ids, media_type};
use crate::parallel;
use crate::root::Root;
use crate::snapshot::OVERLAYFS;

/// What there is of an image's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// They are kept; containerd unpacks them at first use.
    Fetch,
    /// They are kept and unpacked.
    Unpack,
    /// They are unpacked and not kept.
    UnpackDiscard,
    /// Some are neither kept nor unpacked.
    Incomplete,
}

/// An image as containerd lists it.
#[derive(Debug, Clone, Serialize)]
pub struct ListedImage {
    /// containerd's namespace.
    pub namespace: String,
    /// The image name.
    pub name: String,
    /// Digest of its target.
    pub digest: String,
    /// The target's media type.
    pub media_type: String,
    /// What there is of its layers; absent when its documents are not all here.
    pub policy: Option<Kept>,
    /// Compressed, in bytes, with its documents, whether its layers are kept or not; absent as `policy` is.
    pub size: Option<u64>,
    /// Bytes on disk of its snapshots.
    pub unpacked: u64,
    /// How many of all these bytes another image of the namespace has as well.
    pub shared: u64,
    /// Whether kubelet must not remove it.
    pub pinned: bool,
    /// When the record was made (RFC 3339).
    pub created: Option<String>,
}

/// A namespace's records.
struct Rows {
    namespace: String,
    images: Vec<metadata::ImageRow>,
    blobs: HashSet<Digest>,
    /// Bytes of overlayfs snapshots by key.
    snapshots: HashMap<String, u64>,
}

/// The images of one namespace, or of all.
///
/// # Errors
/// [`super::Error::Metadata`] when the database cannot be read, or has a record at which containerd would fail.
pub fn images(root: &Root, namespace: Option<&str>, wait: &Wait<'_>) -> Result<Vec<ListedImage>> {
    let mut meta = MetaDb::lock(root, Lock::Shared, wait)?;
    let store = Store::open(root)?;
    let sizes = snapshot_sizes(root)?;
    let rows = meta.read(|tx| {
        let namespaces = match namespace {
            Some(one) => vec![one.to_owned()],
            None => metadata::namespaces(tx)?,
        };
        let mut rows = Vec::new();
        for namespace in namespaces {
            let blobs = metadata::blob_digests(tx, &namespace)?;
            let images: Vec<_> = metadata::images(tx, &namespace)?.into_iter().collect::<Result<_, _>>()?;
            let mut snapshots = HashMap::new();
            // Where the snapshotter has nothing, nothing is unpacked, whatever the records say.
            if !sizes.is_empty() {
                for snapshot in metadata::snapshots(tx, &namespace)? {
                    let (snapshot, _) = snapshot?;
                    let size = sizes.get(&snapshot.name).filter(|_| snapshot.snapshotter == OVERLAYFS);
                    snapshots.extend(size.map(|size| (snapshot.key, *size)));
                }
            }
            rows.push(Rows { namespace, images, blobs, snapshots });
        }
        Ok(rows)
    })?;
    let mut listed = Vec::new();
    for rows in rows.unwrap_or_default() {
        let found = looks(&store, &rows);
        let shared = shared(&found);
        let row = |image: metadata::ImageRow| {
            let look = found.get(&image.target.digest);
            ListedImage {
                namespace: rows.namespace.clone(),
                policy: look.map(|look| look.policy),
                size: look.map(|look| look.size),
                unpacked: look.map_or(0, |look| look.unpacked),
                shared: shared.get(&image.target.digest).copied().unwrap_or(0),
                name: image.name,
                digest: image.target.digest.to_string(),
                media_type: image.target.media_type,
                pinned: image.labels.get(labels::CRI_PINNED.0).is_some_and(|value| value == labels::CRI_PINNED.1),
                created: image.created.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
            }
        };
        listed.extend(rows.images.into_iter().map(row));
    }
    Ok(listed)
}

/// Bytes of all committed overlayfs snapshots by name.
fn snapshot_sizes(root: &Root) -> Result<HashMap<String, u64>> {
    let overlay = snapshotters(root)?.into_iter().find(|snapshotter| snapshotter.name == OVERLAYFS);
    // What is wrong with the snapshotter is for `check` to say.
    let records = overlay.and_then(|overlay| overlay.database.ok()?).and_then(|database| database.records);
    let sizes = records.into_iter().flat_map(|records| records.snapshots);
    Ok(sizes.filter_map(|(name, stored)| Some((name, stored.size?))).collect())
}

/// Something on disk that images may share: a blob, or a snapshot by its key.
#[derive(PartialEq, Eq, Hash, Clone)]
enum Part {
    Blob(Digest),
    Snapshot(Digest),
}

/// What a target leads to.
struct Look {
    policy: Kept,
    size: u64,
    unpacked: u64,
    /// Each once.
    parts: Vec<(Part, u64)>,
}

/// Targets whose documents are all here. Several records share a target, and thousands of documents are read.
fn looks(store: &Store, rows: &Rows) -> HashMap<Digest, Look> {
    let mut seen = HashSet::new();
    let targets: Vec<&Descriptor> =
        rows.images.iter().map(|i| &i.target).filter(|target| seen.insert(&target.digest)).collect();
    let look = |target: &Descriptor| {
        let walk = walk(store, target, &|digest| rows.blobs.contains(digest)).ok()?;
        Some((target.digest.clone(), look(store, &walk, rows)))
    };
    parallel::map(targets, look).into_iter().flatten().collect()
}

fn look(store: &Store, walk: &Walk, rows: &Rows) -> Look {
    let layers = || walk.manifest.iter().flat_map(|manifest| &manifest.layers);
    let config = walk.manifest.iter().map(|manifest| &manifest.config);
    let mut blobs: Vec<&Descriptor> =
        walk.documents.iter().map(|(document, _)| document).chain(config).chain(layers()).collect();
    blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    blobs.dedup_by(|a, b| a.digest == b.digest);
    blobs.retain(|blob| rows.blobs.contains(&blob.digest));
    let mut parts: Vec<_> = blobs.iter().map(|blob| (Part::Blob(blob.digest.clone()), blob.size)).collect();
    let chain = if rows.snapshots.is_empty() { Vec::new() } else { chain(store, walk).unwrap_or_default() };
    let has: Vec<(&Digest, u64)> =
        chain.iter().map_while(|key| Some((key, *rows.snapshots.get(key.as_str())?))).collect();
    let is_unpacked = !chain.is_empty() && has.len() == chain.len();
    let unpacked = has.iter().map(|(_, size)| size).sum();
    parts.extend(has.into_iter().map(|(key, size)| (Part::Snapshot(key.clone()), size)));
    let kept = layers().all(|layer| rows.blobs.contains(&layer.digest));
    let policy = match (kept, is_unpacked) {
        (true, true) => Kept::Unpack,
        (true, false) => Kept::Fetch,
        (false, true) => Kept::UnpackDiscard,
        (false, false) => Kept::Incomplete,
    };
    Look { policy, size: walk.size(), unpacked, parts }
}

/// The chainIDs of an image's layers; `None` where it has no config that says.
fn chain(store: &Store, walk: &Walk) -> Option<Vec<Digest>> {
    let config = &walk.manifest.as_ref()?.config;
    if !media_type::is_image_config(&config.media_type) {
        return None;
    }
    let config = Config::parse(&store.read(&config.digest, MAX_DOCUMENT).ok()?).ok()?;
    Some(chain_ids(&config.diff_ids?))
}

/// Of each, the bytes that another one has as well.
fn shared(looks: &HashMap<Digest, Look>) -> HashMap<Digest, u64> {
    let (mut once, mut again) = (HashSet::new(), HashSet::new());
    for (part, _) in looks.values().flat_map(|look| &look.parts) {
        if !once.insert(part) {
            again.insert(part);
        }
    }
    let sum = |look: &Look| look.parts.iter().filter(|(part, _)| again.contains(part)).map(|(_, size)| size).sum();
    looks.iter().map(|(target, look)| (target.clone(), sum(look))).collect()
}
