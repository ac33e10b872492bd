//! containerd's metadata database, `meta.db`: the only place with its keys and encodings (containerd `core/metadata`).
//!
//! ```text
//! v1
//!   version = varint                                          3 as written here; containerd 2 migrates it itself
//!   <namespace>
//!     images/<name>            createdat updatedat target/{digest,mediatype,size} labels/{k=v} annotations/{k=v}
//!     content/blob/<digest>    createdat updatedat size labels/{k=v}
//!     snapshots/<snapshotter>/<key>   name createdat updatedat parent children/ labels/
//!     leases, containers, sandboxes, content/ingests           read by containerd only
//! ```
//!
//! An image without `target`, or a plain key among the images, makes containerd exit at start: nothing here writes one.

mod codec;
mod contents;
pub mod labels;
mod lock;
mod mend;
mod records;
mod show;
mod snapshotter;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD};

pub use contents::{
    Container, Contents, IngestRow, Lease, contents, remove_blob, remove_blob_label, remove_image, remove_ingest,
    remove_lease, remove_snapshot, snapshots,
};
pub use labels::Labels;
use lock::Waiting;
pub use lock::{DEFAULT_LOCK_TIMEOUT, Turn, Wait};
pub use mend::{
    Child, Malformed, children, drop_malformed, put_child, raise_sequence, remove_child, remove_label,
    remove_lease_entry, remove_parent,
};
pub use records::{
    Blob, BlobRow, Image, ImageRow, Snapshot, blob_digests, blobs, check_namespace, foreign_buckets, images,
    is_migrated, namespaces, put_blob, put_image, put_snapshot, referrers, snapshot_sequence,
};

pub use show::{Shown, show, show_key};
pub use snapshotter::{
    Committed, Database as SnapshotterDatabase, KIND_ACTIVE, KIND_COMMITTED, Mend, Records as SnapshotterRecords,
    Snapshotter, SnapshotterDb, Stored, snapshotters,
};

pub use crate::bolt::Tx;
use crate::bolt::{self, Db, FileStorage, FreelistForm, Lock, Storage};
use crate::root::{self, Root, RootError};

/// The plugin's directory in containerd's state, and its mode.
const PLUGIN: &str = "io.containerd.metadata.v1.bolt";
const PLUGIN_MODE: u32 = 0o711;
const FILE: &str = "meta.db";
const FILE_MODE: u32 = 0o644;
/// What the name of a new database ends in before it is whole.
const NEW: &str = ".prebake";
/// The namespace of Kubernetes, in which CRI keeps three records an image.
pub const K8S_NAMESPACE: &str = "k8s.io";

/// Why containerd's metadata could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A containerd runs on this root.
    #[error("{} is locked by {holder}; stop it first, or name its socket: bake and bootstrap take --address", path.display())]
    Busy {
        /// The database.
        path: PathBuf,
        /// Who holds the lock.
        holder: String,
    },
    /// Another prebake did not finish in time.
    #[error("{} is locked by {holder}; waited {} s for it", path.display(), waited.as_secs())]
    Waited {
        /// What is locked.
        path: PathBuf,
        /// Who holds the lock.
        holder: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The database cannot be read or written.
    #[error("{}", path.display())]
    Bolt {
        /// The database.
        path: PathBuf,
        /// What happened.
        source: bolt::Error,
    },
    /// A file cannot be made, opened or locked.
    #[error("making or locking {} failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A name that containerd refuses for a namespace.
    #[error(
        "bad namespace {0:?}: it has letters and digits, joined by single \"-\", \"_\" or \".\", at most 76 in all"
    )]
    Namespace(String),
    /// A record that is not as containerd writes it.
    #[error("{path}: {what}")]
    Record {
        /// Its place, keys joined by `/`.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What this module gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The database of a root. As long as this lives, no containerd and no other prebake changes the root.
pub struct MetaDb {
    path: PathBuf,
    state: State,
    _turn: Option<File>,
}

enum State {
    Absent,
    Locked(FileStorage),
    Open(Db),
}

impl MetaDb {
    /// Locks the root: to write, which makes an empty database where there is none, so that a containerd that starts
    /// meanwhile waits; or to read.
    ///
    /// # Errors
    /// [`Error::Busy`] at once when a containerd runs on the root; [`Error::Waited`] when another prebake does not finish in
    /// time.
    pub fn lock(root: &Root, lock: Lock, wait: &Wait<'_>) -> Result<Self> {
        let mut waiting = Waiting::new(wait);
        let turn = waiting.turn(root, lock)?;
        let dir = match lock {
            Lock::Exclusive => Some(root.make_containerd_dir(PLUGIN, PLUGIN_MODE)?),
            Lock::Shared => root.containerd_dir(PLUGIN)?,
        };
        let path = dir.unwrap_or_default().join(FILE);
        loop {
            let state = match waiting.database(&path, lock)? {
                // containerd makes the file first and locks it then: nothing is in it yet.
                Some(storage) if storage.is_empty().map_err(|source| Error::Io { path: path.clone(), source })? => {
                    if lock == Lock::Shared {
                        State::Absent
                    } else {
                        State::Open(Db::create(Box::new(storage), FreelistForm::Rebuilt).map_err(|e| failed(&path, e))?)
                    }
                }
                Some(storage) => State::Locked(storage),
                None if lock == Lock::Shared => State::Absent,
                None => match create(&path, FILE_MODE, FreelistForm::Rebuilt)? {
                    Some(db) => State::Open(db),
                    None => continue,
                },
            };
            if lock == Lock::Exclusive {
                // What a kill left behind.
                let _ = fs::remove_file(new_name(&path));
            }
            return Ok(Self { path, state, _turn: turn });
        }
    }

    /// Verifies the whole file; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Bolt`] when it cannot be read at all.
    pub fn check(&self) -> Result<Option<bolt::Report>> {
        match &self.state {
            State::Locked(storage) => Db::check(storage).map(Some).map_err(|e| self.failed(e)),
            State::Open(db) => db.verify().map(Some).map_err(|e| self.failed(e)),
            State::Absent => Ok(None),
        }
    }

    /// Writes everything that can be read of the file anew into it, in one commit; gives how many pages and elements could not
    /// be read.
    ///
    /// # Errors
    /// [`Error::Bolt`]; the file holds what it held then.
    pub fn rebuild(&mut self) -> Result<u64> {
        let storage: Box<dyn Storage> = match std::mem::replace(&mut self.state, State::Absent) {
            State::Locked(storage) => Box::new(storage),
            State::Open(db) => db.into_storage(),
            State::Absent => return Err(failed(&self.path, bolt::Error::Poisoned)),
        };
        let (db, lost) = Db::rebuild(storage).map_err(|e| self.failed(e))?;
        self.state = State::Open(db);
        Ok(lost)
    }

    /// Reads; `None` when there is no database.
    ///
    /// # Errors
    /// [`Error::Bolt`] when it is damaged; what `f` says.
    pub fn read<T>(&mut self, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<Option<T>> {
        if matches!(self.state, State::Absent) {
            return Ok(None);
        }
        let path = self.path.clone();
        let tx = self.open()?.begin().map_err(|e| failed(&path, e))?;
        f(&tx).map(Some)
    }

    /// Changes the database in one commit, in place; `false` when there was nothing to change.
    ///
    /// # Errors
    /// [`Error::Bolt`] when it is damaged or cannot be written; what `f` says, and then nothing is changed.
    pub fn write(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<()>) -> Result<bool> {
        let path = self.path.clone();
        let mut tx = self.open()?.begin().map_err(|e| failed(&path, e))?;
        records::init(&mut tx)?;
        f(&mut tx)?;
        tx.commit().map_err(|e| failed(&path, e))
    }

    fn open(&mut self) -> Result<&mut Db> {
        if let State::Locked(_) = self.state {
            let State::Locked(storage) = std::mem::replace(&mut self.state, State::Absent) else {
                unreachable!("locked")
            };
            self.state = State::Open(Db::open(Box::new(storage)).map_err(|e| self.failed(e))?);
        }
        match &mut self.state {
            State::Open(db) => Ok(db),
            // Nothing to write to, or opening it failed before.
            State::Absent | State::Locked(_) => Err(failed(&self.path, bolt::Error::Poisoned)),
        }
    }

    fn failed(&self, source: bolt::Error) -> Error {
        failed(&self.path, source)
    }
}

/// Makes an empty database, locked; `None` when somebody else made one meanwhile. It gets its name when it is whole: at no
/// moment does a containerd find half a database.
fn create(path: &Path, mode: u32, form: FreelistForm) -> Result<Option<Db>> {
    let new = new_name(path);
    let error = |source| Error::Io { path: path.to_owned(), source };
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => {}
    }
    let storage = FileStorage::create(&new, mode).map_err(|e| failed(&new, e))?;
    // By its descriptor: whatever lies at `new` by then, it is this file that gets the name.
    let own = storage.proc_path();
    let db = Db::create(Box::new(storage), form).map_err(|e| failed(&new, e))?;
    let named = rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW);
    let _ = fs::remove_file(&new);
    match named {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Ok(None),
        Err(errno) => return Err(error(errno.into())),
    }
    File::open(path.parent().unwrap_or(path)).and_then(|dir| dir.sync_all()).map_err(error)?;
    Ok(Some(db))
}

/// What all databases of a root take, in bytes on disk.
///
/// # Errors
/// [`Error::Root`].
pub fn disk_usage(root: &Root) -> Result<u64> {
    let mut dirs = vec![root.containerd_dir(PLUGIN)?.map(|dir| dir.join(FILE))];
    dirs.extend(snapshotter::files(root)?.into_iter().map(Some));
    let blocks = |path: PathBuf| fs::symlink_metadata(path).map_or(0, |meta| root::disk_usage(&meta));
    Ok(dirs.into_iter().flatten().map(blocks).sum())
}

/// Removes a database that a kill left half made.
///
/// # Errors
/// [`Error::Root`], [`Error::Io`].
pub fn remove_leftovers(root: &Root) -> Result<()> {
    let Some(dir) = root.containerd_dir(PLUGIN)? else { return Ok(()) };
    let path = new_name(&dir.join(FILE));
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io { path, source }),
        _ => Ok(()),
    }
}

fn new_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(NEW);
    name.into()
}

fn failed(path: &Path, source: bolt::Error) -> Error {
    Error::Bolt { path: path.to_owned(), source }
}
