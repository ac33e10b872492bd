//! The overlayfs snapshotter's state (containerd `plugins/snapshots/overlay`): its directories, and its records of them.
//!
//! ```text
//! io.containerd.snapshotter.v1.overlayfs/
//!   metadata.db                     see `metadata`
//!   snapshots/<id>/fs               the layer's own files, with overlayfs' whiteouts; 0755
//!   snapshots/<id>/work             overlayfs' own; 0711
//!   snapshots/new-prebake-<…>/      a layer that is being unpacked; containerd sweeps `new-*` as well
//! ```
//!
//! A directory under an id that `metadata.db` has not given out would be deleted by containerd: ids are given out first, then
//! the directories get their names, then the records are written. Between them, a file in the directory says whose it is.

mod fitness;
mod remove;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
pub use fitness::Unfit;
pub use remove::{Removal, WITH_DIRS, disk_usage};
use rustix::fs::{CWD, RenameFlags};

use crate::layer::{self, Usage};
use crate::metadata::{self, Committed, KIND_COMMITTED, Labels, SnapshotterDb, SnapshotterRecords};
use crate::oci::Digest;
use crate::root::{self, Root, RootError};

/// The snapshotter's name in containerd's records.
pub const OVERLAYFS: &str = "overlayfs";
const PLUGIN: &str = "io.containerd.snapshotter.v1.overlayfs";
const DIRS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
const DIR_MODE: u32 = 0o700;
const FS_MODE: u32 = 0o755;
const WORK_MODE: u32 = 0o711;
const FS: &str = "fs";
const WORK: &str = "work";
const STAGED: &str = "new-prebake-";
/// In a directory with an id: prebake is about to give it a record.
const MARK: &str = ".prebake";

/// Why the snapshotter's state cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// One of its directories cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Its database cannot be used.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// Snapshots cannot be made here.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

type Result<T, E = Error> = std::result::Result<T, E>;

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| RootError::new(action, path, source).into()
}

/// A committed snapshot that is whole: record, directory, and those below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Its name in `metadata.db`.
    pub name: String,
    /// Its directory's name.
    pub id: u64,
    /// What it takes, in bytes on disk, as far as is known.
    pub bytes: Option<u64>,
    /// Its files and directories, as far as is known.
    pub inodes: Option<u64>,
}

/// A layer that was unpacked, and what it takes. Dropped, it is gone.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| !meta.is_dir()) {
            let _ = fs::remove_file(&self.path);
        }
        // Published, it is no longer there. A leftover is removed by the next run.
        let _ = layer::remove_dir(&self.path);
    }
}

impl Staged {
    /// Where the layer's files go.
    pub fn fs_path(&self) -> PathBuf {
        self.path.join(FS)
    }

    /// The directory there, opened.
    ///
    /// # Errors
    /// The system's.
    pub fn fs(&self) -> io::Result<OwnedFd> {
        Ok(File::open(self.fs_path())?.into())
    }

    /// Its directory, which is not removed any more.
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }
}

/// Where snapshots are, and are made.
#[derive(Debug, Clone)]
pub struct Dirs(PathBuf);

impl Dirs {
    /// Those of a root; `None` where nothing was ever unpacked.
    ///
    /// # Errors
    /// [`Error::Root`].
    pub fn of_root(root: &Root) -> Result<Option<Self>> {
        Ok(root.containerd_dir(DIRS)?.map(Self))
    }

    /// Puts a staged layer in the place of a snapshot's directory, or where that should be. Everything in it is durable
    /// before: `sync` is called first. A kill leaves the old one or the new one, and the other as a leftover.
    ///
    /// # Errors
    /// [`Error::Root`]; the old one is in place then.
    pub fn replace(
        &self,
        id: u64,
        mut staged: Staged,
        created: DateTime<Utc>,
        sync: impl FnOnce() -> Result<(), RootError>,
    ) -> Result<()> {
        sync()?;
        let path = self.0.join(id.to_string());
        for dir in [staged.path.join(WORK), staged.path.clone()] {
            root::date(&dir, created.timestamp())?;
        }
        if fs::symlink_metadata(&path).is_ok() {
            // What was there is what `staged` removes now.
            rustix::fs::renameat_with(CWD, &staged.path, CWD, &path, RenameFlags::EXCHANGE)
                .map_err(|errno| io("exchanging", &path)(errno.into()))?;
        } else {
            fs::rename(&staged.path, &path).map_err(io("naming", &path))?;
            staged.path = PathBuf::new();
        }
        File::open(&self.0).and_then(|dir| dir.sync_all()).map_err(io("syncing", &self.0))
    }

    /// The files of a snapshot.
    pub fn fs(&self, id: u64) -> PathBuf {
        self.0.join(id.to_string()).join(FS)
    }

    /// A place for a layer's files, under a name of its own; what lies there from before is removed.
    ///
    /// # Errors
    /// The system's.
    pub fn stage(&self, name: &str) -> io::Result<Staged> {
        let make = |path: &Path, mode: u32| {
            fs::DirBuilder::new().mode(mode).create(path)?;
            // Whatever the umask.
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        };
        let path = self.0.join(format!("{STAGED}{name}"));
        layer::remove_dir(&path)?;
        make(&path, DIR_MODE)?;
        let staged = Staged { path };
        make(&staged.fs_path(), FS_MODE)?;
        make(&staged.path.join(WORK), WORK_MODE)?;
        Ok(staged)
    }
}

/// A snapshot to be published.
#[derive(Debug)]
pub struct New {
    /// Its name in `metadata.db`.
    pub name: String,
    /// Name of its parent, published before it or with it.
    pub parent: Option<String>,
    /// Its files.
    pub staged: Staged,
    /// What they take.
    pub usage: Usage,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// When it was made, as its directories and its record say.
    pub created: DateTime<Utc>,
}

/// Whether snapshots can be made in a root; says what is missing, and what for.
///
/// # Errors
/// [`Error::Unfit`].
pub fn check(root: &Root) -> Result<()> {
    root.make_containerd_dir(PLUGIN, DIR_MODE)?;
    let dirs = Dirs(root.make_containerd_dir(DIRS, DIR_MODE)?);
    let probe = dirs.stage("probe").map_err(io("probing", &dirs.0))?;
    fitness::check(&probe.path).map_err(io("probing", &probe.path))?.map_or(Ok(()), |unfit| Err(unfit.into()))
}

/// The snapshots of a root.
pub struct Stored {
    dirs: Dirs,
    records: SnapshotterRecords,
    /// Whether directories by their ids are there, as far as was asked.
    dirs_there: Mutex<HashMap<u64, bool>>,
    /// Names by namespace and key.
    by_key: HashMap<(String, String), Vec<String>>,
}

impl Stored {
    /// What a root has, only to be looked at; `None` where nothing was ever unpacked.
    ///
    /// # Errors
    /// [`Error::Metadata`] when the database cannot be read.
    pub fn of_root(root: &Root) -> Result<Option<Self>> {
        let Some(dirs) = root.containerd_dir(DIRS)? else { return Ok(None) };
        let found = metadata::snapshotters(root)?.into_iter().find(|snapshotter| snapshotter.name == OVERLAYFS);
        let Some(database) = found.map(|snapshotter| snapshotter.database).transpose()?.flatten() else {
            return Ok(None);
        };
        Ok(database.records.map(|records| Self::new(Dirs(dirs), records)))
    }

    fn new(dirs: Dirs, records: SnapshotterRecords) -> Self {
        let mut by_key: HashMap<_, Vec<String>> = HashMap::new();
        for name in records.snapshots.keys() {
            // namespace/number/key
            if let [namespace, _, key] = name.splitn(3, '/').collect::<Vec<_>>()[..] {
                by_key.entry((namespace.to_owned(), key.to_owned())).or_default().push(name.clone());
            }
        }
        Self { dirs, records, dirs_there: Mutex::default(), by_key }
    }

    fn is_there(&self, id: u64) -> bool {
        let mut there = self.dirs_there.lock().unwrap_or_else(PoisonError::into_inner);
        *there.entry(id).or_insert_with(|| self.dirs.fs(id).is_dir())
    }

    /// What all of them take, in bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.records.snapshots.values().filter_map(|stored| stored.size).sum()
    }

    /// Which of a chain's snapshots are there and whole, from the lowest up. `named` are the names by key that containerd's
    /// own metadata has in the namespace. What only `metadata.db` has counts as well: an earlier run was ended before
    /// `meta.db` named it.
    pub fn present(&self, namespace: &str, chain: &[Digest], named: &HashMap<String, String>) -> Vec<Present> {
        let mut found: Vec<Present> = Vec::new();
        for key in chain {
            let parent = found.last().map_or("", |parent| &parent.name);
            let whole = |name: &String| {
                let stored = self.records.snapshots.get(name)?;
                let id = stored.id.filter(|_| stored.kind == Some(KIND_COMMITTED) && stored.parent == parent)?;
                self.is_there(id).then(|| Present { name: name.clone(), id, bytes: stored.size, inodes: stored.inodes })
            };
            let unnamed = || {
                let names = self.by_key.get(&(namespace.to_owned(), key.to_string()));
                names.into_iter().flatten().find_map(whole)
            };
            match named.get(key.as_str()).and_then(whole).or_else(unnamed) {
                Some(present) => found.push(present),
                None => break,
            }
        }
        found
    }
}

/// The snapshotter's state in a root, locked to be written. Nothing in it changes before [`Overlay::publish`].
pub struct Overlay {
    stored: Stored,
    db: SnapshotterDb,
}

impl Overlay {
    /// Opens the state of a root, makes it where there is none, and removes what a kill left of an earlier run.
    ///
    /// # Errors
    /// [`Error`].
    pub fn create(root: &Root) -> Result<Self> {
        let plugin = root.make_containerd_dir(PLUGIN, DIR_MODE)?;
        let dirs = root.make_containerd_dir(DIRS, DIR_MODE)?;
        let mut db = SnapshotterDb::open(&plugin)?;
        let records = db.records()?;
        let mut overlay = Self { stored: Stored::new(Dirs(dirs), records), db };
        let highest = overlay.sweep()?;
        let records = &mut overlay.stored.records;
        let known = records.snapshots.values().filter_map(|stored| stored.id).max().unwrap_or(0);
        records.sequence = Some(records.sequence.unwrap_or(0).max(known).max(highest));
        Ok(overlay)
    }

    /// What there is.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Removes leftovers; the highest id among the directories that stay.
    fn sweep(&self) -> Result<u64> {
        let ids: Vec<u64> = self.stored.records.snapshots.values().filter_map(|stored| stored.id).collect();
        let mut highest = 0;
        for entry in self.stored.dirs.0.read_dir().map_err(io("listing", &self.stored.dirs.0))? {
            let path = entry.map_err(io("listing", &self.stored.dirs.0))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let id = name.parse::<u64>().ok();
            let mark = path.join(MARK);
            let marked = id.is_some() && fs::symlink_metadata(&mark).is_ok();
            if name.starts_with(STAGED) || marked && id.is_some_and(|id| !ids.contains(&id)) {
                layer::remove_dir(&path).map_err(io("removing", &path))?;
                continue;
            }
            if marked {
                fs::remove_file(&mark).map_err(io("removing", &mark))?;
            }
            highest = highest.max(id.unwrap_or(0));
        }
        Ok(highest)
    }

    /// Where snapshots are, and are made.
    pub fn dirs(&self) -> Dirs {
        self.stored.dirs.clone()
    }

    /// Gives staged layers their ids, names and records. Everything in them is durable before: `sync` is called first.
    ///
    /// # Errors
    /// [`Error`]; before the records are written, nothing is published then, and what was staged is gone. Behind them, it is
    /// published, and has other times than it should.
    pub fn publish(mut self, new: Vec<New>, sync: impl FnOnce() -> Result<(), RootError>) -> Result<()> {
        if new.is_empty() {
            return Ok(sync()?);
        }
        let first = self.stored.records.sequence.unwrap_or(0) + 1;
        let ids: BTreeMap<String, u64> = new.iter().map(|new| new.name.clone()).zip(first..).collect();
        for new in &new {
            let mark = new.staged.path.join(MARK);
            File::create(&mark).map_err(io("making", &mark))?;
        }
        sync()?;
        let sequence = first + new.len() as u64 - 1;
        self.db.write(sequence, &[])?;
        let mut renamed = Vec::new();
        let mut committed = Vec::new();
        for New { name, parent, mut staged, usage, labels, created } in new {
            let id = ids[&name];
            let path = self.stored.dirs.0.join(id.to_string());
            fs::rename(&staged.path, &path).map_err(io("naming", &path))?;
            // Removed like any staged layer when what follows fails.
            staged.path = path;
            renamed.push((staged, created));
            let id_of = |name: &String| ids.get(name).copied().or_else(|| self.stored.records.snapshots.get(name)?.id);
            let parent = parent.and_then(|name| id_of(&name).map(|id| (name, id)));
            committed.push(Committed { name, id, parent, inodes: usage.inodes, size: usage.bytes, labels, created });
        }
        let sync_dirs = || File::open(&self.stored.dirs.0)?.sync_all();
        sync_dirs().map_err(io("syncing", &self.stored.dirs.0))?;
        self.db.write(sequence, &committed)?;
        // They have their records: whatever fails from here on, they stay.
        let kept: Vec<_> = renamed.into_iter().map(|(staged, created)| (staged.keep(), created)).collect();
        for (path, created) in kept {
            // One that stays does no harm, and the next run removes it.
            let _ = fs::remove_file(path.join(MARK));
            for dir in [path.join(WORK), path] {
                root::date(&dir, created.timestamp())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::CONTAINERD_ROOT;

    #[test]
    fn what_has_its_record_stays_whatever_fails_behind() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = Root::new(dir.path(), CONTAINERD_ROOT);
        let overlay = Overlay::create(&root).expect("made");
        let chain = Digest::of(b"chain");
        let name = format!("k8s.io/1/{chain}");
        let staged = overlay.dirs().stage("one").expect("staged");
        // It cannot be given its time.
        fs::remove_dir(staged.path.join(WORK)).expect("removed");
        let (usage, labels, created) = Default::default();
        let new = New { name: name.clone(), parent: None, staged, usage, labels, created };
        overlay.publish(vec![new], || root.sync()).expect_err("no directory to give a time to");
        let again = Overlay::create(&root).expect("opened");
        let present = again.stored().present("k8s.io", &[chain], &HashMap::new());
        assert_eq!(present.iter().map(|present| &present.name).collect::<Vec<_>>(), [&name]);
        assert!(!again.dirs().0.join("1").join(MARK).exists());
    }
}
