//! The images of a namespace: each target once, with its names and what of it is here.

use std::collections::BTreeMap;

use super::anatomy::Anatomy;
use super::whole::Whole;
use crate::metadata::{Contents, ImageRow};
use crate::oci::{Descriptor, Digest};
use crate::parallel;

/// An image: a target, and the records that name it.
pub(super) struct Image<'c> {
    pub(super) namespace: &'c str,
    pub(super) target: &'c Descriptor,
    /// Its records, by name.
    pub(super) rows: Vec<&'c ImageRow>,
    pub(super) anatomy: Anatomy,
}

impl<'c> Image<'c> {
    /// The images of a namespace, in the order of their first names.
    pub(super) fn all(whole: &'c Whole, contents: &'c Contents) -> Vec<Self> {
        let mut by_target: BTreeMap<&Digest, Vec<&ImageRow>> = BTreeMap::new();
        for row in &contents.images {
            by_target.entry(&row.target.digest).or_default().push(row);
        }
        let image = |rows: Vec<&'c ImageRow>| {
            let target = &rows[0].target;
            let anatomy = Anatomy::new(&whole.store, target, &|digest| contents.blobs.contains_key(digest));
            Image { namespace: &contents.namespace, target, anatomy, rows }
        };
        let mut images = parallel::map(by_target.into_values().collect(), image);
        images.sort_by(|a, b| a.rows[0].name.cmp(&b.rows[0].name));
        images
    }

    /// Digests a person or a container may call it by: of its target, its manifests, its configs.
    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        let manifests = self.anatomy.manifests.iter();
        let below = manifests.flat_map(|body| [&body.digest, &body.manifest.config.digest]);
        std::iter::once(&self.target.digest).chain(below)
    }
}
