//! The times of a bake: those of its images' parts; and, once it is over, of whatever else it changed, so that nothing tells
//! when it ran.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use chrono::{DateTime, Utc};

use super::Result;
use super::each::Images;
use super::fetch::Resolved;
use super::unpack::Stack;
use crate::catalog::ImageBlob;
use crate::root::{self, Root, RootError};
use crate::times::Times;

/// The times of images that are resolved.
pub(super) fn times_of(epoch: Option<u32>, images: &Images<Resolved>) -> Times {
    let mut times = Times::new(epoch);
    for image in images.iter().filter_map(|(_, image)| image.as_ref()?.as_ref().ok()) {
        add_times(&mut times, image.origin.created.as_deref(), &image.blobs, image.stack.as_deref());
    }
    times
}

/// Adds an image with its blobs and its layers' chains.
pub(super) fn add_times(times: &mut Times, created: Option<&str>, blobs: &[ImageBlob], stack: Option<&Stack>) {
    let chains = stack.iter().flat_map(|stack| &stack.layers).map(|layer| &layer.chain);
    times.add(created, blobs.iter().map(|blob| &blob.descriptor.digest).chain(chains));
}

/// The directories and databases that a bake may change, each with its time. Blobs and snapshots are not among them: they
/// have their times from what made them.
pub(super) struct Before(BTreeMap<PathBuf, (i64, i64)>);

impl Before {
    /// As they are now.
    pub(super) fn look(root: &Root) -> Result<Self, RootError> {
        let mut found = BTreeMap::new();
        let mut add = |path: PathBuf| {
            if let Ok(meta) = fs::symlink_metadata(&path) {
                found.insert(path, (meta.mtime(), meta.mtime_nsec()));
            }
        };
        let inside = |dirs: Vec<PathBuf>| -> Vec<PathBuf> {
            let entries = dirs.iter().flat_map(fs::read_dir).flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        for way in root.ways()? {
            let plugins = inside(way.last().cloned().into_iter().collect());
            let parts = inside(plugins.clone());
            let algorithms = inside(parts.iter().filter(|part| part.ends_with("blobs")).cloned().collect());
            [way, plugins, parts, algorithms].into_iter().flatten().for_each(&mut add);
        }
        Ok(Self(found))
    }

    /// Gives those that have changed since, or are new, this time.
    pub(super) fn settle(&self, root: &Root, time: DateTime<Utc>) -> Result<()> {
        for (path, now) in Self::look(root)?.0 {
            if self.0.get(&path) != Some(&now) {
                root::date(&path, time.timestamp())?;
            }
        }
        Ok(())
    }
}
