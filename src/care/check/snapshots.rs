//! Whether meta.db, the snapshotters' own databases and their directories agree, as containerd needs them to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::records::structure;
use crate::care::finding::{Findings, NOTHING, REPAIR, Severity};
use crate::care::state::State;
use crate::kind::chain;
use crate::metadata::{self, KIND_COMMITTED, Snapshot, Snapshotter, SnapshotterRecords};
use crate::oci::Digest;
use crate::snapshot::WITH_DIRS;

/// Kinds containerd knows (`snapshots.Kind`): view, active, committed.
const KINDS: std::ops::RangeInclusive<u8> = 1..=3;
/// What containerd does about snapshots it cannot use.
const FAIL: &str = "containers from it fail";

/// Everything that is off; `readable`: meta.db tells which snapshots there are.
pub(super) fn findings(state: &State, readable: bool, found: &mut Findings) {
    let mut known: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
    for row in state.snapshots() {
        known.entry(&row.snapshotter).or_default().push(row);
    }
    for snapshotter in &state.snapshotters {
        let own = known.remove(snapshotter.name.as_str()).unwrap_or_default();
        Look { snapshotter, found: &mut *found }.all(readable.then_some(&own));
    }
    for (name, rows) in known {
        elsewhere(name, rows.len(), found);
    }
}

/// Snapshots of a snapshotter that has nothing in this root.
fn elsewhere(name: &str, rows: usize, found: &mut Findings) {
    if WITH_DIRS.contains(&name) {
        let problem = format!("has nothing of the {rows} snapshots in meta.db, unless its root_path leads elsewhere");
        return found.error(name, problem, FAIL);
    }
    let problem = format!("keeps the {rows} snapshots in meta.db elsewhere; not looked at");
    found.add(Severity::Warning, name, problem, "containerd knows where", NOTHING);
}

struct Look<'a> {
    snapshotter: &'a Snapshotter,
    found: &'a mut Findings,
}

impl Look<'_> {
    fn object(&self, object: &str) -> String {
        format!("{}/{object}", self.snapshotter.name)
    }

    fn error(&mut self, object: &str, problem: impl Into<String>, consequence: impl Into<String>) {
        self.found.error(self.object(object), problem, consequence);
    }

    fn warn(&mut self, object: &str, problem: impl Into<String>, consequence: impl Into<String>) {
        self.found.warn(self.object(object), problem, consequence);
    }

    fn all(&mut self, rows: Option<&Vec<&Snapshot>>) {
        let snapshotter = self.snapshotter;
        let count = rows.map_or(0, Vec::len);
        let with_dirs = WITH_DIRS.contains(&snapshotter.name.as_str());
        let dirs: BTreeSet<u64> =
            snapshotter.dirs.iter().filter(|_| with_dirs).filter_map(|dir| dir.parse().ok()).collect();
        let database = match &snapshotter.database {
            Ok(database) => database.as_ref(),
            // A daemon of its own may run while no containerd does.
            Err(error @ metadata::Error::Busy { .. }) => {
                let problem = format!("{}; not looked at", chain(error));
                let object = self.object("metadata.db");
                return self.found.add(Severity::Warning, object, problem, "it goes on", NOTHING);
            }
            Err(error) => return self.error("metadata.db", chain(error), "containerd fails to use the snapshotter"),
        };
        if let Some(database) = database {
            structure(&self.object("metadata.db"), &database.structure, self.found);
        }
        let Some(records) = database.and_then(|database| database.records.as_ref()) else {
            if database.is_some_and(|database| database.structure.is_fatal()) {
                return;
            }
            if !dirs.is_empty() {
                let problem = format!("has no records of {} directories and {count} snapshots in meta.db", dirs.len());
                let consequence = "containerd fails to make new snapshots, and deletes directories in trying";
                self.error("metadata.db", problem, consequence);
            } else if count > 0 {
                elsewhere(&snapshotter.name, count, self.found);
            }
            return;
        };
        let Some(sequence) = records.sequence else {
            let problem = "has no bucket \"snapshots\"";
            let consequence = "containerd crashes at its first garbage collection of snapshots";
            return self.error("metadata.db", problem, consequence);
        };
        let last = dirs.iter().next_back().copied();
        let highest = records.snapshots.values().filter_map(|stored| stored.id).chain(last).max().unwrap_or(0);
        if sequence < highest {
            let problem = format!("gave out ids up to {sequence}, and {highest} is in use");
            let consequence = "containerd fails to make new snapshots, and deletes those in its way";
            self.error("metadata.db", problem, consequence);
        }
        if !records.has_links && !records.snapshots.is_empty() {
            self.warn("metadata.db", "has no bucket \"parents\"", "containerd makes one with its next snapshot");
        }
        self.records(records, with_dirs.then_some(&dirs));
        if let Some(rows) = rows {
            self.rows(records, rows, with_dirs);
        }
        if with_dirs {
            self.orphans(records);
        }
    }

    /// Directories without a record.
    fn orphans(&mut self, records: &SnapshotterRecords) {
        // Only overlayfs cleans up.
        let fate = if self.snapshotter.name == "overlayfs" {
            "containerd removes it at its next garbage collection of snapshots"
        } else {
            "containerd leaves it there"
        };
        let ids: HashSet<String> =
            records.snapshots.values().filter_map(|stored| stored.id).map(|id| id.to_string()).collect();
        for dir in self.snapshotter.dirs.iter().filter(|dir| !ids.contains(*dir)) {
            self.warn(&format!("snapshots/{dir}"), "has no record", fate);
        }
    }

    fn records(&mut self, records: &SnapshotterRecords, dirs: Option<&BTreeSet<u64>>) {
        let mut ids = BTreeSet::new();
        let mut links = BTreeMap::new();
        let parents: HashSet<&str> = records.snapshots.values().map(|stored| stored.parent.as_str()).collect();
        for (name, stored) in &records.snapshots {
            let (Some(id), Some(kind)) = (stored.id, stored.kind.filter(|kind| KINDS.contains(kind))) else {
                self.error(name, "has no valid id and kind", "containerd fails at every use of it");
                continue;
            };
            if !ids.insert(id) {
                self.error(name, format!("has the id {id} of another"), "both use one directory");
            }
            if parents.contains(name.as_str()) && kind != KIND_COMMITTED {
                self.error(name, "has others on it, and is not committed", "containerd refuses to put more on it");
            }
            if dirs.is_some_and(|dirs| !dirs.contains(&id)) {
                let consequence = "containerd takes it for unpacked, and containers from it fail to start";
                self.error(name, format!("has no directory snapshots/{id}"), consequence);
            } else if dirs.is_some() && self.snapshotter.broken.contains(&id) {
                let consequence = "containerd takes it for unpacked, and containers from it fail to start";
                self.error(name, format!("has no files in snapshots/{id}"), consequence);
            }
            if stored.parent.is_empty() {
                continue;
            }
            match records.snapshots.get(&stored.parent).map(|parent| parent.id) {
                None => self.error(name, format!("has a parent that does not exist: {}", stored.parent), FAIL),
                Some(Some(parent)) => {
                    links.insert((parent, id), name);
                    if records.links.get(&(parent, id)) != Some(name) {
                        let consequence = "containerd would remove the parent under it";
                        self.error(name, "is not named among its parent's children", consequence);
                    }
                }
                Some(None) => {}
            }
        }
        for (parent, child) in records.links.keys().filter(|link| !links.contains_key(link)) {
            let problem = format!("names {child} as a child of {parent}, which it is not");
            self.warn("metadata.db", problem, "containerd refuses to remove the parent");
        }
    }

    /// What meta.db says against what metadata.db says.
    fn rows(&mut self, records: &SnapshotterRecords, rows: &[&Snapshot], with_dirs: bool) {
        let mut named: BTreeMap<&str, &Snapshot> = BTreeMap::new();
        let by_key: HashMap<(&str, &str), &Snapshot> =
            rows.iter().map(|row| ((row.namespace.as_str(), row.key.as_str()), *row)).collect();
        for row in rows {
            let object = format!("{}/{}", row.namespace, row.key);
            // Remote snapshotters share names between namespaces by design.
            if let Some(other) = named.insert(&row.name, row).filter(|_| with_dirs) {
                let problem = format!("is the same snapshot as {}/{}", other.namespace, other.key);
                self.warn(&object, problem, "containerd keeps it until both are gone");
            }
            let Some(stored) = records.snapshots.get(&row.name) else {
                let consequence = "containerd takes it for there, and containers from it fail";
                self.error(&object, "is in meta.db and not in metadata.db", consequence);
                continue;
            };
            if !with_dirs {
                continue;
            }
            if row.key.parse::<Digest>().is_ok()
                && stored.kind.is_some_and(|kind| kind != KIND_COMMITTED && KINDS.contains(&kind))
            {
                self.error(&object, "is a layer's, and not committed", FAIL);
            }
            let below = by_key.get(&(row.namespace.as_str(), row.parent.as_str())).map_or("", |parent| &parent.name);
            if stored.parent != below
                && (below.is_empty() || records.snapshots.contains_key(below))
                && (row.parent.is_empty() || !below.is_empty())
            {
                let show = |name: &str| if name.is_empty() { "nothing".to_owned() } else { name.to_owned() };
                let problem =
                    format!("lies on {} in metadata.db, and on {} in meta.db", show(&stored.parent), show(below));
                self.error(&object, problem, "containers from it see the files of the one in metadata.db");
            }
        }
        for name in records.snapshots.keys().filter(|name| !named.contains_key(name.as_str())) {
            let consequence = "containerd removes it at its next garbage collection of snapshots";
            self.found.add(
                Severity::Warning,
                self.object(name),
                "is in metadata.db and not in meta.db",
                consequence,
                REPAIR,
            );
        }
    }
}
