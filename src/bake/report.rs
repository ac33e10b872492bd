//! What a bake came to, to be kept: as JSON, and as a page that shows it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::fetch::{Origin, Resolved};
use super::plan::Planned;
use super::{Event, Listener, Report};
use crate::content::Store;
use crate::oci::{Descriptor, Digest};
use crate::root::{Root, Space};
use crate::snapshot::Stored;

const VERSION: u64 = 1;
const PAGE: &str = include_str!("report.html");
const PLACE: &str = "{{REPORT}}";

/// What an image is made of, for a report.
#[derive(Debug)]
pub struct Detail {
    planned: Planned,
    blobs: Vec<Descriptor>,
    /// Chains and their blobs.
    layers: Vec<(Digest, Digest)>,
    config: Digest,
    origin: Origin,
}

impl Detail {
    pub(super) fn of(planned: Planned, image: &Resolved) -> Self {
        let blob = |blob: &Descriptor| Descriptor::new(blob.media_type.clone(), blob.digest.clone(), blob.size);
        let layers = image.stack.iter().flat_map(|stack| &stack.layers);
        Self {
            planned,
            blobs: image.blobs.iter().map(|of| blob(&of.descriptor)).collect(),
            layers: layers.map(|layer| (layer.chain.clone(), layer.descriptor.digest.clone())).collect(),
            config: image.config.clone(),
            origin: image.origin.clone(),
        }
    }
}

/// Writes down when what happened.
pub struct Recorder {
    started: Instant,
    at: DateTime<Utc>,
    before: Option<Space>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    blobs: HashMap<Digest, SeenBlob>,
    layers: HashMap<Digest, SeenLayer>,
    /// Seconds until an image was complete, or failed.
    images: HashMap<String, f64>,
}

#[derive(Default)]
struct SeenBlob {
    started: Option<f64>,
    ended: Option<f64>,
    fetched: bool,
    retries: u32,
    from: Option<String>,
}

#[derive(Default)]
struct SeenLayer {
    started: Option<f64>,
    ended: Option<f64>,
}

impl Recorder {
    /// Begins to write down a bake of a root.
    pub fn new(root: &Root) -> Self {
        let before = root.space().ok();
        Self { started: Instant::now(), at: Utc::now(), before, seen: Mutex::default() }
    }

    /// The report as JSON, see `docs/report.md`. Looks into the root, which nobody may be changing.
    pub fn json(&self, root: &Root, report: &Report) -> Value {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let store = Store::open(root).ok();
        let stored = Stored::of_root(root).ok().flatten();
        let mut tables = Tables { seen: &seen, store, stored, blobs: Table::default(), layers: Table::default() };
        let details: HashMap<(&str, &str), &Detail> =
            report.details.iter().map(|detail| ((&*detail.planned.namespace, &*detail.planned.name), detail)).collect();
        let images: Vec<Value> = report
            .images
            .iter()
            .map(|outcome| {
                let detail = details.get(&(&*outcome.namespace, &*outcome.name)).copied();
                tables.image(outcome, detail)
            })
            .collect();
        let done = || report.images.iter().filter(|outcome| outcome.failure.is_none());
        let names: BTreeSet<&str> = done().map(|outcome| without_version(&outcome.name)).collect();
        let space = |space: Option<Space>| {
            space.map(|space| json!({"used": space.total.saturating_sub(space.free), "free": space.free}))
        };
        let retries: u32 = seen.blobs.values().map(|blob| blob.retries).sum();
        let totals = &report.totals;
        json!({
            "version": VERSION, "prebake": env!("CARGO_PKG_VERSION"),
            "started": self.at.to_rfc3339_opts(SecondsFormat::Secs, true), "seconds": report.elapsed.as_secs_f64(),
            "root": root.path().display().to_string(),
            "ok": report.images.iter().all(|outcome| outcome.failure.is_none()),
            "totals": {"images": report.images.len(), "failed": report.images.len() - done().count(),
                "fetched_blobs": totals.fetched_blobs, "fetched_bytes": totals.fetched_bytes,
                "present_blobs": totals.present_blobs, "present_bytes": totals.present_bytes,
                "unpacked_layers": totals.unpacked_layers, "unpacked_bytes": totals.unpacked_bytes, "retries": retries,
                "cache": totals.cache},
            "disk": {"before": space(self.before), "after": space(root.space().ok())},
            "images": images, "blobs": tables.blobs.rows, "layers": tables.layers.rows,
            "bill_of_materials": report.details.iter().map(Detail::materials).collect::<Vec<_>>(),
            "preloadedImagesVerificationAllowlist": names,
        })
    }

    /// The report as a page.
    pub fn html(&self, root: &Root, report: &Report) -> String {
        // Nothing in it can end the element that it is in.
        PAGE.replacen(PLACE, &self.json(root, report).to_string().replace('<', "\\u003c"), 1)
    }
}

/// A name as kubelet's allowlist has it.
fn without_version(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((before, after)) if !after.contains('/') => before,
        _ => name,
    }
}

impl Detail {
    fn materials(&self) -> Value {
        let platforms: Vec<String> = self.planned.platforms.iter().map(ToString::to_string).collect();
        json!({"name": self.planned.name, "digest": self.planned.digest, "config": self.config,
            "platform": platforms.first(), "created": self.origin.created, "labels": self.origin.labels})
    }
}

/// Rows that images refer to by their number.
#[derive(Default)]
struct Table {
    rows: Vec<Value>,
    known: HashMap<String, usize>,
}

impl Table {
    fn add(&mut self, key: &str, row: impl FnOnce() -> Value) -> usize {
        if let Some(known) = self.known.get(key) {
            return *known;
        }
        self.rows.push(row());
        self.known.insert(key.to_owned(), self.rows.len() - 1);
        self.rows.len() - 1
    }
}

struct Tables<'s> {
    seen: &'s Seen,
    store: Option<Store>,
    stored: Option<Stored>,
    blobs: Table,
    layers: Table,
}

impl Tables<'_> {
    fn image(&mut self, outcome: &super::Outcome, detail: Option<&Detail>) -> Value {
        let failure = outcome.failure.as_ref();
        let (mut blobs, mut layers, mut from) = (Vec::new(), Vec::new(), BTreeSet::new());
        let (mut fetched, mut reused, mut retries) = (0, 0, 0);
        let nothing = SeenBlob::default();
        for blob in detail.into_iter().flat_map(|detail| &detail.blobs) {
            let seen = self.seen.blobs.get(&blob.digest).unwrap_or(&nothing);
            *(if seen.fetched { &mut fetched } else { &mut reused }) += blob.size;
            retries += seen.retries;
            from.extend(seen.from.as_deref());
            let kept = self.store.as_ref().and_then(|store| store.stat(&blob.digest).ok()?).is_some();
            blobs.push(self.blobs.add(blob.digest.as_str(), || {
                json!({"digest": blob.digest, "media_type": blob.media_type, "size": blob.size, "fetched": seen.fetched,
                    "kept": kept, "from": seen.from, "retries": seen.retries, "start": seen.started, "end": seen.ended})
            }));
        }
        let chain: Vec<Digest> =
            detail.into_iter().flat_map(|detail| &detail.layers).map(|(chain, _)| chain.clone()).collect();
        let namespace = &outcome.namespace;
        let present =
            self.stored.as_ref().map_or(Vec::new(), |stored| stored.present(namespace, &chain, &HashMap::new()));
        for ((chain, blob), present) in detail.into_iter().flat_map(|detail| &detail.layers).zip(present) {
            let seen = self.seen.layers.get(chain);
            layers.push(self.layers.add(&format!("{namespace} {chain}"), || {
                json!({"chain": chain, "digest": blob, "bytes": present.bytes.unwrap_or(0),
                    "inodes": present.inodes.unwrap_or(0), "start": seen.and_then(|seen| seen.started),
                    "end": seen.and_then(|seen| seen.ended)})
            }));
        }
        let planned = detail.map(|detail| &detail.planned);
        let choice = planned.and_then(|planned| planned.choice);
        let platforms = planned.map(|planned| planned.platforms.iter().map(ToString::to_string).collect::<Vec<_>>());
        json!({"name": outcome.name, "namespace": namespace, "digest": planned.and_then(|planned| planned.digest.clone()),
            "platforms": platforms.unwrap_or_default(), "policy": choice.map_or(String::new(), |choice| choice.policy.to_string()),
            "reason": choice.map_or(String::new(), |choice| choice.reason.to_string()),
            "pinned": choice.is_some_and(|choice| choice.pin), "ok": failure.is_none(),
            "error": failure.map(|failure| &failure.message), "remedy": failure.map(|failure| failure.kind.remedy()),
            "compressed": planned.map_or(0, |planned| planned.compressed),
            "unpacked": planned.map_or(0, |planned| planned.unpacked.bytes), "fetched_bytes": fetched,
            "reused_bytes": reused, "retries": retries, "seconds": self.seen.images.get(&outcome.name), "from": from,
            "blobs": blobs, "layers": layers})
    }
}

impl Listener for Recorder {
    fn on(&self, event: &Event<'_>) {
        let now = self.started.elapsed().as_secs_f64();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::BlobStarted { digest, .. } => {
                seen.blobs.entry((*digest).clone()).or_default().started.get_or_insert(now);
            }
            Event::BlobFrom { digest, host } => {
                seen.blobs.entry((*digest).clone()).or_default().from = Some((*host).to_owned());
            }
            Event::BlobRetried { digest, .. } => seen.blobs.entry((*digest).clone()).or_default().retries += 1,
            Event::BlobDone { digest, fetched, .. } => {
                let blob = seen.blobs.entry((*digest).clone()).or_default();
                (blob.fetched, blob.ended) = (*fetched, Some(now).filter(|_| *fetched));
                // What is small comes at once.
                blob.started = blob.started.or(blob.ended);
            }
            Event::LayerStarted { chain, .. } => {
                seen.layers.entry((*chain).clone()).or_default().started.get_or_insert(now);
            }
            Event::LayerEnded { chain, .. } => {
                seen.layers.entry((*chain).clone()).or_default().ended = Some(now);
            }
            Event::ImageFetched { image, .. } | Event::ImageFailed { image, .. } => {
                seen.images.insert((*image).to_owned(), now);
            }
            _ => {}
        }
    }
}
