//! Whether meta.db, the snapshotters' own databases and their directories agree, as containerd needs them to.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Finding, Severity};
use crate::bolt;
use crate::kind::chain;
use crate::metadata::{self, Snapshot, Snapshotter, SnapshotterRecords};
use crate::snapshot::WITH_DIRS;

/// Kinds containerd knows (`snapshots.Kind`): view, active, committed.
const KINDS: std::ops::RangeInclusive<u8> = 1..=3;

/// Everything that is off; `rows` are the snapshots meta.db knows, of all namespaces, if it can be read.
pub(super) fn findings(snapshotters: &[Snapshotter], rows: Option<&[Snapshot]>) -> Vec<Finding> {
    let mut known: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
    for row in rows.unwrap_or_default() {
        known.entry(&row.snapshotter).or_default().push(row);
    }
    let mut found = Vec::new();
    for snapshotter in snapshotters {
        let own = known.remove(snapshotter.name.as_str()).unwrap_or_default();
        Look { snapshotter, found: &mut found }.all(rows.is_some().then_some(&own));
    }
    found.extend(known.into_iter().map(|(name, rows)| elsewhere(name, rows.len())));
    found
}

/// Snapshots of a snapshotter that has nothing in this root.
fn elsewhere(name: &str, rows: usize) -> Finding {
    if WITH_DIRS.contains(&name) {
        let problem = format!(
            "has nothing of the {rows} snapshots in meta.db; unless its root_path leads elsewhere, containers from them fail"
        );
        return Finding::new(Severity::Error, name, problem);
    }
    let problem = format!("keeps the {rows} snapshots in meta.db elsewhere; not looked at");
    Finding::new(Severity::Warning, name, problem)
}

/// A finding in a database's pages, and what containerd would do about it.
pub(super) fn structure(finding: &bolt::Finding) -> String {
    let consequence = if finding.problem.is_fatal() { "; containerd fails or panics when it gets there" } else { "" };
    format!("{finding}{consequence}")
}

struct Look<'a> {
    snapshotter: &'a Snapshotter,
    found: &'a mut Vec<Finding>,
}

impl Look<'_> {
    fn note(&mut self, severity: Severity, object: &str, problem: impl Into<String>) {
        let object = format!("{}/{object}", self.snapshotter.name);
        self.found.push(Finding::new(severity, object, problem));
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
                return self.note(Severity::Warning, "metadata.db", format!("{}; not looked at", chain(error)));
            }
            Err(error) => {
                let problem = format!("{}; containerd fails to use the snapshotter", chain(error));
                return self.note(Severity::Error, "metadata.db", problem);
            }
        };
        for finding in database.iter().flat_map(|database| &database.structure.findings) {
            self.note(Severity::of(&finding.problem), "metadata.db", structure(finding));
        }
        let Some(records) = database.and_then(|database| database.records.as_ref()) else {
            if database.is_some_and(|database| database.structure.is_fatal()) {
                return;
            }
            if !dirs.is_empty() {
                let problem = format!(
                    "has no records of {} directories and {count} snapshots in meta.db; containerd fails to make new \
                     snapshots, and deletes directories in trying",
                    dirs.len()
                );
                self.note(Severity::Error, "metadata.db", problem);
            } else if count > 0 {
                self.found.push(elsewhere(&snapshotter.name, count));
            }
            return;
        };
        let Some(sequence) = records.sequence else {
            let problem =
                "has no bucket \"snapshots\"; containerd crashes at its first garbage collection of snapshots";
            self.note(Severity::Error, "metadata.db", problem);
            return;
        };
        let last = dirs.iter().next_back().copied();
        let highest = records.snapshots.values().filter_map(|stored| stored.id).chain(last).max().unwrap_or(0);
        if sequence < highest {
            let problem = format!(
                "gave out ids up to {sequence}, and {highest} is in use; containerd fails to make new snapshots, and \
                 deletes those in its way"
            );
            self.note(Severity::Error, "metadata.db", problem);
        }
        self.records(records, with_dirs.then_some(&dirs));
        if let Some(rows) = rows {
            self.rows(records, rows, with_dirs);
        }
        if with_dirs {
            // Only overlayfs cleans up.
            let fate = if snapshotter.name == "overlayfs" {
                "containerd removes it at its next garbage collection of snapshots"
            } else {
                "containerd leaves it there"
            };
            let ids: BTreeSet<u64> = records.snapshots.values().filter_map(|stored| stored.id).collect();
            for dir in &snapshotter.dirs {
                if !dir.parse().is_ok_and(|id| ids.contains(&id)) {
                    self.note(Severity::Warning, &format!("snapshots/{dir}"), format!("has no record; {fate}"));
                }
            }
        }
    }

    /// The records of metadata.db among each other, and each one's directory.
    fn records(&mut self, records: &SnapshotterRecords, dirs: Option<&BTreeSet<u64>>) {
        let mut ids = BTreeSet::new();
        for (name, stored) in &records.snapshots {
            let (Some(id), true) = (stored.id, stored.kind.is_some_and(|kind| KINDS.contains(&kind))) else {
                self.note(Severity::Error, name, "has no valid id and kind; containerd fails at every use of it");
                continue;
            };
            if !ids.insert(id) {
                self.note(Severity::Error, name, format!("has the id {id} of another; both would use one directory"));
            }
            if dirs.is_some_and(|dirs| !dirs.contains(&id)) {
                let problem = format!(
                    "has no directory snapshots/{id}; containerd takes it for unpacked, and containers from it fail to start"
                );
                self.note(Severity::Error, name, problem);
            }
            if stored.parent.is_empty() {
                continue;
            }
            match records.snapshots.get(&stored.parent).map(|parent| parent.id) {
                None => {
                    let problem =
                        format!("has a parent that does not exist: {}; containers from it fail", stored.parent);
                    self.note(Severity::Error, name, problem);
                }
                Some(parent) => {
                    if parent.is_some_and(|parent| !records.links.contains(&(parent, id))) {
                        let problem =
                            "is not named among its parent's children; containerd would remove the parent under it";
                        self.note(Severity::Error, name, problem);
                    }
                }
            }
        }
    }

    /// What meta.db says against what metadata.db says.
    fn rows(&mut self, records: &SnapshotterRecords, rows: &[&Snapshot], with_dirs: bool) {
        let mut named: BTreeMap<&str, &Snapshot> = BTreeMap::new();
        for row in rows {
            let object = format!("{}/{}", row.namespace, row.key);
            // Remote snapshotters share names between namespaces by design.
            if let Some(other) = named.insert(&row.name, row).filter(|_| with_dirs) {
                let problem = format!(
                    "is the same snapshot as {}/{}; containerd keeps it until both are gone",
                    other.namespace, other.key
                );
                self.note(Severity::Warning, &object, problem);
            }
            if !records.snapshots.contains_key(&row.name) {
                let problem =
                    "is in meta.db and not in metadata.db; containerd takes it for there, and containers from it fail";
                self.note(Severity::Error, &object, problem);
            }
        }
        for name in records.snapshots.keys().filter(|name| !named.contains_key(name.as_str())) {
            let problem = "is in metadata.db and not in meta.db; containerd removes it at its next garbage collection of snapshots";
            self.note(Severity::Warning, name, problem);
        }
    }
}
