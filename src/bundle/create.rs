//! Making a bundle: everything that images need, or what somebody lacks of it, in one archive.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::contents::{BundledBlob, BundledImage, CONTENTS, Contents, SIGNATURE, VERSION};
use super::output::{Form, Output, Written};
use super::pack::{Archive, Item, pack};
use super::{Error, Inventory, Result};
use crate::bake::{self, Event, Listener, Survey};
use crate::oci::{Descriptor, Digest, Reference, media_type};
use crate::root::Root;
use crate::source::{IMAGE_NAME, REF_NAME};
use crate::spec::Share;
use crate::trust::SigningKey;

/// A file that every layout has, in any version of the specification.
pub(super) const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A bundle that is to be made.
pub struct Create {
    /// Which images, and how to get at them; nothing is written to its root.
    pub request: bake::Request,
    /// Where to.
    pub output: PathBuf,
    /// In which form.
    pub form: Form,
    /// What the receiver has already.
    pub since: Option<Inventory>,
    /// Whose share of the layers is in it; all of them without.
    pub share: Option<Share>,
    /// Who signs it.
    pub key: Option<SigningKey>,
    /// Whether only to tell what would be in it.
    pub dry_run: bool,
}

/// A bundle that was made.
#[derive(Debug)]
pub struct Created {
    /// Its files.
    pub files: Vec<Written>,
    /// What is in it.
    pub contents: Contents,
    /// Blobs that are in it, and their bytes.
    pub carried: (usize, u64),
    /// Blobs that the receiver has, or that other shards' bundles carry, and their bytes.
    pub left_out: (usize, u64),
}

/// Makes a bundle. Blobs stream from where they are into it.
///
/// # Errors
/// [`Error`]; [`Error::Images`] when one of the images cannot be had: a bundle has all of them. Nothing is left behind then.
pub async fn create(create: Create, listener: Arc<dyn Listener>, cancel: impl Future<Output = ()>) -> Result<Created> {
    tokio::pin!(cancel);
    let survey = bake::survey(&create.request, listener.clone(), cancel.as_mut()).await?;
    if !survey.failed.is_empty() {
        return Err(Error::Images(survey.failed));
    }
    let (contents, items) = contents(&survey, create.since.as_ref(), create.share.as_ref());
    let sum = |here: bool| {
        let blobs = || contents.blobs.iter().filter(|blob| blob.here == here);
        (blobs().count(), blobs().map(|blob| blob.size).sum::<u64>())
    };
    let (carried, left_out) = (sum(true), sum(false));
    listener.on(&Event::Planned { fetch: carried.1, store: carried.1, snapshots: 0 });
    let mut files = Vec::new();
    if !create.dry_run {
        room(&create, carried.1)?;
        let head = head(&survey, &contents, create.key.as_ref());
        let output = Archive::new(Output::new(&create.output, create.form));
        let documents = survey.documents();
        let packing = pack(head, &items, survey.sources(), &documents, output, &listener);
        files = tokio::select! {
            files = packing => files?,
            () = cancel => return Err(Error::Stopped),
        };
    }
    survey.sources().settle().await?;
    Ok(Created { files, contents, carried, left_out })
}

/// Looks for room before anything is written.
fn room(create: &Create, needed: u64) -> Result<()> {
    let dir = create.output.parent().filter(|dir| !dir.as_os_str().is_empty());
    let free = Root::new(dir.unwrap_or(".".as_ref()), "").space()?.free;
    if free < needed && !create.form.compress && !create.request.policies.ignore_space {
        return Err(Error::NoSpace { path: create.output.clone(), needed, free });
    }
    Ok(())
}

/// What is in a bundle of these images, and the blobs to write in their order: documents first, and layers last.
fn contents(survey: &Survey, since: Option<&Inventory>, share: Option<&Share>) -> (Contents, Vec<Item>) {
    let rank = |kind: &str| match kind {
        kind if media_type::is_index(kind) || media_type::is_manifest(kind) => 0,
        kind if media_type::is_image_config(kind) => 1,
        _ => 2,
    };
    let mut places: HashMap<&Digest, usize> = HashMap::new();
    let mut all: Vec<(&Reference, &Descriptor)> = Vec::new();
    for wanted in 0..=2 {
        for image in &survey.images {
            for blob in image.blobs.iter().filter(|blob| rank(&blob.media_type) == wanted) {
                places.entry(&blob.digest).or_insert_with(|| {
                    all.push((&image.wanted.reference, blob));
                    all.len() - 1
                });
            }
        }
    }
    let here = |blob: &Descriptor| {
        since.is_none_or(|since| !since.blobs.contains(&blob.digest))
            && (rank(&blob.media_type) < 2 || share.is_none_or(|share| share.has(&blob.digest)))
    };
    let image = |image: &bake::Surveyed| {
        let wanted = &image.wanted;
        BundledImage {
            name: wanted.reference.to_string(),
            namespace: wanted.namespace.clone(),
            policy: image.choice.policy,
            pin: image.choice.pin,
            names: wanted.names.iter().map(Reference::to_string).collect(),
            labels: wanted.labels.clone(),
            platforms: wanted.platforms.clone(),
            target: image.blobs[0].clone(),
            blobs: image.blobs.iter().map(|blob| places[&blob.digest]).collect(),
        }
    };
    let contents = Contents {
        version: VERSION,
        since: since.map(|since| since.id.clone()),
        shard: share.map(|share| share.shard().to_string()),
        images: survey.images.iter().map(image).collect(),
        blobs: all
            .iter()
            .map(|(_, blob)| BundledBlob { digest: blob.digest.clone(), size: blob.size, here: here(blob) })
            .collect(),
    };
    let items = all.into_iter().filter(|(_, blob)| here(blob));
    let item = |(reference, descriptor): (&Reference, &Descriptor)| Item {
        reference: reference.clone(),
        descriptor: descriptor.clone(),
    };
    (contents, items.map(item).collect())
}

/// What comes before the blobs.
fn head(survey: &Survey, contents: &Contents, key: Option<&SigningKey>) -> Vec<(String, Bytes)> {
    let mut named = BTreeMap::new();
    for image in &survey.images {
        let names = std::iter::once(&image.wanted.reference).chain(&image.wanted.names);
        named.extend(names.map(|name| (name.to_string(), image.blobs[0].clone())));
    }
    let own = serde_json::to_vec(contents).unwrap_or_default();
    let mut files = vec![
        ("oci-layout".to_owned(), LAYOUT.into()),
        ("index.json".to_owned(), index(&named).to_string().into()),
        (CONTENTS.to_owned(), own.clone().into()),
    ];
    files.extend(key.map(|key| (SIGNATURE.to_owned(), key.sign(&own).into())));
    files
}

/// The index of a layout with these images by name.
pub(super) fn index(named: &BTreeMap<String, Descriptor>) -> Value {
    let entry = |(name, target): (&String, &Descriptor)| {
        json!({"mediaType": target.media_type, "digest": target.digest, "size": target.size,
            "annotations": {IMAGE_NAME: name, REF_NAME: name}})
    };
    let manifests: Vec<Value> = named.iter().map(entry).collect();
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests})
}
