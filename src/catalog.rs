//! The catalog: what connects fetch and bootstrap. A redb file of prebake's own; losing it costs time, never an image.
//!
//! ```text
//! ROOT/var/lib/prebake/catalog.redb
//!   images  <namespace> NUL <image name>   → JSON of ImageRecord
//!   failed  <namespace> NUL <image name>   an image that the last bake of it did not complete
//!   blobs   <digest>                       → JSON of BlobRecord: a file verified at this size and mtime
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, TableDefinition, WriteTransaction};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::content::Stat;
use crate::oci::{Descriptor, Digest};

const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const FAILED: TableDefinition<'_, &str, ()> = TableDefinition::new("failed");
const BLOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("blobs");
const FILE: &str = "catalog.redb";
const FILE_MODE: u32 = 0o644;
/// Where a new catalog is made before it gets its name.
const NEW_FILE: &str = "catalog.redb.new";
/// redb's page cache, in bytes; its default is larger than all of prebake may be.
const CACHE: usize = 2 << 20;

/// Why the catalog could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another prebake has it open.
    #[error("{} is in use by another prebake", .0.display())]
    Busy(PathBuf),
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

/// An open catalog; one process at a time.
pub struct Catalog {
    database: Database,
    path: PathBuf,
}

impl Catalog {
    /// Opens the catalog in `dir`, or makes it.
    ///
    /// # Errors
    /// [`Error::Busy`] when another prebake has it; [`Error::Redb`].
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        if !path.exists() {
            // redb makes a file in several steps: a kill between them must not leave one that it refuses.
            let new = dir.join(NEW_FILE);
            let _ = std::fs::remove_file(&new);
            Self::open_file(&new)?.write(|_, _| Ok(()))?;
            let error = |e| Error::Redb { path: path.clone(), source: Box::new(redb::Error::Io(e)) };
            std::fs::rename(&new, &path).map_err(error)?;
        }
        let catalog = Self::open_file(&path)?;
        catalog.write(|_, _| Ok(()))?;
        Ok(catalog)
    }

    fn open_file(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        let error = |e| Error::Redb { path: path.clone(), source: Box::new(redb::Error::Io(e)) };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // A link could lead out of the root that is being baked.
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(error)?;
        // Whatever the umask; somebody else's file is as it is.
        let _ = file.set_permissions(Permissions::from_mode(FILE_MODE));
        let database = match redb::Builder::new().set_cache_size(CACHE).create_file(file) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(Error::Busy(path)),
            Err(error) => return Err(Error::Redb { path, source: Box::new(error.into()) }),
        };
        Ok(Self { database, path })
    }

    /// Writes the file anew, so that nothing shows in it but what it knows: not in which order that came, or how often. The
    /// last thing to be done with a catalog: what it is told afterwards is lost.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn rewrite(&self) -> Result<()> {
        let new = self.path.with_file_name(NEW_FILE);
        let _ = std::fs::remove_file(&new);
        let fresh = Self::open_file(&new)?;
        let from = self.database.begin_read().map_err(|e| self.redb(e))?;
        let to = fresh.database.begin_write().map_err(|e| fresh.redb(e))?;
        for table in [IMAGES, BLOBS] {
            let rows = from.open_table(table).map_err(|e| self.redb(e))?;
            let mut table = to.open_table(table).map_err(|e| fresh.redb(e))?;
            for row in rows.range::<&str>(..).map_err(|e| self.redb(e))? {
                let (key, value) = row.map_err(|e| self.redb(e))?;
                table.insert(key.value(), value.value()).map_err(|e| fresh.redb(e))?;
            }
        }
        fresh.remember_in(&to, self.failed()?.iter().map(|image| (image, true)))?;
        to.commit().map_err(|e| fresh.redb(e))?;
        drop(fresh);
        let error = |e| Error::Redb { path: self.path.clone(), source: Box::new(redb::Error::Io(e)) };
        std::fs::rename(&new, &self.path).map_err(error)
    }

    /// Whether the file was this, and whole, when it was last verified.
    ///
    /// # Errors
    /// [`Error::Redb`], [`Error::Record`].
    pub fn is_verified(&self, digest: &Digest, stat: Stat) -> Result<bool> {
        let transaction = self.database.begin_read().map_err(|e| self.redb(e))?;
        let table = transaction.open_table(BLOBS).map_err(|e| self.redb(e))?;
        let Some(record) = table.get(digest.as_str()).map_err(|e| self.redb(e))? else { return Ok(false) };
        let record: BlobRecord = self.decode(record.value())?;
        Ok(record.size == stat.size && record.mtime == stat.mtime)
    }

    /// Remembers fetched images of a namespace and verified blobs, durably.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn record(&self, namespace: &str, images: &[ImageRecord], blobs: &[(Digest, Stat)]) -> Result<()> {
        self.write(|image_table, blob_table| {
            for image in images {
                let key = format!("{namespace}\0{}", image.name);
                image_table.insert(key.as_str(), encode(image).as_slice())?;
            }
            for (digest, stat) in blobs {
                let record = BlobRecord { size: stat.size, mtime: stat.mtime };
                blob_table.insert(digest.as_str(), encode(&record).as_slice())?;
            }
            Ok(())
        })
    }

    /// The images, by namespace and name, that failed when they were last baked.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn failed(&self) -> Result<BTreeSet<(String, String)>> {
        let transaction = self.database.begin_read().map_err(|e| self.redb(e))?;
        let table = match transaction.open_table(FAILED) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeSet::new()),
            Err(error) => return Err(self.redb(error)),
        };
        let mut all = BTreeSet::new();
        for row in table.range::<&str>(..).map_err(|e| self.redb(e))? {
            let (key, _) = row.map_err(|e| self.redb(e))?;
            all.extend(key.value().split_once('\0').map(|(namespace, name)| (namespace.to_owned(), name.to_owned())));
        }
        Ok(all)
    }

    /// Remembers of images whether they failed. Writes nothing when that is known.
    ///
    /// # Errors
    /// [`Error::Redb`].
    pub fn remember(&self, images: &[((String, String), bool)]) -> Result<()> {
        let known = self.failed()?;
        let mut new = images.iter().filter(|(image, failed)| known.contains(image) != *failed).peekable();
        if new.peek().is_none() {
            return Ok(());
        }
        let transaction = self.database.begin_write().map_err(|e| self.redb(e))?;
        self.remember_in(&transaction, new.map(|(image, failed)| (image, *failed)))?;
        transaction.commit().map_err(|e| self.redb(e))
    }

    fn remember_in<'i>(
        &self,
        transaction: &WriteTransaction,
        images: impl Iterator<Item = (&'i (String, String), bool)>,
    ) -> Result<()> {
        let mut table = transaction.open_table(FAILED).map_err(|e| self.redb(e))?;
        for ((namespace, name), failed) in images {
            let key = format!("{namespace}\0{name}");
            let done = if failed { table.insert(&*key, ()) } else { table.remove(&*key) };
            done.map_err(|e| self.redb(e))?;
        }
        Ok(())
    }

    /// What was fetched under a name.
    ///
    /// # Errors
    /// [`Error::Redb`], [`Error::Record`].
    pub fn image(&self, namespace: &str, name: &str) -> Result<Option<ImageRecord>> {
        let transaction = self.database.begin_read().map_err(|e| self.redb(e))?;
        let table = transaction.open_table(IMAGES).map_err(|e| self.redb(e))?;
        let found = table.get(format!("{namespace}\0{name}").as_str()).map_err(|e| self.redb(e))?;
        found.map(|value| self.decode(value.value())).transpose()
    }

    /// The fetched images of a namespace, by name.
    ///
    /// # Errors
    /// [`Error::Redb`], [`Error::Record`].
    pub fn images(&self, namespace: &str) -> Result<Vec<ImageRecord>> {
        let transaction = self.database.begin_read().map_err(|e| self.redb(e))?;
        let table = transaction.open_table(IMAGES).map_err(|e| self.redb(e))?;
        let (from, to) = (format!("{namespace}\0"), format!("{namespace}\x01"));
        let range = table.range(from.as_str()..to.as_str()).map_err(|e| self.redb(e))?;
        range
            .map(|row| {
                let (_, value) = row.map_err(|e| self.redb(e))?;
                self.decode(value.value())
            })
            .collect()
    }

    fn write(
        &self,
        f: impl FnOnce(
            &mut redb::Table<'_, &str, &[u8]>,
            &mut redb::Table<'_, &str, &[u8]>,
        ) -> Result<(), redb::StorageError>,
    ) -> Result<()> {
        let transaction = self.database.begin_write().map_err(|e| self.redb(e))?;
        {
            let mut images = transaction.open_table(IMAGES).map_err(|e| self.redb(e))?;
            let mut blobs = transaction.open_table(BLOBS).map_err(|e| self.redb(e))?;
            f(&mut images, &mut blobs).map_err(|e| self.redb(e))?;
        }
        transaction.commit().map_err(|e| self.redb(e))
    }

    fn redb(&self, error: impl Into<redb::Error>) -> Error {
        Error::Redb { path: self.path.clone(), source: Box::new(error.into()) }
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|source| Error::Record { path: self.path.clone(), source })
    }
}

fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Records are plain structs of strings and numbers, which always have a JSON form.
    serde_json::to_vec(record).unwrap_or_default()
}
