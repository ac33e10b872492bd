//! What a receiver really has, in a few bytes, for whoever sends it what it lacks.
//!
//! ```text
//! "prebake inventory 1\n" │ {"sha256":N,"sha512":M}\n │ N × 32 bytes, sorted │ M × 64 bytes, sorted │ sha256 of all before
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Error, Result};
use crate::catalog::Catalog;
use crate::content::{self, Entry, Store};
use crate::oci::{Algorithm, Digest};
use crate::parallel;
use crate::root::Root;

const MAGIC: &[u8] = b"prebake inventory 1\n";
/// Bytes of the sum at the end.
const SUM: usize = 32;

/// Blobs that somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Of its bytes: what it is called by.
    pub id: Digest,
    /// Which blobs.
    pub blobs: BTreeSet<Digest>,
}

#[derive(Serialize, Deserialize)]
struct Counts {
    sha256: usize,
    sha512: usize,
}

impl Inventory {
    /// Of these blobs.
    pub fn new(blobs: BTreeSet<Digest>) -> Self {
        let id = Digest::of(&encode(&blobs));
        Self { id, blobs }
    }

    /// Of the blobs in a root's store that are right: known to the catalog, or hashed now. Those that are wrong, besides.
    ///
    /// # Errors
    /// [`Error`].
    pub fn of_root(root: &Root) -> Result<(Self, Vec<Digest>)> {
        let store = Store::open(root)?;
        let catalog = root.state_dir()?.map(|dir| Catalog::open(&dir)).transpose()?;
        let (mut blobs, mut hash) = (BTreeSet::new(), Vec::new());
        for entry in store.entries()? {
            let Entry::Blob(digest, stat) = entry else { continue };
            if catalog.as_ref().is_some_and(|catalog| catalog.is_verified(&digest, stat).unwrap_or(false)) {
                blobs.insert(digest);
            } else {
                hash.push(digest);
            }
        }
        let mut wrong = Vec::new();
        for (digest, verified) in parallel::map(hash, |digest| {
            let verified = store.verify(&digest);
            (digest, verified)
        }) {
            match verified {
                Ok(()) => drop(blobs.insert(digest)),
                Err(content::Error::WrongDigest { .. }) => wrong.push(digest),
                Err(error) => return Err(error.into()),
            }
        }
        Ok((Self::new(blobs), wrong))
    }

    /// As a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(&self.blobs)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Inventory`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |why: &'static str| Error::Inventory { why };
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("it does not begin as one does"))?;
        let line = rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| wrong("it is cut off"))?;
        let counts: Counts = serde_json::from_slice(&rest[..line]).map_err(|_| wrong("its counts cannot be read"))?;
        let rest = &rest[line + 1..];
        let sizes = counts.sha256.checked_mul(32).zip(counts.sha512.checked_mul(64));
        let (first, len) =
            sizes.and_then(|(a, b)| Some((a, a.checked_add(b)?))).ok_or_else(|| wrong("it is cut off"))?;
        if rest.len() != len.saturating_add(SUM) {
            return Err(wrong("it is cut off"));
        }
        let (body, sum) = bytes.split_at(bytes.len() - SUM);
        if sum != Digest::of(body).to_raw() {
            return Err(wrong("its sum does not fit"));
        }
        let mut blobs = BTreeSet::new();
        let parts = [(Algorithm::Sha256, rest[..first].chunks(32)), (Algorithm::Sha512, rest[first..len].chunks(64))];
        for (algorithm, digests) in parts {
            for digest in digests {
                blobs.insert(Digest::from_raw(algorithm, digest).ok_or_else(|| wrong("it is cut off"))?);
            }
        }
        Ok(Self { id: Digest::of(bytes), blobs })
    }
}

fn encode(blobs: &BTreeSet<Digest>) -> Vec<u8> {
    let of = |algorithm| blobs.iter().filter(move |digest| digest.algorithm() == algorithm);
    let counts = Counts { sha256: of(Algorithm::Sha256).count(), sha512: of(Algorithm::Sha512).count() };
    let mut bytes = MAGIC.to_vec();
    bytes.extend(serde_json::to_vec(&counts).unwrap_or_default());
    bytes.push(b'\n');
    for digest in of(Algorithm::Sha256).chain(of(Algorithm::Sha512)) {
        bytes.extend(digest.to_raw());
    }
    bytes.extend(Digest::of(&bytes).to_raw());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_sound() {
        let many: BTreeSet<Digest> = (0..10_000_u32).map(|n| Digest::of(&n.to_le_bytes())).collect();
        let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().expect("a digest");
        let inventory = Inventory::new(many.into_iter().chain([long]).collect());
        let bytes = inventory.to_bytes();
        assert!(bytes.len() < 400 << 10, "{}", bytes.len());
        assert_eq!(Inventory::parse(&bytes).expect("read"), inventory);
        for at in [0, MAGIC.len() + 3, 100, bytes.len() / 2, bytes.len() - 1] {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            assert!(Inventory::parse(&broken).is_err(), "{at}");
            assert!(Inventory::parse(&bytes[..at]).is_err(), "{at}");
        }
        assert!(Inventory::parse(&[&bytes[..], b"x"].concat()).is_err());
        let empty = Inventory::new(BTreeSet::new());
        assert_eq!(Inventory::parse(&empty.to_bytes()).expect("read"), empty);
    }
}
