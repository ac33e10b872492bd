//! What takes how much of a disk: by image, alone and shared, and in all; it adds up to what `du` says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::Serialize;

use super::Result;
use super::anatomy::Body;
use super::image::Image;
use super::whole::Whole;
use crate::bolt::Lock;
use crate::metadata::{Contents, MetaDb, Wait};
use crate::oci::Digest;
use crate::root::Root;
use crate::snapshot::{self, Removal, WITH_DIRS};

/// What an image takes, in bytes on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageUse {
    /// containerd's namespace.
    pub namespace: String,
    /// Its names.
    pub names: Vec<String>,
    /// Digest of its target.
    pub digest: String,
    /// Its blobs.
    pub blobs: u64,
    /// Its snapshots.
    pub snapshots: u64,
    /// Of both, what no other image has.
    pub unique: u64,
    /// Of both, what others have as well.
    pub shared: u64,
}

/// What a root takes, in bytes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiskUse {
    /// Each image.
    pub images: Vec<ImageUse>,
    /// Blobs of images, each once.
    pub blobs: u64,
    /// Snapshots of images, each once.
    pub snapshots: u64,
    /// Blobs that belong to no image.
    pub other_blobs: u64,
    /// Snapshots that belong to no image: those of containers among them.
    pub other_snapshots: u64,
    /// Unfinished writes to the content store.
    pub ingests: u64,
    /// Everything else in containerd's directory: databases, directories.
    pub rest: u64,
    /// containerd's directory, all of it.
    pub containerd: u64,
    /// prebake's own directory.
    pub prebake: u64,
}

/// A part that images may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part<'w> {
    Blob(&'w Digest),
    /// Snapshotter and the directory's name.
    Snapshot(&'w str, u64),
}

/// What a root takes.
///
/// # Errors
/// [`super::Error::Unsound`] when something in the root is damaged.
pub fn du(root: &Root, wait: &Wait<'_>) -> Result<DiskUse> {
    let mut meta = MetaDb::lock(root, Lock::Shared, wait)?;
    let whole = Whole::read(root, &mut meta)?;
    let mut sizes: HashMap<Part<'_>, u64> = HashMap::new();
    sizes.extend(whole.files.iter().map(|(digest, stat)| (Part::Blob(digest), stat.disk)));
    let mut all_snapshots = 0;
    for snapshotter in whole.snapshotters.iter().filter(|snapshotter| WITH_DIRS.contains(&snapshotter.name.as_str())) {
        let everything =
            Removal { snapshotter: snapshotter.name.clone(), names: Vec::new(), dirs: snapshotter.dirs.clone() };
        for (dir, path) in snapshotter.dirs.iter().zip(everything.paths(root)?) {
            let size = snapshot::disk_usage(&path)?;
            all_snapshots += size;
            if let Ok(id) = dir.parse() {
                sizes.insert(Part::Snapshot(&snapshotter.name, id), size);
            }
        }
    }
    let images: Vec<(Image<'_>, HashSet<Part<'_>>)> = whole
        .contents
        .iter()
        .flat_map(|contents| {
            let ids = ids(&whole, contents);
            let images = Image::all(&whole, contents).into_iter();
            images
                .map(|image| (parts(&whole, &image, &ids), image))
                .map(|(parts, image)| (image, parts))
                .collect::<Vec<_>>()
        })
        .collect();
    let mut times: HashMap<Part<'_>, usize> = HashMap::new();
    images.iter().flat_map(|(_, parts)| parts).for_each(|part| *times.entry(*part).or_default() += 1);
    let size = |part: &Part<'_>| sizes.get(part).copied().unwrap_or(0);
    let is_blob = |part: &&Part<'_>| matches!(part, Part::Blob(_));
    let mut used = DiskUse::default();
    for (image, parts) in &images {
        let all: u64 = parts.iter().map(size).sum();
        let blobs = parts.iter().filter(is_blob).map(size).sum();
        let unique = parts.iter().filter(|part| times[part] == 1).map(size).sum();
        used.images.push(ImageUse {
            namespace: image.namespace.to_owned(),
            names: image.rows.iter().map(|row| row.name.clone()).collect(),
            digest: image.target.digest.to_string(),
            blobs,
            snapshots: all - blobs,
            unique,
            shared: all - unique,
        });
    }
    used.blobs = times.keys().filter(is_blob).map(size).sum();
    used.snapshots = times.keys().map(size).sum::<u64>() - used.blobs;
    used.other_blobs = whole.files.values().map(|stat| stat.disk).sum::<u64>() - used.blobs;
    used.other_snapshots = all_snapshots - used.snapshots;
    used.ingests = whole.ingests.iter().map(|ingest| ingest.disk).sum();
    let dir =
        |path: Option<std::path::PathBuf>| path.as_deref().map_or(Ok(0), |path: &Path| snapshot::disk_usage(path));
    used.containerd = dir(root.containerd_dir("")?)?;
    used.prebake = dir(root.state_dir()?)?;
    let known = used.blobs + used.snapshots + used.other_blobs + used.other_snapshots + used.ingests;
    used.rest = used.containerd.saturating_sub(known);
    Ok(used)
}

/// The directories of a namespace's snapshots, by snapshotter and key.
fn ids<'w>(whole: &'w Whole, contents: &'w Contents) -> BTreeMap<(&'w str, &'w str), u64> {
    let mut ids = BTreeMap::new();
    for snapshotter in &whole.snapshotters {
        let Some(records) = snapshotter.records() else { continue };
        for (row, _) in contents.snapshots.iter().filter(|(row, _)| row.snapshotter == snapshotter.name) {
            if let Some(id) = records.snapshots.get(&row.name).and_then(|stored| stored.id) {
                ids.insert((row.snapshotter.as_str(), row.key.as_str()), id);
            }
        }
    }
    ids
}

/// What there is of an image.
fn parts<'w>(whole: &'w Whole, image: &Image<'w>, ids: &BTreeMap<(&'w str, &'w str), u64>) -> HashSet<Part<'w>> {
    let manifests = &image.anatomy.manifests;
    let below = manifests.iter().flat_map(|body| std::iter::once(&body.manifest.config).chain(&body.manifest.layers));
    let digests = image
        .anatomy
        .documents
        .iter()
        .map(|node| &node.descriptor.digest)
        .chain(below.map(|descriptor| &descriptor.digest));
    let blobs = digests.filter_map(|digest| whole.files.get_key_value(digest)).map(|(digest, _)| Part::Blob(digest));
    let mut parts: HashSet<Part<'w>> = blobs.collect();
    let chains: HashSet<String> = manifests.iter().flat_map(Body::chain).map(|chain| chain.to_string()).collect();
    let on = ids.iter().filter(|((_, key), _)| chains.contains(*key));
    parts.extend(on.map(|((snapshotter, _), id)| Part::Snapshot(snapshotter, *id)));
    parts
}
