//! Who needs an image: what Docker's prune of its containerd store learned (containerd-format: moby's `image_prune.go`), and
//! CRI's ways to name what a container runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::gc::is_live;
use super::image::Image;
use super::whole::Whole;
use crate::metadata::{Snapshot, labels};
use crate::oci::{Digest, Reference};

/// Fewest digits of a digest that name an image.
pub(super) const MIN_SHORT_ID: usize = 4;
/// Leases with which Docker holds what it pulls or builds just now; its own prune ends them first.
pub(super) const DOCKER_TEMPORARY: &str = "moby/prune.images";

/// A reason for an image to stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Need {
    /// kubelet must not remove it.
    Pinned,
    /// A container was made from it.
    Container {
        /// containerd's namespace.
        namespace: String,
        /// The container.
        id: String,
        /// What it calls the image.
        image: String,
    },
    /// A snapshot that is written to, or looked at, lies on its layers.
    Snapshot {
        /// containerd's namespace.
        namespace: String,
        /// The snapshotter.
        snapshotter: String,
        /// The snapshot.
        key: String,
    },
    /// A lease holds it.
    Lease {
        /// containerd's namespace.
        namespace: String,
        /// The lease.
        id: String,
    },
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned => f.write_str("it is pinned"),
            Self::Container { namespace, id, image } => {
                write!(f, "container {id} in namespace {namespace} was made from it, as {image:?}")
            }
            Self::Snapshot { namespace, snapshotter, key } => {
                write!(f, "the snapshot {key} of {snapshotter} in namespace {namespace} lies on it")
            }
            Self::Lease { namespace, id } => write!(f, "lease {id} in namespace {namespace} holds it"),
        }
    }
}

/// Why an image stays.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Who needs it under just this name.
    pub(super) names: BTreeMap<String, Need>,
    /// Who needs it under whatever name.
    pub(super) image: Vec<Need>,
}

impl Needs {
    /// The first reason there is.
    pub(super) fn any(&self) -> Option<&Need> {
        self.names.values().next().or(self.image.first())
    }
}

/// What a container may mean by what it calls its image.
struct Meant {
    need: Need,
    /// Names of records.
    names: Vec<String>,
    digest: Option<Digest>,
    /// The first digits of a digest.
    short: Option<String>,
}

impl Meant {
    fn new(need: Need, text: &str) -> Self {
        let mut names = vec![text.to_owned()];
        let reference = |text: &str| text.parse::<Reference>().map(|reference| reference.to_string());
        names.extend(reference(text));
        // Docker keeps the tag as well of what was run by tag and digest.
        let (name, digest) = text.split_once('@').map_or((None, text), |(name, digest)| (Some(name), digest));
        names.extend(name.and_then(|name| reference(name).ok()));
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let short = (text.len() >= MIN_SHORT_ID && is_hex(text)).then(|| text.to_owned());
        Self { need, names, digest: digest.parse().ok(), short }
    }
}

/// Everybody who may need an image.
pub(super) struct Uses {
    containers: Vec<Meant>,
    /// By namespace and chainID: the snapshot that lies on it.
    on_chains: HashMap<(String, Digest), Need>,
    /// By namespace and chainID: the snapshot that is to become it.
    unfinished: HashMap<(String, Digest), Need>,
    leases: Vec<(crate::metadata::Lease, Need)>,
}

impl Uses {
    pub(super) fn new(whole: &Whole, now: DateTime<Utc>) -> Self {
        let mut uses =
            Self { containers: Vec::new(), on_chains: HashMap::new(), unfinished: HashMap::new(), leases: Vec::new() };
        let active = whole.active();
        for contents in &whole.contents {
            let namespace = &contents.namespace;
            for container in contents.containers.iter().filter(|container| !container.image.is_empty()) {
                let (id, image) = (container.id.clone(), container.image.clone());
                let need = Need::Container { namespace: namespace.clone(), id, image };
                uses.containers.push(Meant::new(need, &container.image));
            }
            let by_key: HashMap<(&str, &str), &Snapshot> = contents
                .snapshots
                .iter()
                .map(|(snapshot, _)| ((snapshot.snapshotter.as_str(), snapshot.key.as_str()), snapshot))
                .collect();
            let parents: HashSet<(&str, &str)> =
                by_key.values().map(|snapshot| (snapshot.snapshotter.as_str(), snapshot.parent.as_str())).collect();
            for snapshot in by_key.values() {
                let at = (snapshot.snapshotter.as_str(), snapshot.key.as_str());
                // Of snapshotters that keep their records elsewhere: what is no layer, and has nothing on it.
                let seems_active = snapshot.key.parse::<Digest>().is_err() && !parents.contains(&at);
                if active.contains(&(at.0, snapshot.name.as_str())) || seems_active {
                    uses.add_active(snapshot, &by_key);
                }
            }
            for lease in contents.leases.iter().filter(|lease| is_live(lease, now)) {
                if !lease.labels.contains_key(DOCKER_TEMPORARY) {
                    let need = Need::Lease { namespace: namespace.clone(), id: lease.id.clone() };
                    uses.leases.push((lease.clone(), need));
                }
            }
        }
        uses
    }

    fn add_active(&mut self, snapshot: &Snapshot, by_key: &HashMap<(&str, &str), &Snapshot>) {
        let Snapshot { namespace, snapshotter, key, .. } = snapshot;
        let need =
            || Need::Snapshot { namespace: namespace.clone(), snapshotter: snapshotter.clone(), key: key.clone() };
        // As unpackers name it: "extract-<time>-<random> <chainID>".
        if let Some(chain) = key.strip_prefix("extract-").and_then(|rest| rest.rsplit(' ').next()?.parse().ok()) {
            self.unfinished.insert((namespace.clone(), chain), need());
        }
        // Docker puts a layer of its own between a container's and the image's.
        let mut parent = snapshot.parent.as_str();
        for _ in 0..=by_key.len() {
            if let Ok(chain) = parent.parse::<Digest>() {
                self.on_chains.insert((namespace.clone(), chain), need());
                return;
            }
            match by_key.get(&(snapshotter.as_str(), parent)) {
                Some(below) => parent = &below.parent,
                None => return,
            }
        }
    }

    /// Who needs an image.
    pub(super) fn of(&self, image: &Image<'_>) -> Needs {
        let mut needs = Needs::default();
        for row in &image.rows {
            if row.labels.get(labels::CRI_PINNED.0).is_some_and(|value| value == labels::CRI_PINNED.1) {
                needs.names.insert(row.name.clone(), Need::Pinned);
            }
        }
        for Meant { need, names, digest, short } in &self.containers {
            for row in image.rows.iter().filter(|row| names.contains(&row.name)) {
                needs.names.insert(row.name.clone(), need.clone());
            }
            let is_meant = |own: &Digest| {
                digest.as_ref() == Some(own) || short.as_ref().is_some_and(|short| own.hex().starts_with(short))
            };
            if image.digests().any(is_meant) {
                needs.image.push(need.clone());
            }
        }
        let namespace = || image.namespace.to_owned();
        for body in &image.anatomy.manifests {
            let chain = body.chain();
            let on = chain.last().and_then(|top| self.on_chains.get(&(namespace(), top.clone())));
            let unfinished = chain.iter().find_map(|part| self.unfinished.get(&(namespace(), part.clone())));
            needs.image.extend(on.into_iter().chain(unfinished).cloned());
        }
        for (lease, need) in &self.leases {
            let Need::Lease { namespace, .. } = need else { continue };
            if namespace != image.namespace {
                continue;
            }
            for row in image.rows.iter().filter(|row| lease.images.contains(&row.name)) {
                needs.names.insert(row.name.clone(), need.clone());
            }
            let tops = image.anatomy.manifests.iter().filter_map(|body| body.chain().pop());
            let holds_snapshot = |top: Digest| lease.snapshots.iter().any(|(_, key)| key == top.as_str());
            let holds_blob = image.digests().any(|digest| lease.blobs.iter().any(|key| key == digest.as_str()));
            if holds_blob || tops.into_iter().any(holds_snapshot) {
                needs.image.push(need.clone());
            }
        }
        needs
    }
}
