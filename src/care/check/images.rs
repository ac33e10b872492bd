//! What the images of a namespace need: every document, config and layer recorded and there, each kept by a label, and their
//! chains of snapshots complete.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::references::long_labels;
use crate::care::anatomy::{Anatomy, Body};
use crate::care::finding::{Findings, REPAIR, Severity};
use crate::care::state::{Space, State, snapshotter_of};
use crate::catalog::ImageRecord;
use crate::metadata::{ImageRow, Snapshot, labels};
use crate::oci::{Digest, media_type};
use crate::parallel;

pub(super) fn findings(space: &Space, state: &State, bad: &HashSet<&Digest>, found: &mut Findings) {
    let held = held_snapshots(space);
    let mut by_target: BTreeMap<(&Digest, &str, u64), Vec<&ImageRow>> = BTreeMap::new();
    for row in &space.all.images {
        let object = format!("{}/images/{}", space.name(), row.name);
        long_labels(&object, &row.labels, found);
        let target = &row.target;
        if row.name.is_empty() || target.media_type.is_empty() || target.size == 0 {
            let problem = "has no name, media type or size";
            found.error(
                &object,
                problem,
                "containerd refuses every update of the record, and may fail to read the image",
            );
        }
        by_target.entry((&target.digest, &target.media_type, target.size)).or_default().push(row);
    }
    let look = |rows: Vec<&ImageRow>| {
        let target = &rows[0].target;
        let anatomy = Anatomy::new(&state.store, target, &|digest| space.recorded(digest));
        let mut found = Findings::default();
        Image { space, state, bad, held: &held, anatomy: &anatomy, found: &mut found }.all(&rows);
        found.0
    };
    for mut part in parallel::map(by_target.into_values().collect(), look) {
        found.0.append(&mut part);
    }
    for image in lost(space, state) {
        found.warn(
            format!("{}/images/{}", space.name(), image.name),
            "was fetched, its blobs have records, and it has none",
            "containerd does not list it, and removes its blobs at its next garbage collection",
        );
    }
}

/// Images of the catalog that have lost their records: all their blobs have theirs.
pub(in crate::care) fn lost<'s>(space: &'s Space, state: &'s State) -> impl Iterator<Item = &'s ImageRecord> {
    let here = state.fetched.iter().filter(|(namespace, _)| namespace == space.name()).map(|(_, image)| image);
    let recorded: HashSet<&str> = space.all.images.iter().map(|row| row.name.as_str()).collect();
    here.filter(move |image| {
        let whole = image.blobs.iter().all(|blob| {
            let digest = &blob.descriptor.digest;
            space.recorded(digest) && state.files.contains_key(digest)
        });
        whole && !recorded.contains(image.name.as_str())
    })
}

/// Snapshotter and key of snapshots that a label of a blob, a container, a lease or a snapshot on them keeps.
fn held_snapshots(space: &Space) -> HashSet<(&str, &str)> {
    let all = &space.all;
    let by_key: HashMap<(&str, &str), &Snapshot> = (all.snapshots.iter())
        .map(|(snapshot, _)| ((snapshot.snapshotter.as_str(), snapshot.key.as_str()), snapshot))
        .collect();
    let blobs = all.blobs.values().flat_map(|blob| &blob.labels);
    let blobs = blobs.filter_map(|(key, value)| Some((snapshotter_of(key)?, value.as_str())));
    let containers = all.containers.iter().map(|one| (one.snapshotter.as_str(), one.snapshot.as_str()));
    let leases = all.leases.iter().flat_map(|lease| &lease.snapshots).map(|(name, key)| (name.as_str(), key.as_str()));
    let mut todo: Vec<(&str, &str)> = blobs.chain(containers).chain(leases).collect();
    let mut held = HashSet::new();
    while let Some((snapshotter, key)) = todo.pop() {
        if let Some(snapshot) = by_key.get(&(snapshotter, key))
            && held.insert((snapshotter, key))
        {
            todo.push((snapshotter, &snapshot.parent));
        }
    }
    held
}

/// What becomes of an image that lacks a document.
const SKIPPED: &str = "CRI does not list the image, and nothing runs from it";

struct Image<'a> {
    space: &'a Space,
    state: &'a State,
    /// Blobs whose bytes are wrong.
    bad: &'a HashSet<&'a Digest>,
    held: &'a HashSet<(&'a str, &'a str)>,
    anatomy: &'a Anatomy,
    found: &'a mut Findings,
}

impl Image<'_> {
    fn all(&mut self, rows: &[&ImageRow]) {
        let objects: Vec<String> =
            rows.iter().map(|row| format!("{}/images/{}", self.space.name(), row.name)).collect();
        let mut problems = Vec::new();
        self.problems(&rows[0].target.digest, &mut problems);
        for object in &objects {
            for (severity, problem, consequence) in &problems {
                self.found.add(*severity, object, problem, *consequence, REPAIR);
            }
        }
        let target = &rows[0].target;
        let size = self.anatomy.documents.first().map(|node| node.size);
        if let Some(size) = size.filter(|size| *size != target.size && target.size != 0) {
            for object in &objects {
                let problem = format!("its target has {size} bytes; its record says {}", target.size);
                self.found.error(object, problem, "containerd reads as much as its record says, and fails");
            }
        }
        let kind = &target.media_type;
        if !self.anatomy.documents.is_empty()
            && !media_type::is_index(kind)
            && !media_type::is_manifest(kind)
            && !kind.is_empty()
        {
            for object in &objects {
                let problem = format!("its target is recorded as {kind:?}, which no document is");
                self.found.error(object, problem, "containerd does not read it, and nothing runs from the image");
            }
        }
        for body in &self.anatomy.manifests {
            self.body(body);
        }
        self.labels();
    }

    fn problems(&self, target: &Digest, problems: &mut Vec<(Severity, String, &'static str)>) {
        let error = |problems: &mut Vec<_>, problem: String, consequence| {
            problems.push((Severity::Error, problem, consequence));
        };
        let recorded = |digest: &Digest| self.space.recorded(digest);
        if !recorded(target) {
            error(problems, format!("its target {target} has no record"), SKIPPED);
        }
        for missing in &self.anatomy.missing {
            error(problems, format!("{} is missing", missing.digest), SKIPPED);
        }
        for (broken, why) in &self.anatomy.broken {
            error(problems, format!("{}: {why}", broken.digest), SKIPPED);
        }
        for (index, _) in &self.anatomy.empty {
            error(problems, format!("none of the manifests of {index} is here"), SKIPPED);
        }
        let unpacked: HashSet<&Digest> =
            self.anatomy.manifests.iter().filter(|body| self.is_unpacked(body)).map(|body| &body.digest).collect();
        let unknown: HashSet<&Digest> =
            self.anatomy.manifests.iter().filter(|body| body.lacks_config()).map(|body| &body.digest).collect();
        for node in &self.anatomy.documents {
            let digest = &node.descriptor.digest;
            let is_index = media_type::is_index(&node.descriptor.media_type);
            let is_unpacked = unpacked.contains(digest);
            let blob = self.space.all.blobs.get(digest);
            let labels = blob.iter().flat_map(|blob| &blob.labels);
            let content = labels.filter(|(key, _)| key.starts_with(labels::GC_REF_CONTENT));
            let held: HashSet<&str> = content.map(|(_, value)| value.as_str()).collect();
            for child in &node.children {
                let layer = media_type::is_layer(&child.media_type);
                if !is_index && !self.anatomy.is_chosen(digest) && !recorded(&child.digest) {
                    continue;
                }
                if recorded(&child.digest) {
                    // Layers that are discarded after unpacking are not to be kept.
                    let discarded = layer && is_unpacked;
                    if !discarded && !held.contains(child.digest.as_str()) {
                        error(
                            problems,
                            format!("nothing keeps {} from garbage collection", child.digest),
                            "containerd removes it when it starts",
                        );
                    }
                } else if layer && is_unpacked && held.contains(child.digest.as_str()) {
                    problems.push((
                        Severity::Warning,
                        format!("{} is to be kept, and has no record", child.digest),
                        "containers run; nobody can export or push the image, or unpack it for another snapshotter",
                    ));
                } else if !is_index && !(layer && (is_unpacked || unknown.contains(digest))) {
                    if self.state.files.contains_key(&child.digest) {
                        error(problems, format!("{} has no record", child.digest), "for containerd it is not there");
                    } else if layer {
                        error(
                            problems,
                            format!("{} is missing", child.digest),
                            "containerd cannot unpack the image, and nothing runs from it",
                        );
                    }
                }
            }
        }
        problems.dedup();
    }

    /// Whether a snapshotter has its whole chain.
    fn is_unpacked(&self, body: &Body) -> bool {
        body.top().is_some_and(|top| self.space.snapshotters_of(top.as_str()).next().is_some())
    }

    /// The chain of a manifest's snapshots, and what keeps it.
    fn body(&mut self, body: &Body) {
        let layers = body.layers();
        let config = &body.manifest.config.digest;
        if body.config.as_ref().is_some_and(|config| config.diff_ids.is_some())
            && layers.is_empty()
            && body.blobs().count() > 0
        {
            let problem = format!("has {} layers, and its config says otherwise", body.blobs().count());
            self.found.add(Severity::Error, body.digest.to_string(), problem, "containerd does not unpack it", "");
        }
        let Some(top) = layers.last().map(|layer| layer.chain.to_string()) else { return };
        let object = format!("{}/content/{config}", self.space.name());
        let labels = self.space.all.blobs.get(config).map(|blob| &blob.labels);
        for (key, value) in labels.into_iter().flatten().filter(|(_, value)| **value != top) {
            let Some(name) = snapshotter_of(key) else { continue };
            // Where neither is there, the label is told of as one that leads nowhere.
            if !self.space.has_snapshot(name, value) && !self.space.has_snapshot(name, &top) {
                continue;
            }
            let problem = format!("keeps the snapshot {value} ({key}), and its layers make {top}");
            self.found.error(&object, problem, "containerd's garbage collection removes the image's own snapshots");
        }
        let by_key: HashMap<(&str, &str), &Snapshot> = self
            .space
            .all
            .snapshots
            .iter()
            .map(|(snapshot, _)| ((snapshot.snapshotter.as_str(), snapshot.key.as_str()), snapshot))
            .collect();
        let snapshotters: BTreeSet<&str> = self.space.snapshotters_of(&top).collect();
        let layers_here = body.blobs().all(|layer| self.space.recorded(&layer.digest));
        for name in snapshotters {
            let own = labels.is_some_and(|labels| {
                labels.iter().any(|(key, value)| snapshotter_of(key) == Some(name) && *value == top)
            });
            if !own && (!layers_here || !self.held.contains(&(name, top.as_str()))) {
                let consequence = if layers_here {
                    "containerd removes them when it starts, and unpacks the image again when a container needs it"
                } else {
                    "containerd removes them, and has no layers to unpack: nothing runs from the image then"
                };
                self.found.error(&object, format!("has no label that keeps its snapshots of {name}"), consequence);
            }
            let mut below = "";
            for layer in &layers {
                if let Some(snapshot) = by_key.get(&(name, layer.chain.as_str()))
                    && snapshot.parent != below
                {
                    let object = format!("{}/snapshots/{name}/{}", self.space.name(), layer.chain);
                    let says = if snapshot.parent.is_empty() { "nothing" } else { &snapshot.parent };
                    let should = if below.is_empty() { "nothing" } else { below };
                    let problem = format!("lies on {says}, and has to lie on {should}");
                    self.found.error(object, problem, "containers from it fail, or see other files");
                }
                below = layer.chain.as_str();
            }
        }
        for layer in &layers {
            let blob = self.space.all.blobs.get(&layer.descriptor.digest);
            let said = blob.and_then(|blob| blob.labels.get(labels::UNCOMPRESSED));
            if let Some(said) = said.filter(|said| **said != layer.diff_id.as_str()) {
                let object = format!("{}/content/{}", self.space.name(), layer.descriptor.digest);
                let problem = format!("says that it unpacks to {said}, and the config says {}", layer.diff_id);
                self.found.error(object, problem, "containerd takes it for another layer when it compares or exports");
            }
        }
    }

    /// References of documents that lead elsewhere than the documents themselves.
    fn labels(&mut self) {
        for node in &self.anatomy.documents {
            let digest = &node.descriptor.digest;
            if self.bad.contains(digest) {
                continue;
            }
            let Some(blob) = self.space.all.blobs.get(digest) else { continue };
            for (key, child) in labels::children(&node.children) {
                if let Some(value) = blob.labels.get(&key).filter(|value| **value != child.as_str()) {
                    self.found.warn(
                        format!("{}/content/{digest}", self.space.name()),
                        format!("refers to {value} ({key}), and the document says {child}"),
                        "containerd's garbage collection goes by the label",
                    );
                }
            }
        }
    }
}
