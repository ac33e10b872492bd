//! What an image is made of, as far as it is here: its documents with what they lead to, and what is missing of it.

use std::collections::HashSet;

use crate::content::Store;
use crate::kind::chain;
use crate::oci::{Config, Descriptor, Digest, Document, MAX_DOCUMENT, Manifest, Platform, chain_ids, media_type};

/// Indexes inside an index.
const MAX_INDEX_DEPTH: usize = 8;

/// A document that is here.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) descriptor: Descriptor,
    pub(super) children: Vec<Descriptor>,
    /// Its bytes.
    pub(super) size: u64,
}

/// A manifest that is here.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
    /// What the index says of its platform.
    pub(super) said: Option<Platform>,
    /// Its config, when it is an image's and is here.
    pub(super) config: Option<Config>,
}

/// A layer, and the snapshot that is made of it.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: Digest,
    pub(super) chain: Digest,
}

impl Body {
    /// Its layers, the lowest first; none where no config tells, or it does not fit.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let Some(diff_ids) = self.config.as_ref().and_then(|config| config.diff_ids.as_ref()) else {
            return Vec::new();
        };
        let layers: Vec<&Descriptor> = self.blobs().collect();
        if layers.len() != diff_ids.len() {
            return Vec::new();
        }
        let parts = layers.into_iter().zip(diff_ids).zip(chain_ids(diff_ids));
        let layer = |((descriptor, diff_id), chain): ((&Descriptor, &Digest), Digest)| Layer {
            descriptor: descriptor.clone(),
            diff_id: diff_id.clone(),
            chain,
        };
        parts.map(layer).collect()
    }

    /// Whether it is an image's, and its config is not here.
    pub(super) fn lacks_config(&self) -> bool {
        self.config.is_none() && media_type::is_image_config(&self.manifest.config.media_type)
    }

    /// The blobs that are layers.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifest.layers.iter().filter(|layer| media_type::is_layer(&layer.media_type))
    }

    /// The keys of its layers' snapshots, the lowest first.
    pub(super) fn chain(&self) -> Vec<Digest> {
        self.layers().into_iter().map(|layer| layer.chain).collect()
    }

    /// The key of the snapshot on top.
    pub(super) fn top(&self) -> Option<Digest> {
        self.chain().pop()
    }
}

/// An image.
#[derive(Debug, Default)]
pub(super) struct Anatomy {
    /// Its documents, from the target down.
    pub(super) documents: Vec<Node>,
    pub(super) manifests: Vec<Body>,
    /// Documents and configs that are not here.
    pub(super) missing: Vec<Descriptor>,
    /// Documents and configs that cannot be used, and why.
    pub(super) broken: Vec<(Descriptor, String)>,
    /// Indexes of which no manifest is here, with the entry that is to be here then.
    pub(super) empty: Vec<(Digest, Option<Descriptor>)>,
}

impl Anatomy {
    /// Looks at everything below a target. Of an index counts what has a record, as `recorded` says; where nothing has, what
    /// has a file.
    pub(super) fn new(store: &Store, target: &Descriptor, recorded: &dyn Fn(&Digest) -> bool) -> Self {
        let mut anatomy = Self::default();
        let mut look = Look { store, recorded, seen: HashSet::new(), found: &mut anatomy };
        look.document(target, None, MAX_INDEX_DEPTH);
        // Of manifests for other machines, and of attestations, containerd's own pulls leave parts out.
        let chosen = anatomy.chosen().map(|body| body.digest.clone());
        let others = anatomy.manifests.iter().filter(|body| Some(&body.digest) != chosen.as_ref());
        let others: HashSet<Digest> = others.map(|body| body.manifest.config.digest.clone()).collect();
        anatomy.missing.retain(|missing| !others.contains(&missing.digest) || recorded(&missing.digest));
        anatomy
    }

    /// The manifest that containerd takes on this machine; where there is none for it, the first.
    pub(super) fn chosen(&self) -> Option<&Body> {
        let host = Some(Platform::host());
        self.manifests.iter().find(|body| body.said == host).or(self.manifests.first())
    }

    /// Whether everything below a manifest has to be here.
    pub(super) fn is_chosen(&self, manifest: &Digest) -> bool {
        self.chosen().is_some_and(|body| body.digest == *manifest)
    }
}

struct Look<'a> {
    store: &'a Store,
    recorded: &'a dyn Fn(&Digest) -> bool,
    seen: HashSet<Digest>,
    found: &'a mut Anatomy,
}

impl Look<'_> {
    /// The bytes of a document or config; `None` after noting why not.
    fn read(&mut self, at: &Descriptor) -> Option<Vec<u8>> {
        match self.store.stat(&at.digest) {
            Ok(None) => self.found.missing.push(at.clone()),
            Err(error) => self.found.broken.push((at.clone(), chain(&error))),
            Ok(Some(_)) => match self.store.read(&at.digest, MAX_DOCUMENT) {
                Ok(bytes) => return Some(bytes),
                Err(error) => self.found.broken.push((at.clone(), chain(&error))),
            },
        }
        None
    }

    fn document(&mut self, at: &Descriptor, said: Option<Platform>, depth: usize) {
        if !self.seen.insert(at.digest.clone()) {
            return;
        }
        let Some(bytes) = self.read(at) else { return };
        let size = bytes.len() as u64;
        match Document::parse(&bytes, &at.media_type) {
            Err(error) => self.found.broken.push((at.clone(), format!("cannot be used: {}", chain(&error)))),
            Ok((Document::Index(index), _)) => {
                self.found.documents.push(Node { descriptor: at.clone(), children: index.manifests.clone(), size });
                self.index(at, &index.manifests, depth);
            }
            Ok((Document::Manifest(manifest), _)) => {
                let children = std::iter::once(&manifest.config).chain(&manifest.layers).cloned().collect();
                self.found.documents.push(Node { descriptor: at.clone(), children, size });
                let config = self.read(&manifest.config);
                let config = config.filter(|_| media_type::is_image_config(&manifest.config.media_type));
                let config = config.and_then(|bytes| match Config::parse(&bytes) {
                    Ok(config) => Some(config),
                    Err(error) => {
                        let why = format!("cannot be used: {}", chain(&error));
                        self.found.broken.push((manifest.config.clone(), why));
                        None
                    }
                });
                self.found.manifests.push(Body { digest: at.digest.clone(), manifest, said, config });
            }
        }
    }

    fn index(&mut self, at: &Descriptor, entries: &[Descriptor], depth: usize) {
        if depth == 0 {
            self.found.broken.push((at.clone(), "its indexes nest too deep".to_owned()));
            return;
        }
        let is_document =
            |entry: &&Descriptor| media_type::is_manifest(&entry.media_type) || media_type::is_index(&entry.media_type);
        let documents: Vec<&Descriptor> = entries.iter().filter(is_document).collect();
        let mut here: Vec<&Descriptor> =
            documents.iter().copied().filter(|entry| (self.recorded)(&entry.digest)).collect();
        if here.is_empty() {
            here = documents.iter().copied().filter(|entry| self.is_there(&entry.digest)).collect();
        }
        if here.is_empty() {
            let host = Some(Platform::host());
            let wanted = documents.iter().find(|entry| entry.platform() == host).or(documents.first());
            self.found.empty.push((at.digest.clone(), wanted.map(|entry| (*entry).clone())));
        }
        for entry in here {
            self.document(entry, entry.platform(), depth - 1);
        }
    }

    fn is_there(&self, digest: &Digest) -> bool {
        self.store.stat(digest).is_ok_and(|stat| stat.is_some())
    }
}
