//! Documents: indexes, manifests and configs, read leniently as Go's decoder reads them, and refused where a reader could
//! be led to take one kind for another.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Digest, Platform};

/// The largest document prebake reads, in bytes. containerd's own limit for a manifest is 8 MiB
/// (`core/remotes/docker`, `MaxManifestSize`).
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// The most entries an index, or layers a manifest, may have. The overlayfs of Linux stacks at most 500.
pub const MAX_ENTRIES: usize = 1000;

/// Media types by name.
pub mod media_type {
    /// OCI index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, plain tar; with `+gzip` or `+zstd` compressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// The empty config of artifacts.
    pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker schema 2 manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker layer, gzip.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

    /// What prebake asks a registry for, most wanted first.
    pub const DOCUMENTS: [&str; 4] = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];

    /// Whether it is an index of either kind.
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, OCI_INDEX | DOCKER_INDEX)
    }

    /// Whether it is a manifest of either kind.
    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
    }

    /// Whether it is an image config of either kind, as opposed to an artifact's.
    pub fn is_image_config(media_type: &str) -> bool {
        matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
    }

    /// Whether it is a layer (containerd `images.IsLayerType`).
    pub fn is_layer(media_type: &str) -> bool {
        let docker =
            media_type.split('+').next().and_then(|base| base.strip_prefix("application/vnd.docker.image.rootfs."));
        media_type.starts_with("application/vnd.oci.image.layer.")
            || matches!(
                docker,
                Some("diff.tar" | "diff.tar.gzip" | "diff.tar.zstd" | "foreign.diff.tar" | "foreign.diff.tar.gzip")
            )
    }
}

/// Media type, digest and size of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The blob's declared kind.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Of exactly these bytes.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// In an index: whom the entry is for.
    #[serde(skip_serializing)]
    platform: Option<Box<RawPlatform>>,
    #[serde(skip_serializing, default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing, default)]
    urls: Option<Vec<String>>,
    #[serde(rename = "artifactType", skip_serializing, default)]
    artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor without a platform.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            annotations: None,
            urls: None,
            artifact_type: None,
        }
    }

    /// The same without anything but media type, digest and size.
    pub(crate) fn plain(&self) -> Self {
        Self::new(self.media_type.clone(), self.digest.clone(), self.size)
    }

    /// Where else a layer is to be had that registries may not give away (`foreign`, `nondistributable`); none for others.
    pub fn urls(&self) -> &[String] {
        let foreign = self.media_type.contains(".foreign.") || self.media_type.contains(".nondistributable.");
        self.urls.as_deref().filter(|_| foreign).unwrap_or_default()
    }

    /// In a list of referrers: what it is.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// What the document says about it besides.
    pub fn annotations(&self) -> impl Iterator<Item = (&String, &String)> {
        self.annotations.iter().flatten()
    }

    /// The platform an index entry names.
    pub fn platform(&self) -> Option<Platform> {
        self.platform.as_ref().map(|platform| platform.normal())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl RawPlatform {
    fn normal(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, &self.variant)
    }
}

/// An OCI index or a Docker manifest list.
#[derive(Debug, Clone)]
pub struct Index {
    /// Its entries in order.
    pub manifests: Vec<Descriptor>,
}

/// An OCI or Docker schema 2 manifest.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its config; an artifact's may be anything.
    pub config: Descriptor,
    /// Its layers, the lowest first; an artifact's blobs.
    pub layers: Vec<Descriptor>,
}

/// What prebake needs of an image config.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the image runs on.
    pub platform: Platform,
    /// The diffIDs of its layers, the lowest first; `None` where the root file system is not made of layers.
    pub diff_ids: Option<Vec<Digest>>,
    /// When it was made, in its own words.
    pub created: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    rootfs: Option<RawRootFs>,
    #[serde(default)]
    created: Value,
    #[serde(default)]
    config: Value,
}

#[derive(Default, Deserialize)]
struct RawRootFs {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

/// A document by its kind.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there are never many at a time")]
pub enum Document {
    /// Leads to manifests.
    Index(Index),
    /// Leads to a config and layers.
    Manifest(Manifest),
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Not JSON, or not of the declared kind's shape.
    #[error("it is not a valid {kind}")]
    Malformed {
        /// What it should have been.
        kind: &'static str,
        /// Where it fails.
        source: serde_json::Error,
    },
    /// Parts of two kinds in one document: readers would disagree on what it is.
    #[error("it has parts of both an index and a manifest")]
    Ambiguous,
    /// Docker schema 1, which no containerd since 2.1 can use.
    #[error(
        "it is a Docker schema 1 manifest, which containerd no longer supports; push the image again with a current tool"
    )]
    Schema1,
    /// Something else.
    #[error("its media type {0:?} is neither an index nor a manifest")]
    UnknownKind(String),
    /// More entries than [`MAX_ENTRIES`].
    #[error("it has {0} entries; prebake takes at most {MAX_ENTRIES}")]
    TooManyEntries(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u64,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Entries>,
    manifests: Option<Entries>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Up to [`MAX_ENTRIES`] descriptors, and how many there are.
struct Entries {
    first: Vec<Descriptor>,
    count: usize,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of descriptors")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut first = Vec::new();
                while first.len() < MAX_ENTRIES {
                    match list.next_element()? {
                        Some(entry) => first.push(entry),
                        None => return Ok(Entries { count: first.len(), first }),
                    }
                }
                let mut count = first.len();
                while list.next_element::<serde::de::IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Entries { first, count })
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}

impl Document {
    /// Reads an index or manifest. `declared` is the media type from its descriptor or the registry's Content-Type; when
    /// that says nothing, the document's own `mediaType` counts, then its shape. The media type that was decided on comes
    /// back with it.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(bytes: &[u8], declared: &str) -> Result<(Self, String), DocumentError> {
        if declared.starts_with("application/vnd.docker.distribution.manifest.v1") {
            return Err(DocumentError::Schema1);
        }
        let raw: Raw = parse(bytes, "index or manifest")?;
        if raw.schema_version == 1 || raw.fs_layers.is_some() {
            return Err(DocumentError::Schema1);
        }
        let known = |kind: &&str| media_type::is_index(kind) || media_type::is_manifest(kind);
        let by_shape = match (&raw.manifests, &raw.config) {
            (Some(_), _) => media_type::OCI_INDEX,
            (None, Some(_)) => media_type::OCI_MANIFEST,
            (None, None) => declared,
        };
        let kind = [Some(declared), raw.media_type.as_deref()]
            .into_iter()
            .flatten()
            .find(known)
            .unwrap_or(by_shape)
            .to_owned();
        let entries = raw.manifests.as_ref().or(raw.layers.as_ref()).map_or(0, |entries| entries.count);
        if entries > MAX_ENTRIES {
            return Err(DocumentError::TooManyEntries(entries));
        }
        // containerd images.validateMediaType (CVE-2021-41190)
        if raw.manifests.is_some() && (raw.config.is_some() || raw.layers.is_some()) {
            return Err(DocumentError::Ambiguous);
        }
        let says = raw.media_type.as_deref().unwrap_or_default();
        if (media_type::is_index(&kind) && media_type::is_manifest(says))
            || (media_type::is_manifest(&kind) && media_type::is_index(says))
        {
            return Err(DocumentError::Ambiguous);
        }
        if media_type::is_index(&kind) {
            if raw.config.is_some() || raw.layers.is_some() {
                return Err(DocumentError::Ambiguous);
            }
            Ok((Self::Index(Index { manifests: raw.manifests.map_or_else(Vec::new, |entries| entries.first) }), kind))
        } else if media_type::is_manifest(&kind) {
            let Some(config) = raw.config else {
                return match raw.manifests {
                    Some(_) => Err(DocumentError::Ambiguous),
                    None => parse::<NeedsConfig>(bytes, "manifest").map(|_| unreachable!("the config is missing")),
                };
            };
            Ok((
                Self::Manifest(Manifest { config, layers: raw.layers.map_or_else(Vec::new, |entries| entries.first) }),
                kind,
            ))
        } else {
            Err(DocumentError::UnknownKind(kind))
        }
    }
}

/// Only to get serde's words for what is missing.
#[derive(Deserialize)]
struct NeedsConfig {
    #[serde(rename = "config")]
    _config: Descriptor,
}

impl Config {
    /// Reads an image config.
    ///
    /// # Errors
    /// [`DocumentError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let platform: RawPlatform = parse(bytes, "image config")?;
        let raw: RawConfig = parse(bytes, "image config")?;
        let RawRootFs { kind, diff_ids } = raw.rootfs.unwrap_or_default();
        // containerd `unpack.Unpacker`: no type at all counts as layers.
        let layers = matches!(kind.as_str(), "" | "layers");
        let labels = raw.config.get("Labels").and_then(Value::as_object).into_iter().flatten();
        let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        Ok(Self {
            platform: platform.normal(),
            diff_ids: layers.then(|| diff_ids.unwrap_or_default()),
            created: raw.created.as_str().map(str::to_owned),
            labels: labels.collect(),
        })
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], kind: &'static str) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Malformed { kind, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIPTOR: &str = r#"{"mediaType":"m","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;

    #[test]
    fn kinds() {
        let manifest = format!(r#"{{"schemaVersion":2,"config":{DESCRIPTOR},"layers":null}}"#);
        let (document, kind) = Document::parse(manifest.as_bytes(), "text/plain").expect("a manifest");
        assert!(matches!(document, Document::Manifest(m) if m.layers.is_empty()));
        assert_eq!(kind, media_type::OCI_MANIFEST);
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media_type::DOCKER_INDEX);
        let (_, kind) = Document::parse(index.as_bytes(), "").expect("an index");
        assert_eq!(kind, media_type::DOCKER_INDEX);
    }

    #[test]
    fn refusals() {
        let both = format!(r#"{{"config":{DESCRIPTOR},"manifests":[]}}"#);
        assert!(matches!(Document::parse(both.as_bytes(), media_type::OCI_INDEX), Err(DocumentError::Ambiguous)));
        let contradicting = format!(r#"{{"mediaType":"{}","config":{DESCRIPTOR}}}"#, media_type::OCI_INDEX);
        let parsed = Document::parse(contradicting.as_bytes(), media_type::OCI_MANIFEST);
        assert!(matches!(parsed, Err(DocumentError::Ambiguous)));
        let disguised = format!(r#"{{"config":{DESCRIPTOR}}}"#);
        assert!(matches!(Document::parse(disguised.as_bytes(), media_type::OCI_INDEX), Err(DocumentError::Ambiguous)));
        assert!(matches!(Document::parse(br#"{"schemaVersion":1}"#, ""), Err(DocumentError::Schema1)));
        assert!(matches!(
            Document::parse(br#"{"schemaVersion":2}"#, media_type::OCI_MANIFEST),
            Err(DocumentError::Malformed { .. })
        ));
        assert!(matches!(Document::parse(b"<html>", media_type::OCI_MANIFEST), Err(DocumentError::Malformed { .. })));
        assert!(matches!(Document::parse(b"{}", "text/html"), Err(DocumentError::UnknownKind(_))));
        let negative = DESCRIPTOR.replace(":0}", ":-1}");
        assert!(Document::parse(format!(r#"{{"config":{negative}}}"#).as_bytes(), "").is_err());
        let layers = vec![DESCRIPTOR; 10_000].join(",");
        let many = format!(r#"{{"config":{DESCRIPTOR},"layers":[{layers}]}}"#);
        assert!(matches!(Document::parse(many.as_bytes(), ""), Err(DocumentError::TooManyEntries(10_000))));
    }
}
