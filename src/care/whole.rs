//! All of a root at once: containerd's records, the snapshotters' own, the files, and what prebake's catalog adds.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::state::{Meta, State};
use super::{Error, Result};
use crate::catalog::ImageRecord;
use crate::content::{Left, Stat, Store};
use crate::kind::chain;
use crate::metadata::{self, Contents, MetaDb, Snapshotter};
use crate::oci::Digest;
use crate::root::Root;

/// What there is.
pub(super) struct Whole {
    pub(super) store: Store,
    /// Each namespace.
    pub(super) contents: Vec<Contents>,
    /// Whether containerd 2 has used the database.
    pub(super) migrated: bool,
    pub(super) snapshotters: Vec<Snapshotter>,
    pub(super) files: BTreeMap<Digest, Stat>,
    pub(super) ingests: Vec<Left>,
    /// Images that were fetched and have no record yet, with their namespaces.
    pub(super) fetched: Vec<(String, ImageRecord)>,
}

impl Whole {
    /// Reads all of it. Nothing may be decided about a root that cannot be read to its end.
    ///
    /// # Errors
    /// [`Error::Unsound`] when a database or a record in it is damaged; else when something cannot be read.
    pub(super) fn read(root: &Root, meta: &mut MetaDb) -> Result<Self> {
        let State { store, meta, spaces, migrated, snapshotters, files, ingests, fetched, catalog, .. } =
            State::read(root, Ok(meta))?;
        if let Meta::Damaged(why, _) = meta {
            return Err(Error::Unsound(format!("meta.db: {why}")));
        }
        let contents: Vec<Contents> = spaces.into_iter().map(|space| space.all).collect();
        if let Some(error) = contents.iter().flat_map(|contents| &contents.wrong).next() {
            return Err(Error::Unsound(chain(error)));
        }
        for snapshotter in &snapshotters {
            let name = &snapshotter.name;
            match &snapshotter.database {
                Err(error) => return Err(Error::Unsound(format!("{name}: {}", chain(error)))),
                Ok(Some(database)) if database.structure.is_fatal() => {
                    return Err(Error::Unsound(format!("the metadata.db of {name}")));
                }
                Ok(_) => {}
            }
        }
        if let Some(why) = catalog {
            return Err(Error::Unsound(why));
        }
        let fetched = without_record(fetched, &contents);
        Ok(Self { store, contents, migrated, snapshotters, files, ingests, fetched })
    }

    /// The namespace of this name.
    pub(super) fn namespace(&self, name: &str) -> Option<&Contents> {
        self.contents.iter().find(|contents| contents.namespace == name)
    }

    /// Snapshots, by snapshotter and name there, that are not committed.
    pub(super) fn active(&self) -> HashSet<(&str, &str)> {
        let mut active = HashSet::new();
        for snapshotter in &self.snapshotters {
            for (name, stored) in snapshotter.records().iter().flat_map(|records| &records.snapshots) {
                if stored.kind != Some(metadata::KIND_COMMITTED) {
                    active.insert((snapshotter.name.as_str(), name.as_str()));
                }
            }
        }
        active
    }
}

/// Of a catalog's images those that have no record.
fn without_record(mut images: Vec<(String, ImageRecord)>, contents: &[Contents]) -> Vec<(String, ImageRecord)> {
    let recorded: BTreeSet<(&str, &str)> = contents
        .iter()
        .flat_map(|contents| contents.images.iter().map(|image| (contents.namespace.as_str(), image.name.as_str())))
        .collect();
    images.retain(|(namespace, image)| !recorded.contains(&(namespace.as_str(), image.name.as_str())));
    images
}
