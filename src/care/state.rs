//! A root as it is, however damaged: what can be read of it, and why the rest cannot.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

use super::Result;
use crate::bolt::Report;
use crate::catalog::{Catalog, ImageRecord};
use crate::content::{Entry, Left, Stat, Store};
use crate::kind::chain;
use crate::metadata::{self, Child, Contents, Error, Labels, MetaDb, Snapshot, Snapshotter, labels};
use crate::oci::Digest;
use crate::root::Root;

/// A namespace.
pub(super) struct Space {
    pub(super) all: Contents,
    /// Snapshotter and key of each snapshot.
    pub(super) keys: HashSet<(String, String)>,
    /// Children as their parents name them.
    pub(super) children: BTreeSet<Child>,
    /// The last number that each snapshotter gave out.
    pub(super) sequences: BTreeMap<String, u64>,
}

impl Space {
    pub(super) fn name(&self) -> &str {
        &self.all.namespace
    }

    pub(super) fn recorded(&self, digest: &Digest) -> bool {
        self.all.blobs.contains_key(digest)
    }

    /// Whether a document's record says that it keeps a blob.
    pub(super) fn keeps(&self, document: &Digest, child: &Digest) -> bool {
        let labels = self.all.blobs.get(document).into_iter().flat_map(|blob| &blob.labels);
        labels.into_iter().any(|(key, value)| key.starts_with(labels::GC_REF_CONTENT) && value == child.as_str())
    }

    pub(super) fn has_snapshot(&self, snapshotter: &str, key: &str) -> bool {
        self.keys.contains(&(snapshotter.to_owned(), key.to_owned()))
    }

    /// The snapshotters that have a snapshot under this key.
    pub(super) fn snapshotters_of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let rows = self.all.snapshots.iter().map(|(snapshot, _)| snapshot);
        rows.filter(move |snapshot| snapshot.key == key).map(|snapshot| snapshot.snapshotter.as_str())
    }
}

/// The snapshotter that a label refers to a snapshot of; `None` for other labels.
pub(super) fn snapshotter_of(label: &str) -> Option<&str> {
    label.strip_prefix(labels::GC_REF_SNAPSHOT).map(|rest| rest.split('/').next().unwrap_or_default())
}

/// How `meta.db` is.
pub(super) enum Meta {
    /// There is none.
    Absent,
    /// It cannot be read, or only in part.
    Damaged(String, Option<Report>),
    /// It can be read, and this is how it is built.
    Readable(Report),
}

/// What there is.
pub(super) struct State {
    pub(super) store: Store,
    pub(super) meta: Meta,
    /// Each namespace; none where `meta.db` cannot be read.
    pub(super) spaces: Vec<Space>,
    /// Root buckets that are not containerd's.
    pub(super) foreign: Vec<String>,
    /// Whether containerd 2 has used the database.
    pub(super) migrated: bool,
    pub(super) snapshotters: Vec<Snapshotter>,
    pub(super) files: BTreeMap<Digest, Stat>,
    /// What lies among the blobs and is none.
    pub(super) strangers: Vec<PathBuf>,
    pub(super) ingests: Vec<Left>,
    /// What the catalog knows of images, each with its namespace.
    pub(super) fetched: Vec<(String, ImageRecord)>,
    /// Why the catalog cannot be read.
    pub(super) catalog: Option<String>,
}

impl State {
    /// Reads all there is. `meta` is `None` where the database cannot be opened at all, for this reason.
    ///
    /// # Errors
    /// [`super::Error`] when the root cannot be looked at.
    pub(super) fn read(root: &Root, meta: Result<&mut MetaDb, String>) -> Result<Self> {
        let store = Store::open(root)?;
        let (mut files, mut strangers) = (BTreeMap::new(), Vec::new());
        for entry in store.entries()? {
            match entry {
                Entry::Blob(digest, stat) => drop(files.insert(digest, stat)),
                Entry::Stranger(path) => strangers.push(path),
            }
        }
        strangers.sort_unstable();
        let (fetched, catalog) = match root.state_dir()?.map(|dir| Catalog::open(&dir)?.all_images()) {
            None => (Vec::new(), None),
            Some(Ok(all)) => (all, None),
            Some(Err(error)) => (Vec::new(), Some(chain(&error))),
        };
        let mut state = Self {
            meta: Meta::Absent,
            spaces: Vec::new(),
            foreign: Vec::new(),
            migrated: false,
            snapshotters: metadata::snapshotters(root)?,
            files,
            strangers,
            ingests: store.ingests()?,
            store,
            fetched,
            catalog,
        };
        match meta {
            Ok(meta) => state.read_meta(meta)?,
            Err(why) => state.meta = Meta::Damaged(why, None),
        }
        Ok(state)
    }

    fn read_meta(&mut self, meta: &mut MetaDb) -> Result<()> {
        self.meta = match meta.check() {
            Ok(None) => return Ok(()),
            Err(error @ Error::Bolt { .. }) => Meta::Damaged(chain(&error), None),
            Err(error) => return Err(error.into()),
            Ok(Some(report)) if report.is_fatal() => {
                let first = report.findings.iter().find(|finding| finding.problem.is_fatal());
                Meta::Damaged(first.map(ToString::to_string).unwrap_or_default(), Some(report))
            }
            Ok(Some(report)) => Meta::Readable(report),
        };
        if !matches!(self.meta, Meta::Readable(_)) {
            return Ok(());
        }
        let read = meta.read(|tx| {
            let mut spaces = Vec::new();
            for namespace in metadata::namespaces(tx)? {
                let all = metadata::contents(tx, &namespace)?;
                let key = |(snapshot, _): &(Snapshot, Labels)| (snapshot.snapshotter.clone(), snapshot.key.clone());
                let keys: HashSet<_> = all.snapshots.iter().map(key).collect();
                let mut sequences = BTreeMap::new();
                for (snapshotter, _) in &keys {
                    let sequence = metadata::snapshot_sequence(tx, &namespace, snapshotter)?;
                    sequences.insert(snapshotter.clone(), sequence);
                }
                let children = metadata::children(tx, &namespace)?;
                spaces.push(Space { all, keys, children, sequences });
            }
            Ok((spaces, metadata::foreign_buckets(tx)?, metadata::is_migrated(tx)?))
        });
        match read {
            Ok(read) => (self.spaces, self.foreign, self.migrated) = read.unwrap_or_default(),
            Err(error @ Error::Bolt { .. }) => self.meta = Meta::Damaged(chain(&error), None),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether the records can be gone by.
    pub(super) fn is_readable(&self) -> bool {
        matches!(self.meta, Meta::Readable(_))
    }

    /// All snapshots that `meta.db` names.
    pub(super) fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.spaces.iter().flat_map(|space| &space.all.snapshots).map(|(snapshot, _)| snapshot)
    }
}
