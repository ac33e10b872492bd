//! What keeps what: the objects of containerd's metadata and their references, as its garbage collector sees them
//! (containerd `core/metadata/gc.go`: `scanRoots`, `references`; `pkg/gc.Tricolor`).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::release::Rules;
use crate::duration;
use crate::metadata::{Contents, Labels};

/// What kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Image,
    Blob,
    Snapshot,
    Ingest,
    Container,
    Lease,
    Sandbox,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Blob => "blob",
            Self::Snapshot => "snapshot",
            Self::Ingest => "ingest",
            Self::Container => "container",
            Self::Lease => "lease",
            Self::Sandbox => "sandbox",
        }
    }
}

/// An object by what names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Object<'c> {
    pub(super) namespace: &'c str,
    pub(super) kind: Kind,
    /// Of snapshots.
    pub(super) snapshotter: &'c str,
    pub(super) key: &'c str,
}

/// By what one object keeps another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By<'c> {
    /// It is the image's target.
    Target,
    /// A label of the one that keeps.
    Label(&'c str),
    /// A label of the one that is kept (`gc.bref.*`).
    BackLabel(&'c str),
    /// A snapshot's parent.
    Parent,
    /// Named by a lease.
    Lease,
    /// A container's own snapshot.
    Own,
    /// What an ingest is to become.
    Expected,
}

/// Why something is kept whatever refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Root {
    /// An image's record.
    Image,
    /// A container.
    Container,
    /// A sandbox.
    Sandbox,
    /// A lease that has not expired.
    Lease,
    /// A label `gc.root`.
    Label,
    /// An ingest whose time has not passed.
    Ingest,
}

#[derive(Debug, Clone, Copy)]
struct Edge<'c> {
    to: usize,
    by: By<'c>,
    /// What is kept so keeps nothing else, but for a snapshot's parents (`gc.flat`).
    flat: bool,
}

/// The objects of all namespaces.
pub(super) struct Graph<'c> {
    objects: Vec<Object<'c>>,
    ids: HashMap<Object<'c>, usize>,
    edges: Vec<Vec<Edge<'c>>>,
    roots: Vec<(usize, Root)>,
}

const EXPIRE: &str = "containerd.io/gc.expire";
const FLAT: &str = "containerd.io/gc.flat";
const ROOT: &str = "containerd.io/gc.root";
const REF: &str = "containerd.io/gc.ref.";
const BACK_REF: &str = "containerd.io/gc.bref.";
const CONDITION: &str = "containerd.io/gc.cond.snapshot";
const USED_AT: &str = "containerd.io/gc.cond.value-usedat";

/// Whether labels say that an object's time has passed; a time that cannot be read does not count.
pub(super) fn is_expired(labels: &Labels, now: DateTime<Utc>) -> bool {
    let expires = labels.get(EXPIRE).and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    expires.is_some_and(|expires| now > expires)
}

impl<'c> Graph<'c> {
    /// The objects, and what refers to what by these rules at this time.
    pub(super) fn new(all: &'c [Contents], rules: Rules, now: DateTime<Utc>) -> Self {
        let mut graph = Self { objects: Vec::new(), ids: HashMap::new(), edges: Vec::new(), roots: Vec::new() };
        for contents in all {
            graph.add_all(contents);
        }
        for contents in all {
            Builder { graph: &mut graph, namespace: &contents.namespace, rules, now }.all(contents);
        }
        // Whatever keeps an image is said before whatever keeps its parts.
        graph.roots.sort_by_key(|(_, root)| *root);
        graph
    }

    fn add_all(&mut self, contents: &'c Contents) {
        let Contents { namespace, images, blobs, snapshots, ingests, containers, leases, sandboxes, .. } = contents;
        let mut add = |kind, snapshotter, key| {
            let object = Object { namespace, kind, snapshotter, key };
            if let std::collections::hash_map::Entry::Vacant(entry) = self.ids.entry(object) {
                entry.insert(self.objects.len());
                self.objects.push(object);
                self.edges.push(Vec::new());
            }
        };
        for image in images {
            add(Kind::Image, "", &image.name);
        }
        for digest in blobs.keys() {
            add(Kind::Blob, "", digest.as_str());
        }
        for (snapshot, _) in snapshots {
            add(Kind::Snapshot, &snapshot.snapshotter, &snapshot.key);
        }
        for ingest in ingests {
            add(Kind::Ingest, "", &ingest.reference);
        }
        for container in containers {
            add(Kind::Container, "", &container.id);
        }
        for lease in leases {
            add(Kind::Lease, "", &lease.id);
        }
        for (id, _) in sandboxes {
            add(Kind::Sandbox, "", id);
        }
    }

    /// All objects, by their numbers.
    pub(super) fn objects(&self) -> impl Iterator<Item = (usize, Object<'c>)> + '_ {
        self.objects.iter().copied().enumerate()
    }

    pub(super) fn object(&self, id: usize) -> Object<'c> {
        self.objects[id]
    }

    pub(super) fn find(&self, object: Object<'_>) -> Option<usize> {
        self.ids.get(&object).copied()
    }

    /// What refers to each object, and by what.
    pub(super) fn keepers(&self) -> Vec<Vec<(usize, By<'c>)>> {
        let mut keepers = vec![Vec::new(); self.objects.len()];
        for (from, edges) in self.edges.iter().enumerate() {
            for edge in edges {
                keepers[edge.to].push((from, edge.by));
            }
        }
        keepers
    }

    /// What is kept for its own sake, and why.
    pub(super) fn roots(&self) -> HashMap<usize, Root> {
        self.roots.iter().rev().copied().collect()
    }

    /// Which objects are kept; a collection removes the others.
    pub(super) fn mark(&self) -> Vec<bool> {
        let mut seen = vec![[false; 2]; self.objects.len()];
        let mut todo: VecDeque<(usize, bool)> = VecDeque::new();
        for (id, _) in &self.roots {
            seen[*id][0] = true;
            todo.push_back((*id, false));
        }
        while let Some((from, flat)) = todo.pop_front() {
            for edge in &self.edges[from] {
                // Kept flatly, an object keeps its parent only, and that flatly too; of an image its target.
                if flat && !matches!(edge.by, By::Parent | By::Target) {
                    continue;
                }
                let flat = flat || edge.flat;
                if !std::mem::replace(&mut seen[edge.to][usize::from(flat)], true) {
                    todo.push_back((edge.to, flat));
                }
            }
        }
        seen.iter().map(|[whole, flat]| *whole || *flat).collect()
    }
}

/// Adds one namespace's references.
struct Builder<'g, 'c> {
    graph: &'g mut Graph<'c>,
    namespace: &'c str,
    rules: Rules,
    now: DateTime<Utc>,
}

impl<'c> Builder<'_, 'c> {
    fn id(&self, kind: Kind, snapshotter: &str, key: &str) -> Option<usize> {
        self.graph.find(Object { namespace: self.namespace, kind, snapshotter, key })
    }

    /// References to what does not exist are nobody's concern.
    fn edge(&mut self, from: Option<usize>, to: Option<usize>, by: By<'c>) {
        if let (Some(from), Some(to)) = (from, to) {
            self.graph.edges[from].push(Edge { to, by, flat: false });
        }
    }

    fn root(&mut self, id: Option<usize>, root: Root) {
        self.graph.roots.extend(id.map(|id| (id, root)));
    }

    fn all(&mut self, contents: &'c Contents) {
        let (now, rules) = (self.now, self.rules);
        for lease in contents.leases.iter().filter(|lease| !is_expired(&lease.labels, now)) {
            let Some(id) = self.id(Kind::Lease, "", &lease.id) else { continue };
            self.root(Some(id), Root::Lease);
            let flat = lease.labels.contains_key(FLAT);
            let images = lease.images.iter().filter(|_| rules.images_referred);
            let held: Vec<_> = (lease.blobs.iter().map(|key| self.id(Kind::Blob, "", key)))
                .chain(lease.snapshots.iter().map(|(snapshotter, key)| self.id(Kind::Snapshot, snapshotter, key)))
                .chain(lease.ingests.iter().map(|key| self.id(Kind::Ingest, "", key)))
                .chain(images.map(|key| self.id(Kind::Image, "", key)))
                .flatten()
                .collect();
            for to in held {
                let flat = flat && self.graph.objects[to].kind != Kind::Ingest;
                self.graph.edges[id].push(Edge { to, by: By::Lease, flat });
            }
        }
        for image in &contents.images {
            let id = self.id(Kind::Image, "", &image.name);
            let expired = self.rules.images_expire && is_expired(&image.labels, self.now);
            if !expired {
                self.root(id, Root::Image);
            }
            let target = self.id(Kind::Blob, "", image.target.digest.as_str());
            self.edge(id, target, By::Target);
            // The collector looks at back references of an image only when nothing else keeps it.
            self.labels(id, &image.labels, expired);
        }
        for ingest in &contents.ingests {
            let id = self.id(Kind::Ingest, "", &ingest.reference);
            if ingest.expires.is_some_and(|expires| self.now <= expires) {
                self.root(id, Root::Ingest);
            }
            let expected = ingest.expected.as_ref().and_then(|digest| self.id(Kind::Blob, "", digest.as_str()));
            self.edge(id, expected, By::Expected);
        }
        for blob in contents.blobs.values() {
            let id = self.id(Kind::Blob, "", blob.digest.as_str());
            self.labelled_root(id, &blob.labels);
            self.labels(id, &blob.labels, true);
        }
        for container in &contents.containers {
            let id = self.id(Kind::Container, "", &container.id);
            self.root(id, Root::Container);
            let own = self.id(Kind::Snapshot, &container.snapshotter, &container.snapshot);
            self.edge(id, own, By::Own);
            self.labels(id, &container.labels, true);
        }
        for (snapshot, labels) in &contents.snapshots {
            let id = self.id(Kind::Snapshot, &snapshot.snapshotter, &snapshot.key);
            self.labelled_root(id, labels);
            let parent = self.id(Kind::Snapshot, &snapshot.snapshotter, &snapshot.parent);
            self.edge(id, parent, By::Parent);
            self.labels(id, labels, true);
        }
        for (sandbox, labels) in contents.sandboxes.iter().filter(|_| rules.sandboxes) {
            let id = self.id(Kind::Sandbox, "", sandbox);
            self.root(id, Root::Sandbox);
            self.labels(id, labels, false);
        }
        if self.rules.conditions {
            self.conditions(contents);
        }
    }

    fn labelled_root(&mut self, id: Option<usize>, labels: &Labels) {
        let is_root = |key: &String| key == ROOT || self.rules.back_references && key.starts_with(ROOT);
        if labels.keys().any(is_root) {
            self.root(id, Root::Label);
        }
    }

    fn labels(&mut self, id: Option<usize>, labels: &'c Labels, back: bool) {
        for (key, value) in labels {
            let kind = key.strip_prefix(REF).filter(|kind| !kind.starts_with("container"));
            if let Some(to) = kind.and_then(|kind| self.referred(kind, value)) {
                self.edge(id, Some(to), By::Label(key));
            }
            let back = back && self.rules.back_references;
            let kind = key.strip_prefix(BACK_REF).filter(|_| back);
            if let Some(from) = kind.and_then(|kind| self.referred(kind, value)) {
                self.edge(Some(from), id, By::BackLabel(key));
            }
        }
    }

    /// What a reference leads to, by the end of its label's key.
    fn referred(&self, kind: &str, value: &str) -> Option<usize> {
        // A name may follow, behind a dot or a slash.
        let named = |kind: &str, word: &str| {
            kind.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
        };
        if let Some(snapshotter) = kind.strip_prefix("snapshot.") {
            return self.id(Kind::Snapshot, snapshotter.split('/').next().unwrap_or_default(), value);
        }
        match kind {
            kind if named(kind, "content") => self.id(Kind::Blob, "", value),
            kind if named(kind, "image") && self.rules.images_referred => self.id(Kind::Image, "", value),
            kind if named(kind, "container") => self.id(Kind::Container, "", value),
            _ => None,
        }
    }

    /// Images and blobs may keep snapshots as long as those were used lately: `usedat<24h|KEY`, several joined by commas.
    fn conditions(&mut self, contents: &'c Contents) {
        let mut used: HashMap<usize, Vec<DateTime<Utc>>> = HashMap::new();
        for (snapshot, labels) in &contents.snapshots {
            let times = labels.iter().filter(|(key, _)| key.starts_with(USED_AT));
            let times = times.filter_map(|(_, at)| DateTime::parse_from_rfc3339(at).ok()).map(|at| at.to_utc());
            if let Some(id) = self.id(Kind::Snapshot, &snapshot.snapshotter, &snapshot.key) {
                used.entry(id).or_default().extend(times);
            }
        }
        let images = contents.images.iter().map(|image| (Kind::Image, image.name.as_str(), &image.labels));
        let blobs = contents.blobs.values().map(|blob| (Kind::Blob, blob.digest.as_str(), &blob.labels));
        for (kind, key, labels) in images.chain(blobs) {
            for (label, value) in labels.iter().filter(|(label, _)| label.starts_with(CONDITION)) {
                let Some((conditions, snapshot)) = value.split_once('|') else { continue };
                let snapshotter = label[CONDITION.len()..].trim_start_matches(['.', '/']);
                let snapshotter = snapshotter.split('/').next().unwrap_or_default();
                let Some(to) = self.id(Kind::Snapshot, snapshotter, snapshot) else { continue };
                let ages = used.get(&to).into_iter().flatten().map(|at| (self.now - *at).to_std().unwrap_or_default());
                let met = ages.clone().any(|age| conditions.split(',').any(|condition| is_met(condition, age)));
                if met {
                    let from = self.id(kind, "", key);
                    self.edge(from, Some(to), By::Label(label));
                }
            }
        }
    }
}

fn is_met(condition: &str, age: Duration) -> bool {
    match condition.strip_prefix("usedat").and_then(|rest| rest.split_at_checked(1)) {
        Some(("<", text)) => duration::parse(text).is_some_and(|limit| age < limit),
        Some((">", text)) => duration::parse(text).is_some_and(|limit| age > limit),
        _ => false,
    }
}
