//! Blobs that are missing or wrong, fetched again; and what lies among blobs and is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::Work;
use super::sources::{self, Missing, Sources};
use crate::care::Result;
use crate::care::anatomy::Anatomy;
use crate::care::state::State;
use crate::catalog::{Catalog, ImageRecord};
use crate::content::Store;
use crate::metadata;
use crate::oci::{Descriptor, Digest, media_type};
use crate::root::RootError;

/// Times that what came leads to more that is missing: an index to a manifest, that to a config and layers.
const ROUNDS: usize = 12;

/// What each image needs, and every record.
pub(super) struct Needs {
    /// What is not here, or wrong.
    pub(super) missing: BTreeMap<Digest, Descriptor>,
    /// Everything that an image leads to.
    pub(super) all: BTreeSet<Digest>,
    /// Whether that is all: documents that are not here may lead to more.
    pub(super) whole: bool,
}

impl Needs {
    /// `restore`: layers that were discarded are needed as well; `lost`: images of the catalog that are to get records again.
    pub(super) fn new(
        state: &State,
        bad: &BTreeMap<Digest, String>,
        restore: bool,
        lost: &[(String, ImageRecord)],
    ) -> Self {
        let mut needs = Self { missing: BTreeMap::new(), all: BTreeSet::new(), whole: true };
        let whole = |digest: &Digest| state.files.contains_key(digest) && !bad.contains_key(digest);
        for space in &state.spaces {
            for row in &space.all.images {
                needs.all.insert(row.target.digest.clone());
                let anatomy = Anatomy::new(&state.store, &row.target, &|digest| space.recorded(digest));
                needs.whole &= anatomy.missing.is_empty() && anatomy.broken.is_empty() && anatomy.empty.is_empty();
                let entries = anatomy.empty.iter().filter_map(|(_, entry)| entry.as_ref());
                let broken = anatomy.broken.iter().map(|(broken, _)| broken);
                for descriptor in anatomy.missing.iter().chain(entries).chain(broken) {
                    needs.all.insert(descriptor.digest.clone());
                    if !whole(&descriptor.digest) {
                        needs.missing.entry(descriptor.digest.clone()).or_insert_with(|| descriptor.clone());
                    }
                }
                for node in &anatomy.documents {
                    for child in &node.children {
                        needs.all.insert(child.digest.clone());
                    }
                }
                for body in &anatomy.manifests {
                    let top = body.top();
                    let unpacked =
                        top.is_some_and(|top| space.snapshotters_of(top.as_str()).next().is_some()) && !restore;
                    for blob in body.manifest.layers.iter().chain([&body.manifest.config]) {
                        let discarded = unpacked
                            && media_type::is_layer(&blob.media_type)
                            && !space.recorded(&blob.digest)
                            && !space.keeps(&body.digest, &blob.digest);
                        // Whether its layers are needed, the config tells, once it is here.
                        let unknown =
                            body.lacks_config() && !space.recorded(&blob.digest) && *blob != body.manifest.config;
                        let other = !anatomy.is_chosen(&body.digest) && !space.recorded(&blob.digest);
                        if !whole(&blob.digest) && !discarded && !unknown && !other {
                            needs.missing.entry(blob.digest.clone()).or_insert_with(|| blob.clone());
                        }
                    }
                }
            }
        }
        for blob in lost.iter().flat_map(|(_, image)| &image.blobs) {
            let descriptor = &blob.descriptor;
            needs.all.insert(descriptor.digest.clone());
            if !whole(&descriptor.digest) {
                needs.missing.entry(descriptor.digest.clone()).or_insert_with(|| descriptor.clone());
            }
        }
        for space in &state.spaces {
            for blob in space.all.blobs.values().filter(|blob| !whole(&blob.digest)) {
                let unknown = || Descriptor::new("", blob.digest.clone(), blob.size);
                needs.missing.entry(blob.digest.clone()).or_insert_with(unknown);
            }
        }
        needs
    }
}

impl Work<'_, '_> {
    /// Removes what stops containerd's garbage collection, and what nobody can go on with; closes what is open to writing.
    pub(super) fn strangers(&mut self) -> Result<()> {
        let state = self.state()?;
        for path in &state.strangers {
            if !self.is_dry() {
                let removed = match fs::symlink_metadata(path) {
                    Ok(meta) if meta.is_dir() => crate::layer::remove_dir(path),
                    _ => fs::remove_file(path),
                };
                removed.map_err(|source| RootError::new("removing", path, source))?;
            }
            self.did(path.display().to_string(), "removed");
        }
        for left in state.ingests.iter().filter(|left| left.reference.is_none()) {
            if !self.is_dry() {
                left.remove()?;
            }
            self.did(left.path.display().to_string(), "removed");
        }
        for (digest, _) in state.files.iter().filter(|(_, stat)| !stat.is_read_only()) {
            if !self.is_dry() {
                state.store.protect(digest)?;
            }
            self.did(digest.to_string(), "given the mode 0444");
        }
        if state.catalog.is_some()
            && let Some(dir) = self.root.state_dir()?
        {
            if !self.is_dry() {
                Catalog::remove(&dir)?;
            }
            self.did("prebake's catalog", "removed; what it knew is found again");
        }
        Ok(())
    }

    /// Fetches what is missing or wrong; drops records of what nobody needs and nobody has.
    pub(super) fn blobs(&mut self) -> Result<()> {
        for _ in 0..ROUNDS {
            let state = self.state()?;
            let needs = Needs::new(&state, &self.bad, self.options.restore_layers, &self.unrecorded(&state));
            let sources = Sources::new(&state);
            // What the name of an image leads to comes first: it may tell where the rest can be had.
            let is_open = |digest: &Digest| !self.unreachable.contains_key(digest);
            let any_named = needs.missing.keys().any(|digest| is_open(digest) && sources.is_named(digest));
            let wanted: Vec<Missing> = needs
                .missing
                .into_values()
                .filter(|Descriptor { digest, .. }| is_open(digest))
                .filter(|Descriptor { digest, .. }| {
                    !any_named || self.options.from.is_some() || sources.is_named(digest)
                })
                .map(|descriptor| sources.of(descriptor))
                .collect();
            if wanted.is_empty() {
                break;
            }
            let came = self.bring(&wanted)?;
            if self.is_dry() || came == 0 && !any_named {
                break;
            }
        }
        self.forget()
    }

    /// Brings blobs; how many came.
    pub(super) fn bring(&mut self, wanted: &[Missing]) -> Result<usize> {
        if self.is_dry() {
            for Missing { descriptor, references } in wanted {
                let from = match (&self.options.from, references.first()) {
                    (Some(from), _) => from.to_string(),
                    (None, Some(reference)) => format!("{}/{}", reference.registry(), reference.repository()),
                    (None, None) => "nowhere: nothing says from which registry it came".to_owned(),
                };
                self.did(descriptor.digest.to_string(), format!("to be fetched from {from}"));
            }
            return Ok(wanted.len());
        }
        let answers = match &self.options.from {
            Some(from) => sources::copy(&Store::create(self.root)?, from, wanted),
            None => (self.fetch)(wanted),
        };
        let mut came = 0;
        for (Missing { descriptor: Descriptor { digest, .. }, .. }, why) in wanted.iter().zip(answers) {
            if let Some(why) = why {
                self.unreachable.insert(digest.clone(), why);
            } else {
                came += 1;
                self.bad.remove(digest);
                if !self.temporary.contains(digest) {
                    self.did(digest.to_string(), "fetched again");
                }
            }
        }
        Ok(came)
    }

    /// Lets go of blobs that are missing or wrong, that no image leads to and that nobody has.
    fn forget(&mut self) -> Result<()> {
        let state = self.state()?;
        let needs = Needs::new(&state, &self.bad, false, &self.unrecorded(&state));
        let mut records = Vec::new();
        for (digest, why) in self.unreachable.clone() {
            if needs.all.contains(&digest) || !needs.whole {
                self.cannot(digest.to_string(), format!("cannot be had: {why}"));
                continue;
            }
            for space in state.spaces.iter().filter(|space| space.recorded(&digest)) {
                records.push((space.name().to_owned(), digest.clone()));
            }
        }
        if !self.is_dry() {
            self.write(|tx| {
                for (namespace, digest) in &records {
                    metadata::remove_blob(tx, namespace, digest)?;
                }
                Ok(())
            })?;
        }
        for (namespace, digest) in records {
            self.did(format!("{namespace}/content/{digest}"), "dropped: no image leads to it, and nobody has it");
        }
        let named: BTreeSet<&Digest> = state.spaces.iter().flat_map(|space| space.all.blobs.keys()).collect();
        for digest in self.bad.keys().cloned().collect::<Vec<_>>() {
            let wanted = needs.all.contains(&digest) || !needs.whole;
            if wanted || named.contains(&digest) && !self.unreachable.contains_key(&digest) {
                continue;
            }
            if !self.is_dry() {
                state.store.remove(&digest)?;
                self.bad.remove(&digest);
            }
            self.did(digest.to_string(), "removed: its bytes are wrong, and nothing refers to it");
        }
        Ok(())
    }

    /// Removes layers that were here only to be unpacked.
    pub(super) fn leave(&mut self) -> Result<()> {
        let state = self.state()?;
        for digest in std::mem::take(&mut self.temporary) {
            if !state.spaces.iter().any(|space| space.recorded(&digest)) {
                state.store.remove(&digest)?;
            }
        }
        Ok(())
    }
}
