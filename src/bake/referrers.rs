//! What refers to an image: signatures, SBOMs, attestations. Taken along, or asked for before the image is admitted.

use std::collections::HashSet;

use super::Error;
use super::blobs::{Result, Small};
use super::fetch::{Fetcher, Resolved, leaf, parse};
use super::resolve::children;
use crate::catalog::ImageBlob;
use crate::metadata::labels;
use crate::oci::{Descriptor, Digest, Document, MAX_DOCUMENT, Reference, media_type};
use crate::trust::{PublicKey, SIGNATURE, is_signature};

/// Referrers of one image, with those that refer to them.
const MAX_REFERRERS: usize = 256;
/// Signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 64;
/// Bytes of a signature.
const MAX_PAYLOAD: u64 = 64 << 10;
/// What the types of artifacts that may be signatures begin with.
const SIGNATURES: [&str; 2] = ["application/vnd.dev.cosign.", "application/vnd.dev.sigstore.bundle"];
/// What cosign adds to the tag that it makes of a digest.
const COSIGN_TAGS: [&str; 3] = [".sig", ".att", ".sbom"];

impl Fetcher {
    /// Adds what refers to an image to its blobs, of the types that were asked for, with labels that keep it.
    pub(super) async fn add_referrers(&self, image: &mut Resolved) -> Result<()> {
        let Some(wanted) = &self.referrers else { return Ok(()) };
        let is_document = |kind: &str| media_type::is_index(kind) || media_type::is_manifest(kind);
        let mut subjects: Vec<Digest> = image
            .blobs
            .iter()
            .filter(|blob| is_document(&blob.descriptor.media_type))
            .map(|b| b.descriptor.digest.clone())
            .collect();
        let mut seen: HashSet<Digest> = image.blobs.iter().map(|blob| blob.descriptor.digest.clone()).collect();
        let mut count = 0;
        while let Some(subject) = subjects.pop() {
            for descriptor in self.referrers_of(&image.wanted.reference, &subject).await? {
                let is_wanted = |kind: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == kind);
                let is_other = descriptor.artifact_type().is_some_and(|kind| !is_wanted(kind));
                if is_other || !seen.insert(descriptor.digest.clone()) {
                    continue;
                }
                count += 1;
                if count > MAX_REFERRERS {
                    return Err(Error::TooManyDocuments);
                }
                let raw = self.blobs.small(&image.wanted.reference, &descriptor, Small::Document).await?;
                let (document, kind) = parse(&descriptor.digest, &raw.bytes, &descriptor.media_type)?;
                drop(raw);
                let Document::Manifest(manifest) = &document else { continue };
                let parts = || std::iter::once(&manifest.config).chain(&manifest.layers);
                // What cosign's tags lead to says its type by what it is made of.
                if descriptor.artifact_type().is_none() && !parts().any(|part| is_wanted(&part.media_type)) {
                    continue;
                }
                let of = image.blobs.iter_mut().find(|blob| blob.descriptor.digest == subject);
                if let Some(of) = of {
                    of.children.push(labels::referrer(&descriptor.digest));
                }
                let children = labels::children(&children(&document));
                let own = Descriptor::new(kind, descriptor.digest.clone(), descriptor.size);
                image.blobs.push(ImageBlob { children, descriptor: own });
                let new = parts().filter(|part| seen.insert(part.digest.clone())).cloned().map(leaf);
                image.blobs.extend(new);
                subjects.push(descriptor.digest.clone());
            }
        }
        Ok(())
    }

    /// By the registry's word, and by cosign's tags.
    async fn referrers_of(&self, reference: &Reference, subject: &Digest) -> Result<Vec<Descriptor>> {
        let mut all = self.blobs.sources.referrers(reference, subject).await?;
        for suffix in COSIGN_TAGS {
            all.extend(self.tagged(reference, subject, suffix).await?);
        }
        Ok(all)
    }

    /// The manifest under the tag that cosign makes of a digest.
    async fn tagged(&self, reference: &Reference, subject: &Digest, suffix: &str) -> Result<Option<Descriptor>> {
        let tag = format!("{}{suffix}", subject.as_tag());
        match self.blobs.sources.document(reference, &tag, MAX_DOCUMENT, None).await {
            Ok(raw) => {
                let digest = Digest::of(&raw.bytes);
                let descriptor = Descriptor::new(raw.media_type.clone(), digest, raw.bytes.len() as u64);
                self.blobs.keep(&descriptor, raw.bytes.clone()).await?;
                Ok(Some(descriptor))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an image may be used: where keys are named for it, one of them has signed what its name leads to.
    pub(super) async fn admit(&self, image: &Resolved) -> Result<()> {
        let own: Vec<&PublicKey> = image.wanted.keys.iter().collect();
        let fitting = self.trusted.iter().filter(|trusted| image.wanted.reference.fits(&trusted.pattern));
        let keys = if own.is_empty() { fitting.map(|trusted| &trusted.key).collect() } else { own };
        if keys.is_empty() {
            return Ok(());
        }
        let target = &image.blobs[0].descriptor.digest;
        let named = self.tagged(&image.wanted.reference, target, COSIGN_TAGS[0]).await?;
        let referring = self.blobs.sources.referrers(&image.wanted.reference, target).await?;
        let may_sign = |referrer: &Descriptor| {
            referrer.artifact_type().is_none_or(|kind| SIGNATURES.iter().any(|begin| kind.starts_with(begin)))
        };
        let candidates = named.into_iter().chain(referring.into_iter().filter(may_sign)).take(MAX_SIGNATURES);
        let (mut signatures, mut failure) = (0, None);
        for descriptor in candidates {
            match self.signed(&image.wanted.reference, &descriptor, target, &keys, &mut signatures).await {
                Ok(false) => {}
                Ok(true) => return Ok(()),
                // Another one may do.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or(Error::Unsigned { digest: target.clone(), signatures, keys: keys.len() }))
    }

    /// Whether one of the keys made one of the signatures in a manifest.
    async fn signed(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        target: &Digest,
        keys: &[&PublicKey],
        signatures: &mut usize,
    ) -> Result<bool> {
        let raw = self.blobs.small(reference, descriptor, Small::Document).await?;
        let (document, _) = parse(&descriptor.digest, &raw.bytes, &descriptor.media_type)?;
        drop(raw);
        let Document::Manifest(manifest) = document else { return Ok(false) };
        let may_sign = |layer: &&Descriptor| is_signature(&layer.media_type) && layer.size <= MAX_PAYLOAD;
        for layer in manifest.layers.iter().filter(may_sign) {
            let annotation = layer.annotations().find(|(name, _)| *name == SIGNATURE).map(|(_, text)| text.as_str());
            *signatures += 1;
            if *signatures > MAX_SIGNATURES {
                return Err(Error::TooManyDocuments);
            }
            let payload = self.blobs.small(reference, layer, Small::Blob).await?;
            if keys.iter().any(|key| key.admits(target, &layer.media_type, &payload.bytes, annotation)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Those of an image's blobs that are not its own: manifests that refer to it, or to one that does.
pub(super) fn referring(blobs: &[ImageBlob]) -> HashSet<Digest> {
    let children = blobs.iter().flat_map(|blob| &blob.children);
    children.filter(|(key, _)| labels::is_referrer_ref(key)).map(|(_, digest)| digest.clone()).collect()
}
