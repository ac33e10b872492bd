//! All of a root at once: containerd's records, the snapshotters' own, the files, and what prebake's catalog adds.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Error, Result};
use crate::catalog::{Catalog, ImageRecord};
use crate::content::{Entry, Left, Stat, Store};
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
        if let Some(structure) = meta.check()?
            && let Some(finding) = structure.findings.iter().find(|finding| finding.problem.is_fatal())
        {
            return Err(Error::Unsound(format!("meta.db: {finding}")));
        }
        let read = meta.read(|tx| {
            let namespaces = metadata::namespaces(tx)?;
            let contents = namespaces.iter().map(|namespace| metadata::contents(tx, namespace));
            Ok((contents.collect::<metadata::Result<Vec<_>>>()?, metadata::is_migrated(tx)?))
        })?;
        let (contents, migrated) = read.unwrap_or_default();
        if let Some(error) = contents.iter().flat_map(|contents| &contents.wrong).next() {
            return Err(Error::Unsound(chain(error)));
        }
        let snapshotters = metadata::snapshotters(root)?;
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
        let store = Store::open(root)?;
        let blob = |entry| match entry {
            Entry::Blob(digest, stat) => Some((digest, stat)),
            Entry::Stranger(_) => None,
        };
        let files = store.entries()?.into_iter().filter_map(blob).collect();
        let fetched = match root.state_dir()? {
            Some(dir) => fetched(&Catalog::open(&dir)?, &contents)?,
            None => Vec::new(),
        };
        Ok(Self { contents, migrated, snapshotters, files, ingests: store.ingests()?, fetched, store })
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

/// The images of a catalog that have no record.
fn fetched(catalog: &Catalog, contents: &[Contents]) -> Result<Vec<(String, ImageRecord)>> {
    let recorded: BTreeSet<(&str, &str)> = contents
        .iter()
        .flat_map(|contents| contents.images.iter().map(|image| (contents.namespace.as_str(), image.name.as_str())))
        .collect();
    let mut all = catalog.all_images()?;
    all.retain(|(namespace, image)| !recorded.contains(&(namespace.as_str(), image.name.as_str())));
    Ok(all)
}
