//! What an image consists of, and which of its manifests are asked for. Everything is read by digest after one resolve, so that
//! a tag that moves meanwhile changes nothing.

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use serde_json::{Value, json};

use super::super::{Error, Result};
use crate::bake::{candidates, platforms};
use crate::oci::{Config, Descriptor, Digest, Document, MAX_DOCUMENT, Manifest, Platform, Reference, media_type};
use crate::source::Sources;

/// Indexes inside an index.
const MAX_DEPTH: usize = 4;
/// Documents of one image, with what refers to it.
const MAX_DOCUMENTS: usize = 2000;
/// Documents that are asked for at a time.
const AT_ONCE: usize = 6;
/// How often a document is asked for that comes wrong.
const TRIES: u32 = 3;

/// An index or manifest, as it is.
#[derive(Clone)]
pub(super) struct Doc {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Bytes,
    pub(super) document: Document,
}

/// What an image consists of.
#[derive(Default)]
pub(super) struct Tree {
    /// Each behind those that it names.
    pub(super) documents: Vec<Doc>,
    pub(super) blobs: Vec<Descriptor>,
    pub(super) seen: HashSet<Digest>,
}

impl Tree {
    /// Its documents and blobs.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Descriptor> {
        self.documents.iter().map(|doc| &doc.descriptor).chain(&self.blobs)
    }
}

/// Reads an image.
#[derive(Clone, Copy)]
pub(super) struct Reader<'r> {
    pub(super) sources: &'r Sources,
    pub(super) from: &'r Reference,
}

/// A manifest for a platform, and its entry in the index that named it.
struct Found {
    doc: Doc,
    entry: Option<Value>,
}

impl Doc {
    pub(super) fn new(bytes: Bytes, declared: &str, digest: Digest) -> Result<Self> {
        let parsed = Document::parse(&bytes, declared);
        let (document, kind) = parsed.map_err(|source| Error::Document { what: digest.to_string(), source })?;
        let descriptor = Descriptor::new(kind, digest, bytes.len() as u64);
        Ok(Self { descriptor, bytes, document })
    }

    /// A field of it.
    pub(super) fn field(&self, name: &str) -> Option<Value> {
        let mut value: Value = serde_json::from_slice(&self.bytes).ok()?;
        value.get_mut(name).map(Value::take)
    }
}

impl Reader<'_> {
    /// What the image's name leads to.
    pub(super) async fn resolve(&self) -> Result<Doc> {
        self.get(self.from.target(), "", self.from.digest()).await
    }

    /// A document by its digest.
    pub(super) async fn document(&self, entry: &Descriptor) -> Result<Doc> {
        match self.get(entry.digest.as_str(), &entry.media_type, Some(&entry.digest)).await {
            Err(Error::Source(source)) if source.is_not_found() => {
                Err(Error::Incomplete { digest: entry.digest.clone(), source: Box::new(source) })
            }
            other => other,
        }
    }

    /// A document by its tag, if there is one.
    pub(super) async fn tagged(&self, tag: &str) -> Result<Option<Doc>> {
        match self.get(tag, "", None).await {
            Ok(doc) => Ok(Some(doc)),
            Err(Error::Source(source)) if source.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get(&self, target: &str, declared: &str, expected: Option<&Digest>) -> Result<Doc> {
        let mut tries = 1;
        loop {
            // What it takes is room for others once it is dropped.
            let raw = self.sources.document(self.from, target, MAX_DOCUMENT, None).await?;
            let declared = if declared.is_empty() { raw.media_type.clone() } else { declared.to_owned() };
            let (bytes, got) = (raw.bytes.clone(), Digest::of_as(&raw.bytes, expected));
            drop(raw);
            match expected {
                Some(digest) if *digest != got && tries == TRIES => {
                    return Err(Error::WrongDigest { expected: digest.clone(), got });
                }
                Some(digest) if *digest != got => tries += 1,
                _ => return Doc::new(bytes, &declared, got),
            }
        }
    }

    /// Everything below a document, and then itself.
    pub(super) fn walk<'a>(
        &'a self,
        doc: Doc,
        tree: &'a mut Tree,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        Box::pin(async move {
            if depth > MAX_DEPTH {
                return Err(Error::TooDeep);
            }
            if !tree.seen.insert(doc.descriptor.digest.clone()) {
                return Ok(());
            }
            if tree.documents.len() >= MAX_DOCUMENTS {
                return Err(Error::TooManyDocuments);
            }
            match &doc.document {
                Document::Manifest(Manifest { config, layers }) => {
                    // Those that registries may not give away stay where their urls say.
                    let own = std::iter::once(config).chain(layers).filter(|blob| blob.urls().is_empty());
                    tree.blobs.extend(own.filter(|blob| tree.seen.insert(blob.digest.clone())).cloned());
                }
                Document::Index(index) => {
                    let is_document =
                        |kind: &str| media_type::is_index(kind) || media_type::is_manifest(kind) || kind.is_empty();
                    let (documents, blobs): (Vec<_>, Vec<_>) =
                        index.manifests.iter().partition(|entry| is_document(&entry.media_type));
                    tree.blobs.extend(blobs.into_iter().filter(|blob| tree.seen.insert(blob.digest.clone())).cloned());
                    let new = documents.into_iter().filter(|entry| !tree.seen.contains(&entry.digest)).cloned();
                    let new: Vec<Descriptor> = new.collect();
                    let get = |entry: Descriptor| async move { self.document(&entry).await };
                    let mut coming = iter(new.into_iter().map(get)).buffered(AT_ONCE);
                    while let Some(child) = coming.try_next().await? {
                        self.walk(child, tree, depth + 1).await?;
                    }
                }
            }
            tree.documents.push(doc);
            Ok(())
        })
    }

    /// What is to be copied of an image: all of it, or its manifests for some platforms. The last document is what gets the
    /// image's name: as it is, the only manifest asked for, or an index of those that are.
    pub(super) async fn choose(&self, target: Doc, wanted: &[Platform]) -> Result<Tree> {
        let mut tree = Tree::default();
        if wanted.is_empty() {
            self.walk(target, &mut tree, 0).await?;
            return Ok(tree);
        }
        let mut chosen: Vec<Found> = Vec::new();
        for platform in wanted {
            let mut has = BTreeSet::new();
            let found = self.find(target.clone(), None, platform, &mut has, 0).await?;
            let Some(found) = found else {
                let has = has.into_iter().collect::<Vec<_>>().join(", ");
                return Err(Error::NoPlatform { wanted: platform.clone(), has });
            };
            if chosen.iter().all(|other| other.doc.descriptor.digest != found.doc.descriptor.digest) {
                chosen.push(found);
            }
        }
        let index = if wanted.len() > 1 { index_of(&target, &chosen)? } else { None };
        for found in chosen {
            self.walk(found.doc, &mut tree, 1).await?;
        }
        tree.documents.extend(index);
        Ok(tree)
    }

    /// The manifest for a platform below a document.
    fn find<'a>(
        &'a self,
        doc: Doc,
        entry: Option<Value>,
        wanted: &'a Platform,
        has: &'a mut BTreeSet<String>,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Found>>> + Send + 'a>> {
        Box::pin(async move {
            let index = match &doc.document {
                Document::Manifest(manifest) => {
                    let fits = self.fits(manifest, wanted, has).await?;
                    return Ok(fits.then_some(Found { doc, entry }));
                }
                Document::Index(_) if depth == MAX_DEPTH => return Err(Error::TooDeep),
                Document::Index(index) => index,
            };
            has.extend(platforms(index));
            let entries = doc.field("manifests").unwrap_or_default();
            for child in candidates(index, wanted) {
                let is_it = |entry: &&Value| entry["digest"] == child.digest.as_str();
                let mut entry = entries.as_array().into_iter().flatten().find(is_it).cloned();
                if let Some(entry) = entry.as_mut().filter(|entry| entry["platform"].is_null()) {
                    entry["platform"] = platform_json(wanted);
                }
                if let Some(found) = self.find(self.document(child).await?, entry, wanted, has, depth + 1).await? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }

    /// Whether a manifest is for a platform; artifacts, whose config is no image config, are for any.
    async fn fits(&self, manifest: &Manifest, wanted: &Platform, has: &mut BTreeSet<String>) -> Result<bool> {
        let Manifest { config, .. } = manifest;
        if !media_type::is_image_config(&config.media_type) {
            return Ok(true);
        }
        let raw = self.sources.small_blob(self.from, &config.digest, MAX_DOCUMENT, None).await?;
        let got = Digest::of_as(&raw.bytes, Some(&config.digest));
        if got != config.digest {
            return Err(Error::WrongDigest { expected: config.digest.clone(), got });
        }
        let what = || config.digest.to_string();
        let config = Config::parse(&raw.bytes).map_err(|source| Error::Document { what: what(), source })?;
        has.insert(config.platform.to_string());
        Ok(config.platform == *wanted)
    }
}

fn platform_json(platform: &Platform) -> Value {
    let text = platform.to_string();
    let mut parts = text.split('/');
    let mut json = json!({"os": parts.next(), "architecture": parts.next()});
    if let Some(variant) = parts.next() {
        json["variant"] = json!(variant);
    }
    json
}

/// An index of those manifests of another one, always the same for the same ones; `None` where the image is but a manifest.
fn index_of(target: &Doc, chosen: &[Found]) -> Result<Option<Doc>> {
    if !matches!(target.document, Document::Index(_)) {
        return Ok(None);
    }
    let entries: Vec<&Value> = chosen.iter().filter_map(|found| found.entry.as_ref()).collect();
    let kind = &target.descriptor.media_type;
    let mut index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
    if let Some(annotations) = target.field("annotations") {
        index["annotations"] = annotations;
    }
    let bytes = Bytes::from(index.to_string());
    let digest = Digest::of(&bytes);
    Doc::new(bytes, kind, digest).map(Some)
}
