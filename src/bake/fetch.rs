//! Images: from a reference through its documents to all its blobs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::blobs::{Blobs, Place, Result, Small, blocking};
use super::coming::Coming;
use super::each::Pace;
use super::part::Part;
use super::policy::estimate;
use super::resolve::{candidates, children, fits, platforms};
use super::unpack::{Source, Stack, Unpacker};
use super::{Baked, Error, Event, Listener, Request, Totals, Trusted, Wanted};
use crate::catalog::{ImageBlob, ImageRecord};
use crate::content::Store;
use crate::metadata::labels;
use crate::oci::{Config, Descriptor, Digest, Document, DocumentError, Manifest, Platform, Reference, media_type};
use crate::snapshot::Present;
use crate::spec::{Choice, LockedImage, Policy, Reason};
use crate::times::Times;

/// Indexes inside an index.
const MAX_INDEX_DEPTH: usize = 4;
/// Documents that are looked into in search of an image's manifest.
const MAX_DOCUMENTS: usize = 64;

/// An image whose documents are in place.
pub(super) struct Resolved {
    pub(super) wanted: Arc<Wanted>,
    /// From the target down: documents, config, layers; of one platform after another.
    pub(super) blobs: Vec<ImageBlob>,
    /// Of the first platform.
    pub(super) manifest: Digest,
    pub(super) config: Digest,
    /// Its layers, where there is anything to unpack.
    pub(super) stack: Option<Arc<Stack>>,
    pub(super) origin: Origin,
    pub(super) choice: Choice,
}

/// Where an image is from, by its config.
#[derive(Debug, Clone, Default)]
pub(super) struct Origin {
    pub(super) created: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
}

/// An image for one platform.
pub(super) struct Found {
    /// Documents from the target down to the manifest.
    pub(super) path: Vec<ImageBlob>,
    pub(super) manifest: Manifest,
    /// When it is that of an image.
    pub(super) config: Option<Config>,
}

impl Resolved {
    /// All blobs together, in bytes: the size that containerd lists.
    pub(super) fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.descriptor.size).sum()
    }

    /// What its layers take unpacked, as far as can be told, in bytes.
    pub(super) fn unpacked(&self) -> u64 {
        self.stack.iter().flat_map(|stack| &stack.layers).map(|layer| estimate(&layer.descriptor)).sum()
    }

    /// Leaves out the layers that are unpacked, and what keeps them from containerd's garbage collection
    /// (`images.ChildGCLabelsFilterLayers`); not those that another platform's manifest or a referrer has as well.
    pub(super) fn discard_layers(&mut self) {
        for blob in self.blobs.iter_mut().filter(|blob| blob.descriptor.digest == self.manifest) {
            blob.children.retain(|(key, _)| !labels::is_layer_ref(key));
        }
        let children = self.blobs.iter().flat_map(|blob| &blob.children);
        let kept: HashSet<Digest> = children.map(|(_, child)| child.clone()).collect();
        self.blobs.retain(|blob| {
            !media_type::is_layer(&blob.descriptor.media_type) || kept.contains(&blob.descriptor.digest)
        });
    }
}

/// One bake's fetching.
pub(super) struct Fetcher {
    pub(super) blobs: Arc<Blobs>,
    pub(super) referrers: Option<Vec<String>>,
    pub(super) trusted: Vec<Trusted>,
    pub(super) part: Option<Part>,
    /// Images that others complete, by namespace and name.
    pub(super) left: Mutex<BTreeSet<(String, String)>>,
    fail_fast: bool,
    images_at_once: usize,
}

impl Fetcher {
    pub(super) fn new(request: &Request, blobs: Blobs) -> Self {
        Self {
            blobs: Arc::new(blobs),
            referrers: request.referrers.clone(),
            trusted: request.trusted.clone(),
            part: request.part.clone(),
            left: Mutex::default(),
            images_at_once: request.concurrency.max(2),
            fail_fast: request.fail_fast,
        }
    }

    /// One that keeps documents in memory, and writes nothing.
    pub(super) fn that_looks(request: &Request, store: Store, listener: Arc<dyn Listener>) -> Result<Self> {
        Ok(Self::new(request, Blobs::new(request, store, Place::Memory(Mutex::default()), listener)?))
    }

    /// Waits until nothing is being written any more, and remembers what was verified.
    pub(super) async fn settled(&self, times: &Times) -> Result<()> {
        let in_place = self.blobs.settled(times).await?;
        Ok(self.blobs.catalog().map_or(Ok(()), |catalog| catalog.record("", &[], &in_place))?)
    }

    pub(super) fn pace(&self) -> Pace {
        Pace { at_once: self.images_at_once, fail_fast: self.fail_fast }
    }

    pub(super) fn totals(&self) -> Totals {
        self.blobs.totals()
    }

    /// Finds out what an image consists of. Where it may come to be unpacked, its layers have to fit its config.
    pub(super) async fn resolve(&self, wanted: Arc<Wanted>, unpacks: bool) -> Result<Resolved> {
        let mut resolved = self.documents(wanted, unpacks).await?;
        self.admit(&resolved).await?;
        self.add_referrers(&mut resolved).await?;
        self.blobs.listener.on(&Event::ImageResolved {
            image: &resolved.wanted.reference.to_string(),
            digest: &resolved.blobs[0].descriptor.digest,
            platforms: &resolved.wanted.platforms,
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
        times: &Arc<Times>,
    ) -> Result<Baked> {
        let Resolved { wanted, blobs, config, stack, origin, choice: Choice { policy, pin, .. }, .. } = image;
        let Wanted { reference, namespace, names, labels, .. } = &*wanted;
        let target = blobs[0].descriptor.clone();
        let own = self.own(&blobs);
        let fetch = self.blobs.ensure_all(reference, &own);
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
            unpacker.image(namespace, stack, &present, source).await
        };
        futures_util::try_join!(fetch, unpack)?;
        let is_left = self.is_left(namespace, reference, &blobs).await?;
        let name = reference.to_string();
        let mut aliases = vec![reference.digest_name(&target.digest), config.to_string()];
        aliases.retain(|alias| *alias != name);
        let registry = || (reference.registry_host().to_owned(), reference.repository().to_owned());
        let source = (!self.blobs.sources.is_local(reference)).then(registry);
        let mut names: Vec<String> = names.iter().map(Reference::to_string).collect();
        names.retain(|other| *other != name);
        let labels = labels.clone();
        let created = origin.created;
        let record = ImageRecord { name, created, aliases, target, names, labels, pinned: pin, blobs, source };
        if is_left {
            return Ok(Baked::fetched(namespace, record));
        }
        self.blobs.listener.on(&Event::ImageFetched { image: &record.name, digest: &record.target.digest });
        let baked = Baked { stack: stack.filter(|_| policy != Policy::Fetch), ..Baked::fetched(namespace, record) };
        if policy == Policy::UnpackDiscard {
            // Without its snapshots it is nothing that a bootstrap of its own could use.
            return Ok(baked);
        }
        let (blobs, times) = (self.blobs.clone(), times.clone());
        blocking(move || {
            let verified = blobs.new_of(baked.record.blobs.iter().map(|blob| &blob.descriptor.digest), &times)?;
            let images = std::slice::from_ref(&baked.record);
            blobs.catalog().map_or(Ok(()), |catalog| catalog.record(&baked.namespace, images, &verified))?;
            Ok(baked)
        })
        .await
    }

    /// Walks from the target down to the manifest of each platform.
    async fn documents(&self, wanted: Arc<Wanted>, unpacks: bool) -> Result<Resolved> {
        let reference = &wanted.reference;
        let (declared, raw) = match wanted.locked.as_deref() {
            Some(LockedImage { target, .. }) => {
                (target.clone(), self.blobs.small(reference, target, Small::Document).await?)
            }
            None => self.blobs.target(&wanted).await?,
        };
        let (document, media_type) = parse(&declared.digest, &raw.bytes, &declared.media_type)?;
        let target = Descriptor::new(media_type, declared.digest, declared.size);
        self.blobs.keep(&target, raw.bytes.clone()).await?;
        drop(raw);
        let mut first = None;
        let mut seen = HashSet::new();
        let mut blobs: Vec<ImageBlob> = Vec::new();
        for platform in &wanted.platforms {
            let Found { path, manifest, config } = self.find(reference, platform, &target, &document).await?;
            if let Some(empty) = manifest.layers.iter().find(|layer| layer.size == 0) {
                return Err(Error::EmptyLayer(empty.digest.clone()));
            }
            if first.is_none() {
                let stack = match config.as_ref().map(|config| Stack::new(&manifest, config)) {
                    // Nobody minds what nobody unpacks.
                    Some(Err(_)) if !unpacks => None,
                    stack => stack.transpose()?.flatten().map(Arc::new),
                };
                let digest = path.last().map_or(&target, |blob| &blob.descriptor).digest.clone();
                let origin = config.map(|config| Origin { created: config.created, labels: config.labels });
                first = Some((digest, manifest.config.digest.clone(), stack, origin.unwrap_or_default()));
            }
            let leaves = [manifest.config].into_iter().chain(manifest.layers).map(leaf);
            // A layer may occur several times in an image.
            blobs.extend(path.into_iter().chain(leaves).filter(|blob| seen.insert(blob.descriptor.digest.clone())));
        }
        let (manifest, config, stack, origin) = first.ok_or(Error::Task)?;
        let choice = Choice { policy: Policy::Fetch, reason: Reason::Default, pin: false };
        Ok(Resolved { wanted, blobs, manifest, config, stack, origin, choice })
    }

    /// Walks from the target down to one platform's manifest.
    pub(super) async fn find(
        &self,
        reference: &Reference,
        platform: &Platform,
        target: &Descriptor,
        document: &Document,
    ) -> Result<Found> {
        let mut search = Search {
            reference,
            platform,
            path: Vec::new(),
            seen: HashSet::from([target.digest.clone()]),
            has: BTreeSet::new(),
            config: None,
        };
        if let Some(manifest) = self.descend(&mut search, target.clone(), document.clone(), None, 0).await? {
            return Ok(Found { path: search.path, manifest, config: search.config });
        }
        let has = search.has.into_iter().collect::<Vec<_>>().join(", ");
        Err(Error::NoPlatform { wanted: platform.clone(), has })
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
            for entry in candidates(&index, search.platform) {
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
        let fits = fits(&config, said, search.platform)?;
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
    platform: &'r Platform,
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
