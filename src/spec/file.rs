//! `bake.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};

use super::rules::{Policy, Rule};
use super::{Named, SpecError, Wrong, size};
use crate::duration;
use crate::oci::{Platform, Reference};

/// A bake: into which root, which images, and what becomes of them. Paths are relative to the file's directory.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Where to.
    #[serde(default)]
    pub target: Target,
    /// What holds where nothing else is said.
    #[serde(default)]
    pub defaults: Defaults,
    /// What is asked for images that fit; the first one counts.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Which images: texts, or tables.
    #[serde(default)]
    pub images: Vec<Image>,
    /// How to talk to registries.
    #[serde(default)]
    pub registries: Registries,
    /// The cache that many bakers share.
    #[serde(default)]
    pub cache: SharedCache,
}

/// Where a bake goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Target {
    /// The root: a chroot, a mounted disk image, a folder.
    pub root: Option<PathBuf>,
    /// containerd's state directory, inside the root.
    pub containerd_root: Option<PathBuf>,
    /// containerd's namespace.
    pub namespace: Option<String>,
    /// Which machine the root is for.
    pub platform: Option<Platform>,
    /// The snapshotter that images are unpacked for.
    pub snapshotter: Option<String>,
    /// Others that containers on this root will use.
    #[serde(default)]
    pub further_snapshotters: Vec<String>,
}

/// What holds where nothing else is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Defaults {
    /// What becomes of layers.
    pub policy: Option<Policy>,
    /// Whether kubelet must never remove images.
    pub pin: Option<bool>,
    /// Labels of all images.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Keys (cosign.pub) of which one must have signed each image that names none of its own.
    #[serde(default)]
    pub verify_keys: Vec<PathBuf>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name, or the place it is in; all images of a place have the same settings.
    pub named: Named,
    /// What becomes of its layers.
    pub policy: Option<Policy>,
    /// Whether kubelet must never remove it.
    pub pin: Option<bool>,
    /// Further names of it.
    pub names: Vec<Reference>,
    /// Labels of its records.
    pub labels: BTreeMap<String, String>,
    /// For which machines; the target's without any.
    pub platforms: Vec<Platform>,
    /// containerd's namespace; the target's without any.
    pub namespace: Option<String>,
    /// Keys (cosign.pub) of which one must have signed it.
    pub verify_keys: Vec<PathBuf>,
}

/// An image's table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ImageTable {
    #[serde(rename = "ref", deserialize_with = "named")]
    named: Named,
    policy: Option<Policy>,
    pin: Option<bool>,
    #[serde(default, deserialize_with = "references")]
    names: Vec<Reference>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    platforms: Vec<Platform>,
    namespace: Option<String>,
    #[serde(default)]
    verify_keys: Vec<PathBuf>,
}

/// How to talk to registries.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registries {
    /// Where `hosts.toml` files are.
    pub hosts_dir: Option<PathBuf>,
    /// Blobs under way at a time, 1 to 32.
    pub concurrency: Option<u8>,
    /// Requests under way at one host, 1 to 64.
    pub per_host: Option<u8>,
    /// Bytes a second of all images together.
    #[serde(default, deserialize_with = "size::deserialize")]
    pub bandwidth: Option<u64>,
    /// Requests to one host that begin in a second.
    pub requests_per_second: Option<f64>,
}

/// The cache that many bakers share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SharedCache {
    /// `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX` or `file:///DIRECTORY`.
    pub url: Option<String>,
    /// Whether a bake fails when it does.
    #[serde(default)]
    pub required: bool,
    /// How long a claimant of a blob may be silent before another one takes its place.
    #[serde(default, deserialize_with = "seconds")]
    pub claim_expiry: Option<Duration>,
}

/// A duration as Go writes it.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let parse = |text: &str| duration::parse(text).ok_or_else(|| format!("{text:?} is no duration; write 60s"));
    read(deserializer, parse).map(Some)
}

impl Image {
    /// One of which nothing but its name is said.
    pub fn new(named: impl Into<Named>) -> Self {
        Self {
            named: named.into(),
            policy: None,
            pin: None,
            names: Vec::new(),
            labels: BTreeMap::new(),
            platforms: Vec::new(),
            namespace: None,
            verify_keys: Vec::new(),
        }
    }
}

/// A text that the reader of something understands.
pub(super) fn read<'de, D: Deserializer<'de>, T, E: std::fmt::Display>(
    deserializer: D,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    struct Text<F>(F);
    impl<T, E: std::fmt::Display, F: Fn(&str) -> Result<T, E>> Visitor<'_> for Text<F> {
        type Value = T;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a text")
        }

        fn visit_str<D: de::Error>(self, text: &str) -> Result<T, D> {
            self.0(text).map_err(D::custom)
        }
    }
    deserializer.deserialize_str(Text(read))
}

fn reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
    read(deserializer, str::parse)
}

pub(super) fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Named, D::Error> {
    read(deserializer, Named::parse)
}

/// A reference in an array.
struct Ref(Reference);

impl<'de> Deserialize<'de> for Ref {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        reference(deserializer).map(Self)
    }
}

fn references<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Reference>, D::Error> {
    Ok(Vec::<Ref>::deserialize(deserializer)?.into_iter().map(|Ref(reference)| reference).collect())
}

impl<'de> Deserialize<'de> for Image {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrTable;
        impl<'de> Visitor<'de> for TextOrTable {
            type Value = Image;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of an image, or a table with a ref")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Image, E> {
                named(text.into_deserializer()).map(Image::new)
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Image, A::Error> {
                let ImageTable { named, policy, pin, names, labels, platforms, namespace, verify_keys } =
                    Deserialize::deserialize(MapAccessDeserializer::new(table))?;
                Ok(Image { named, policy, pin, names, labels, platforms, namespace, verify_keys })
            }
        }
        deserializer.deserialize_any(TextOrTable)
    }
}

impl Spec {
    /// Reads a `bake.toml`.
    ///
    /// # Errors
    /// [`SpecError`], with line and column.
    pub fn parse(text: &str, place: &str) -> Result<Self, SpecError> {
        from_toml(text, place)
    }

    /// Makes paths that are relative to the file's directory such to the current one.
    pub fn resolve_paths(&mut self, dir: &Path) {
        for place in self.images.iter_mut().filter_map(|image| image.named.place_mut()) {
            place.dir = dir.join(&place.dir);
        }
        let keys = self.images.iter_mut().flat_map(|image| &mut image.verify_keys);
        let own = self.target.root.iter_mut().chain(&mut self.registries.hosts_dir);
        for path in own.chain(&mut self.defaults.verify_keys).chain(keys) {
            *path = dir.join(&*path);
        }
    }
}

/// Reads TOML, with line and column of what is wrong.
pub(super) fn from_toml<T: de::DeserializeOwned>(text: &str, place: &str) -> Result<T, SpecError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map(|span| {
            let before = &text[..text.floor_char_boundary(span.start.min(text.len()))];
            let line = before.rsplit('\n').next().unwrap_or_default();
            (before.matches('\n').count() + 1, line.chars().count() + 1)
        });
        let what = error.message().lines().collect::<Vec<_>>().join(" ");
        let wrong = Wrong { line: at.map(|at| at.0), column: at.map(|at| at.1), what };
        SpecError { place: place.to_owned(), wrong: vec![wrong] }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = include_str!("../../fixtures/bake.toml");

    #[test]
    fn all_of_it() {
        let spec = Spec::parse(ALL, "bake.toml").expect("parsed");
        assert_eq!(spec.target.root.as_deref(), Some("chroot".as_ref()));
        assert_eq!(spec.target.further_snapshotters, ["overlaybd"]);
        assert_eq!(spec.defaults.policy, Some(Policy::Fetch));
        assert_eq!(spec.rules[1].over, Some(150 << 20));
        assert_eq!(spec.registries.bandwidth, Some(50 << 20));
        let [plain, table] = &spec.images[..] else { panic!("{:?}", spec.images) };
        assert_eq!(plain, &Image::new("registry.k8s.io/pause:3.10".parse::<Reference>().expect("a reference")));
        assert_eq!(table.policy, Some(Policy::UnpackDiscard));
        assert_eq!(table.platforms.len(), 2);
        assert_eq!(table.names[0].to_string(), "registry.example/web:stable");
        assert_eq!(table.labels["team"], "web");
    }

    #[test]
    fn what_is_wrong_and_where() {
        for (text, at, word) in [
            ("images = [\"a\"]\n\n[target]\nrot = \"x\"", "4:1", "unknown field `rot`"),
            ("images = [\n  \"a\",\n  \"B@\",\n]", "3:3", "bad reference \"B@\""),
            ("[[images]]\nref = \"a\"\npolicy = \"unpck\"", "3:10", "unknown variant `unpck`"),
            ("[[images]]\nref = \"a\"\npined = true", "3:1", "unknown field `pined`"),
            ("[[images]]\npin = true", "1:1", "missing field `ref`"),
            ("[[rules]]\nover = \"big\"", "2:8", "\"big\" is no size"),
            ("[[images]]\nref = \"a\"\nplatforms = [\"amd64\"]", "3:13", "is not a platform"),
            ("images = 5", "1:10", "invalid type"),
            ("[target\n", "1:8", ""),
        ] {
            let error = Spec::parse(text, "bake.toml").expect_err(text).to_string();
            assert!(error.starts_with(&format!("bake.toml:{at}: ")) && error.contains(word), "{text}: {error}");
        }
    }
}
