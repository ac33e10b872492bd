//! The records of snapshots: what meta.db and the snapshotters' own databases say of them, made to agree. Images' chains say
//! what lies on what; links between ids say which directory is whose where a record has lost it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::Work;
use crate::care::Result;
use crate::care::anatomy::{self, Anatomy};
use crate::care::check::number_of;
use crate::care::state::{Space, State, snapshotter_of};
use crate::layer;
use crate::metadata::{
    self, KIND_ACTIVE, KIND_COMMITTED, Labels, Mend, Snapshot, Snapshotter, SnapshotterDb, SnapshotterRecords, Stored,
    labels,
};
use crate::oci::Digest;
use crate::snapshot::{OVERLAYFS, WITH_DIRS};

/// How far apart the numbers in the names of two snapshots are, as containerd takes them.
const NUMBERS: u64 = 2;

/// The chains of all images of a namespace.
#[derive(Default)]
pub(super) struct Chains {
    /// Each layer's key, and that of the one below it.
    pub(super) below: BTreeMap<String, String>,
    /// Each image's layers, the lowest first, and when it was made.
    pub(super) all: Vec<(Vec<anatomy::Layer>, Option<String>)>,
}

/// The chains of all images of a namespace.
pub(super) fn chains(space: &Space, state: &State) -> Chains {
    let Chains { below: mut parents, mut all } = Chains::default();
    let mut targets = HashSet::new();
    for row in space.all.images.iter().filter(|row| targets.insert(&row.target.digest)) {
        let anatomy = Anatomy::new(&state.store, &row.target, &|digest| space.recorded(digest));
        for body in &anatomy.manifests {
            let layers = body.layers();
            let mut below = String::new();
            for layer in &layers {
                parents.insert(layer.chain.to_string(), below);
                below = layer.chain.to_string();
            }
            all.push((layers, body.config.as_ref().and_then(|config| config.created.clone())));
        }
    }
    Chains { below: parents, all }
}

/// Namespace and key in a snapshot's name.
fn parts(name: &str) -> Option<(&str, &str)> {
    match name.splitn(3, '/').collect::<Vec<_>>()[..] {
        [namespace, _, key] => Some((namespace, key)),
        _ => None,
    }
}

/// What is to be done to one snapshotter.
#[derive(Default)]
struct Plan {
    /// Rows of `meta.db` as they are to be, and whether they change.
    rows: Vec<(Snapshot, bool)>,
    mend: Mend,
    done: Vec<(String, String)>,
}

impl Work<'_, '_> {
    /// Makes the records of snapshots agree; `keep`: those that nobody needs stay.
    pub(super) fn snapshots(&mut self, keep: bool) -> Result<()> {
        let state = self.state()?;
        for snapshotter in state.snapshotters.iter().filter(|one| WITH_DIRS.contains(&one.name.as_str())) {
            let Ok(database) = &snapshotter.database else { continue };
            let none = SnapshotterRecords::default();
            let records = database.as_ref().and_then(|database| database.records.as_ref()).unwrap_or(&none);
            let rows = state.snapshots().filter(|row| row.snapshotter == snapshotter.name).count();
            if rows == 0 && records.snapshots.is_empty() && database.is_none() && snapshotter.dirs.is_empty() {
                continue;
            }
            let dirs =
                self.root.containerd_dir(&format!("io.containerd.snapshotter.v1.{}/snapshots", snapshotter.name))?;
            let plan = Planner { state: &state, snapshotter, records, keep, dirs }.plan();
            self.execute(snapshotter, records, plan)?;
        }
        Ok(())
    }

    fn execute(&mut self, snapshotter: &Snapshotter, records: &SnapshotterRecords, plan: Plan) -> Result<()> {
        let Plan { rows, mend, done } = plan;
        if rows.iter().any(|(_, changed)| *changed) {
            self.write(|tx| {
                for (row, _) in rows.iter().filter(|(_, changed)| *changed) {
                    if row.parent.is_empty() {
                        metadata::remove_parent(tx, row)?;
                    }
                    let mut labels = Labels::new();
                    if row.key.parse::<Digest>().is_ok() {
                        labels.insert(labels::SNAPSHOT_REF.to_owned(), row.key.clone());
                    }
                    let number = number_of(&row.name).unwrap_or(0);
                    metadata::put_snapshot(tx, row, number, &labels, chrono::Utc::now())?;
                }
                Ok(())
            })?;
        }
        let sound = records.has_links && mend.is_empty(records.sequence);
        if !sound && !self.is_dry() {
            let plugin = format!("io.containerd.snapshotter.v1.{}", snapshotter.name);
            if let Some(dir) = self.root.containerd_dir(&plugin)? {
                SnapshotterDb::open(&dir)?.mend(&mend)?;
            }
        }
        if !sound && done.is_empty() {
            self.did(format!("{}/metadata.db", snapshotter.name), "its links and sequence put right");
        }
        for (object, done) in done {
            self.did(format!("{}/{object}", snapshotter.name), done);
        }
        Ok(())
    }
}

struct Planner<'s> {
    state: &'s State,
    snapshotter: &'s Snapshotter,
    records: &'s SnapshotterRecords,
    /// Whether records that nobody needs stay.
    keep: bool,
    /// Where the snapshots are.
    dirs: Option<PathBuf>,
}

impl Planner<'_> {
    fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        for space in &self.state.spaces {
            self.rows(space, &mut plan);
        }
        let ids = self.ids(&plan.rows);
        let key_of: HashMap<(&str, &str), &str> =
            plan.rows.iter().map(|(row, _)| ((row.namespace.as_str(), row.key.as_str()), row.name.as_str())).collect();
        let parents: HashSet<(&str, &str)> =
            plan.rows.iter().map(|(row, _)| (row.namespace.as_str(), row.parent.as_str())).collect();
        let mut right: BTreeMap<&str, Stored> = BTreeMap::new();
        for (row, _) in &plan.rows {
            let Some(id) = ids.get(row.name.as_str()) else { continue };
            let stored = self.records.snapshots.get(&row.name);
            let at = (row.namespace.as_str(), row.key.as_str());
            let is_layer = row.key.parse::<Digest>().is_ok() || parents.contains(&at);
            let said = stored.and_then(|stored| stored.kind).filter(|kind| (1..=3).contains(kind));
            let kind = if is_layer {
                KIND_COMMITTED
            } else {
                said.filter(|kind| *kind != KIND_COMMITTED).unwrap_or(KIND_ACTIVE)
            };
            // What a person committed has a name of his own.
            let kind = if !is_layer && said == Some(KIND_COMMITTED) && !self.is_containers(row) {
                KIND_COMMITTED
            } else {
                kind
            };
            let parent = key_of.get(&(row.namespace.as_str(), row.parent.as_str())).copied().unwrap_or_default();
            let (size, inodes, created) =
                stored.map_or((None, None, None), |stored| (stored.size, stored.inodes, stored.created));
            let (size, inodes, created) = self.complete(*id, kind, size, inodes, created);
            let stored_right =
                Stored { id: Some(*id), kind: Some(kind), parent: parent.to_owned(), size, inodes, created };
            if stored != Some(&stored_right) {
                plan.mend.put.insert(row.name.clone(), stored_right.clone());
                plan.done.push((row.name.clone(), format!("its record in metadata.db put right (id {id})")));
            }
            right.insert(&row.name, stored_right);
        }
        let unknown: Vec<&String> =
            self.records.snapshots.keys().filter(|name| !right.contains_key(name.as_str())).collect();
        for name in unknown {
            if self.keep {
                right.insert(name, self.records.snapshots[name].clone());
                continue;
            }
            plan.mend.drop.push(name.clone());
            plan.done.push((name.clone(), "its record in metadata.db dropped".to_owned()));
        }
        let links: BTreeMap<(u64, u64), String> = right
            .iter()
            .filter_map(|(name, stored)| {
                let parent = right.get(stored.parent.as_str())?;
                Some(((parent.id?, stored.id?), (*name).to_owned()))
            })
            .collect();
        if links != self.records.links || !self.records.has_links {
            plan.mend.links = Some(links);
        }
        let dirs = self.snapshotter.dirs.iter().filter_map(|dir| dir.parse::<u64>().ok());
        plan.mend.sequence = ids.values().copied().chain(dirs).max().unwrap_or(0);
        for (row, _) in plan.rows.iter().filter(|(_, changed)| *changed) {
            let object = format!("{}/{}", row.namespace, row.key);
            plan.done.push((object, format!("its record in meta.db put right ({})", row.name)));
        }
        plan
    }

    /// What a record lacks, by what its directory is like: prebake dates that as the record.
    fn complete(
        &self,
        id: u64,
        kind: u8,
        size: Option<u64>,
        inodes: Option<u64>,
        created: Option<DateTime<Utc>>,
    ) -> (Option<u64>, Option<u64>, Option<DateTime<Utc>>) {
        let Some(dir) = self.dirs.as_ref().map(|dirs| dirs.join(id.to_string())) else {
            return (size, inodes, created);
        };
        let created = created.or_else(|| date_of(&dir));
        let with_files = self.snapshotter.name == OVERLAYFS && kind == KIND_COMMITTED;
        if !with_files || size.is_some() && inodes.is_some() {
            return (size, inodes, created);
        }
        let usage = fs::File::open(dir.join("fs")).and_then(|files| layer::usage(&files.into())).ok();
        (usage.map(|usage| usage.bytes), usage.map(|usage| usage.inodes), created)
    }

    fn is_containers(&self, row: &Snapshot) -> bool {
        let spaces = self.state.spaces.iter().filter(|space| space.name() == row.namespace);
        spaces.flat_map(|space| &space.all.containers).any(|container| container.snapshot == row.key)
    }

    /// The rows of a namespace as they are to be.
    fn rows(&self, space: &Space, plan: &mut Plan) {
        let namespace = space.name();
        let below = chains(space, self.state).below;
        let own: Vec<&Snapshot> = space
            .all
            .snapshots
            .iter()
            .map(|(row, _)| row)
            .filter(|row| row.snapshotter == self.snapshotter.name)
            .collect();
        let mut free: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in self.records.snapshots.keys() {
            if let Some((at, key)) = parts(name)
                && at == namespace
            {
                free.entry(key).or_default().push(name);
            }
        }
        let mut highest = own.iter().filter_map(|row| number_of(&row.name)).max().unwrap_or(0);
        let mut keys = BTreeSet::new();
        for row in &own {
            let mut right = (*row).clone();
            if let Some(parent) = below.get(&row.key) {
                right.parent.clone_from(parent);
            }
            let fits = parts(&row.name) == Some((namespace, row.key.as_str()));
            let shared = own.iter().any(|other| other.key != row.key && other.name == row.name);
            let is_there = self.records.snapshots.contains_key(&row.name);
            if !(is_there && (fits || !shared)) {
                let known = free.get(row.key.as_str()).and_then(|names| names.last());
                match known {
                    Some(name) => (*name).clone_into(&mut right.name),
                    None if fits => {}
                    None => {
                        highest += NUMBERS;
                        right.name = format!("{namespace}/{highest}/{}", row.key);
                    }
                }
            }
            keys.insert(row.key.clone());
            let changed = right != **row;
            plan.rows.push((right, changed));
        }
        for (key, names) in free {
            if keys.contains(key) || !wanted(space, &below, key) {
                continue;
            }
            let Some(name) = names.last() else { continue };
            let parent = below.get(key).cloned().or_else(|| {
                let parent = &self.records.snapshots.get(*name)?.parent;
                parts(parent).map(|(_, key)| key.to_owned())
            });
            let row = Snapshot {
                namespace: namespace.to_owned(),
                snapshotter: self.snapshotter.name.clone(),
                key: key.to_owned(),
                parent: parent.unwrap_or_default(),
                name: (*name).to_owned(),
            };
            plan.rows.push((row, true));
        }
    }

    /// The directory of each name, where that is known.
    fn ids<'r>(&self, rows: &'r [(Snapshot, bool)]) -> HashMap<&'r str, u64> {
        let records = &self.records.snapshots;
        let mut said: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for (row, _) in rows {
            if let Some(id) = records.get(&row.name).and_then(|stored| stored.id).filter(|id| *id > 0) {
                said.entry(id).or_default().push(&row.name);
            }
        }
        // What links say: of a child, its own; of a parent, those of its children.
        let linked = |name: &str| {
            let own = self.records.links.iter().find(|(_, child)| *child == name).map(|((_, id), _)| *id);
            own.or_else(|| {
                let children = records.iter().filter(|(_, stored)| stored.parent == name).map(|(child, _)| child);
                children.into_iter().find_map(|child| {
                    self.records.links.iter().find(|(_, linked)| *linked == child).map(|((parent, _), _)| *parent)
                })
            })
        };
        let mut ids = HashMap::new();
        let mut taken = HashSet::new();
        for (row, _) in rows {
            let own = records.get(&row.name).and_then(|stored| stored.id).filter(|id| *id > 0);
            if let Some(id) = own
                && said.get(&id).is_some_and(|names| names.len() == 1 || linked(&row.name) == Some(id))
                && self.plausible(&row.name, id, linked(&row.name))
                && taken.insert(id)
            {
                ids.insert(row.name.as_str(), id);
            }
        }
        for (row, _) in rows {
            if !ids.contains_key(row.name.as_str())
                && let Some(id) = linked(&row.name)
                && self.snapshotter.dirs.contains(&id.to_string())
                && taken.insert(id)
            {
                ids.insert(row.name.as_str(), id);
            }
        }
        ids
    }

    /// Whether a record's id can be right: its directory is there, or nothing else says which one is its.
    fn plausible(&self, _name: &str, id: u64, linked: Option<u64>) -> bool {
        let is_there = |id: u64| self.snapshotter.dirs.contains(&id.to_string());
        linked.is_none_or(|other| other == id || !is_there(other) || is_there(id) && self.has_link_to(id))
    }

    fn has_link_to(&self, id: u64) -> bool {
        self.records.links.keys().any(|(parent, child)| *parent == id || *child == id)
    }
}

/// When a snapshot was made, by its directory.
pub(super) fn date_of(dir: &Path) -> Option<DateTime<Utc>> {
    let meta = fs::symlink_metadata(dir).ok()?;
    DateTime::from_timestamp(meta.mtime(), u32::try_from(meta.mtime_nsec()).ok()?)
}

/// Whether something needs a snapshot that `meta.db` does not name.
fn wanted(space: &Space, below: &BTreeMap<String, String>, key: &str) -> bool {
    let all = &space.all;
    let labelled = all
        .blobs
        .values()
        .flat_map(|blob| &blob.labels)
        .any(|(label, value)| snapshotter_of(label).is_some() && value == key);
    below.contains_key(key)
        || labelled
        || all.containers.iter().any(|container| container.snapshot == key)
        || all.leases.iter().flat_map(|lease| &lease.snapshots).any(|(_, held)| held == key)
}
