//! What `docker save` writes: `manifest.json` says of each image which file is its config, which are its layers, and how it is
//! named. Its manifest is made as containerd makes it on import, so that it has the same digest (`archive.ImportIndex`).

use std::collections::HashMap;
use std::io::Read;

use serde::{Deserialize, Serialize};

use super::archive::Archive;
use super::local::Found;
use super::{Error, Result};
use crate::layer::is_compressed;
use crate::oci::{Algorithm, Descriptor, Digest, Hasher, MAX_ENTRIES, Reference, media_type};

/// Docker layer, plain tar.
const PLAIN_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Where newer ones keep blobs, by their digests.
const BLOBS: &str = "blobs/sha256/";
/// Bytes that are hashed at a time.
const BUFFER: usize = 1 << 18;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u8,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The images of an archive; blobs become known by their digests, which takes reading all of them.
pub(super) fn images(archive: &Archive, place: &str) -> Result<Found> {
    let json = archive.read("manifest.json")?;
    let json = json.ok_or_else(|| Error::Lacks { place: place.to_owned(), what: "manifest.json" })?;
    let unusable = |why: String| Error::Unusable { place: place.to_owned(), what: "manifest.json".to_owned(), why };
    let images: Vec<Image> = serde_json::from_slice(&json).map_err(|error| unusable(error.to_string()))?;
    let mut found = Found::default();
    let mut known = HashMap::new();
    for image in images {
        let layers = image.layers.unwrap_or_default();
        if layers.len() > MAX_ENTRIES {
            return Err(unusable(format!("an image has {} layers", layers.len())));
        }
        let mut add = |name: &str| -> Result<(Digest, u64, bool)> {
            let at = archive.find(name).ok_or_else(|| unusable(format!("{name:?} is not in the archive")))?;
            if let Some(known) = known.get(&at) {
                return Ok(Clone::clone(known));
            }
            let blob = identify(archive, name, at)?;
            found.members.insert(blob.0.clone(), at);
            known.insert(at, blob.clone());
            Ok(blob)
        };
        let (digest, size, _) = add(&image.config)?;
        let config = Descriptor::new(media_type::DOCKER_CONFIG, digest, size);
        let mut manifest =
            Manifest { schema_version: 2, media_type: media_type::DOCKER_MANIFEST, config, layers: Vec::new() };
        for layer in &layers {
            let (digest, size, compressed) = add(layer)?;
            let kind = if compressed { media_type::DOCKER_LAYER } else { PLAIN_LAYER };
            manifest.layers.push(Descriptor::new(kind, digest, size));
        }
        let bytes = serde_json::to_vec(&manifest).map_err(|error| unusable(error.to_string()))?;
        let target = Descriptor::new(media_type::DOCKER_MANIFEST, Digest::of(&bytes), bytes.len() as u64);
        found.made.insert(target.digest.clone(), bytes.into());
        let tags = image.repo_tags.unwrap_or_default();
        let full = |tag: &String| tag.parse::<Reference>().map_or_else(|_| tag.clone(), |name| name.to_string());
        if tags.is_empty() {
            found.add(None, target);
        } else {
            for tag in &tags {
                found.add(Some(full(tag)), target.clone());
            }
        }
    }
    Ok(found)
}

/// Digest and size of a file, and whether it is compressed. A file that is named by a digest is believed: what is read of it
/// is verified later.
fn identify(archive: &Archive, name: &str, at: (u64, u64)) -> Result<(Digest, u64, bool)> {
    let io = |source| Error::Io { path: archive.path().to_owned(), source };
    let mut section = archive.section(at, 0);
    let mut buffer = vec![0; BUFFER];
    let named = name.strip_prefix(BLOBS).and_then(|hex| format!("sha256:{hex}").parse().ok());
    let mut hasher = named.is_none().then(|| Hasher::new(Algorithm::Sha256));
    let (mut read, mut compressed) = (0, false);
    loop {
        let n = section.read(&mut buffer).map_err(io)?;
        if read == 0 {
            compressed = is_compressed(&buffer[..n]);
        }
        read += n as u64;
        match &mut hasher {
            Some(hasher) if n > 0 => hasher.update(&buffer[..n]),
            _ => break,
        }
    }
    match (named, hasher) {
        (Some(digest), _) => Ok((digest, at.1, compressed)),
        (None, Some(hasher)) if read == at.1 => Ok((hasher.finish(), at.1, compressed)),
        _ => Err(archive.broken("it ends in the middle of a file")),
    }
}
