//! Once a bake is over: whatever it changed gets a time that does not tell when it ran.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use chrono::{DateTime, Utc};

use super::Result;
use crate::root::{self, Root, RootError};

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
