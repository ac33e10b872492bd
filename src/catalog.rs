//! The catalog: what connects fetch and bootstrap. A redb file of prebake's own; losing it costs time, never an image.
//!
//! The file is read, and written anew as a whole: nothing shows in it but what it knows, not in which order that came. It
//! belongs to whoever has the root's lock.
//!
//! ```text
//! ROOT/var/lib/prebake/catalog.redb
//!   images  <namespace> NUL <image name>   → JSON of ImageRecord
//!   failed  <namespace> NUL <image name>   an image that the last bake of it did not complete
//!   blobs   <digest>                       → JSON of BlobRecord: a file verified at this size and mtime
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redb::{ReadOnlyDatabase, ReadOnlyTable, ReadableDatabase, TableDefinition};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::content::Stat;
use crate::oci::{Descriptor, Digest};

const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const FAILED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("failed");
const BLOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("blobs");
const FILE: &str = "catalog.redb";
const FILE_MODE: u32 = 0o644;
/// Where a new catalog is made before it gets its name.
const NEW_FILE: &str = "catalog.redb.new";
/// redb's page cache, in bytes; its default is larger than all of prebake may be.
const CACHE: usize = 1 << 19;
/// What is new is written at least so often, and what that takes is at most such a part of the time.
const SAVE_EVERY: Duration = Duration::from_secs(5);
const SAVE_SHARE: u32 = 20;

/// Why the catalog could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// redb cannot read or write it.
    #[error("the catalog {} failed; it can be removed, what it knows is found again", path.display())]
    Redb {
        /// The file.
        path: PathBuf,
        /// redb's words.
        source: Box<redb::Error>,
    },
    /// A record does not read back.
    #[error("the catalog {} has a record that prebake cannot read; remove the file", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Where it fails.
        source: serde_json::Error,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// An image that was fetched whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image name, normalised.
    pub name: String,
    /// When it was made, as its config has it (RFC 3339).
    #[serde(default)]
    pub created: Option<String>,
    /// Further names of it in Kubernetes' namespace: by digest, by config digest.
    pub aliases: Vec<String>,
    /// What the registry resolved the reference to: an index or a manifest.
    pub target: Descriptor,
    /// Further names of it in every namespace.
    #[serde(default)]
    pub names: Vec<String>,
    /// Labels of its records, besides those that containerd's own have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether kubelet must not remove it.
    pub pinned: bool,
    /// Its blobs in the order of a walk from the target.
    pub blobs: Vec<ImageBlob>,
    /// Registry host without port, and repository: `containerd.io/distribution.source.<host>`. Unknown of an image that
    /// something else fetched.
    pub source: Option<(String, String)>,
}

/// A blob of an image, with the labels that keep what it refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageBlob {
    /// Which blob.
    pub descriptor: Descriptor,
    /// `containerd.io/gc.ref.content.*` label suffix and the digest it refers to.
    pub children: Vec<(String, Digest)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct BlobRecord {
    size: u64,
    mtime: i64,
}

type Table = ReadOnlyTable<&'static str, &'static [u8]>;

/// What the file has.
struct Saved {
    images: Table,
    failed: Table,
    blobs: Table,
}

/// Values by key; `None` where there is to be none any more.
type Rows = BTreeMap<String, Option<Vec<u8>>>;

/// What it does not have yet.
struct New {
    images: Rows,
    failed: Rows,
    blobs: Rows,
    /// When to save it.
    due: Instant,
}

struct State {
    saved: Option<Saved>,
    new: New,
}

/// A catalog. What it is told shows once it is saved.
pub struct Catalog {
    path: PathBuf,
    state: Mutex<State>,
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}\0{name}")
}

impl Catalog {
    /// Opens the catalog in `dir`, which need not have one. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let saved = Saved::open(&path).map_err(|error| failed(&path, error))?;
        Ok(Self { path, state: Mutex::new(State { saved, new: New::default() }) })
    }

    /// Removes the catalog in `dir`; what it knew is found again.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn remove(dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(&path),
            other => other,
        }
        .map_err(|error| failed(&path, error.into()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file was this, and whole, when it was last verified.
    ///
    /// # Errors
    /// [`Error::Redb`], [`Error::Record`].
    pub fn is_verified(&self, digest: &Digest, stat: Stat) -> Result<bool> {
        let state = self.state();
        let Some(saved) = &state.saved else { return Ok(false) };
        let Some(record) = saved.blobs.get(digest.as_str()).map_err(|e| self.redb(e))? else { return Ok(false) };
        let record: BlobRecord = self.decode(record.value())?;
        Ok(record.size == stat.size && record.mtime == stat.mtime)
    }

    /// What was fetched under a name.
    ///
    /// # Errors
    /// [`Error::Redb`], [`Error::Record`].
    pub fn image(&self, namespace: &str, name: &str) -> Result<Option<ImageRecord>> {
        let state = self.state();
        let Some(saved) = &state.saved else { return Ok(None) };
        let found = saved.images.get(key(namespace, name).as_str()).map_err(|e| self.redb(e))?;
        found.map(|value| self.decode(value.value())).transpose()
    }

    /// The fetched images of a namespace, by name.
    ///
    /// # Errors
    /// [`Error::Redb`], [`Error::Record`].
    pub fn images(&self, namespace: &str) -> Result<Vec<ImageRecord>> {
        let state = self.state();
        let Some(saved) = &state.saved else { return Ok(Vec::new()) };
        let (from, to) = (key(namespace, ""), format!("{namespace}\x01"));
        let range = saved.images.range(from.as_str()..to.as_str()).map_err(|e| self.redb(e))?;
        range.map(|row| self.decode(row.map_err(|e| self.redb(e))?.1.value())).collect()
    }

    /// The fetched images of all namespaces, each with its namespace.
    ///
    /// # Errors
    /// [`Error::Redb`], [`Error::Record`].
    pub fn all_images(&self) -> Result<Vec<(String, ImageRecord)>> {
        let state = self.state();
        let Some(saved) = &state.saved else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for row in saved.images.range::<&str>(..).map_err(|e| self.redb(e))? {
            let (key, value) = row.map_err(|e| self.redb(e))?;
            let namespace = key.value().split('\0').next().unwrap_or_default().to_owned();
            all.push((namespace, self.decode(value.value())?));
        }
        Ok(all)
    }

    /// Forgets images, by namespace and name, once it is saved.
    pub fn forget(&self, images: &[(String, String)]) {
        let mut state = self.state();
        for (namespace, name) in images {
            let key = key(namespace, name);
            let known = state.saved.as_ref().is_some_and(|saved| matches!(saved.images.get(key.as_str()), Ok(Some(_))));
            if known {
                state.new.images.insert(key, None);
            }
        }
    }

    /// The images, by namespace and name, that failed when they were last baked.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn failed(&self) -> Result<BTreeSet<(String, String)>> {
        let state = self.state();
        let Some(saved) = &state.saved else { return Ok(BTreeSet::new()) };
        let mut all = BTreeSet::new();
        for row in saved.failed.range::<&str>(..).map_err(|e| self.redb(e))? {
            let (key, _) = row.map_err(|e| self.redb(e))?;
            all.extend(key.value().split_once('\0').map(|(namespace, name)| (namespace.to_owned(), name.to_owned())));
        }
        Ok(all)
    }

    /// Remembers fetched images of a namespace and verified blobs; saves what is new if that has waited long enough.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn record(&self, namespace: &str, images: &[ImageRecord], blobs: &[(Digest, Stat)]) -> Result<()> {
        let mut state = self.state();
        let State { saved, new } = &mut *state;
        for image in images {
            let known = saved.as_ref().map(|saved| &saved.images);
            put(&mut new.images, known, key(namespace, &image.name), encode(image)).map_err(|e| self.redb(e))?;
        }
        for (digest, stat) in blobs {
            let known = saved.as_ref().map(|saved| &saved.blobs);
            let record = BlobRecord { size: stat.size, mtime: stat.mtime };
            put(&mut new.blobs, known, digest.to_string(), encode(&record)).map_err(|e| self.redb(e))?;
        }
        if Instant::now() >= new.due { self.save_in(&mut state) } else { Ok(()) }
    }

    /// Remembers of images whether they failed.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn remember(&self, images: &[((String, String), bool)]) -> Result<()> {
        let known = self.failed()?;
        let new = images.iter().filter(|(image, failed)| known.contains(image) != *failed);
        let row =
            |((namespace, name), failed): &((String, String), bool)| (key(namespace, name), failed.then(Vec::new));
        self.state().new.failed.extend(new.map(row));
        Ok(())
    }

    /// Writes the file anew with all that it was told, durably; not when it has all of it.
    ///
    /// # Errors
    /// [`Error::Redb`]; then the file is as it was.
    pub fn save(&self) -> Result<()> {
        self.save_in(&mut self.state())
    }

    fn save_in(&self, state: &mut State) -> Result<()> {
        if state.saved.is_some() && state.new.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let path = self.path.with_file_name(NEW_FILE);
        if let Err(error) = write(&path, state).and_then(|()| Ok(fs::rename(&path, &self.path)?)) {
            // On a full disk, it takes what others need.
            let _ = fs::remove_file(&path);
            return Err(failed(&self.path, error));
        }
        let saved = Saved::open(&self.path).map_err(|error| failed(&self.path, error))?;
        let due = Instant::now() + SAVE_EVERY.max(start.elapsed() * SAVE_SHARE);
        *state = State { saved, new: New { due, ..New::default() } };
        Ok(())
    }

    fn redb(&self, error: impl Into<redb::Error>) -> Error {
        failed(&self.path, error.into())
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|source| Error::Record { path: self.path.clone(), source })
    }
}

impl Default for New {
    fn default() -> Self {
        let (images, failed, blobs) = Default::default();
        Self { images, failed, blobs, due: Instant::now() + SAVE_EVERY }
    }
}

impl New {
    fn is_empty(&self) -> bool {
        self.images.is_empty() && self.failed.is_empty() && self.blobs.is_empty()
    }
}

impl Saved {
    fn open(path: &Path) -> Result<Option<Self>, redb::Error> {
        // A link could lead out of the root that is being baked; a pipe would never open.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let database: ReadOnlyDatabase = redb::Builder::new().set_cache_size(CACHE).open_read_only(path)?;
        let transaction = database.begin_read()?;
        let [images, blobs] = [IMAGES, BLOBS].map(|table| transaction.open_table(table));
        Ok(Some(Self { images: images?, failed: transaction.open_table(FAILED)?, blobs: blobs? }))
    }
}

/// Writes a file with everything: in the order of keys and in one transaction, so that the same makes the same bytes.
fn write(path: &Path, State { saved, new }: &State) -> Result<(), redb::Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    // Whatever the umask.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    let database = redb::Builder::new().set_cache_size(CACHE).create_file(file)?;
    let transaction = database.begin_write()?;
    {
        let tables = [
            (IMAGES, saved.as_ref().map(|saved| &saved.images), &new.images),
            (FAILED, saved.as_ref().map(|saved| &saved.failed), &new.failed),
            (BLOBS, saved.as_ref().map(|saved| &saved.blobs), &new.blobs),
        ];
        for (table, saved, new) in tables {
            let mut table = transaction.open_table(table)?;
            let mut new = new.iter().peekable();
            let mut put = |key: &str, value: &Option<Vec<u8>>| -> Result<(), redb::Error> {
                value.as_ref().map(|value| table.insert(key, value.as_slice())).transpose()?;
                Ok(())
            };
            for row in saved.map(|saved| saved.range::<&str>(..)).transpose()?.into_iter().flatten() {
                let (key, value) = row?;
                while let Some((new, value)) = new.next_if(|(new, _)| new.as_str() < key.value()) {
                    put(new, value)?;
                }
                match new.next_if(|(new, _)| new.as_str() == key.value()) {
                    Some((_, value)) => put(key.value(), value)?,
                    None => put(key.value(), &Some(value.value().to_vec()))?,
                }
            }
            for (key, value) in new {
                put(key, value)?;
            }
        }
    }
    Ok(transaction.commit()?)
}

/// Adds a row, unless it is known.
fn put(new: &mut Rows, known: Option<&Table>, key: String, value: Vec<u8>) -> Result<(), redb::StorageError> {
    let known = known.map(|table| table.get(key.as_str())).transpose()?.flatten();
    if known.is_none_or(|known| known.value() != value) {
        new.insert(key, Some(value));
    }
    Ok(())
}

fn failed(path: &Path, error: redb::Error) -> Error {
    Error::Redb { path: path.to_owned(), source: Box::new(error) }
}

fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Records are plain structs of strings and numbers, which always have a JSON form.
    serde_json::to_vec(record).unwrap_or_default()
}
