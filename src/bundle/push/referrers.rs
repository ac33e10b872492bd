//! What refers to an image: found where the image is, and listed where it goes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{Error, Result};
use super::documents::{Doc, Reader, Tree};
use crate::oci::{Digest, Document, Reference, media_type};
use crate::registry::{self, Client};

/// Referrers of one image, with those that refer to them.
const MAX_REFERRERS: usize = 256;
/// What cosign adds to the tag that it makes of a digest.
const COSIGN_TAGS: [&str; 3] = [".sig", ".att", ".sbom"];

/// Referrers, and where they are listed.
#[derive(Default)]
pub(super) struct Referrers {
    /// Tags of cosign's, and what they lead to.
    pub(super) tags: Vec<(String, Doc)>,
    /// What is listed for a subject.
    pub(super) lists: BTreeMap<String, (Digest, Vec<Entry>)>,
}

/// A line of a list.
pub(super) struct Entry {
    pub(super) digest: Digest,
    descriptor: Value,
}

impl Reader<'_> {
    /// Adds what refers to an image's documents to what it consists of, of these types; all without any. Where something was
    /// locked, nothing else is: what came since is for the next lock.
    pub(super) async fn add_referrers(
        &self,
        wanted: &[String],
        locked: Option<&HashSet<&Digest>>,
        tree: &mut Tree,
    ) -> Result<Referrers> {
        let mut found = Referrers::default();
        let mut subjects: Vec<Digest> = tree.documents.iter().map(|doc| doc.descriptor.digest.clone()).collect();
        let is_wanted = |kind: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == kind);
        let is_locked = |digest: &Digest| locked.is_none_or(|locked| locked.contains(digest));
        let mut count = 0;
        while let Some(subject) = subjects.pop() {
            for descriptor in self.sources.referrers(self.from, &subject).await? {
                let is_other = descriptor.artifact_type().is_some_and(|kind| !is_wanted(kind));
                if is_other || !is_locked(&descriptor.digest) {
                    continue;
                }
                let doc = self.document(&descriptor).await?;
                if descriptor.artifact_type().is_none() && !parts(&doc).iter().any(|kind| is_wanted(kind)) {
                    continue;
                }
                let list = found.lists.entry(subject.to_string()).or_insert_with(|| (subject.clone(), Vec::new()));
                list.1.push(entry(&doc));
                if !tree.seen.contains(&doc.descriptor.digest) {
                    subjects.push(doc.descriptor.digest.clone());
                    self.walk(doc, tree, 1).await?;
                    count += 1;
                }
            }
            for suffix in COSIGN_TAGS {
                let tag = format!("{}{suffix}", subject.as_tag());
                let Some(doc) = self.tagged(&tag).await? else { continue };
                if is_locked(&doc.descriptor.digest) && parts(&doc).iter().any(|kind| is_wanted(kind)) {
                    self.walk(doc.clone(), tree, 1).await?;
                    found.tags.push((tag, doc));
                    count += 1;
                }
            }
            if count > MAX_REFERRERS {
                return Err(Error::TooManyDocuments);
            }
        }
        Ok(found)
    }
}

/// The media types of what a document names, and its own artifact type.
fn parts(doc: &Doc) -> Vec<String> {
    let mut all = match &doc.document {
        Document::Index(index) => index.manifests.iter().map(|entry| entry.media_type.clone()).collect::<Vec<_>>(),
        Document::Manifest(manifest) => {
            std::iter::once(&manifest.config).chain(&manifest.layers).map(|part| part.media_type.clone()).collect()
        }
    };
    all.extend(doc.field("artifactType").and_then(|kind| kind.as_str().map(str::to_owned)));
    all
}

/// A referrer as lists have it (distribution specification, "Listing Referrers").
fn entry(doc: &Doc) -> Entry {
    let mut descriptor = json!(doc.descriptor);
    let own = doc.field("artifactType").filter(|kind| kind.as_str().is_some_and(|kind| !kind.is_empty()));
    let config = || doc.field("config").and_then(|mut config| config.get_mut("mediaType").map(Value::take));
    if let Some(kind) = own.or_else(config) {
        descriptor["artifactType"] = kind;
    }
    if let Some(annotations) = doc.field("annotations").filter(Value::is_object) {
        descriptor["annotations"] = annotations;
    }
    Entry { digest: doc.descriptor.digest.clone(), descriptor }
}

/// Sees to it that a registry lists what refers to something: where it does not by itself, by the tag that stands in for that,
/// which keeps what it lists already. Whether anything was missing.
pub(super) async fn list(
    client: &Arc<Client>,
    to: &Reference,
    (subject, entries): &(Digest, Vec<Entry>),
    acknowledged: &[Digest],
) -> Result<bool> {
    let known = client.pushed_referrers(to, subject).await?;
    let is_listed = |digest: &Digest| acknowledged.contains(digest) || known.iter().any(|own| own.digest == *digest);
    let missing: Vec<&Value> =
        entries.iter().filter(|entry| !is_listed(&entry.digest)).map(|entry| &entry.descriptor).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    let tag = subject.as_tag();
    let mut index = match client.pushed_document(to, &tag).await {
        Ok(raw) => serde_json::from_slice(&raw.bytes).unwrap_or_default(),
        Err(registry::Error::NotFound { .. }) => {
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []})
        }
        Err(error) => return Err(error.into()),
    };
    let Some(listed) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(Error::NoList { tag });
    };
    listed.extend(missing.into_iter().cloned());
    client.put_document(to, &tag, media_type::OCI_INDEX, index.to_string().as_bytes()).await?;
    Ok(true)
}
