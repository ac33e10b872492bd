//! Images: from a reference through its documents to all its blobs.

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use super::blobs::{Blobs, Coming, Result, Small, blocking};
use super::policy::Policy;
use super::referrers::referring;
use super::resolve::{candidates, children, fits, platforms};
use super::unpack::{Source, Stack, Unpacker};
use super::{Baked, Error, Event, Request, Totals, Trusted};
use crate::catalog::{ImageBlob, ImageRecord};
use crate::metadata::labels;
use crate::oci::{Config, Descriptor, Digest, Document, DocumentError, Manifest, Platform, Reference, media_type};
use crate::snapshot::Present;

/// Indexes inside an index.
const MAX_INDEX_DEPTH: usize = 4;
/// Documents that are looked into in search of an image's manifest.
const MAX_DOCUMENTS: usize = 64;

/// An image whose documents are in place.
pub(super) struct Resolved {
    pub(super) reference: Reference,
    /// From the target down: documents, config, layers.
    pub(super) blobs: Vec<ImageBlob>,
    config: Digest,
    /// Its layers, where there is anything to unpack.
    pub(super) stack: Option<Arc<Stack>>,
    pub(super) policy: Policy,
}

impl Resolved {
    /// All blobs together, in bytes: the size that containerd lists.
    pub(super) fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.descriptor.size).sum()
    }

    /// Leaves out the layers, and what keeps them from containerd's garbage collection (`images.ChildGCLabelsFilterLayers`).
    pub(super) fn discard_layers(&mut self) {
        let referring = referring(&self.blobs);
        let is_referrer = |blob: &ImageBlob| referring.contains(&blob.descriptor.digest);
        let of_referrers: HashSet<Digest> = self
            .blobs
            .iter()
            .filter(|blob| is_referrer(blob))
            .flat_map(|blob| blob.children.iter().map(|(_, child)| child.clone()))
            .collect();
        self.blobs.retain(|blob| {
            !media_type::is_layer(&blob.descriptor.media_type) || of_referrers.contains(&blob.descriptor.digest)
        });
        for blob in self.blobs.iter_mut().filter(|blob| !is_referrer(blob)) {
            blob.children.retain(|(key, _)| !labels::is_layer_ref(key));
        }
    }
}

/// One bake's fetching.
pub(super) struct Fetcher {
    pub(super) blobs: Arc<Blobs>,
    platform: Platform,
    pin: bool,
    /// Whether layers are looked at for being unpacked.
    unpacks: bool,
    pub(super) referrers: Option<Vec<String>>,
    pub(super) trusted: Vec<Trusted>,
    pub(super) images_at_once: usize,
}

impl Fetcher {
    pub(super) fn new(request: &Request, blobs: Blobs) -> Self {
        Self {
            blobs: Arc::new(blobs),
            platform: request.platform.clone(),
            pin: request.pin,
            unpacks: request.unpack.is_some(),
            referrers: request.referrers.clone(),
            trusted: request.trusted.clone(),
            images_at_once: request.concurrency.max(2),
        }
    }

    /// Waits until nothing is being written any more, and remembers what was verified.
    pub(super) async fn settled(&self) -> Result<()> {
        let in_place = self.blobs.settled().await?;
        Ok(self.blobs.catalog.record(&self.blobs.namespace, &[], &in_place)?)
    }

    pub(super) fn totals(&self) -> Totals {
        self.blobs.totals()
    }

    /// Finds out what an image consists of.
    pub(super) async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let mut resolved = self.documents(reference).await?;
        self.admit(&resolved).await?;
        self.add_referrers(&mut resolved).await?;
        self.blobs.listener.on(&Event::ImageResolved {
            image: &reference.to_string(),
            digest: &resolved.blobs[0].descriptor.digest,
            platform: &self.platform,
            blobs: resolved.blobs.len(),
            bytes: resolved.size(),
        });
        Ok(resolved)
    }

    /// Brings all blobs of an image into the store, and its layers into snapshots.
    pub(super) async fn complete(
        &self,
        image: Resolved,
        unpacking: Option<(&Arc<Unpacker>, Vec<Present>)>,
    ) -> Result<Baked> {
        let Resolved { reference, blobs, config, stack, policy } = image;
        let target = blobs[0].descriptor.clone();
        let fetch = async {
            let mut all: FuturesUnordered<_> =
                blobs.iter().map(|blob| self.blobs.ensure(&reference, &blob.descriptor)).collect();
            while all.try_next().await?.is_some() {}
            Ok(())
        };
        let unpack = async {
            let (Some(stack), Some((unpacker, present)), true) = (&stack, unpacking, policy != Policy::Fetch) else {
                return Ok(());
            };
            let mut streamed = HashSet::new();
            if policy == Policy::UnpackDiscard {
                for layer in &stack.layers[present.len()..] {
                    if !self.blobs.is_whole(&layer.descriptor).await? {
                        streamed.insert(&layer.descriptor.digest);
                    }
                }
            }
            let source = |layer: &Descriptor| match policy {
                Policy::UnpackDiscard if streamed.contains(&layer.digest) => {
                    Source::Stream(self.blobs.clone(), reference.clone())
                }
                Policy::UnpackDiscard => Source::Blob(watch::channel(Coming::InPlace).1),
                _ => Source::Blob(self.blobs.coming(layer)),
            };
            unpacker.image(stack, &present, source).await
        };
        futures_util::try_join!(fetch, unpack)?;
        let name = reference.to_string();
        let mut aliases = vec![reference.digest_name(&target.digest), config.to_string()];
        aliases.retain(|alias| *alias != name);
        let source = Some((reference.registry_host().to_owned(), reference.repository().to_owned()));
        let platform = self.platform.clone();
        let record = ImageRecord { name, aliases, target, platform, pinned: self.pin, blobs, source };
        self.blobs.listener.on(&Event::ImageFetched { image: &record.name, digest: &record.target.digest });
        let baked = Baked { record, stack: stack.filter(|_| policy != Policy::Fetch) };
        if policy == Policy::UnpackDiscard {
            // Without its snapshots it is nothing that a bootstrap of its own could use.
            return Ok(baked);
        }
        let (store, catalog, namespace) =
            (self.blobs.store.clone(), self.blobs.catalog.clone(), self.blobs.namespace.clone());
        blocking(move || {
            let mut verified = Vec::new();
            for blob in &baked.record.blobs {
                if let Some(stat) = store.stat(&blob.descriptor.digest)? {
                    verified.push((blob.descriptor.digest.clone(), stat));
                }
            }
            catalog.record(&namespace, std::slice::from_ref(&baked.record), &verified)?;
            Ok(baked)
        })
        .await
    }

    /// Walks from the target down to the platform's manifest.
    async fn documents(&self, reference: &Reference) -> Result<Resolved> {
        let (declared, raw) = self.blobs.target(reference).await?;
        let (document, media_type) = parse(&declared.digest, &raw.bytes, &declared.media_type)?;
        let target = Descriptor::new(media_type, declared.digest, declared.size);
        self.blobs.keep(&target, raw.bytes.clone()).await?;
        drop(raw);
        let mut search =
            Search { reference, path: Vec::new(), seen: HashSet::new(), has: BTreeSet::new(), config: None };
        search.seen.insert(target.digest.clone());
        let Some(manifest) = self.descend(&mut search, target, document, None, 0).await? else {
            let has = search.has.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::NoPlatform { wanted: self.platform.clone(), has });
        };
        if let Some(empty) = manifest.layers.iter().find(|layer| layer.size == 0) {
            return Err(Error::EmptyLayer(empty.digest.clone()));
        }
        let stack = match &search.config {
            Some(config) => self.unpacks.then(|| Stack::new(&manifest, config)).transpose()?.flatten().map(Arc::new),
            None => None,
        };
        let config = manifest.config.digest.clone();
        let mut blobs: Vec<ImageBlob> = Vec::new();
        for blob in search.path.into_iter().chain([leaf(manifest.config)]).chain(manifest.layers.into_iter().map(leaf))
        {
            // A layer may occur several times in an image.
            if !blobs.iter().any(|known| known.descriptor.digest == blob.descriptor.digest) {
                blobs.push(blob);
            }
        }
        Ok(Resolved { reference: reference.clone(), blobs, config, stack, policy: Policy::Fetch })
    }

    /// Walks from a document down to the platform's manifest, whose config fits; `None` when there is none. `said` is what
    /// the index says of the document.
    fn descend<'a>(
        &'a self,
        search: &'a mut Search<'_>,
        descriptor: Descriptor,
        document: Document,
        said: Option<Platform>,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Manifest>>> + Send + 'a>> {
        Box::pin(async move {
            if depth > MAX_INDEX_DEPTH {
                return Err(Error::TooDeep);
            }
            search.path.push(ImageBlob { children: labels::children(&children(&document)), descriptor });
            let index = match document {
                Document::Manifest(manifest) => {
                    return Ok(self.config_fits(search, &manifest, said.as_ref()).await?.then_some(manifest));
                }
                Document::Index(index) => index,
            };
            search.has.extend(platforms(&index));
            for entry in candidates(&index, &self.platform) {
                if !search.seen.insert(entry.digest.clone()) {
                    continue;
                }
                if search.seen.len() > MAX_DOCUMENTS {
                    return Err(Error::TooManyDocuments);
                }
                let before = search.path.len();
                let raw = self.blobs.small(search.reference, entry, Small::Document).await?;
                let (document, media_type) = parse(&entry.digest, &raw.bytes, &entry.media_type)?;
                // Gives up its room before the next one asks for some.
                drop(raw);
                let child = Descriptor::new(media_type, entry.digest.clone(), entry.size);
                if let Some(found) = self.descend(search, child, document, entry.platform(), depth + 1).await? {
                    return Ok(Some(found));
                }
                search.path.truncate(before);
            }
            Ok(None)
        })
    }

    /// Artifacts, whose config is no image config, fit any platform.
    async fn config_fits(&self, search: &mut Search<'_>, manifest: &Manifest, said: Option<&Platform>) -> Result<bool> {
        if !media_type::is_image_config(&manifest.config.media_type) {
            return Ok(true);
        }
        let raw = self.blobs.small(search.reference, &manifest.config, Small::Blob).await?;
        let config = Config::parse(&raw.bytes).map_err(|source| unusable(&manifest.config.digest, source))?;
        let fits = fits(&config, said, &self.platform)?;
        if fits {
            search.config = Some(config);
        } else {
            search.has.insert(config.platform.to_string());
        }
        Ok(fits)
    }
}

/// The search for an image's manifest.
struct Search<'r> {
    reference: &'r Reference,
    /// Documents from the target to where the search is.
    path: Vec<ImageBlob>,
    /// Documents that were looked into.
    seen: HashSet<Digest>,
    /// Platforms that were met.
    has: BTreeSet<String>,
    /// The manifest's config, when it is that of an image.
    config: Option<Config>,
}

pub(super) fn leaf(descriptor: Descriptor) -> ImageBlob {
    ImageBlob { descriptor, children: Vec::new() }
}

pub(super) fn parse(digest: &Digest, bytes: &[u8], declared: &str) -> Result<(Document, String)> {
    Document::parse(bytes, declared).map_err(|source| unusable(digest, source))
}

fn unusable(digest: &Digest, source: DocumentError) -> Error {
    Error::Document { what: digest.to_string(), source }
}
