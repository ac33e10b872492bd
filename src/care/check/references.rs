//! One namespace's records, and everything they refer to but images' contents.

use std::collections::{BTreeMap, BTreeSet};

use crate::care::finding::{Findings, REPAIR, Severity};
use crate::care::state::{Space, State, snapshotter_of};
use crate::metadata::{Child, Labels, Snapshot, labels};

pub(super) fn findings(space: &Space, state: &State, found: &mut Findings) {
    blobs(space, state, found);
    snapshots(space, found);
    leases(space, found);
    containers(space, state, found);
}

/// A label so long that containerd refuses every update of the record.
pub(super) fn long_labels(object: &str, labels: &Labels, found: &mut Findings) {
    for key in labels.iter().filter_map(labels::too_long) {
        let problem = format!("has a label {key:?} so long that containerd refuses every update of the record");
        found.error(object, problem, "containerd cannot give it labels, nor keep what it refers to");
    }
}

fn blobs(space: &Space, state: &State, found: &mut Findings) {
    for blob in space.all.blobs.values() {
        let object = format!("{}/content/{}", space.name(), blob.digest);
        match state.files.get(&blob.digest).map(|stat| stat.size) {
            None => {
                found.error(&object, "has a record and no file", "containerd fails to read it, and counts it as there");
            }
            Some(size) if size != blob.size => found.error(
                &object,
                format!("has {size} bytes; its record says {}", blob.size),
                "containerd reads as much as its record says, and fails",
            ),
            Some(_) => {}
        }
        long_labels(&object, &blob.labels, found);
        for (key, value) in &blob.labels {
            if snapshotter_of(key).is_some_and(|snapshotter| !space.has_snapshot(snapshotter, value)) {
                found.warn(
                    &object,
                    format!("refers to a snapshot that does not exist: {value} ({key})"),
                    "containerd unpacks the image again when a container needs it",
                );
            }
        }
    }
}

/// The number in a snapshot's name.
pub(in crate::care) fn number_of(name: &str) -> Option<u64> {
    name.split('/').nth(1)?.parse().ok()
}

fn snapshots(space: &Space, found: &mut Findings) {
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut children = BTreeSet::new();
    for (Snapshot { snapshotter, key, parent, name, .. }, labels) in &space.all.snapshots {
        let object = format!("{}/snapshots/{snapshotter}/{key}", space.name());
        long_labels(&object, labels, found);
        let number = highest.entry(snapshotter).or_default();
        *number = number_of(name).unwrap_or(0).max(*number);
        if parent.is_empty() {
            continue;
        }
        let child = Child { snapshotter: snapshotter.clone(), parent: parent.clone(), key: key.clone() };
        if !space.has_snapshot(snapshotter, parent) {
            found.error(&object, format!("has a parent that does not exist: {parent}"), "containers from it fail");
        } else if !space.children.contains(&child) {
            let consequence = "containerd may remove the parent under it";
            found.warn(&object, format!("is not among the children of its parent {parent}"), consequence);
        }
        children.insert(child);
    }
    for child in space.children.iter().filter(|child| !children.contains(child)) {
        let object = format!("{}/snapshots/{}/{}", space.name(), child.snapshotter, child.parent);
        // containerd's own collector leaves these.
        let there = space.has_snapshot(&child.snapshotter, &child.key);
        let severity = if there { Severity::Warning } else { Severity::Info };
        let remedy = if there { REPAIR } else { "" };
        let problem = format!("names a child that is none: {}", child.key);
        found.add(severity, object, problem, "containerd refuses to remove it by hand", remedy);
    }
    for (snapshotter, highest) in highest {
        let sequence = space.sequences.get(snapshotter).copied().unwrap_or(0);
        if sequence < highest {
            found.warn(
                format!("{}/snapshots/{snapshotter}", space.name()),
                format!("gave out numbers up to {sequence}, and {highest} is in use"),
                "containerd gives out numbers a second time",
            );
        }
    }
}

fn leases(space: &Space, found: &mut Findings) {
    for lease in &space.all.leases {
        let object = format!("{}/leases/{}", space.name(), lease.id);
        for (kind, key) in dangling(space, lease) {
            found.warn(&object, format!("holds what does not exist: {kind} {key}"), "containerd passes it over");
        }
    }
}

/// What a lease names and is not there, by containerd's word for its kind and by key.
pub(in crate::care) fn dangling(space: &Space, lease: &crate::metadata::Lease) -> Vec<(String, String)> {
    let all = &space.all;
    let mut gone = Vec::new();
    let blob = |key: &&String| !all.blobs.keys().any(|digest| digest.as_str() == key.as_str());
    gone.extend(lease.blobs.iter().filter(blob).map(|key| ("content".to_owned(), key.clone())));
    let snapshot = |(snapshotter, key): &&(String, String)| !space.has_snapshot(snapshotter, key);
    gone.extend(lease.snapshots.iter().filter(snapshot).map(|(name, key)| (format!("snapshots/{name}"), key.clone())));
    let ingest = |key: &&String| !all.ingests.iter().any(|row| row.reference == **key);
    gone.extend(lease.ingests.iter().filter(ingest).map(|key| ("ingests".to_owned(), key.clone())));
    let image = |key: &&String| !all.images.iter().any(|row| row.name == **key);
    gone.extend(lease.images.iter().filter(image).map(|key| ("images".to_owned(), key.clone())));
    gone
}

fn containers(space: &Space, state: &State, found: &mut Findings) {
    for container in &space.all.containers {
        let object = format!("{}/containers/{}", space.name(), container.id);
        let remedy = format!("ctr -n {} containers delete {}", space.name(), container.id);
        let has_snapshot = !container.snapshotter.is_empty() && !container.snapshot.is_empty();
        if has_snapshot && !space.has_snapshot(&container.snapshotter, &container.snapshot) {
            found.add(
                Severity::Warning,
                &object,
                format!("has a snapshot that does not exist: {} of {}", container.snapshot, container.snapshotter),
                "containerd fails to start it; what it wrote is lost, and kubelet makes another one",
                remedy,
            );
        }
        let rows = state.spaces.iter().filter(|other| other.name() == space.name()).flat_map(|space| &space.all.images);
        if !container.image.is_empty() && !rows.clone().any(|row| row.name == container.image) {
            found.info(
                &object,
                format!("was made from an image that has no record: {}", container.image),
                "containerd goes on with it; another one like it needs the image",
            );
        }
    }
}
