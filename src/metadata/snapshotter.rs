//! A snapshotter's own state: `metadata.db` (containerd `core/snapshots/storage`) and the directories beside it. Read only.
//!
//! ```text
//! v1
//!   snapshots/<ns/sid/key>   id kind createdat updatedat parent inodes size labels/    sequence: the last id ever given out
//!   parents   <parent id> 00 <child id> = name of the child
//! snapshots/<id>/fs          the files (overlayfs)
//! ```

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

use super::{Error, Result, codec, failed};
use crate::bolt::{self, Db, FileStorage, Lock, Report, Seen, lock_holder};
use crate::root::{Root, RootError};

const PLUGINS: &str = "io.containerd.snapshotter.v1.";
const FILE: &str = "metadata.db";
const DIRS: &str = "snapshots";

/// A snapshot as its snapshotter knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its directory's name; `None` where containerd could not read it.
    pub id: Option<u64>,
    /// Whether it is a view, active, or committed, as containerd writes that.
    pub kind: Option<u8>,
    /// Name of its parent; empty at the bottom.
    pub parent: String,
}

/// What is in a snapshotter's `metadata.db`.
#[derive(Debug, Default)]
pub struct Records {
    /// Whether there is a `snapshots` bucket, and its sequence.
    pub sequence: Option<u64>,
    /// The snapshots by name.
    pub snapshots: BTreeMap<String, Stored>,
    /// Ids of parent and child.
    pub links: HashSet<(u64, u64)>,
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
            Ok((database, dirs)) => Snapshotter { name, database, dirs },
            Err(error) => Snapshotter { name, database: Err(error), dirs: Vec::new() },
        });
    }
    Ok(found)
}

type Looked = (Result<Option<Database>>, Vec<String>);

fn look(root: &Root, plugin: &str) -> Result<Looked> {
    let Some(dir) = root.containerd_dir(plugin)? else { return Ok((Ok(None), Vec::new())) };
    let dirs = match root.containerd_dir(&format!("{plugin}/{DIRS}"))? {
        Some(dirs) => names(&dirs)?,
        None => Vec::new(),
    };
    Ok((read(&dir.join(FILE)), dirs))
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
    let storage = match FileStorage::open(path, Lock::Shared) {
        Ok(storage) => storage,
        Err(bolt::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(bolt::Error::Locked) => {
            let holder = lock_holder(path).map_or("another process".to_owned(), |holder| holder.process);
            return Err(Error::Busy { path: path.to_owned(), holder });
        }
        Err(error) => return Err(failed(path, error)),
    };
    let structure = Db::check(&storage).map_err(|e| failed(path, e))?;
    if structure.is_fatal() {
        return Ok(Some(Database { structure, records: None }));
    }
    let mut db = Db::open(Box::new(storage)).map_err(|e| failed(path, e))?;
    let records = db.begin().and_then(|tx| {
        tx.view(&[b"v1"], &mut |v1| {
            let Some(v1) = v1 else { return Ok(None) };
            let mut records = Records::default();
            v1.bucket(b"snapshots", &mut |snapshots| {
                let Some(snapshots) = snapshots else { return Ok(()) };
                records.sequence = Some(snapshots.sequence());
                snapshots.each(&mut |name, seen| {
                    let Seen::Bucket(snapshot) = seen else { return Ok(()) };
                    let parent = snapshot.get(b"parent")?.unwrap_or_default();
                    let stored = Stored {
                        id: snapshot.get(b"id")?.and_then(|id| codec::parse_uvarint(&id)),
                        kind: snapshot.get(b"kind")?.and_then(|kind| kind.first().copied()),
                        parent: String::from_utf8_lossy(&parent).into_owned(),
                    };
                    records.snapshots.insert(String::from_utf8_lossy(name).into_owned(), stored);
                    Ok(())
                })
            })?;
            v1.bucket(b"parents", &mut |parents| {
                let Some(parents) = parents else { return Ok(()) };
                parents.each(&mut |key, _| {
                    records.links.extend(codec::parse_link(key));
                    Ok(())
                })
            })?;
            Ok(Some(records))
        })
    });
    records.map(|records| Some(Database { structure, records })).map_err(|e| failed(path, e))
}
