//! What the records of a namespace lead to: each target once, with its names, and everything of it that is here.

use std::collections::{BTreeMap, HashSet};

use super::whole::Whole;
use crate::content::Store;
use crate::metadata::{Contents, ImageRow};
use crate::oci::{Config, Descriptor, Digest, Document, MAX_DOCUMENT, Manifest, chain_ids, media_type};
use crate::parallel;

/// Indexes inside an index.
const MAX_INDEX_DEPTH: usize = 8;

/// An image: a target, and the records that name it.
pub(super) struct Image<'c> {
    pub(super) namespace: &'c str,
    pub(super) target: &'c Descriptor,
    /// Its records, by name.
    pub(super) rows: Vec<&'c ImageRow>,
    pub(super) tree: Tree,
}

/// What of a target is here, for all machines.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Indexes and manifests.
    pub(super) documents: Vec<Digest>,
    pub(super) manifests: Vec<Here>,
}

/// A manifest that is here.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
    /// Its config, when it is an image's and is here.
    pub(super) config: Option<Config>,
}

impl Here {
    /// Its layers' chainIDs from the lowest up; none where no config tells.
    pub(super) fn chain(&self) -> Vec<Digest> {
        self.config.as_ref().and_then(|config| config.diff_ids.as_ref()).map_or(Vec::new(), |ids| chain_ids(ids))
    }
}

impl Tree {
    /// Everything here below a target; what cannot be read is not here.
    pub(super) fn new(store: &Store, target: &Descriptor) -> Self {
        let mut tree = Self::default();
        tree.add(store, target, MAX_INDEX_DEPTH, &mut HashSet::new());
        tree
    }

    fn add(&mut self, store: &Store, at: &Descriptor, depth: usize, seen: &mut HashSet<Digest>) {
        if !seen.insert(at.digest.clone()) {
            return;
        }
        let Ok(bytes) = store.read(&at.digest, MAX_DOCUMENT) else { return };
        let Ok((document, _)) = Document::parse(&bytes, &at.media_type) else { return };
        self.documents.push(at.digest.clone());
        match document {
            Document::Index(_) if depth == 0 => {}
            Document::Index(index) => {
                let is_document = |kind: &str| media_type::is_manifest(kind) || media_type::is_index(kind);
                for entry in index.manifests.iter().filter(|entry| is_document(&entry.media_type)) {
                    self.add(store, entry, depth - 1, seen);
                }
            }
            Document::Manifest(manifest) => {
                let config = Some(&manifest.config).filter(|config| media_type::is_image_config(&config.media_type));
                let read = |config: &Descriptor| Config::parse(&store.read(&config.digest, MAX_DOCUMENT).ok()?).ok();
                let config = config.and_then(read);
                self.manifests.push(Here { digest: at.digest.clone(), manifest, config });
            }
        }
    }
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
            Image { namespace: &contents.namespace, target, tree: Tree::new(&whole.store, target), rows }
        };
        let mut images = parallel::map(by_target.into_values().collect(), image);
        images.sort_by(|a, b| a.rows[0].name.cmp(&b.rows[0].name));
        images
    }

    /// Digests a person or a container may call it by: of its target, its manifests, its configs.
    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        let manifests = self.tree.manifests.iter();
        let below = manifests.flat_map(|here| [&here.digest, &here.manifest.config.digest]);
        std::iter::once(&self.target.digest).chain(below)
    }
}
