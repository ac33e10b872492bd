//! Who keeps a thing: all that containerd's collector goes by, from whatever keeps it up to what nobody has to keep.

use std::collections::{HashMap, VecDeque};

use chrono::Utc;
use serde::Serialize;

use super::graph::{By, Graph, Kind, Object, Root as KeptAs};
use super::image::Image;
use super::release::{Release, Rules};
use super::used::{MIN_SHORT_ID, Need, Uses};
use super::whole::Whole;
use super::{Error, Result};
use crate::bolt::Lock;
use crate::catalog::ImageRecord;
use crate::metadata::{MetaDb, Wait};
use crate::oci::Reference;
use crate::root::Root;

/// Something in a root, and who keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// image, blob, snapshot, ingest, container, lease, sandbox; file for a blob without a record.
    pub kind: &'static str,
    /// containerd's namespace; none of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What names it; of a snapshot, its snapshotter and key.
    pub name: String,
    /// The ways from what keeps it; none: a collection removes it.
    pub kept: Vec<Way>,
    /// Of an image: who needs it, so that `prune` leaves it.
    pub needed: Vec<Need>,
}

/// A way from something that is kept for its own sake to the thing in question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Way {
    /// Why its beginning is kept.
    pub because: &'static str,
    /// From the beginning to the last before the thing.
    pub steps: Vec<Step>,
}

/// Something that keeps the next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Step {
    /// What it is.
    pub kind: &'static str,
    /// What names it.
    pub name: String,
    /// By what it keeps the next: a label, or what is said in words.
    pub by: String,
}

/// Who keeps what a text names: an image by its name, a blob or an image by its digest or the first digits of that, a snapshot
/// by its key or its directory's number, an ingest, a container, a lease by its own.
///
/// # Errors
/// [`Error::NoObject`] when nothing is called so; [`Error::Unsound`] when something in the root is damaged.
pub fn why(root: &Root, text: &str, release: Option<Release>, wait: &Wait<'_>) -> Result<Vec<Why>> {
    let mut meta = MetaDb::lock(root, Lock::Shared, wait)?;
    let whole = Whole::read(root, &mut meta)?;
    let now = Utc::now();
    let graph = Graph::new(&whole.contents, Rules::new(release, whole.migrated), now);
    let called = Called::new(&whole, text);
    let ways = Ways { keepers: graph.keepers(), roots: graph.roots(), graph };
    let named = ways.graph.objects().filter(|(_, object)| called.is(object));
    let mut found: Vec<Why> = named.map(|(id, object)| ways.explain(id, object)).collect();
    let uses = Uses::new(&whole, now);
    for contents in &whole.contents {
        for image in Image::all(&whole, contents) {
            let needs = uses.of(&image);
            for why in found.iter_mut().filter(|why| {
                why.kind == Kind::Image.name()
                    && why.namespace.as_deref() == Some(image.namespace)
                    && image.rows.iter().any(|row| row.name == why.name)
            }) {
                why.needed = needs.names.get(&why.name).into_iter().chain(&needs.image).cloned().collect();
            }
        }
    }
    let recorded = |digest: &str| found.iter().any(|why| why.kind == Kind::Blob.name() && why.name == digest);
    let files: Vec<Why> = whole
        .files
        .keys()
        .filter(|digest| called.fits_digest(digest.as_str()) && !recorded(digest.as_str()))
        .map(|digest| Why {
            kind: "file",
            namespace: None,
            name: digest.to_string(),
            kept: fetched(&whole, digest.as_str()),
            needed: Vec::new(),
        })
        .collect();
    found.extend(files);
    if found.is_empty() { Err(Error::NoObject(text.to_owned())) } else { Ok(found) }
}

/// What a text may name.
struct Called<'t> {
    text: &'t str,
    name: Option<String>,
    /// Snapshotter and key of snapshots by their directory's number.
    snapshots: Vec<(String, String)>,
}

impl<'t> Called<'t> {
    fn new(whole: &Whole, text: &'t str) -> Self {
        let name = text.parse::<Reference>().ok().map(|reference| reference.to_string());
        let mut snapshots = Vec::new();
        if let Ok(number) = text.parse::<u64>() {
            for snapshotter in &whole.snapshotters {
                let stored = snapshotter.records().into_iter().flat_map(|records| &records.snapshots);
                for (name, _) in stored.filter(|(_, stored)| stored.id == Some(number)) {
                    let rows = whole.contents.iter().flat_map(|contents| &contents.snapshots);
                    let named = rows.filter(|(row, _)| row.snapshotter == snapshotter.name && row.name == *name);
                    snapshots.extend(named.map(|(row, _)| (row.snapshotter.clone(), row.key.clone())));
                }
            }
        }
        Self { text, name, snapshots }
    }

    fn fits_digest(&self, digest: &str) -> bool {
        let hex = |text: &'_ str| text.split_once(':').map_or(text.to_owned(), |(_, hex)| hex.to_owned());
        let digits = hex(self.text);
        digits.len() >= MIN_SHORT_ID && hex(digest).starts_with(&digits)
    }

    fn is(&self, object: &Object<'_>) -> bool {
        let key = object.key;
        match object.kind {
            Kind::Image => {
                key == self.text || self.name.as_deref() == Some(key) || is_digest(key) && self.fits_digest(key)
            }
            Kind::Blob => self.fits_digest(key),
            Kind::Snapshot => {
                let by_number = |(snapshotter, own): &(String, String)| snapshotter == object.snapshotter && own == key;
                key == self.text
                    || self.text.split_once('/') == Some((object.snapshotter, key))
                    || is_digest(key) && self.fits_digest(key)
                    || self.snapshots.iter().any(by_number)
            }
            Kind::Ingest | Kind::Container | Kind::Lease | Kind::Sandbox => key == self.text,
        }
    }
}

fn is_digest(text: &str) -> bool {
    text.starts_with("sha256:") || text.starts_with("sha512:")
}

fn name(object: Object<'_>) -> String {
    match object.kind {
        Kind::Snapshot => format!("{}/{}", object.snapshotter, object.key),
        _ => object.key.to_owned(),
    }
}

/// The ways through a graph, backwards.
struct Ways<'c> {
    graph: Graph<'c>,
    keepers: Vec<Vec<(usize, By<'c>)>>,
    roots: HashMap<usize, KeptAs>,
}

impl Ways<'_> {
    /// Walks back from a thing to whatever is kept for its own sake; of several ways from one, a shortest is told.
    fn explain(&self, id: usize, object: Object<'_>) -> Why {
        let mut kept = Vec::new();
        let mut next: HashMap<usize, (usize, By<'_>)> = HashMap::new();
        let mut todo = VecDeque::from([id]);
        while let Some(at) = todo.pop_front() {
            if let Some(root) = self.roots.get(&at) {
                kept.push(self.way(id, at, *root, &next));
            }
            for (from, by) in &self.keepers[at] {
                if *from != id && !next.contains_key(from) {
                    next.insert(*from, (at, *by));
                    todo.push_back(*from);
                }
            }
        }
        kept.sort_unstable();
        let namespace = Some(object.namespace.to_owned());
        Why { kind: object.kind.name(), namespace, name: name(object), kept, needed: Vec::new() }
    }

    fn way(&self, id: usize, root: usize, kept: KeptAs, next: &HashMap<usize, (usize, By<'_>)>) -> Way {
        let mut steps = Vec::new();
        let mut at = root;
        while let Some((to, by)) = next.get(&at).filter(|_| at != id) {
            let object = self.graph.object(at);
            steps.push(Step { kind: object.kind.name(), name: name(object), by: said(*by) });
            at = *to;
        }
        let because = match kept {
            KeptAs::Image => "images are kept",
            KeptAs::Container => "containers are kept",
            KeptAs::Sandbox => "sandboxes are kept",
            KeptAs::Lease => "the lease has not expired",
            KeptAs::Label => "a label says so (containerd.io/gc.root)",
            KeptAs::Ingest => "it is being written",
        };
        Way { because, steps }
    }
}

fn said(by: By<'_>) -> String {
    match by {
        By::Target => "its target".to_owned(),
        By::Label(key) => key.to_owned(),
        By::BackLabel(key) => format!("{key} of the one that is kept"),
        By::Parent => "its parent".to_owned(),
        By::Lease => "held by it".to_owned(),
        By::Own => "its own snapshot".to_owned(),
        By::Expected => "what it becomes".to_owned(),
    }
}

/// The images that were fetched and have no record yet, and have a blob.
fn fetched(whole: &Whole, digest: &str) -> Vec<Way> {
    let has = |image: &ImageRecord| image.blobs.iter().any(|blob| blob.descriptor.digest.as_str() == digest);
    let images = whole.fetched.iter().filter(|(_, image)| has(image));
    let way = |(namespace, image): &(String, ImageRecord)| {
        let by = format!("fetched for namespace {namespace}, and not bootstrapped");
        let steps = vec![Step { kind: Kind::Image.name(), name: image.name.clone(), by }];
        Way { because: "prebake's catalog names it; containerd does not know", steps }
    };
    images.map(way).collect()
}
