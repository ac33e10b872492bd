//! Snapshots that nobody needs, of any snapshotter that has a directory for each.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{Result, io};
use crate::layer;
use crate::metadata::{Snapshotter, SnapshotterDb};
use crate::root::{self, Root};

/// Snapshotters with a directory for each snapshot, named by its id, and nothing elsewhere.
pub const WITH_DIRS: [&str; 2] = ["overlayfs", "native"];

fn plugin(snapshotter: &str) -> String {
    format!("io.containerd.snapshotter.v1.{snapshotter}")
}

/// Snapshots of one snapshotter that are to go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removal {
    /// The snapshotter.
    pub snapshotter: String,
    /// Names of records in its `metadata.db`.
    pub names: Vec<String>,
    /// Directories beside it, of those records or of none.
    pub dirs: Vec<String>,
}

impl Removal {
    /// What is to go when only these names are needed, with what they stand on: records, and every directory that has none.
    /// `None` when there is nothing, or the snapshotter keeps things where prebake does not know.
    pub fn all_but(snapshotter: &Snapshotter, needed: impl Fn(&str) -> bool) -> Option<Self> {
        if !WITH_DIRS.contains(&snapshotter.name.as_str()) {
            return None;
        }
        let records = snapshotter.records()?;
        let mut stay: BTreeSet<&str> = BTreeSet::new();
        for name in records.snapshots.keys().filter(|name| needed(name)) {
            let mut at = name.as_str();
            // A parent that is named twice has been followed.
            while stay.insert(at) {
                match records.snapshots.get_key_value(&records.snapshots[at].parent) {
                    Some((parent, _)) => at = parent,
                    None => break,
                }
            }
        }
        let names: Vec<String> =
            records.snapshots.keys().filter(|name| !stay.contains(name.as_str())).cloned().collect();
        let ids: BTreeSet<String> =
            stay.iter().filter_map(|name| records.snapshots[*name].id).map(|id| id.to_string()).collect();
        let dirs: Vec<String> = snapshotter.dirs.iter().filter(|dir| !ids.contains(*dir)).cloned().collect();
        let some = !names.is_empty() || !dirs.is_empty();
        some.then(|| Self { snapshotter: snapshotter.name.clone(), names, dirs })
    }

    /// Its directories, those that are there.
    ///
    /// # Errors
    /// [`super::Error::Root`].
    pub fn paths(&self, root: &Root) -> Result<Vec<PathBuf>> {
        let dirs = root.containerd_dir(&format!("{}/snapshots", plugin(&self.snapshotter)))?;
        Ok(dirs.iter().flat_map(|all| self.dirs.iter().map(|dir| all.join(dir))).collect())
    }

    /// Removes them: records first, so that no record is ever without its directory.
    ///
    /// # Errors
    /// [`super::Error`].
    pub fn execute(&self, root: &Root) -> Result<()> {
        let Some(dir) = root.containerd_dir(&plugin(&self.snapshotter))? else { return Ok(()) };
        if !self.names.is_empty() {
            SnapshotterDb::open(&dir)?.remove(&self.names)?;
        }
        for path in self.paths(root)? {
            layer::remove_dir(&path).map_err(io("removing", &path))?;
        }
        Ok(())
    }
}

/// What a snapshot's directory, or whatever lies in its place, takes in bytes on disk; nothing takes nothing.
///
/// # Errors
/// [`super::Error::Root`].
pub fn disk_usage(path: &Path) -> Result<u64> {
    let measure = || match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => layer::disk_usage(&File::open(path)?.into()).map(|usage| usage.bytes),
        Ok(meta) => Ok(root::disk_usage(&meta)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    };
    measure().map_err(io("measuring", path))
}
