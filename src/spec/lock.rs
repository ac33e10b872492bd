//! `bake.lock` and `mirror.lock`: what each name led to, so that the next bake or mirror takes the same. Sorted, a line for each blob, to be
//! read in a diff.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::{SpecError, file};
use crate::oci::{Descriptor, Digest, Platform};

const VERSION: u64 = 1;

/// What names led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// By image name.
    pub images: BTreeMap<String, Arc<LockedImage>>,
}

/// What a name led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedImage {
    /// The index or manifest.
    pub target: Descriptor,
    /// What is baked of it for each platform, sorted by its name.
    pub platforms: BTreeMap<String, LockedPlatform>,
    /// What is mirrored of it: indexes and manifests, each behind those that it names.
    pub documents: Vec<Descriptor>,
    /// What is mirrored of it: configs and layers.
    pub blobs: Vec<Descriptor>,
}

/// An image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedPlatform {
    /// The documents below the target down to the manifest; none when the target is the manifest.
    pub documents: Vec<Descriptor>,
    /// The manifest's config.
    pub config: Descriptor,
    /// Its layers, the lowest first, with the digests of their archives where they are to be unpacked.
    pub layers: Vec<(Descriptor, Option<Digest>)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLock {
    version: u64,
    #[serde(default)]
    images: Vec<RawImage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawImage {
    name: String,
    target: Line,
    #[serde(default)]
    documents: Vec<Line>,
    #[serde(default)]
    blobs: Vec<Line>,
    #[serde(default)]
    platforms: Vec<RawPlatform>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlatform {
    platform: Platform,
    #[serde(default)]
    documents: Vec<Line>,
    config: Line,
    #[serde(default)]
    layers: Vec<Line>,
}

/// Digest, size in bytes, media type, and, of a layer, the digest of its archive.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Line(Descriptor, Option<Digest>);

impl TryFrom<String> for Line {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parse = |text: &str| {
            let mut words = text.split(' ');
            let (digest, size, kind) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?);
            let diff_id = words.next().map(str::parse).transpose().ok()?;
            words.next().is_none().then(|| Self(Descriptor::new(kind, digest, size), diff_id))
        };
        parse(&text).ok_or_else(|| format!("{text:?} is not a digest, a size and a media type"))
    }
}

impl LockedImage {
    /// Adds what is mirrored of the same image for other platforms.
    pub fn add(&mut self, other: Self) {
        let new = |known: &[Descriptor], more: Vec<Descriptor>| -> Vec<Descriptor> {
            more.into_iter().filter(|one| known.iter().all(|known| known.digest != one.digest)).collect()
        };
        self.documents.extend(new(&self.documents, other.documents));
        self.blobs.extend(new(&self.blobs, other.blobs));
    }

    /// All that is mirrored of it.
    pub fn mirrored(&self) -> impl Iterator<Item = &Descriptor> {
        self.documents.iter().chain(&self.blobs)
    }

    /// All blobs that are brought of it, without indexes and manifests. Those that several platforms have come several times.
    pub fn all_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let of_platforms = self
            .platforms
            .values()
            .flat_map(|locked| std::iter::once(&locked.config).chain(locked.layers.iter().map(|(layer, _)| layer)));
        of_platforms.chain(&self.blobs)
    }
}

impl LockedPlatform {
    /// Its blobs below the target.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.documents.iter().chain([&self.config]).chain(self.layers.iter().map(|(layer, _)| layer))
    }
}

impl Lock {
    /// Reads a lock.
    ///
    /// # Errors
    /// [`SpecError`], with line and column.
    pub fn parse(text: &str, place: &str) -> Result<Self, SpecError> {
        let raw: RawLock = file::from_toml(text, place)?;
        if raw.version != VERSION {
            let what = format!("it is of version {}, and this prebake reads version {VERSION}", raw.version);
            return Err(SpecError::one(place, what));
        }
        let plain = |lines: Vec<Line>| lines.into_iter().map(|Line(descriptor, _)| descriptor).collect();
        let platform = |RawPlatform { platform, documents, config, layers }| {
            let documents = plain(documents);
            let layers = layers.into_iter().map(|Line(layer, diff_id)| (layer, diff_id)).collect();
            (Platform::to_string(&platform), LockedPlatform { documents, config: config.0, layers })
        };
        let image = |RawImage { name, target: Line(target, _), documents, blobs, platforms }| {
            let platforms = platforms.into_iter().map(platform).collect();
            (name, Arc::new(LockedImage { target, platforms, documents: plain(documents), blobs: plain(blobs) }))
        };
        Ok(Self { images: raw.images.into_iter().map(image).collect() })
    }
}

impl std::fmt::Display for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "# What each name led to. Made by `prebake lock` or `prebake mirror --lock`; to be committed, not edited."
        )?;
        writeln!(f, "version = {VERSION}")?;
        for (name, image) in &self.images {
            writeln!(f, "\n[[images]]\nname = \"{name}\"\ntarget = \"{}\"", line(&image.target))?;
            array(f, "documents", image.documents.iter().map(line))?;
            array(f, "blobs", image.blobs.iter().map(line))?;
            for (platform, locked) in &image.platforms {
                writeln!(f, "[[images.platforms]]\nplatform = \"{platform}\"")?;
                array(f, "documents", locked.documents.iter().map(line))?;
                let of_layer = |(layer, diff_id): &(Descriptor, Option<Digest>)| {
                    let diff_id = diff_id.as_ref().map(|digest| format!(" {digest}")).unwrap_or_default();
                    format!("{}{diff_id}", line(layer))
                };
                array(f, "layers", locked.layers.iter().map(of_layer))?;
                writeln!(f, "config = \"{}\"", line(&locked.config))?;
            }
        }
        Ok(())
    }
}

fn line(Descriptor { digest, size, media_type, .. }: &Descriptor) -> String {
    format!("{digest} {size} {media_type}")
}

/// A key and its lines; nothing where there are none.
fn array(f: &mut std::fmt::Formatter<'_>, key: &str, lines: impl ExactSizeIterator<Item = String>) -> std::fmt::Result {
    if lines.len() == 0 {
        return Ok(());
    }
    writeln!(f, "{key} = [")?;
    for line in lines {
        writeln!(f, "    \"{line}\",")?;
    }
    writeln!(f, "]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let digest = |n: u8| Digest::of(&[n]);
        let of = |kind: &str, n: u8| Descriptor::new(kind, digest(n), u64::from(n) << 30);
        let platform = LockedPlatform {
            documents: vec![of("index", 2), of("manifest", 3)],
            config: of("config", 4),
            layers: vec![(of("tar+gzip", 5), Some(digest(6))), (of("blob", 7), None)],
        };
        let artifact = LockedPlatform { documents: Vec::new(), config: of("config", 4), layers: Vec::new() };
        let image = |n, platforms: &[(&str, &LockedPlatform)]| {
            Arc::new(LockedImage {
                target: of("index", n),
                platforms: platforms.iter().map(|(name, locked)| ((*name).to_owned(), (*locked).clone())).collect(),
                documents: Vec::new(),
                blobs: Vec::new(),
            })
        };
        let mirrored = LockedImage {
            target: of("index", 9),
            platforms: BTreeMap::new(),
            documents: vec![of("manifest", 3), of("index", 9)],
            blobs: vec![of("config", 4), of("tar", 5)],
        };
        let lock = Lock {
            images: BTreeMap::from([
                ("b.example/b:1".to_owned(), image(1, &[("linux/amd64", &platform), ("linux/arm64", &artifact)])),
                ("a.example/a:1".to_owned(), image(8, &[("linux/amd64", &artifact)])),
                ("c.example/c:1".to_owned(), Arc::new(mirrored)),
            ]),
        };
        let text = lock.to_string();
        assert_eq!(Lock::parse(&text, "bake.lock").expect("read"), lock, "{text}");
        assert!(text.find("a.example") < text.find("b.example"));
        assert_eq!(Lock::parse(&Lock::default().to_string(), "x").expect("an empty one"), Lock::default());
    }

    #[test]
    fn what_is_wrong_and_where() {
        for (text, start) in [
            ("version = 2\n", "bake.lock: it is of version 2"),
            (
                "version = 1\n[[images]]\nname = \"a\"\ntarget = \"sha256:1 2 x\"\n",
                "bake.lock:4:10: \"sha256:1 2 x\" is not",
            ),
            ("images = []", "bake.lock:1:1: missing field `version`"),
        ] {
            let error = Lock::parse(text, "bake.lock").expect_err(text).to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
