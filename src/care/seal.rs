//! A finished root that carries no trace but containerd's own files.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::gc::{Changes, Collect, Sweep};
use super::whole::Whole;
use super::{Check, CheckReport, Error, Result, check};
use crate::bolt::Lock;
use crate::metadata::{MetaDb, Wait};
use crate::root::{self, Root, RootError};
use crate::{layer, metadata};

/// Removes what prebake, or an unfinished write, left in a root: the catalog, the lock, ingests, staged snapshots, blobs
/// and directories that no record names. Syncs the rest, and checks it. `progress` is [`check()`]'s.
///
/// # Errors
/// [`Error::Fetched`] when something was fetched that containerd does not know yet; [`Error::Unsound`] when something in the
/// root is damaged. Then nothing is removed.
pub fn seal(root: &Root, progress: &(dyn Fn(u64, u64) + Sync), wait: &Wait<'_>) -> Result<CheckReport> {
    {
        let mut meta = MetaDb::lock(root, Lock::Exclusive, wait)?;
        let mut whole = Whole::read(root, &mut meta)?;
        if let Some((namespace, image)) = whole.fetched.first() {
            return Err(Error::Fetched { namespace: namespace.clone(), image: image.name.clone() });
        }
        let dated = Dated::look(root)?;
        Sweep::new(root, &mut whole, Changes::default(), Collect::default())?.execute(root, &whole, &mut meta)?;
        metadata::remove_leftovers(root)?;
        if let Some(dir) = root.state_dir()? {
            layer::remove_dir(&dir).map_err(|source| RootError::new("removing", &dir, source))?;
        }
        dated.restore()?;
        root.sync()?;
    }
    check(root, &Check::default(), progress, wait)
}

/// The directories from which something is removed, with their times: what a root says of its age does not change.
struct Dated(Vec<(PathBuf, i64)>);

impl Dated {
    fn look(root: &Root) -> Result<Self> {
        let [containerd, state] = root.ways()?;
        let mut dirs: Vec<PathBuf> = state;
        for plugin in containerd.last().into_iter().flat_map(|dir| entries(dir)) {
            dirs.extend(entries(&plugin));
            dirs.push(plugin);
        }
        let time = |path: PathBuf| {
            let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_dir)?;
            Some((path, meta.mtime()))
        };
        Ok(Self(dirs.into_iter().filter_map(time).collect()))
    }

    fn restore(&self) -> Result<()> {
        for (path, time) in &self.0 {
            match root::date(path, *time) {
                Err(error) if error.source.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
