//! A snapshotter's own state: `metadata.db` (containerd `core/snapshots/storage`) and the directories beside it.
//!
//! ```text
//! v1
//!   snapshots/<ns/sid/key>   id kind createdat updatedat parent inodes size labels/    sequence: the last id ever given out
//!   parents   <parent id> 00 <child id> = name of the child
//! snapshots/<id>/fs          the files (overlayfs)
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{Error, Labels, Result, codec, create, failed, new_name};
use crate::bolt::{self, Db, FileStorage, FreelistForm, Lock, Report, Seen, Storage, Tx, lock_holder};
use crate::root::{Root, RootError};

const PLUGINS: &str = "io.containerd.snapshotter.v1.";
const FILE: &str = "metadata.db";
const FILE_MODE: u32 = 0o600;
const DIRS: &str = "snapshots";
const V1: &[u8] = b"v1";
const SNAPSHOTS: &[u8] = b"snapshots";
const PARENTS: &[u8] = b"parents";
/// Kind of a snapshot that is written to (containerd `snapshots.KindActive`).
pub const KIND_ACTIVE: u8 = 2;
/// Kind of a snapshot that is done (containerd `snapshots.KindCommitted`).
pub const KIND_COMMITTED: u8 = 3;

/// A snapshot as its snapshotter knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its directory's name; `None` where containerd could not read it.
    pub id: Option<u64>,
    /// Whether it is a view, active, or committed, as containerd writes that.
    pub kind: Option<u8>,
    /// Name of its parent; empty at the bottom.
    pub parent: String,
    /// Bytes on disk, of this layer alone; only of a committed one.
    pub size: Option<u64>,
    /// Its files and directories; only of a committed one.
    pub inodes: Option<u64>,
    /// When it was made; `None` where containerd reads the zero time.
    pub created: Option<DateTime<Utc>>,
}

/// What is in a snapshotter's `metadata.db`.
#[derive(Debug, Default)]
pub struct Records {
    /// Whether there is a `snapshots` bucket, and its sequence.
    pub sequence: Option<u64>,
    /// The snapshots by name.
    pub snapshots: BTreeMap<String, Stored>,
    /// Ids of parent and child, with the child's name.
    pub links: BTreeMap<(u64, u64), String>,
    /// Whether there is a `parents` bucket.
    pub has_links: bool,
}

/// One snapshotter of a root.
#[derive(Debug)]
pub struct Snapshotter {
    /// Its name: overlayfs, native, …
    pub name: String,
    /// Its database; `None` when there is none, or why it cannot be read.
    pub database: Result<Option<Database>>,
    /// What lies in its directory of snapshots, by name.
    pub dirs: Vec<String>,
    /// Ids among those that are no directory, or have none for their files where the snapshotter keeps them in one.
    pub broken: Vec<u64>,
}

/// A snapshotter's `metadata.db`.
#[derive(Debug)]
pub struct Database {
    /// How sound it is.
    pub structure: Report,
    /// What is in it; `None` when there is nothing, or it is damaged.
    pub records: Option<Records>,
}

/// All snapshotters that have a directory in the root.
///
/// # Errors
/// [`Error::Root`] when the root cannot be listed.
pub fn snapshotters(root: &Root) -> Result<Vec<Snapshotter>> {
    let Some(plugins) = root.containerd_dir("")? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for plugin in names(&plugins)? {
        let Some(name) = plugin.strip_prefix(PLUGINS) else { continue };
        let name = name.to_owned();
        found.push(match look(root, &plugin) {
            Ok((database, dirs, broken)) => Snapshotter { name, database, dirs, broken },
            Err(error) => Snapshotter { name, database: Err(error), dirs: Vec::new(), broken: Vec::new() },
        });
    }
    Ok(found)
}

type Looked = (Result<Option<Database>>, Vec<String>, Vec<u64>);

/// The snapshotter that keeps a snapshot's files in a directory of their own, and the name of that.
const WITH_FILES: (&str, &str) = ("overlayfs", "fs");

fn look(root: &Root, plugin: &str) -> Result<Looked> {
    let Some(dir) = root.containerd_dir(plugin)? else {
        return Ok((Ok(None), Vec::new(), Vec::new()));
    };
    let (mut all, mut broken) = (Vec::new(), Vec::new());
    if let Some(dirs) = root.containerd_dir(&format!("{plugin}/{DIRS}"))? {
        all = names(&dirs)?;
        for id in all.iter().filter_map(|name| name.parse::<u64>().ok()) {
            let mut files = dirs.join(id.to_string());
            if plugin.strip_prefix(PLUGINS) == Some(WITH_FILES.0) {
                files.push(WITH_FILES.1);
            }
            if !fs::symlink_metadata(files).is_ok_and(|meta| meta.is_dir()) {
                broken.push(id);
            }
        }
    }
    Ok((read(&dir.join(FILE)), all, broken))
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let error = |source| RootError::new("listing", dir, source);
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(error)? {
        names.push(entry.map_err(error)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn read(path: &Path) -> Result<Option<Database>> {
    let Some(storage) = open(path, Lock::Shared)? else { return Ok(None) };
    let structure = Db::check(&storage).map_err(|e| failed(path, e))?;
    if structure.is_fatal() {
        return Ok(Some(Database { structure, records: None }));
    }
    let mut db = Db::open(Box::new(storage)).map_err(|e| failed(path, e))?;
    let records = db.begin().and_then(|tx| records(&tx)).map_err(|e| failed(path, e))?;
    Ok(Some(Database { structure, records }))
}

/// Opens and locks a database; `None` when there is none.
fn open(path: &Path, lock: Lock) -> Result<Option<FileStorage>> {
    match FileStorage::open(path, lock) {
        Ok(storage) => Ok(Some(storage)),
        Err(bolt::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(bolt::Error::Locked) => {
            let holder = lock_holder(path).map_or("another process".to_owned(), |holder| holder.process);
            Err(Error::Busy { path: path.to_owned(), holder })
        }
        Err(error) => Err(failed(path, error)),
    }
}

fn records(tx: &Tx<'_>) -> Result<Option<Records>, bolt::Error> {
    tx.view(&[V1], &mut |v1| {
        let Some(v1) = v1 else { return Ok(None) };
        let mut records = Records::default();
        v1.bucket(SNAPSHOTS, &mut |snapshots| {
            let Some(snapshots) = snapshots else { return Ok(()) };
            records.sequence = Some(snapshots.sequence());
            snapshots.each(&mut |name, seen| {
                let Seen::Bucket(snapshot) = seen else { return Ok(()) };
                let parent = snapshot.get(b"parent")?.unwrap_or_default();
                let number = |key: &[u8]| -> Result<Option<u64>, bolt::Error> {
                    let number = snapshot.get(key)?.and_then(|number| codec::parse_varint(&number));
                    Ok(number.and_then(|number| u64::try_from(number).ok()))
                };
                let stored = Stored {
                    id: snapshot.get(b"id")?.and_then(|id| codec::parse_uvarint(&id)),
                    kind: snapshot.get(b"kind")?.and_then(|kind| kind.first().copied()),
                    parent: String::from_utf8_lossy(&parent).into_owned(),
                    size: number(b"size")?,
                    inodes: number(b"inodes")?,
                    created: snapshot.get(b"createdat")?.and_then(|time| codec::parse_time(&time)),
                };
                records.snapshots.insert(String::from_utf8_lossy(name).into_owned(), stored);
                Ok(())
            })
        })?;
        v1.bucket(PARENTS, &mut |parents| {
            let Some(parents) = parents else { return Ok(()) };
            records.has_links = true;
            parents.each(&mut |key, seen| {
                if let (Some(link), Seen::Value(name)) = (codec::parse_link(key), seen) {
                    records.links.insert(link, String::from_utf8_lossy(name).into_owned());
                }
                Ok(())
            })
        })?;
        Ok(Some(records))
    })
}

/// A committed snapshot to be written.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its name.
    pub name: String,
    /// Its directory's name.
    pub id: u64,
    /// Name and id of its parent.
    pub parent: Option<(String, u64)>,
    /// Files and directories in it.
    pub inodes: u64,
    /// Bytes on disk.
    pub size: u64,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// When it was made.
    pub created: DateTime<Utc>,
}

/// A snapshotter's `metadata.db`, locked to be written.
pub struct SnapshotterDb {
    path: PathBuf,
    db: Db,
}

impl SnapshotterDb {
    /// Opens the database in a snapshotter's directory; makes an empty one where there is none.
    ///
    /// # Errors
    /// [`Error::Busy`] when a process uses it; [`Error::Bolt`] when it is damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let db = loop {
            if let Some(storage) = open(&path, Lock::Exclusive)? {
                let empty = storage.is_empty().map_err(|source| Error::Io { path: path.clone(), source })?;
                let storage = Box::new(storage);
                let opened = if empty { Db::create(storage, FreelistForm::Persisted) } else { Db::open(storage) };
                break opened.map_err(|e| failed(&path, e))?;
            }
            if let Some(db) = create(&path, FILE_MODE, FreelistForm::Persisted)? {
                break db;
            }
        };
        // What a kill left behind.
        let _ = fs::remove_file(new_name(&path));
        Ok(Self { path, db })
    }

    /// What is in it.
    ///
    /// # Errors
    /// [`Error::Bolt`].
    pub fn records(&mut self) -> Result<Records> {
        let tx = self.db.begin().map_err(|e| failed(&self.path, e))?;
        Ok(records(&tx).map_err(|e| failed(&self.path, e))?.unwrap_or_default())
    }

    /// Writes snapshots, and the last id given out, in one commit.
    ///
    /// # Errors
    /// [`Error::Bolt`].
    pub fn write(&mut self, sequence: u64, snapshots: &[Committed]) -> Result<()> {
        let written = self.db.begin().and_then(|mut tx| {
            for bucket in [SNAPSHOTS, PARENTS] {
                // containerd crashes over a database with the one and not the other.
                if tx.sequence(&[V1, bucket])?.is_none() {
                    tx.create_bucket(&[V1, bucket])?;
                }
            }
            for snapshot in snapshots {
                put(&mut tx, snapshot)?;
            }
            tx.set_sequence(&[V1, SNAPSHOTS], sequence)?;
            tx.commit()
        });
        written.map(drop).map_err(|e| failed(&self.path, e))
    }

    /// Opens a database however damaged, with everything in it that can be read.
    ///
    /// # Errors
    /// [`Error::Busy`] when a process uses it; [`Error::Bolt`] when it cannot be written.
    pub fn rebuild(dir: &Path) -> Result<(Self, u64)> {
        let path = dir.join(FILE);
        let Some(storage) = open(&path, Lock::Exclusive)? else { return Ok((Self::open(dir)?, 0)) };
        let (db, lost) = Db::rebuild(Box::new(storage)).map_err(|e| failed(&path, e))?;
        Ok((Self { path, db }, lost))
    }

    /// Puts records right, in one commit.
    ///
    /// # Errors
    /// [`Error::Bolt`].
    pub fn mend(&mut self, mend: &Mend) -> Result<()> {
        let mended = self.db.begin().and_then(|mut tx| {
            for bucket in [SNAPSHOTS, PARENTS] {
                if tx.list(&[V1, bucket]).is_err() {
                    tx.delete(&[V1], bucket)?;
                }
                if tx.sequence(&[V1, bucket])?.is_none() {
                    tx.create_bucket(&[V1, bucket])?;
                }
            }
            mend.drop.iter().try_for_each(|name| tx.delete(&[V1, SNAPSHOTS], name.as_bytes()).map(drop))?;
            for (name, stored) in &mend.put {
                rewrite(&mut tx, name, stored)?;
            }
            if let Some(links) = &mend.links {
                tx.delete(&[V1], PARENTS)?;
                tx.create_bucket(&[V1, PARENTS])?;
                for ((parent, child), name) in links {
                    tx.put(&[V1, PARENTS], &codec::link(*parent, *child), name.as_bytes())?;
                }
            }
            let sequence = tx.sequence(&[V1, SNAPSHOTS])?.unwrap_or(0).max(mend.sequence);
            tx.set_sequence(&[V1, SNAPSHOTS], sequence)?;
            tx.commit()
        });
        mended.map(drop).map_err(|e| failed(&self.path, e))
    }

    /// Removes the records of snapshots by their names, in one commit; ids that were given out stay so.
    ///
    /// # Errors
    /// [`Error::Bolt`].
    pub fn remove(&mut self, names: &[String]) -> Result<()> {
        let removed = self.db.begin().and_then(|mut tx| {
            let records = records(&tx)?.unwrap_or_default();
            names.iter().try_for_each(|name| take(&mut tx, name, &records))?;
            tx.commit()
        });
        removed.map(drop).map_err(|e| failed(&self.path, e))
    }
}

/// What is to be put right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mend {
    /// Records as they are to be, by name; labels and times that are there stay.
    pub put: BTreeMap<String, Stored>,
    /// Names of records that go.
    pub drop: Vec<String>,
    /// All links, when some are wrong: ids of parent and child, with the child's name.
    pub links: Option<BTreeMap<(u64, u64), String>>,
    /// The last id ever given out, at least.
    pub sequence: u64,
}

impl Mend {
    /// Whether there is nothing to be done to a database with this sequence.
    pub fn is_empty(&self, sequence: Option<u64>) -> bool {
        self.put.is_empty()
            && self.drop.is_empty()
            && self.links.is_none()
            && sequence.is_some_and(|sequence| sequence >= self.sequence)
    }
}

fn rewrite(tx: &mut Tx<'_>, name: &str, stored: &Stored) -> Result<(), bolt::Error> {
    let path = [V1, SNAPSHOTS, name.as_bytes()];
    if tx.list(&path).is_err() {
        tx.delete(&path[..2], name.as_bytes())?;
    }
    let signed = |n: u64| codec::varint(i64::try_from(n).unwrap_or(i64::MAX));
    let mut values = vec![
        (&b"id"[..], codec::uvarint(stored.id.unwrap_or(0))),
        (b"kind", vec![stored.kind.unwrap_or(KIND_COMMITTED)]),
    ];
    values.extend(stored.inodes.map(|inodes| (&b"inodes"[..], signed(inodes))));
    values.extend(stored.size.map(|size| (&b"size"[..], signed(size))));
    if let Some(created) = stored.created {
        values.extend([(&b"createdat"[..], codec::time(created)), (b"updatedat", codec::time(created))]);
    }
    if stored.parent.is_empty() {
        tx.delete(&path, b"parent")?;
    } else {
        values.push((b"parent", stored.parent.as_bytes().to_vec()));
    }
    for (key, value) in values {
        if tx.list(&[&path[..], &[key]].concat()).is_ok_and(|bucket| bucket.is_some()) {
            tx.delete(&path, key)?;
        }
        tx.put(&path, key, &value)?;
    }
    Ok(())
}

fn take(tx: &mut Tx<'_>, name: &str, records: &Records) -> Result<(), bolt::Error> {
    let stored = records.snapshots.get(name);
    let parent = stored.and_then(|stored| records.snapshots.get(&stored.parent)).and_then(|parent| parent.id);
    if let (Some(parent), Some(id)) = (parent, stored.and_then(|stored| stored.id)) {
        tx.delete(&[V1, PARENTS], &codec::link(parent, id))?;
    }
    tx.delete(&[V1, SNAPSHOTS], name.as_bytes()).map(drop)
}

fn put(tx: &mut Tx<'_>, snapshot: &Committed) -> Result<(), bolt::Error> {
    let path = [V1, SNAPSHOTS, snapshot.name.as_bytes()];
    let signed = |n: u64| codec::varint(i64::try_from(n).unwrap_or(i64::MAX));
    tx.put(&path, b"id", &codec::uvarint(snapshot.id))?;
    tx.put(&path, b"kind", &[KIND_COMMITTED])?;
    tx.put(&path, b"createdat", &codec::time(snapshot.created))?;
    tx.put(&path, b"updatedat", &codec::time(snapshot.created))?;
    tx.put(&path, b"inodes", &signed(snapshot.inodes))?;
    tx.put(&path, b"size", &signed(snapshot.size))?;
    if let Some((name, id)) = &snapshot.parent {
        tx.put(&path, b"parent", name.as_bytes())?;
        tx.put(&[V1, PARENTS], &codec::link(*id, snapshot.id), snapshot.name.as_bytes())?;
    }
    for (key, value) in &*snapshot.labels {
        tx.put(&[&path[..], &[b"labels"]].concat(), key.as_bytes(), value.as_bytes())?;
    }
    Ok(())
}
