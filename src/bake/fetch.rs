//! Images: from a reference through its documents to all its blobs.

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::stream::{FuturesUnordered, StreamExt, iter};

use super::blobs::{Blobs, Result, Small, blocking};
use super::resolve::{candidates, children, fits, platforms};
use super::{Error, Event, Failure, Request, Totals};
use crate::catalog::{ImageBlob, ImageRecord};
use crate::metadata::labels;
use crate::oci::{Config, Descriptor, Digest, Document, DocumentError, Manifest, Platform, Reference, media_type};

/// Indexes inside an index.
const MAX_INDEX_DEPTH: usize = 4;
/// Documents that are looked into in search of an image's manifest.
const MAX_DOCUMENTS: usize = 64;

/// How far each image came; `None` where it was stopped.
type Results = Vec<Option<Result<ImageRecord, Failure>>>;

/// One bake's fetching.
pub(super) struct Fetcher {
    blobs: Arc<Blobs>,
    platform: Platform,
    pin: bool,
    images_at_once: usize,
}

impl Fetcher {
    pub(super) fn new(request: &Request, blobs: Blobs) -> Self {
        Self {
            blobs: Arc::new(blobs),
            platform: request.platform.clone(),
            pin: request.pin,
            images_at_once: request.concurrency.max(2),
        }
    }

    /// Fetches all images; whether `cancel` came first. Nothing is being written any more when it returns, and what was
    /// verified is in the catalog.
    pub(super) async fn all(
        &self,
        references: &[Reference],
        cancel: impl Future<Output = ()>,
    ) -> Result<(Results, bool)> {
        let mut results: Results = references.iter().map(|_| None).collect();
        let cancelled = self.each(references, cancel, &mut results).await;
        let in_place = self.blobs.settled().await?;
        self.blobs.catalog.record(&self.blobs.namespace, &[], &in_place)?;
        Ok((results, cancelled))
    }

    async fn each(&self, references: &[Reference], cancel: impl Future<Output = ()>, results: &mut Results) -> bool {
        let mut images = iter(references.iter().enumerate())
            .map(|(i, reference)| async move { (i, self.image(reference).await) })
            .buffer_unordered(self.images_at_once);
        tokio::pin!(cancel);
        loop {
            let (i, result) = tokio::select! {
                next = images.next() => match next {
                    Some(done) => done,
                    None => return false,
                },
                () = &mut cancel => return true,
            };
            let result = result.map_err(|error| Failure::new(&error));
            let image = &references[i].to_string();
            self.blobs.listener.on(&match &result {
                Ok(record) => Event::ImageFetched { image, digest: &record.target.digest },
                Err(failure) => Event::ImageFailed { image, kind: failure.kind, error: &failure.message },
            });
            results[i] = Some(result);
        }
    }

    pub(super) fn totals(&self) -> Totals {
        self.blobs.totals()
    }

    async fn image(&self, reference: &Reference) -> Result<ImageRecord> {
        let name = reference.to_string();
        let (blobs, config) = self.resolve(reference).await?;
        let target = blobs[0].descriptor.clone();
        self.blobs.listener.on(&Event::ImageResolved {
            image: &name,
            digest: &target.digest,
            platform: &self.platform,
            blobs: blobs.len(),
            bytes: blobs.iter().map(|blob| blob.descriptor.size).sum(),
        });
        let mut all: FuturesUnordered<_> =
            blobs.iter().map(|blob| self.blobs.ensure(reference, &blob.descriptor)).collect();
        while all.try_next().await?.is_some() {}
        drop(all);
        let mut aliases = vec![reference.digest_name(&target.digest), config.to_string()];
        aliases.retain(|alias| *alias != name);
        let source = (reference.registry_host().to_owned(), reference.repository().to_owned());
        let platform = self.platform.clone();
        let record = ImageRecord { name, aliases, target, platform, pinned: self.pin, blobs, source };
        let (store, catalog, namespace) =
            (self.blobs.store.clone(), self.blobs.catalog.clone(), self.blobs.namespace.clone());
        blocking(move || {
            let mut verified = Vec::new();
            for blob in &record.blobs {
                if let Some(stat) = store.stat(&blob.descriptor.digest)? {
                    verified.push((blob.descriptor.digest.clone(), stat));
                }
            }
            catalog.record(&namespace, std::slice::from_ref(&record), &verified)?;
            Ok(record)
        })
        .await
    }

    /// The image's blobs: documents from the target down, then the config and the layers. Also which of them the config is.
    async fn resolve(&self, reference: &Reference) -> Result<(Vec<ImageBlob>, Digest)> {
        let (declared, raw) = self.blobs.target(reference).await?;
        let (document, media_type) = parse(&declared.digest, &raw.bytes, &declared.media_type)?;
        let target = Descriptor::new(media_type, declared.digest, declared.size);
        self.blobs.keep(&target, raw.bytes.clone()).await?;
        drop(raw);
        let mut search = Search { reference, path: Vec::new(), seen: HashSet::new(), has: BTreeSet::new() };
        search.seen.insert(target.digest.clone());
        let Some(manifest) = self.descend(&mut search, target, document, None, 0).await? else {
            let has = search.has.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::NoPlatform { wanted: self.platform.clone(), has });
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
        Ok((blobs, config))
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
        if !fits {
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
}

fn leaf(descriptor: Descriptor) -> ImageBlob {
    ImageBlob { descriptor, children: Vec::new() }
}

fn parse(digest: &Digest, bytes: &[u8], declared: &str) -> Result<(Document, String)> {
    Document::parse(bytes, declared).map_err(|source| unusable(digest, source))
}

fn unusable(digest: &Digest, source: DocumentError) -> Error {
    Error::Document { what: digest.to_string(), source }
}
