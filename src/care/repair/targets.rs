//! Images whose records lead nowhere, or lead to something as what it is not.

use std::collections::BTreeMap;

use super::Work;
use crate::care::Result;
use crate::care::state::State;
use crate::content::Store;
use crate::metadata::{self, Image, K8S_NAMESPACE, Labels, Tx, labels, put_image};
use crate::oci::{Descriptor, Digest, Document, MAX_DOCUMENT, Reference};

/// What is known of what names lead to, besides their own records.
pub(super) struct Names<'s> {
    state: &'s State,
    /// By namespace and repository: digests that a name of it has, with their targets.
    by_repository: BTreeMap<(String, String), Vec<Descriptor>>,
}

impl<'s> Names<'s> {
    pub(super) fn new(state: &'s State) -> Self {
        let mut by_repository: BTreeMap<_, Vec<Descriptor>> = BTreeMap::new();
        for space in &state.spaces {
            for row in &space.all.images {
                let Ok(reference) = row.name.parse::<Reference>() else { continue };
                if row.name.parse::<Digest>().is_err() && usable(&state.store, &row.target.digest).is_some() {
                    let key = (space.name().to_owned(), repository(&reference));
                    by_repository.entry(key).or_default().push(row.target.clone());
                }
            }
        }
        Self { state, by_repository }
    }

    /// What a name led to: by the catalog, by its own digest, by the other names of its repository when they agree.
    pub(super) fn target(&self, namespace: &str, name: &str) -> Option<Descriptor> {
        let of_catalog = self.state.fetched.iter().find(|(at, image)| {
            let names = std::iter::once(&image.name).chain(&image.aliases).chain(&image.names);
            at == namespace && names.into_iter().any(|known| known == name)
        });
        if let Some((_, image)) = of_catalog {
            return Some(image.target.clone());
        }
        let store = &self.state.store;
        if let Ok(config) = name.parse::<Digest>() {
            // CRI's third record: the image whose config that is.
            let rows = self.state.spaces.iter().filter(|space| space.name() == namespace);
            let rows = rows.flat_map(|space| space.all.images.iter().map(move |row| (space, row)));
            return rows.filter(|(_, row)| row.name != name).find_map(|(space, row)| {
                let recorded = |digest: &Digest| space.recorded(digest);
                let anatomy = crate::care::anatomy::Anatomy::new(store, &row.target, &recorded);
                let own = anatomy.manifests.iter().any(|body| body.manifest.config.digest == config);
                own.then(|| row.target.clone())
            });
        }
        let reference: Reference = name.parse().ok()?;
        if let Some(digest) = reference.digest() {
            return usable(store, digest);
        }
        let mut known = self.by_repository.get(&(namespace.to_owned(), repository(&reference)))?.clone();
        known.dedup_by(|a, b| a.digest == b.digest);
        known.pop().filter(|_| known.is_empty())
    }
}

fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// The descriptor of a document that is here, as it says itself what it is.
fn usable(store: &Store, digest: &Digest) -> Option<Descriptor> {
    let bytes = store.read(digest, MAX_DOCUMENT).ok()?;
    let (_, media_type) = Document::parse(&bytes, "").ok()?;
    Some(Descriptor::new(media_type, digest.clone(), bytes.len() as u64))
}

/// Writes an image's record with the labels that are known of it.
pub(super) fn put(
    tx: &mut Tx<'_>,
    state: &State,
    namespace: &str,
    name: &str,
    target: &Descriptor,
) -> metadata::Result<()> {
    let managed = (namespace == K8S_NAMESPACE).then_some(labels::CRI_MANAGED);
    let image = state.fetched.iter().find(|(at, image)| at == namespace && image.target.digest == target.digest);
    let pinned = image.filter(|(_, image)| image.pinned).map(|_| labels::CRI_PINNED);
    let own = managed.into_iter().chain(pinned).map(|(key, value)| (key.to_owned(), value.to_owned()));
    let labels: Labels = own.collect();
    let now = chrono::Utc::now();
    put_image(tx, namespace, &Image { name, target, labels: &labels }, now)
}

impl Work<'_, '_> {
    /// Gives images their targets back.
    pub(super) fn targets(&mut self) -> Result<()> {
        let state = self.state()?;
        let names = Names::new(&state);
        let mut right = Vec::new();
        for space in &state.spaces {
            for row in &space.all.images {
                let target = &row.target;
                let here = usable(&state.store, &target.digest);
                let better = match &here {
                    // Its bytes are here: they say what they are.
                    Some(here) if Document::parse(&read(&state.store, here), &target.media_type).is_err() => {
                        here.clone()
                    }
                    Some(here) if here.size != target.size || target.media_type.is_empty() => {
                        let media_type =
                            if target.media_type.is_empty() { &here.media_type } else { &target.media_type };
                        Descriptor::new(media_type.clone(), here.digest.clone(), here.size)
                    }
                    Some(here) if wrong_kind(&here.media_type, &target.media_type) => here.clone(),
                    Some(_) => continue,
                    // A blob that a record names is fetched again.
                    None if space.recorded(&target.digest) => continue,
                    None => match names.target(space.name(), &row.name) {
                        Some(known) if known.digest != target.digest => known,
                        _ => continue,
                    },
                };
                right.push((space.name().to_owned(), row.name.clone(), better));
            }
        }
        for (namespace, name, target) in &right {
            self.did(format!("{namespace}/images/{name}"), format!("given its target {}", target.digest));
        }
        if right.is_empty() {
            return Ok(());
        }
        self.write(|tx| right.iter().try_for_each(|(namespace, name, target)| put(tx, &state, namespace, name, target)))
    }
}

/// Whether a record calls a document something that it says it is not.
fn wrong_kind(says: &str, recorded: &str) -> bool {
    use crate::oci::media_type;
    let kind = |text: &str| (media_type::is_index(text), media_type::is_manifest(text));
    kind(says) != kind(recorded)
}

fn read(store: &Store, descriptor: &Descriptor) -> Vec<u8> {
    store.read(&descriptor.digest, MAX_DOCUMENT).unwrap_or_default()
}
