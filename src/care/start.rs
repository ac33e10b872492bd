//! What a containerd would make of each image when a container needs it: run it, unpack it first, or fail.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::anatomy::{Anatomy, Body};
use super::release::Release;
use super::state::{Meta, Space, State};
use super::{Result, ways};
use crate::bolt::Lock;
use crate::kind::chain;
use crate::metadata::{Error, ImageRow, MetaDb, Snapshot, Wait};
use crate::oci::{Digest, Platform, media_type};
use crate::root::Root;
use crate::snapshot::WITH_DIRS;

/// The first release that unpacks Docker's zstd layers (`images.DiffCompression`).
const DOCKER_ZSTD: Release = Release::new(2, 0);
/// The first release that passes over an image whose config is for another platform than its index says, without a word.
const STRICT_PLATFORM: Release = Release::new(2, 2);
const DOCKER_ZSTD_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// Which containerd is to start.
#[derive(Debug, Clone)]
pub struct Start {
    /// Its release.
    pub release: Release,
    /// The snapshotter of the runtime that the images are for.
    pub snapshotter: String,
    /// The machine it runs on.
    pub platform: Platform,
}

/// What becomes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It runs at once.
    Runs,
    /// It is unpacked first, and runs.
    Unpacks,
    /// Nothing runs from it.
    Fails,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runs => "runs",
            Self::Unpacks => "unpacks first",
            Self::Fails => "fails",
        })
    }
}

/// What becomes of an image, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageStart {
    /// containerd's namespace.
    pub namespace: String,
    /// The image.
    pub image: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why.
    pub why: String,
}

/// What a containerd would make of a root.
#[derive(Debug, Default, Serialize)]
pub struct StartReport {
    /// Why it does not start at all, if it does not.
    pub refuses: Option<String>,
    /// Each image's record.
    pub images: Vec<ImageStart>,
}

/// Says what a containerd would make of each image. Nothing is hashed.
///
/// # Errors
/// [`super::Error`] when the root cannot be looked at.
pub fn would_start(root: &Root, start: &Start, wait: &Wait<'_>) -> Result<StartReport> {
    let ways = ways::look(root)?;
    if let Some(way) = ways.iter().find(|way| way.wrong == ways::Wrong::Kind { file: false }) {
        let refuses = Some(format!("{} is not a directory", way.path.display()));
        return Ok(StartReport { refuses, images: Vec::new() });
    }
    let mut meta = match MetaDb::lock(root, Lock::Shared, wait) {
        Ok(meta) => Ok(meta),
        Err(error @ Error::Bolt { .. }) => Err(chain(&error)),
        Err(error) => return Err(error.into()),
    };
    let state = State::read(root, meta.as_mut().map_err(|why| why.clone()))?;
    let refuses = refuses(&state);
    let mut images = Vec::new();
    for space in &state.spaces {
        let look = Look { state: &state, space, start };
        let mut known: HashMap<&Digest, (Verdict, String)> = HashMap::new();
        for row in &space.all.images {
            let (verdict, why) = known.entry(&row.target.digest).or_insert_with(|| look.image(row)).clone();
            let (verdict, why) = match &refuses {
                Some(_) => (Verdict::Fails, "containerd does not start".to_owned()),
                None => (verdict, why),
            };
            let (namespace, image) = (space.name().to_owned(), row.name.clone());
            images.push(ImageStart { namespace, image, verdict, why });
        }
    }
    Ok(StartReport { refuses, images })
}

/// Why a containerd would not start on a root.
fn refuses(state: &State) -> Option<String> {
    if let Meta::Damaged(why, _) = &state.meta {
        return Some(format!("meta.db: {why}"));
    }
    // CRI lists the images of its own namespace when it starts, and exits where that fails.
    let cri = state.spaces.iter().find(|space| space.name() == crate::metadata::K8S_NAMESPACE)?;
    let images = format!("v1/{}/images", cri.name());
    let wrong = cri.all.wrong.iter().map(ToString::to_string);
    wrong.into_iter().find(|error| error.starts_with(&images))
}

struct Look<'s> {
    state: &'s State,
    space: &'s Space,
    start: &'s Start,
}

impl Look<'_> {
    fn image(&self, row: &ImageRow) -> (Verdict, String) {
        let fails = |why: String| (Verdict::Fails, why);
        let anatomy = Anatomy::new(&self.state.store, &row.target, &|digest| self.space.recorded(digest));
        if !self.space.recorded(&row.target.digest) {
            return fails(format!("its target {} has no record", row.target.digest));
        }
        let Some(body) = self.choose(&anatomy) else {
            let missing = anatomy.missing.iter().map(|missing| format!("{} is missing", missing.digest));
            let broken = anatomy.broken.iter().map(|(broken, why)| format!("{}: {why}", broken.digest));
            let none = || format!("there is no manifest for {} here", self.start.platform);
            return fails(missing.chain(broken).next().unwrap_or_else(none));
        };
        let config = &body.manifest.config;
        if !media_type::is_image_config(&config.media_type) {
            return fails("it is no image that could run".to_owned());
        }
        if !self.space.recorded(&config.digest) || body.config.is_none() {
            return fails(format!("its config {} is missing", config.digest));
        }
        let layers = body.layers();
        if layers.len() != body.blobs().count() {
            return fails("its config does not fit its layers".to_owned());
        }
        let Some(top) = body.top() else { return (Verdict::Runs, "it has no layers".to_owned()) };
        let snapshotter = &self.start.snapshotter;
        if self.space.has_snapshot(snapshotter, top.as_str()) {
            return match self.broken_chain(&top) {
                None => (Verdict::Runs, format!("it is unpacked for {snapshotter}")),
                Some(why) => fails(format!("containerd takes it for unpacked, and {why}")),
            };
        }
        self.unpacks(body)
    }

    /// The manifest for the machine.
    fn choose<'a>(&self, anatomy: &'a Anatomy) -> Option<&'a Body> {
        let platform = &self.start.platform;
        let of = |body: &&Body| {
            body.said
                .as_ref()
                .or(body.config.as_ref().map(|config| &config.platform))
                .is_none_or(|said| said == platform)
        };
        anatomy.manifests.iter().find(of)
    }

    /// What is wrong with snapshots that have records, where prebake can tell.
    fn broken_chain(&self, top: &Digest) -> Option<String> {
        let name = self.start.snapshotter.as_str();
        let found = self.state.snapshotters.iter().find(|snapshotter| snapshotter.name == name);
        let Some(snapshotter) = found.filter(|_| WITH_DIRS.contains(&name)) else {
            return WITH_DIRS.contains(&name).then(|| format!("{name} has nothing of it"));
        };
        let database = snapshotter.database.as_ref().ok().and_then(Option::as_ref);
        let Some(records) = database.and_then(|database| database.records.as_ref()) else {
            return Some(format!("the metadata.db of {name} cannot be read, or has nothing"));
        };
        let rows: HashMap<&str, &Snapshot> = (self.space.all.snapshots.iter())
            .filter(|(row, _)| row.snapshotter == name)
            .map(|(row, _)| (row.key.as_str(), row))
            .collect();
        let mut at = top.as_str();
        for _ in 0..=rows.len() {
            let Some(row) = rows.get(at) else { return Some(format!("its snapshot {at} has no record")) };
            let stored = records.snapshots.get(&row.name);
            let Some(id) = stored.and_then(|stored| stored.id) else {
                return Some(format!("{} is not in metadata.db", row.name));
            };
            if !snapshotter.dirs.contains(&id.to_string()) || snapshotter.broken.contains(&id) {
                return Some(format!("snapshots/{id} has no files"));
            }
            if row.parent.is_empty() {
                return None;
            }
            at = &row.parent;
        }
        Some("its snapshots lie on each other".to_owned())
    }

    fn unpacks(&self, body: &Body) -> (Verdict, String) {
        let Start { release, snapshotter, .. } = self.start;
        let fails = |why: String| (Verdict::Fails, why);
        for layer in body.blobs() {
            let stat = self.state.files.get(&layer.digest);
            if !self.space.recorded(&layer.digest) || stat.is_none() {
                let elsewhere = body.top().map_or(Vec::new(), |top| {
                    self.space.snapshotters_of(top.as_str()).map(str::to_owned).collect::<Vec<_>>()
                });
                let discarded = if elsewhere.is_empty() {
                    String::new()
                } else {
                    format!(" (discarded: it is unpacked for {} alone)", elsewhere.join(", "))
                };
                return fails(format!("{snapshotter} needs layer {}, which is not here{discarded}", layer.digest));
            }
            if layer.media_type == DOCKER_ZSTD_LAYER && *release < DOCKER_ZSTD {
                return fails(format!("containerd {release} cannot unpack Docker's zstd layers; {DOCKER_ZSTD} can"));
            }
        }
        if let (Some(said), Some(config)) = (&body.said, &body.config)
            && *said != config.platform
            && *release >= STRICT_PLATFORM
        {
            let config = &config.platform;
            return fails(format!(
                "its index says {said} and its config {config}: containerd {release} does not unpack it"
            ));
        }
        (Verdict::Unpacks, format!("it is not unpacked for {snapshotter}, and its layers are here"))
    }
}
