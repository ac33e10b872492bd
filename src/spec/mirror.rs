//! `mirror.toml`: which images go from where to where.

use serde::de::{self, IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};

use super::file::{from_toml, named, read};
use super::{Named, SpecError};
use crate::oci::{Platform, Reference, ReferenceError};

/// Images, and the registry that they are copied to. Paths are relative to the file's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mirror {
    /// Where to, unless a rewrite says something else.
    #[serde(default)]
    pub target: MirrorTarget,
    /// Which images: texts, or tables.
    #[serde(default)]
    pub images: Vec<MirrorImage>,
    /// Where images go whose names fit; the first one counts.
    #[serde(default)]
    pub rewrite: Vec<Rewrite>,
    /// For which machines; all without any.
    #[serde(default)]
    pub platforms: Vec<Platform>,
    /// What refers to the images goes along: all of it, or of some media or artifact types.
    #[serde(default)]
    pub referrers: Referrers,
    /// Blobs under way at a time, 1 to 32.
    pub concurrency: Option<u8>,
}

/// Where a mirror is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorTarget {
    /// The registry, and what all repositories there begin with.
    #[serde(default, deserialize_with = "target")]
    pub registry: Option<String>,
}

/// What goes where.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawRewrite")]
pub struct Rewrite {
    /// What a registry and repository has to be; one `*` stands for anything.
    pattern: String,
    /// Registry and repository there; `*` is what the pattern's stood for.
    to: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRewrite {
    r#match: String,
    to: String,
}

/// What is copied along.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "referrers is true, false, or a list of media or artifact types")]
pub enum Referrers {
    /// Nothing.
    #[default]
    None,
    /// All or nothing.
    All(bool),
    /// Of these media or artifact types.
    Of(Vec<String>),
}

/// One entry of a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorImage {
    /// Which image, or which of a repository's.
    pub which: Which,
    /// For which machines; the mirror's without any.
    pub platforms: Vec<Platform>,
}

/// Images of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By its name, or the place it is in.
    Named(Named),
    /// Those of a repository whose tags fit one of the patterns.
    Tagged {
        /// The repository; its tag says nothing.
        repository: Reference,
        /// Tags, in which `*` stands for anything.
        tags: Vec<String>,
    },
}

/// Why an image cannot be given a name at the mirror.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoDestination {
    /// Nothing says where to.
    #[error("nothing says where {0} goes: no [[rewrite]] fits it, and there is no target.registry")]
    Unsaid(String),
    /// What a rewrite makes of it is no name.
    #[error("{from} cannot go to {to:?}")]
    Name {
        /// The image.
        from: String,
        /// What was made of it.
        to: String,
        /// Why that is none.
        source: ReferenceError,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageTable {
    #[serde(default, rename = "ref", deserialize_with = "some_named")]
    named: Option<Named>,
    #[serde(default, deserialize_with = "repository")]
    repository: Option<Reference>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    platforms: Vec<Platform>,
}

fn some_named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Named>, D::Error> {
    named(deserializer).map(Some)
}

fn repository<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reference>, D::Error> {
    // Only what has no tag is a name with one behind it.
    read(deserializer, |text| {
        format!("{text}:latest")
            .parse()
            .map_err(|_| format!("{text:?} is no repository; it has neither tag nor digest"))
    })
    .map(Some)
}

fn target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    read(deserializer, MirrorTarget::parse).map(|target| target.registry)
}

impl MirrorTarget {
    /// Reads `REGISTRY[/PREFIX]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = text.trim_end_matches('/');
        let is_registry = format!("{name}/x:latest").parse::<Reference>().is_ok_and(|reference| {
            let first = name.split('/').next().unwrap_or_default();
            reference.registry() == first
        });
        if is_registry { Ok(Self { registry: Some(name.to_owned()) }) } else { Err(format!("{text:?} is no registry")) }
    }
}

impl TryFrom<RawRewrite> for Rewrite {
    type Error = String;

    fn try_from(RawRewrite { r#match: pattern, to }: RawRewrite) -> Result<Self, String> {
        let stars = |text: &str| text.matches('*').count();
        match (stars(&pattern), stars(&to)) {
            (0, 0) | (1, 0 | 1) => Ok(Self { pattern, to }),
            (0, _) => Err(format!("{to:?} has a * and {pattern:?} has none")),
            _ => Err("match and to have one * at most".to_owned()),
        }
    }
}

impl Rewrite {
    /// A rule.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(pattern: &str, to: &str) -> Result<Self, String> {
        RawRewrite { r#match: pattern.to_owned(), to: to.to_owned() }.try_into()
    }

    fn apply(&self, name: &str) -> Option<String> {
        let Some((before, behind)) = self.pattern.split_once('*') else {
            return (self.pattern == name).then(|| self.to.clone());
        };
        let middle = name.strip_prefix(before)?.strip_suffix(behind)?;
        Some(self.to.replace('*', middle))
    }
}

impl Referrers {
    /// The types that are wanted, all of them by an empty list; `None`: nothing is.
    pub fn types(&self) -> Option<Vec<String>> {
        match self {
            Self::None | Self::All(false) => None,
            Self::All(true) => Some(Vec::new()),
            Self::Of(types) => Some(types.clone()),
        }
    }
}

impl From<Named> for MirrorImage {
    fn from(named: Named) -> Self {
        Self { which: Which::Named(named), platforms: Vec::new() }
    }
}

impl<'de> Deserialize<'de> for MirrorImage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrTable;
        impl<'de> Visitor<'de> for TextOrTable {
            type Value = MirrorImage;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of an image, or a table with a ref, or with a repository and tags")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MirrorImage, E> {
                named(text.into_deserializer()).map(MirrorImage::from)
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<MirrorImage, A::Error> {
                let ImageTable { named, repository, tags, platforms } =
                    Deserialize::deserialize(MapAccessDeserializer::new(table))?;
                let which = match (named, repository, tags.is_empty()) {
                    (Some(named), None, true) => Which::Named(named),
                    (None, Some(repository), false) => Which::Tagged { repository, tags },
                    _ => return Err(de::Error::custom("an image has a ref, or a repository and tags")),
                };
                Ok(MirrorImage { which, platforms })
            }
        }
        deserializer.deserialize_any(TextOrTable)
    }
}

impl Mirror {
    /// Reads a `mirror.toml`.
    ///
    /// # Errors
    /// [`SpecError`], with line and column.
    pub fn parse(text: &str, place: &str) -> Result<Self, SpecError> {
        from_toml(text, place)
    }

    /// Takes what refers to the images along, of these types, all of it by an empty list; or nothing.
    pub fn set_referrers(&mut self, types: Option<Vec<String>>) {
        self.referrers = match types {
            None => Referrers::None,
            Some(types) if types.is_empty() => Referrers::All(true),
            Some(types) => Referrers::Of(types),
        };
    }

    /// Makes paths that are relative to the file's directory such to the current one.
    pub fn resolve_paths(&mut self, dir: &std::path::Path) {
        for image in &mut self.images {
            if let Which::Named(named) = &mut image.which
                && let Some(place) = named.place_mut()
            {
                place.dir = dir.join(&place.dir);
            }
        }
    }

    /// What an image is called at the mirror.
    ///
    /// # Errors
    /// [`NoDestination`].
    pub fn destination(&self, from: &Reference) -> Result<Reference, NoDestination> {
        let name = format!("{}/{}", from.registry(), from.repository());
        let rewritten = self.rewrite.iter().find_map(|rewrite| rewrite.apply(&name));
        let target = || Some(format!("{}/{}", self.target.registry.as_ref()?, from.repository()));
        let to = rewritten.or_else(target).ok_or_else(|| NoDestination::Unsaid(from.to_string()))?;
        let mark = if from.digest().is_some() { '@' } else { ':' };
        let to = format!("{to}{mark}{}", from.target());
        to.parse().map_err(|source| NoDestination::Name { from: from.to_string(), to, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = include_str!("../../fixtures/mirror.toml");

    #[test]
    fn all_of_it() {
        let mirror = Mirror::parse(ALL, "mirror.toml").expect("parsed");
        assert_eq!(mirror.target.registry.as_deref(), Some("mirror.example:5000"));
        assert_eq!(mirror.concurrency, Some(4));
        assert_eq!(mirror.referrers.types(), Some(Vec::new()));
        let to = |from: &str| {
            let from: Reference = from.parse().expect("a reference");
            mirror.destination(&from).expect("a name").to_string()
        };
        assert_eq!(to("nginx:1.27"), "mirror.example:5000/hub/library/nginx:1.27");
        assert_eq!(to("registry.k8s.io/pause:3.10"), "mirror.example:5000/pause:3.10");
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(to(&format!("quay.io/a/b@{digest}")), format!("mirror.example:5000/quay-a/b@{digest}"));
        let [_, table, tagged, place] = &mirror.images[..] else { panic!("{:?}", mirror.images) };
        assert_eq!(table.platforms.len(), 2);
        assert!(matches!(&tagged.which, Which::Tagged { tags, .. } if tags == &["3.*", "latest"]));
        assert!(matches!(&place.which, Which::Named(Named::As(..))));
        assert!(matches!(Mirror::default().destination(&"a".parse().expect("one")), Err(NoDestination::Unsaid(_))));
    }

    #[test]
    fn what_is_wrong_and_where() {
        for (text, at, word) in [
            ("images = [\"a\"]\n\n[target]\nregistri = \"x\"", "4:1", "unknown field `registri`"),
            ("[target]\nregistry = \"a b\"", "2:12", "is no registry"),
            ("[target]\nregistry = \"nodot\"", "2:12", "is no registry"),
            ("images = [\n  \"B@\",\n]", "2:3", "bad reference \"B@\""),
            ("[[images]]\nref = \"a\"\npolicy = \"fetch\"", "3:1", "unknown field `policy`"),
            ("[[images]]\nrepository = \"a\"", "1:1", "a ref, or a repository and tags"),
            ("[[images]]\nrepository = \"a:1\"\ntags = [\"*\"]", "2:14", "is no repository"),
            ("[[rewrite]]\nmatch = \"a\"\nto = \"b/*\"", "1:1", "has a * and"),
            ("referrers = 5", "1:13", "true, false, or a list"),
        ] {
            let error = Mirror::parse(text, "mirror.toml").expect_err(text).to_string();
            assert!(error.starts_with(&format!("mirror.toml:{at}: ")) && error.contains(word), "{text}: {error}");
        }
    }
}
