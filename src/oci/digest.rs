//! Digests: the algorithm and the hexadecimal hash of exact bytes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// The algorithms the OCI image specification registers (descriptor.md, "Registered Algorithms") and containerd stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// `sha256`.
    Sha256,
    /// `sha512`.
    Sha512,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Its name, which is also its directory under `blobs/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The digest of a blob: `sha256:` and 64 lower-case hexadecimal digits, or `sha512:` and 128.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    /// Shared: a bake says each many times.
    text: Arc<str>,
}

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest: {what}")]
pub struct DigestError {
    text: String,
    what: &'static str,
}

/// How much of a digest a tag that stands for it has.
const TAG_HEX: usize = 64;

impl Digest {
    /// The digest of `bytes`, by sha256.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_as(bytes, None)
    }

    /// The digest of `bytes`, by the algorithm of another digest; by sha256 without one.
    pub fn of_as(bytes: &[u8], other: Option<&Self>) -> Self {
        let mut hasher = Hasher::new(other.map_or(Algorithm::Sha256, Self::algorithm));
        hasher.update(bytes);
        hasher.finish()
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// As the tag that stands in for what refers to it (distribution specification, "Referrers Tag Schema").
    pub fn as_tag(&self) -> String {
        format!("{}-{}", self.algorithm.name(), &self.hex()[..TAG_HEX])
    }

    /// Its hexadecimal part: the blob's file name.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// `algorithm/hex`: where its blob lies below the blobs of a layout or a content store (image specification, image-layout.md).
    pub fn path(&self) -> String {
        format!("{}/{}", self.algorithm.name(), self.hex())
    }

    /// The bytes that its hexadecimal part stands for.
    pub fn to_raw(&self) -> Vec<u8> {
        hex::decode(self.hex()).unwrap_or_default()
    }

    /// The digest of these bytes; `None` when the algorithm gives another number of them.
    pub fn from_raw(algorithm: Algorithm, raw: &[u8]) -> Option<Self> {
        let text = || format!("{}:{}", algorithm.name(), hex::encode(raw)).into();
        (raw.len() * 2 == algorithm.hex_len()).then(|| Self { algorithm, text: text() })
    }

    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = |what| DigestError { text: text.chars().take(160).collect(), what };
        let (name, hex) = text.split_once(':').ok_or_else(|| error("no algorithm before a colon"))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| error("only sha256 and sha512 are known"))?;
        if hex.len() != algorithm.hex_len() {
            return Err(error("the wrong number of hexadecimal digits"));
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error("something other than lower-case hexadecimal digits"));
        }
        Ok(Self { algorithm, text: text.into() })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text.as_ref().to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The chainIDs of layers with these diffIDs, the lowest first: each names a layer with all those below it (OCI image
/// specification, config.md, "Layer `ChainID`").
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// Computes a digest piece by piece.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Starts.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        let digest = match self.0 {
            State::Sha256(state) => Digest::from_raw(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => Digest::from_raw(Algorithm::Sha512, &state.finalize()),
        };
        let Some(digest) = digest else { unreachable!("a hash has its algorithm's length") };
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_blob() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        let raw = Digest::of(b"").to_raw();
        assert_eq!(Digest::from_raw(Algorithm::Sha256, &raw), Some(Digest::of(b"")));
        assert_eq!(Digest::from_raw(Algorithm::Sha512, &raw), None);
        assert_eq!(empty.parse::<Digest>().map(|d| d.hex().len()), Ok(64));
    }

    #[test]
    fn bad_digests() {
        let upper = format!("sha256:{}", "A".repeat(64));
        let climbing = format!("sha256:../{}", "a".repeat(61));
        for bad in ["", "sha256", "sha256:", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", &upper, &climbing] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
