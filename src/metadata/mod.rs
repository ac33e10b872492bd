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
pub mod labels;
mod records;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

pub use labels::Labels;
pub use records::{
    Blob, BlobRow, Image, ImageRow, Snapshot, blob_digests, blobs, images, namespaces, put_blob, put_image, snapshots,
};

use crate::bolt::{self, Db, FileStorage, FreelistForm, Lock, Tx, lock_holder};
use crate::root::{Root, RootError};

/// The plugin's directory in containerd's state, and its mode.
const PLUGIN: &str = "io.containerd.metadata.v1.bolt";
const PLUGIN_MODE: u32 = 0o711;
const FILE: &str = "meta.db";
/// Where a new database is built before it gets its name.
const NEW_FILE: &str = "meta.db.prebake";
/// The namespace of Kubernetes, in which CRI keeps three records an image.
pub const K8S_NAMESPACE: &str = "k8s.io";

/// Why containerd's metadata could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A containerd, or another prebake, runs on this root.
    #[error("{} is locked by {holder}; stop it first, or bake into another root", path.display())]
    Busy {
        /// The database.
        path: PathBuf,
        /// Who holds the lock.
        holder: String,
    },
    /// The database cannot be read or written.
    #[error("{}", path.display())]
    Bolt {
        /// The database.
        path: PathBuf,
        /// What happened.
        source: bolt::Error,
    },
    /// The database's file cannot be made.
    #[error("making {} failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A record that is not as containerd writes it.
    #[error("{path}: {what}")]
    Record {
        /// Its place, keys joined by `/`.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// The database of a root, locked as long as this lives if it exists.
pub struct MetaDb {
    root: Root,
    path: Option<PathBuf>,
    state: State,
}

enum State {
    Absent,
    Locked(FileStorage),
    Open(Db),
}

impl MetaDb {
    /// Locks the database if there is one. Nothing is read or made yet.
    ///
    /// # Errors
    /// [`Error::Busy`] at once when a containerd runs on the root.
    pub fn lock(root: &Root, lock: Lock) -> Result<Self> {
        let path = root.containerd_dir(PLUGIN)?.map(|dir| dir.join(FILE));
        let state = match path.as_deref().map(|path| FileStorage::open(path, lock)) {
            None => State::Absent,
            Some(Ok(storage)) => State::Locked(storage),
            Some(Err(bolt::Error::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => State::Absent,
            Some(Err(error)) => return Err(failed(path.as_deref().unwrap_or(Path::new(FILE)), error)),
        };
        Ok(Self { root: root.clone(), path, state })
    }

    /// Whether there is a database.
    pub fn exists(&self) -> bool {
        !matches!(self.state, State::Absent)
    }

    /// Verifies the whole file; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Bolt`] when it cannot be read at all.
    pub fn check(&self) -> Result<Option<bolt::Report>> {
        match &self.state {
            State::Locked(storage) => Db::check(storage).map(Some).map_err(|e| self.failed(e)),
            State::Absent | State::Open(_) => Ok(None),
        }
    }

    /// Reads; `None` when there is no database.
    ///
    /// # Errors
    /// [`Error::Bolt`] when it is damaged; what `f` says.
    pub fn read<T>(&mut self, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<Option<T>> {
        if !self.exists() {
            return Ok(None);
        }
        let path = self.path.clone().unwrap_or_default();
        let db = self.open()?;
        let tx = db.begin().map_err(|e| failed(&path, e))?;
        f(&tx).map(Some)
    }

    /// Changes the database in one commit, and makes it first where it is missing; `false` when there was nothing to
    /// change. An existing file is changed in place, under its lock; a new one gets its name when it is whole.
    ///
    /// # Errors
    /// [`Error::Bolt`] when it is damaged or cannot be written; [`Error::Busy`] when a containerd made one meanwhile.
    pub fn write(&mut self, f: impl FnOnce(&mut Tx<'_>) -> Result<()>) -> Result<bool> {
        if self.exists() {
            let path = self.path.clone().unwrap_or_default();
            let mut tx = self.open()?.begin().map_err(|e| failed(&path, e))?;
            records::init(&mut tx)?;
            f(&mut tx)?;
            return tx.commit().map_err(|e| failed(&path, e));
        }
        let dir = self.root.make_containerd_dir(PLUGIN, PLUGIN_MODE)?;
        let (new, path) = (dir.join(NEW_FILE), dir.join(FILE));
        let error = |source| Error::Io { path: path.clone(), source };
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
            _ => {}
        }
        let storage = FileStorage::create(&new).map_err(|e| failed(&new, e))?;
        let mut db = Db::create(Box::new(storage), FreelistForm::Rebuilt).map_err(|e| failed(&new, e))?;
        let mut tx = db.begin().map_err(|e| failed(&new, e))?;
        records::init(&mut tx)?;
        f(&mut tx)?;
        tx.commit().map_err(|e| failed(&new, e))?;
        match rustix::fs::renameat_with(CWD, &new, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                let holder = lock_holder(&path).unwrap_or_else(|| "a process that made it just now".to_owned());
                return Err(Error::Busy { path, holder });
            }
            Err(errno) => return Err(error(errno.into())),
        }
        File::open(&dir).and_then(|dir| dir.sync_all()).map_err(error)?;
        self.path = Some(path);
        self.state = State::Open(db);
        Ok(true)
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
            State::Absent | State::Locked(_) => unreachable!("opened above"),
        }
    }

    fn failed(&self, source: bolt::Error) -> Error {
        failed(self.path.as_deref().unwrap_or(Path::new(FILE)), source)
    }
}

fn failed(path: &Path, source: bolt::Error) -> Error {
    let path = path.to_owned();
    match source {
        bolt::Error::Locked => {
            let holder = lock_holder(&path).unwrap_or_else(|| "another process".to_owned());
            Error::Busy { path, holder }
        }
        source => Error::Bolt { path, source },
    }
}
