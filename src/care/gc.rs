//! Collecting garbage offline, as containerd's collector would: records that nothing keeps any more, then the files and
//! snapshots that no record names (containerd `core/metadata/{db,gc,content,snapshot}.go`).

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Result;
use super::graph::{Graph, Kind, is_expired};
use super::release::{Release, Rules};
use super::whole::Whole;
use crate::bolt::Lock;
use crate::catalog::Catalog;
use crate::content::Left;
use crate::metadata::{self, Contents, Labels, MetaDb, Wait};
use crate::oci::{Descriptor, Digest};
use crate::root::Root;
use crate::snapshot::{self, Removal, WITH_DIRS};

/// What a collection is to go by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Collect {
    /// The rules of this release; without one, what any release would keep is kept.
    pub release: Option<Release>,
    /// Whether what was fetched and has no records yet goes as well, as containerd would have it.
    pub fetched: bool,
    /// Only tell.
    pub dry_run: bool,
}

/// Something that a collection removes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Garbage {
    /// image, blob, snapshot, ingest, lease; file and directory for what has no record.
    pub kind: &'static str,
    /// containerd's namespace; none for what has no record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What names it.
    pub name: String,
    /// Why it goes.
    pub why: String,
}

/// What a collection came to, or would.
#[derive(Debug, Default, Serialize)]
pub struct Collected {
    /// What goes.
    pub removed: Vec<Garbage>,
    /// Bytes on disk that are free then; what the databases grow by for it is taken off once it is done.
    pub bytes: u64,
    /// Fetched images, as namespace and name, that were kept for a bootstrap to come.
    pub fetched: Vec<(String, String)>,
}

/// Removes what containerd would, at once.
///
/// # Errors
/// [`super::Error::Unsound`] when something in the root is damaged: then nothing is removed.
pub fn gc(root: &Root, collect: Collect, wait: &Wait<'_>) -> Result<Collected> {
    let mut meta = MetaDb::lock(root, if collect.dry_run { Lock::Shared } else { Lock::Exclusive }, wait)?;
    let mut whole = Whole::read(root, &mut meta)?;
    let mut sweep = Sweep::new(root, &mut whole, Changes::default(), collect)?;
    if !collect.dry_run {
        sweep.execute(root, &whole, &mut meta)?;
    }
    Ok(sweep.collected)
}

/// Changes of records that come before a collection, in the same commit.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Images that go, by namespace and name.
    pub(super) remove: Vec<(String, String)>,
    /// Images that come, by namespace and name, with their targets and labels.
    pub(super) add: Vec<(String, String, Descriptor, Labels)>,
    /// Leases that go, by namespace and id.
    pub(super) leases: Vec<(String, String)>,
    /// Labels of blobs that go, by namespace.
    pub(super) labels: Vec<(String, Digest, String)>,
    /// Images, by namespace and name, of which prebake's catalog knows what is no longer so.
    pub(super) forget: Vec<(String, String)>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty() && self.leases.is_empty() && self.labels.is_empty()
    }

    /// Makes them of records in memory.
    fn apply(&self, contents: &mut Contents) {
        let namespace = &contents.namespace;
        let here = |(at, name): &(String, String)| (at == namespace).then_some(name.clone());
        let removed: HashSet<String> = self.remove.iter().filter_map(here).collect();
        contents.images.retain(|image| !removed.contains(&image.name));
        for (_, name, target, labels) in self.add.iter().filter(|(at, ..)| at == namespace) {
            let (name, target, labels) = (name.clone(), target.clone(), labels.clone());
            contents.images.push(metadata::ImageRow { name, target, labels, created: None });
        }
        let removed: HashSet<String> = self.leases.iter().filter_map(here).collect();
        contents.leases.retain(|lease| !removed.contains(&lease.id));
        for (_, digest, label) in self.labels.iter().filter(|(at, ..)| at == namespace) {
            if let Some(blob) = contents.blobs.get_mut(digest) {
                blob.labels.remove(label);
            }
        }
    }
}

/// A collection that is decided on.
pub(super) struct Sweep {
    changes: Changes,
    /// Records, by their places in `Whole::contents`.
    records: Vec<(usize, Kind, Record)>,
    files: Vec<Digest>,
    ingests: Vec<Left>,
    snapshots: Vec<Removal>,
    pub(super) collected: Collected,
}

enum Record {
    Blob(Digest),
    Snapshot(metadata::Snapshot),
    Named(String),
}

impl Sweep {
    /// Decides what goes once `changes` are made.
    pub(super) fn new(root: &Root, whole: &mut Whole, changes: Changes, collect: Collect) -> Result<Self> {
        let now = Utc::now();
        let mut sweep = Self {
            changes,
            records: Vec::new(),
            files: Vec::new(),
            ingests: Vec::new(),
            snapshots: Vec::new(),
            collected: Collected::default(),
        };
        whole.contents.iter_mut().for_each(|contents| sweep.changes.apply(contents));
        let rules = Rules::new(collect.release, whole.migrated);
        let removed = sweep.mark(whole, rules, now);
        sweep.sweep(root, whole, &removed, collect)?;
        sweep.collected.removed.sort_unstable();
        Ok(sweep)
    }

    /// Decides on records; the numbers of those that go.
    fn mark(&mut self, whole: &Whole, rules: Rules, now: DateTime<Utc>) -> HashSet<(usize, Kind, String)> {
        let contents = &whole.contents;
        let graph = Graph::new(contents, rules, now);
        let kept = graph.mark();
        let places: HashMap<&str, usize> =
            contents.iter().enumerate().map(|(i, contents)| (contents.namespace.as_str(), i)).collect();
        let swept = |name: &str| {
            WITH_DIRS.contains(&name) && whole.snapshotters.iter().any(|snapshotter| snapshotter.name == name)
        };
        let snapshots: HashMap<(usize, &str, &str), &metadata::Snapshot> = contents
            .iter()
            .enumerate()
            .flat_map(|(at, contents)| contents.snapshots.iter().map(move |(snapshot, _)| (at, snapshot)))
            .map(|(at, snapshot)| ((at, snapshot.snapshotter.as_str(), snapshot.key.as_str()), snapshot))
            .collect();
        let mut removed = HashSet::new();
        for (_, object) in graph.objects().filter(|(id, _)| !kept[*id]) {
            let at = places[object.namespace];
            let why = match object.kind {
                Kind::Lease | Kind::Image => "its time has passed (containerd.io/gc.expire)",
                Kind::Ingest => "its time has passed, and no lease names it",
                Kind::Blob => "no image, lease or label refers to it",
                // containerd removes it through its snapshotter, which may keep things elsewhere.
                Kind::Snapshot if !swept(object.snapshotter) => continue,
                Kind::Snapshot => "no image, container or lease refers to it",
                Kind::Container | Kind::Sandbox => continue,
            };
            let name = match object.kind {
                Kind::Snapshot => format!("{}/{}", object.snapshotter, object.key),
                _ => object.key.to_owned(),
            };
            let record = match object.kind {
                Kind::Blob => object.key.parse().map_or_else(|_| Record::Named(name.clone()), Record::Blob),
                Kind::Snapshot => match snapshots.get(&(at, object.snapshotter, object.key)) {
                    Some(snapshot) => Record::Snapshot((*snapshot).clone()),
                    None => continue,
                },
                _ => Record::Named(name.clone()),
            };
            removed.insert((at, object.kind, name.clone()));
            self.records.push((at, object.kind, record));
            let (kind, namespace) = (object.kind.name(), Some(object.namespace.to_owned()));
            self.collected.removed.push(Garbage { kind, namespace, name, why: why.to_owned() });
        }
        removed
    }

    /// Decides on files and snapshots that no record names then.
    fn sweep(
        &mut self,
        root: &Root,
        whole: &Whole,
        removed: &HashSet<(usize, Kind, String)>,
        collect: Collect,
    ) -> Result<()> {
        let stays = |at: usize, kind: Kind, name: &str| !removed.contains(&(at, kind, name.to_owned()));
        let mut blobs: HashSet<&Digest> = HashSet::new();
        let mut ingests: HashSet<&str> = HashSet::new();
        let mut snapshots: HashMap<&str, HashSet<&str>> = HashMap::new();
        for (at, contents) in whole.contents.iter().enumerate() {
            blobs.extend(contents.blobs.keys().filter(|digest| stays(at, Kind::Blob, digest.as_str())));
            for ingest in contents.ingests.iter().filter(|ingest| stays(at, Kind::Ingest, &ingest.reference)) {
                blobs.extend(&ingest.expected);
                ingests.insert(&ingest.backend);
            }
            for (snapshot, _) in &contents.snapshots {
                if stays(at, Kind::Snapshot, &format!("{}/{}", snapshot.snapshotter, snapshot.key)) {
                    snapshots.entry(&snapshot.snapshotter).or_default().insert(&snapshot.name);
                }
            }
        }
        let gone: HashSet<&(String, String)> = self.changes.remove.iter().collect();
        for (namespace, image) in whole.fetched.iter().filter(|_| !collect.fetched) {
            let name = (namespace.clone(), image.name.clone());
            if !gone.contains(&name) {
                blobs.extend(image.blobs.iter().map(|blob| &blob.descriptor.digest));
                self.collected.fetched.push(name);
            }
        }
        let mut bytes = 0;
        let mut note = |kind, name: String, why: &str| {
            self.collected.removed.push(Garbage { kind, namespace: None, name, why: why.to_owned() });
        };
        for (digest, stat) in whole.files.iter().filter(|(digest, _)| !blobs.contains(digest)) {
            bytes += stat.disk;
            let recorded = whole.contents.iter().any(|contents| contents.blobs.contains_key(digest));
            if !recorded {
                note("file", digest.to_string(), "no record names it");
            }
            self.files.push(digest.clone());
        }
        for ingest in &whole.ingests {
            if ingest.reference.as_deref().is_none_or(|reference| !ingests.contains(reference)) {
                bytes += ingest.disk;
                let name = ingest.reference.clone().unwrap_or_else(|| ingest.path.display().to_string());
                note("ingest", name, "no record names it");
                self.ingests.push(ingest.clone());
            }
        }
        let none = HashSet::new();
        for snapshotter in &whole.snapshotters {
            let named = snapshots.get(snapshotter.name.as_str()).unwrap_or(&none);
            let Some(removal) = Removal::all_but(snapshotter, |name| named.contains(name)) else { continue };
            let known: HashSet<&str> = whole
                .contents
                .iter()
                .flat_map(|contents| &contents.snapshots)
                .map(|(snapshot, _)| snapshot.name.as_str())
                .collect();
            for name in removal.names.iter().filter(|name| !known.contains(name.as_str())) {
                note("snapshot", format!("{}/{name}", snapshotter.name), "meta.db does not name it");
            }
            let ids: HashSet<String> = snapshotter
                .records()
                .into_iter()
                .flat_map(|records| records.snapshots.values())
                .filter_map(|stored| stored.id)
                .map(|id| id.to_string())
                .collect();
            for dir in removal.dirs.iter().filter(|dir| !ids.contains(*dir)) {
                note("directory", format!("{}/snapshots/{dir}", snapshotter.name), "no record names it");
            }
            for path in removal.paths(root)? {
                bytes += snapshot::disk_usage(&path)?;
            }
            self.snapshots.push(removal);
        }
        self.collected.bytes = bytes;
        Ok(())
    }

    /// Does it: containerd's records first, in one commit; then what they named. Ended in between, the next one goes on.
    ///
    /// # Errors
    /// [`super::Error`].
    pub(super) fn execute(&mut self, root: &Root, whole: &Whole, meta: &mut MetaDb) -> Result<()> {
        let before = metadata::disk_usage(root)?;
        // Before the records: what it names without one is taken for fetched.
        if let Some(dir) = root.state_dir()?
            && !(self.changes.remove.is_empty() && self.changes.forget.is_empty())
        {
            let catalog = Catalog::open(&dir)?;
            catalog.forget(&self.changes.remove);
            catalog.forget(&self.changes.forget);
            catalog.save()?;
        }
        if !self.records.is_empty() || !self.changes.is_empty() {
            meta.write(|tx| {
                let Changes { remove, add, leases, labels, .. } = &self.changes;
                for (namespace, name, target, labels) in add {
                    metadata::put_image(tx, namespace, &metadata::Image { name, target, labels }, Utc::now())?;
                }
                for (namespace, name) in remove {
                    metadata::remove_image(tx, namespace, name)?;
                }
                for (namespace, id) in leases {
                    metadata::remove_lease(tx, namespace, id)?;
                }
                for (namespace, digest, label) in labels {
                    metadata::remove_blob_label(tx, namespace, digest, label)?;
                }
                for (at, kind, record) in &self.records {
                    let namespace = &whole.contents[*at].namespace;
                    match (kind, record) {
                        (_, Record::Blob(digest)) => metadata::remove_blob(tx, namespace, digest)?,
                        (_, Record::Snapshot(snapshot)) => metadata::remove_snapshot(tx, snapshot)?,
                        (Kind::Lease, Record::Named(id)) => metadata::remove_lease(tx, namespace, id)?,
                        (Kind::Ingest, Record::Named(name)) => metadata::remove_ingest(tx, namespace, name)?,
                        (_, Record::Named(name)) => metadata::remove_image(tx, namespace, name)?,
                    };
                }
                Ok(())
            })?;
        }
        self.snapshots.iter().try_for_each(|removal| removal.execute(root))?;
        self.files.iter().try_for_each(|digest| whole.store.remove(digest))?;
        self.ingests.iter().try_for_each(Left::remove)?;
        let growth = metadata::disk_usage(root)?.saturating_sub(before);
        self.collected.bytes = self.collected.bytes.saturating_sub(growth);
        Ok(())
    }
}

/// Whether a lease is still to be reckoned with.
pub(super) fn is_live(lease: &metadata::Lease, now: DateTime<Utc>) -> bool {
    !is_expired(&lease.labels, now)
}
