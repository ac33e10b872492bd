//! Records of images' blobs, their labels, and what else refers to something.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Work;
use crate::bootstrap::offline::{self, Unpacked, UnpackedLayer};
use crate::care::Result;
use crate::care::anatomy::{Anatomy, Body};
use crate::care::check;
use crate::care::state::{Space, State, snapshotter_of};
use crate::catalog::ImageRecord;
use crate::metadata::{self, Blob, Child, Labels, labels, put_blob};
use crate::oci::{Digest, media_type};
use crate::snapshot::Stored;
use crate::times::Times;

/// A blob's record as it is to be: in bytes, and with these labels besides those it has.
struct Wanted {
    size: u64,
    labels: Labels,
}

impl Work<'_, '_> {
    /// Images of the catalog that are to get their records again: all that have none where `meta.db` may have lost something, else
    /// those whose blobs have records.
    pub(super) fn unrecorded(&self, state: &State) -> Vec<(String, ImageRecord)> {
        let mut images: Vec<(String, ImageRecord)> = Vec::new();
        for space in &state.spaces {
            images.extend(check::lost(space, state).map(|image| (space.name().to_owned(), image.clone())));
        }
        if !self.lost {
            return images;
        }
        let recorded = |namespace: &str, name: &str| {
            let spaces = state.spaces.iter().filter(|space| space.name() == namespace);
            spaces.flat_map(|space| &space.all.images).any(|row| row.name == name)
        };
        for (namespace, image) in &state.fetched {
            let known = images.iter().any(|(at, known)| at == namespace && known.name == image.name);
            if !known && !recorded(namespace, &image.name) {
                images.push((namespace.clone(), image.clone()));
            }
        }
        images
    }

    /// Gives images of the catalog their records again. Where not all can be told, says so.
    pub(super) fn bootstrap(&mut self) -> Result<()> {
        let state = self.state()?;
        let images = self.unrecorded(&state);
        if self.lost {
            self.tell_unknown(&state, &images);
        }
        let stored = Stored::of_root(self.root).ok().flatten();
        let mut times = Times::new(None);
        let mut ready = Vec::new();
        for (namespace, image) in images {
            let object = format!("{namespace}/images/{}", image.name);
            times.add(image.created.as_deref(), image.blobs.iter().map(|blob| &blob.descriptor.digest));
            match offline::ready(&state.store, &namespace, image.clone()) {
                Ok(mut one) => {
                    one.unpacked = stored.as_ref().and_then(|stored| unpacked(&state, stored, &namespace, &image));
                    let chains = one.unpacked.iter().flat_map(|unpacked| &unpacked.layers).map(|layer| &layer.chain);
                    times.add(image.created.as_deref(), chains);
                    ready.push(one);
                    self.did(object, "given its records again, as the catalog knows it");
                }
                Err(error) => {
                    self.keep_unknown = true;
                    self.cannot(object, super::words(&error));
                }
            }
        }
        if !self.is_dry() {
            offline::bootstrap(&mut self.meta, &ready, &times).map_err(|error| match error {
                offline::Error::Metadata(error) => crate::care::Error::Metadata(error),
                offline::Error::Content(error) => crate::care::Error::Content(error),
                offline::Error::MissingBlob { .. } => crate::care::Error::Unsound(super::words(&error)),
            })?;
        }
        Ok(())
    }

    /// Says of blobs and snapshots whose images nobody knows.
    fn tell_unknown(&mut self, state: &State, images: &[(String, ImageRecord)]) {
        let mut known: HashSet<&Digest> = state.spaces.iter().flat_map(|space| space.all.blobs.keys()).collect();
        known.extend(images.iter().flat_map(|(_, image)| &image.blobs).map(|blob| &blob.descriptor.digest));
        let unknown = state.files.keys().filter(|digest| !known.contains(digest)).count();
        if unknown > 0 {
            self.keep_unknown = true;
            let why = format!(
                "{unknown} blobs are of images that neither it nor the catalog names; `prebake bake` of them finds the blobs \
                 in place"
            );
            self.cannot("meta.db", why);
        }
    }

    /// Puts the records of images' blobs right.
    pub(super) fn records(&mut self) -> Result<()> {
        let state = self.state()?;
        for space in &state.spaces {
            let mut wanted: BTreeMap<Digest, Wanted> = BTreeMap::new();
            let mut targets = HashSet::new();
            for row in space.all.images.iter().filter(|row| targets.insert(&row.target.digest)) {
                let anatomy = Anatomy::new(&state.store, &row.target, &|digest| space.recorded(digest));
                self.of_image(space, &state, &anatomy, &mut wanted);
            }
            for blob in space.all.blobs.values() {
                if let Some(stat) = state.files.get(&blob.digest).filter(|stat| stat.size != blob.size)
                    && !self.bad.contains_key(&blob.digest)
                {
                    wanted.entry(blob.digest.clone()).or_insert(Wanted { size: stat.size, labels: Labels::new() });
                }
            }
            wanted.retain(|digest, wanted| {
                let blob = space.all.blobs.get(digest);
                blob.is_none_or(|blob| {
                    blob.size != wanted.size
                        || wanted.labels.iter().any(|(key, value)| blob.labels.get(key) != Some(value))
                })
            });
            let long: Vec<(bool, String, String)> = (space.all.images.iter())
                .flat_map(|row| {
                    row.labels.iter().filter_map(labels::too_long).map(|key| (true, row.name.clone(), key.to_owned()))
                })
                .chain(space.all.blobs.values().flat_map(|blob| {
                    blob.labels
                        .iter()
                        .filter_map(labels::too_long)
                        .map(|key| (false, blob.digest.to_string(), key.to_owned()))
                }))
                .collect();
            let namespace = space.name();
            let sources = sources(&state, namespace);
            self.write(|tx| {
                for (of_image, name, key) in &long {
                    metadata::remove_label(tx, namespace, *of_image, name, key)?;
                }
                for (digest, Wanted { size, labels }) in &wanted {
                    let source = sources.get(digest).map(|(host, repository)| (host.as_str(), repository.as_str()));
                    let source = source.filter(|_| !space.recorded(digest));
                    let blob = Blob { digest, size: *size, labels, source };
                    put_blob(tx, namespace, &blob, chrono::Utc::now())?;
                }
                Ok(())
            })?;
            for (_, name, key) in &long {
                self.did(format!("{namespace}/{name}"), format!("its label {key:?} removed: it was too long"));
            }
            for digest in wanted.keys() {
                let done = if space.recorded(digest) { "its record put right" } else { "given a record" };
                self.did(format!("{namespace}/content/{digest}"), done);
            }
        }
        Ok(())
    }

    /// What the records of an image's blobs are to be.
    fn of_image(&self, space: &Space, state: &State, anatomy: &Anatomy, wanted: &mut BTreeMap<Digest, Wanted>) {
        let here = |digest: &Digest| state.files.get(digest).filter(|_| !self.bad.contains_key(digest));
        let mut want = |digest: &Digest, labels: Labels| {
            let Some(stat) = here(digest) else { return };
            let entry = wanted.entry(digest.clone());
            entry.or_insert(Wanted { size: stat.size, labels: Labels::new() }).labels.extend(labels);
        };
        let restore = self.options.restore_layers;
        for node in &anatomy.documents {
            let digest = &node.descriptor.digest;
            let has = space.all.blobs.get(digest).map(|blob| &blob.labels);
            let is_index = media_type::is_index(&node.descriptor.media_type);
            let held: HashSet<&str> = has.into_iter().flatten().map(|(_, value)| value.as_str()).collect();
            let children = labels::children(&node.children).into_iter().zip(&node.children);
            let labels = children.filter_map(|((key, child), descriptor)| {
                let wrong = has.and_then(|has| has.get(&key)).is_some_and(|value| *value != child.as_str());
                let layer = media_type::is_layer(&descriptor.media_type);
                // A record that is lost gets all of them; else those of what is here and nothing keeps.
                let lacks = !held.contains(child.as_str())
                    && here(&child).is_some()
                    && (space.recorded(&child) || !layer || restore);
                let anew = has.is_none() && (is_index || here(&child).is_some());
                (wrong || lacks || anew).then(|| (key, child.to_string()))
            });
            want(digest, labels.collect());
        }
        for body in &anatomy.manifests {
            let unpacked = body.top().is_some_and(|top| space.snapshotters_of(top.as_str()).next().is_some());
            want(&body.manifest.config.digest, Labels::new());
            let diff_ids: BTreeMap<Digest, Digest> =
                body.layers().into_iter().map(|layer| (layer.descriptor.digest, layer.diff_id)).collect();
            for layer in &body.manifest.layers {
                let discarded = unpacked && !space.recorded(&layer.digest) && media_type::is_layer(&layer.media_type);
                // A manifest that has lost its record does not tell whether they were.
                let unknown = !space.recorded(&body.digest) || space.keeps(&body.digest, &layer.digest);
                if discarded && !restore && !unknown {
                    continue;
                }
                let diff_id = diff_ids.get(&layer.digest).filter(|_| unpacked || says(space, &layer.digest));
                let label = diff_id.map(|diff_id| (labels::UNCOMPRESSED.to_owned(), diff_id.to_string()));
                want(&layer.digest, label.into_iter().collect());
            }
        }
    }

    /// Puts right what refers to snapshots, and what leases hold.
    pub(super) fn references(&mut self) -> Result<()> {
        let state = self.state()?;
        for space in &state.spaces {
            let namespace = space.name();
            let mut keep: Vec<(Digest, u64, Labels)> = Vec::new();
            let mut gone: Vec<(Digest, String)> = Vec::new();
            let mut tops = BTreeMap::new();
            for row in &space.all.images {
                let anatomy = Anatomy::new(&state.store, &row.target, &|digest| space.recorded(digest));
                for body in &anatomy.manifests {
                    tops.extend(
                        body.top().map(|top| (body.manifest.config.digest.clone(), (top, layers_here(space, body)))),
                    );
                }
            }
            for blob in space.all.blobs.values() {
                let top = tops.get(&blob.digest);
                let mut wanted = Labels::new();
                if let Some((top, layers_here)) = top {
                    for snapshotter in space.snapshotters_of(top.as_str()) {
                        let key = format!("{}{snapshotter}", labels::GC_REF_SNAPSHOT);
                        let has = blob.labels.get(&key);
                        let held =
                            has.is_some() || !*layers_here || !held_otherwise(space, snapshotter, top, &blob.digest);
                        if held && has.is_none_or(|has| *has != top.as_str()) {
                            wanted.insert(key, top.to_string());
                        }
                    }
                }
                for (key, value) in &blob.labels {
                    let Some(snapshotter) = snapshotter_of(key) else { continue };
                    if !space.has_snapshot(snapshotter, value) && !wanted.contains_key(key) {
                        gone.push((blob.digest.clone(), key.clone()));
                    }
                }
                if !wanted.is_empty() {
                    keep.push((blob.digest.clone(), blob.size, wanted));
                }
            }
            let leases: Vec<_> = (space.all.leases.iter())
                .flat_map(|lease| {
                    check::dangling(space, lease).into_iter().map(|(kind, key)| (lease.id.clone(), kind, key))
                })
                .collect();
            self.write(|tx| {
                for (digest, key) in &gone {
                    metadata::remove_blob_label(tx, namespace, digest, key)?;
                }
                for (digest, size, labels) in &keep {
                    let blob = Blob { digest, size: *size, labels, source: None };
                    put_blob(tx, namespace, &blob, chrono::Utc::now())?;
                }
                for (lease, kind, key) in &leases {
                    metadata::remove_lease_entry(tx, namespace, lease, kind, key)?;
                }
                Ok(())
            })?;
            for (digest, key) in gone {
                self.did(format!("{namespace}/content/{digest}"), format!("its label {key} removed: it led nowhere"));
            }
            for (digest, ..) in keep {
                self.did(format!("{namespace}/content/{digest}"), "given the label that keeps its snapshots");
            }
            for (lease, kind, key) in leases {
                self.did(
                    format!("{namespace}/leases/{lease}"),
                    format!("lets go of {kind} {key}, which does not exist"),
                );
            }
        }
        self.children()
    }

    /// Names children at their parents, and takes away those that are none.
    fn children(&mut self) -> Result<()> {
        let state = self.state()?;
        for space in &state.spaces {
            let rows = space.all.snapshots.iter().map(|(row, _)| row).filter(|row| !row.parent.is_empty());
            let rows = rows.filter(|row| space.has_snapshot(&row.snapshotter, &row.parent));
            let right: std::collections::BTreeSet<Child> = rows
                .map(|row| Child {
                    snapshotter: row.snapshotter.clone(),
                    parent: row.parent.clone(),
                    key: row.key.clone(),
                })
                .collect();
            let lacks: Vec<&Child> = right.difference(&space.children).collect();
            let wrong: Vec<&Child> = space.children.difference(&right).collect();
            let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
            for (row, _) in &space.all.snapshots {
                let number = highest.entry(&row.snapshotter).or_default();
                *number = check::number_of(&row.name).unwrap_or(0).max(*number);
            }
            highest.retain(|name, highest| space.sequences.get(*name).is_some_and(|sequence| *sequence < *highest));
            let namespace = space.name();
            self.write(|tx| {
                lacks.iter().try_for_each(|child| metadata::put_child(tx, namespace, child))?;
                wrong.iter().try_for_each(|child| metadata::remove_child(tx, namespace, child))?;
                highest.iter().try_for_each(|(name, number)| metadata::raise_sequence(tx, namespace, name, *number))
            })?;
            for child in lacks {
                self.did(
                    format!("{namespace}/snapshots/{}/{}", child.snapshotter, child.parent),
                    format!("names its child {}", child.key),
                );
            }
            for child in wrong {
                self.did(
                    format!("{namespace}/snapshots/{}/{}", child.snapshotter, child.parent),
                    format!("names {} as a child no longer", child.key),
                );
            }
            for (name, number) in highest {
                self.did(format!("{namespace}/snapshots/{name}"), format!("gives out numbers above {number}"));
            }
        }
        Ok(())
    }
}

/// Whether a blob's record says what it unpacks to.
fn says(space: &Space, digest: &Digest) -> bool {
    space.all.blobs.get(digest).is_some_and(|blob| blob.labels.contains_key(labels::UNCOMPRESSED))
}

fn layers_here(space: &Space, body: &Body) -> bool {
    body.blobs().all(|layer| space.recorded(&layer.digest))
}

/// Whether another blob's label keeps a snapshot.
fn held_otherwise(space: &Space, snapshotter: &str, key: &Digest, but: &Digest) -> bool {
    let others = space.all.blobs.values().filter(|blob| blob.digest != *but);
    others
        .flat_map(|blob| &blob.labels)
        .any(|(label, value)| snapshotter_of(label) == Some(snapshotter) && *value == key.as_str())
}

/// Host and repository of each blob, by the catalog.
fn sources(state: &State, namespace: &str) -> BTreeMap<Digest, (String, String)> {
    let mut sources = BTreeMap::new();
    for (_, image) in state.fetched.iter().filter(|(at, _)| at == namespace) {
        for blob in &image.blobs {
            sources.extend(image.source.clone().map(|source| (blob.descriptor.digest.clone(), source)));
        }
    }
    sources
}

/// An image's layers, where all of them are in snapshots.
fn unpacked(state: &State, stored: &Stored, namespace: &str, image: &ImageRecord) -> Option<Unpacked> {
    let here = |digest: &Digest| image.blobs.iter().any(|blob| blob.descriptor.digest == *digest);
    let anatomy = Anatomy::new(&state.store, &image.target, &here);
    let body = anatomy.manifests.iter().find(|body| !body.layers().is_empty())?;
    let layers = body.layers();
    let chain: Vec<Digest> = layers.iter().map(|layer| layer.chain.clone()).collect();
    let present = stored.present(namespace, &chain, &std::collections::HashMap::new());
    if present.len() < layers.len() {
        return None;
    }
    let layers = layers.into_iter().zip(present).map(|(layer, present)| UnpackedLayer {
        blob: layer.descriptor.digest,
        diff_id: layer.diff_id,
        number: check::number_of(&present.name).unwrap_or(0),
        name: present.name,
        labels: Arc::new(Labels::from([(labels::SNAPSHOT_REF.to_owned(), layer.chain.to_string())])),
        chain: layer.chain,
    });
    Some(Unpacked { config: body.manifest.config.digest.clone(), layers: layers.collect() })
}
