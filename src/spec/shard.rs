//! Work split among so many shards: each computes the same split by itself, from the same list of blobs.
//!
//! # Which shard a blob is in
//!
//! A format that never changes, because shards of one run need not be of one version:
//!
//! - How much shard `I` (from 1) likes a blob is the `I`-th number of splitmix64, seeded with the first eight bytes of the
//!   blob's digest, read as a big-endian number. A blob belongs to the shard that likes it most (rendezvous hashing), so that a
//!   shard more or less moves few blobs, and a blob more or less moves no other,
//! - of those shards that have room for it: no shard takes more than the mean of their bytes and [`SLACK`] of it, rounded down,
//! - and, where none has, to the one with the fewest bytes; of several, to the one that likes it most.
//! - Blobs larger than the mean's [`LARGE`]th part come first, from the largest down, because they need room most. All others come in the
//!   order of their digests: which of them go elsewhere is chance, and not a matter of size.
//! - Where large ones alone gave a shard more than the mean and [`MAX_SLACK`] of it, and sizes alone do better (each large one, from
//!   the largest down, to the shard with the fewest bytes), these decide on large ones.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use super::{Lock, LockedImage};
use crate::oci::Digest;

/// Shards that work can be split into.
pub const MAX_SHARDS: u16 = 4096;
/// What a shard may have beyond the mean, in hundredths of it.
const SLACK: u128 = 4;
/// What the largest blobs may make of that before they are placed otherwise.
const MAX_SLACK: u128 = 9;
/// A blob of more than this part of a shard's mean is placed by its size.
const LARGE: u128 = 64;

/// One of so many shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: u16,
    of: u16,
}

/// A text or an environment that names no shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// Not of the form.
    #[error("{0:?} is no shard; write it like 2/8, or job in a Kubernetes Indexed Job")]
    Text(String),
    /// There is no such one.
    #[error("shards are counted from 1: {0}/{1} is none")]
    Index(u64, u64),
    /// More than there can be.
    #[error("there can be {MAX_SHARDS} shards, not {0}")]
    TooMany(u64),
    /// Not set in a Job's container.
    #[error(
        "JOB_COMPLETION_INDEX is not set: Kubernetes sets it by itself in the containers of a Job of completionMode Indexed"
    )]
    NoIndex,
    /// Not set in a Job's container.
    #[error(
        "JOB_COMPLETIONS is not set: Kubernetes does not set it; put it under env in the Job's template, with the number of completions"
    )]
    NoCompletions,
    /// Set to something else.
    #[error("{name}={value:?} is no number")]
    Number {
        /// Which variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
}

impl Shard {
    /// The `index`th, from 1.
    ///
    /// # Errors
    /// [`ShardError`], when there is no such one.
    pub fn new(index: u64, of: u64) -> Result<Self, ShardError> {
        match (u16::try_from(index), u16::try_from(of)) {
            (_, Ok(n)) if n > MAX_SHARDS => Err(ShardError::TooMany(of)),
            (_, Err(_)) => Err(ShardError::TooMany(of)),
            (Ok(index), Ok(of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err(ShardError::Index(index, of)),
        }
    }

    /// That of a container of a Kubernetes Indexed Job, by `JOB_COMPLETION_INDEX`, counted from 0, and `JOB_COMPLETIONS`.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn of_job(index: Option<&str>, completions: Option<&str>) -> Result<Self, ShardError> {
        let number = |name, value: &str| {
            let number: Result<u32, _> = value.parse();
            number.map(u64::from).map_err(|_| ShardError::Number { name, value: value.to_owned() })
        };
        let index = number("JOB_COMPLETION_INDEX", index.ok_or(ShardError::NoIndex)?)?;
        let of = number("JOB_COMPLETIONS", completions.ok_or(ShardError::NoCompletions)?)?;
        Self::new(index + 1, of)
    }

    /// Which one, from 1.
    pub fn index(self) -> u16 {
        self.index
    }

    /// Of how many.
    pub fn of(self) -> u16 {
        self.of
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let no = || ShardError::Text(text.to_owned());
        let number = |digits: &str| -> Option<u64> {
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let (index, of) = text.split_once('/').ok_or_else(no)?;
        Self::new(number(index).ok_or_else(no)?, number(of).ok_or_else(no)?)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// Which blob is in which shard.
#[derive(Debug, Clone)]
pub struct Split {
    of: u16,
    /// Sorted by their digests; shards from 0.
    blobs: Vec<(Digest, u16)>,
    /// What each shard has: how many blobs, and their bytes.
    loads: Vec<(usize, u64)>,
}

/// A blob that is to be placed.
#[derive(Clone, Copy)]
struct Blob<'d> {
    digest: &'d Digest,
    size: u64,
    seed: u64,
}

impl Split {
    /// Splits blobs into so many shards, balanced by their bytes. Whatever their order; one that is named twice counts once.
    ///
    /// # Panics
    /// When `of` is 0.
    pub fn new<'d>(of: u16, blobs: impl IntoIterator<Item = (&'d Digest, u64)>) -> Self {
        assert!(of > 0, "work is for somebody");
        let blob = |(digest, size)| Blob { digest, size, seed: seed(digest) };
        let mut blobs: Vec<Blob<'_>> = blobs.into_iter().map(blob).collect();
        blobs.sort_unstable_by(|a, b| a.digest.cmp(b.digest).then(b.size.cmp(&a.size)));
        blobs.dedup_by(|later, first| later.digest == first.digest);
        let total: u128 = blobs.iter().map(|blob| u128::from(blob.size)).sum();
        let is_large = |blob: &Blob<'_>| u128::from(blob.size) * u128::from(of) * LARGE > total;
        let (mut large, small): (Vec<Blob<'_>>, Vec<Blob<'_>>) = blobs.into_iter().partition(is_large);
        large.sort_by_key(|blob| Reverse(blob.size));
        let with_slack = |slack: u128| total * (100 + slack) / (100 * u128::from(of));
        let room = with_slack(SLACK);
        let mut placed = Placed::none(of).with(&large, room);
        if placed.longest() > with_slack(MAX_SLACK) {
            let by_size = Placed::none(of).with(&large, 0);
            if by_size.longest() < placed.longest() {
                placed = by_size;
            }
        }
        let Placed { shards, loads } = placed.with(&small, room);
        let bytes = loads.into_iter().map(|bytes| u64::try_from(bytes).unwrap_or(u64::MAX));
        let mut loads: Vec<(usize, u64)> = bytes.map(|bytes| (0, bytes)).collect();
        for shard in &shards {
            loads[usize::from(*shard)].0 += 1;
        }
        let mut blobs: Vec<(Digest, u16)> =
            large.iter().chain(&small).map(|blob| blob.digest.clone()).zip(shards).collect();
        blobs.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Self { of, blobs, loads }
    }

    /// Splits what a lock's images consist of, their indexes and manifests excepted.
    pub fn of_lock(of: u16, lock: &Lock) -> Self {
        let blobs = lock.images.values().flat_map(|image| image.all_blobs());
        Self::new(of, blobs.map(|blob| (&blob.digest, blob.size)))
    }

    /// The shard that a blob is in, from 1. One that was not among those that were split is in the one that likes it most.
    pub fn shard_of(&self, digest: &Digest) -> u16 {
        let place = match self.blobs.binary_search_by(|(known, _)| known.cmp(digest)) {
            Ok(at) => self.blobs[at].1,
            Err(_) => favourite(seed(digest), (0..self.of).zip(0..self.of)).unwrap_or_default(),
        };
        place + 1
    }

    /// Whether a blob is in that shard.
    pub fn is_mine(&self, shard: Shard, digest: &Digest) -> bool {
        self.shard_of(digest) == shard.index
    }
}

/// One shard's share of the work.
#[derive(Debug, Clone)]
pub struct Share {
    shard: Shard,
    split: Split,
}

impl Share {
    /// That of one shard when all of them split these blobs, as [`Split::new`] does.
    pub fn new<'d>(shard: Shard, blobs: impl IntoIterator<Item = (&'d Digest, u64)>) -> Self {
        Self { shard, split: Split::new(shard.of, blobs) }
    }

    /// That of one shard when all of them split what a lock names.
    pub fn of_lock(shard: Shard, lock: &Lock) -> Self {
        Self { shard, split: Split::of_lock(shard.of, lock) }
    }

    /// Whose it is.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// Whether a blob is in it.
    pub fn has(&self, digest: &Digest) -> bool {
        self.split.is_mine(self.shard, digest)
    }

    /// Whether something of an image is in it; one without blobs is that of whose its own digest is.
    pub fn has_some_of(&self, image: &LockedImage) -> bool {
        let mut blobs = image.all_blobs().peekable();
        if blobs.peek().is_none() { self.has(&image.target.digest) } else { blobs.any(|blob| self.has(&blob.digest)) }
    }

    /// How many blobs are in it, and their bytes.
    pub fn load(&self) -> (usize, u64) {
        self.split.loads[usize::from(self.shard.index) - 1]
    }
}

/// Blobs that have a shard, from 0, and what each shard has, in bytes.
struct Placed {
    shards: Vec<u16>,
    loads: Vec<u128>,
}

impl Placed {
    fn none(of: u16) -> Self {
        Self { shards: Vec::new(), loads: vec![0; of.into()] }
    }

    fn longest(&self) -> u128 {
        self.loads.iter().copied().max().unwrap_or_default()
    }

    /// Places these as well, in their order.
    fn with(mut self, blobs: &[Blob<'_>], room: u128) -> Self {
        for Blob { size, seed, .. } in blobs {
            let (size, loads) = (u128::from(*size), &self.loads);
            let all = (0..).zip(loads);
            let fit = all.clone().filter(|(_, load)| *load + size <= room);
            let least = loads.iter().min();
            let shard =
                favourite(*seed, fit).or_else(|| favourite(*seed, all.filter(|(_, load)| Some(*load) == least)));
            let shard = shard.unwrap_or_default();
            self.loads[usize::from(shard)] += size;
            self.shards.push(shard);
        }
        self
    }
}

/// That of some shards that likes a blob most.
fn favourite<L>(seed: u64, shards: impl Iterator<Item = (u16, L)>) -> Option<u16> {
    shards.map(|(shard, _)| shard).max_by_key(|shard| (liking(seed, *shard), Reverse(*shard)))
}

/// How much a shard likes a blob: a number of splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators").
fn liking(seed: u64, shard: u16) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(u64::from(shard) + 1));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The first eight bytes of a digest.
fn seed(digest: &Digest) -> u64 {
    digest.hex().get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Numbers of splitmix64, as the tests in `tests/` have them.
    struct Rng(u64);

    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(1);
            liking(self.0, 7)
        }

        /// In (0, 1].
        #[expect(clippy::cast_precision_loss, reason = "a test's random number")]
        fn unit(&mut self) -> f64 {
            ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
        }
    }

    /// Blobs whose sizes have a heavy tail (Pareto's), as layers' have, of so many bytes together; none of more than `most`.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes of a test"
    )]
    fn heavy(seed: u64, count: usize, total: u64, most: u64) -> Vec<(Digest, u64)> {
        let mut rng = Rng(seed << 32);
        let raw: Vec<f64> = (0..count).map(|_| rng.unit().powf(-1.0 / 1.3)).collect();
        let mut scale = total as f64 / raw.iter().sum::<f64>();
        // What is cut off the largest goes to all.
        for _ in 0..20 {
            let sum: f64 = raw.iter().map(|size| (size * scale).min(most as f64)).sum();
            scale *= total as f64 / sum;
        }
        let digest = |n: usize| Digest::of(format!("{seed} {n}").as_bytes());
        raw.iter().enumerate().map(|(n, size)| (digest(n), (size * scale).min(most as f64) as u64 + 1)).collect()
    }

    fn split(of: u16, blobs: &[(Digest, u64)]) -> Split {
        Split::new(of, blobs.iter().map(|(digest, size)| (digest, *size)))
    }

    /// The longest shard by the mean, in thousandths.
    fn longest(split: &Split, blobs: &[(Digest, u64)]) -> u128 {
        let mut loads = vec![0_u128; split.of.into()];
        for (digest, size) in blobs {
            loads[usize::from(split.shard_of(digest)) - 1] += u128::from(*size);
        }
        let total: u128 = loads.iter().sum();
        loads.iter().max().expect("one") * 1000 * u128::from(split.of) / total
    }

    /// Blobs that are elsewhere in the second one, and their bytes, in thousandths of all.
    fn moved(before: &Split, after: &Split, blobs: &[(Digest, u64)]) -> (usize, u64) {
        let moved: Vec<_> =
            blobs.iter().filter(|(digest, _)| before.shard_of(digest) != after.shard_of(digest)).collect();
        let bytes = moved.iter().map(|(_, size)| size).sum::<u64>() / MIB * 1000;
        (moved.len() * 1000 / blobs.len(), bytes / blobs.iter().map(|(_, size)| size / MIB).sum::<u64>())
    }

    /// By the digests alone; by sizes that double; and where all are as large as each other.
    const GOLDEN_LIKING: [u16; 24] = [3, 5, 5, 2, 2, 1, 5, 5, 4, 5, 5, 1, 4, 1, 1, 4, 2, 5, 1, 4, 4, 5, 3, 3];
    const GOLDEN_SIZES: [u16; 24] = [3, 5, 5, 2, 2, 5, 5, 5, 5, 5, 5, 3, 5, 3, 5, 3, 2, 5, 1, 4, 4, 5, 3, 3];
    const GOLDEN_EVEN: [u16; 24] = [3, 2, 1, 2, 2, 1, 1, 3, 4, 5, 5, 4, 5, 1, 1, 4, 2, 5, 2, 4, 4, 5, 3, 3];

    #[test]
    fn the_format_never_changes() {
        let blobs: Vec<(Digest, u64)> = (0..24_u8).map(|n| (Digest::of(&[n]), 1 << n)).collect();
        let shards = |split: &Split| blobs.iter().map(|(digest, _)| split.shard_of(digest)).collect::<Vec<_>>();
        assert_eq!(shards(&Split::new(5, [])), GOLDEN_LIKING);
        assert_eq!(shards(&split(5, &blobs[..20])), GOLDEN_SIZES);
        let even: Vec<(Digest, u64)> = blobs.iter().map(|(digest, _)| (digest.clone(), 7)).collect();
        assert_eq!(shards(&split(5, &even)), GOLDEN_EVEN);
        assert_eq!(liking(1, 0), 0x910A_2DEC_8902_5CC1, "splitmix64's first number by the seed 1");
    }

    #[test]
    fn many_blobs() {
        let all = heavy(1, 121_200, 60_600_000 * MIB, 20_000 * MIB);
        let blobs = &all[..120_000];
        for of in [1, 3, 16, 64] {
            let (split, grown) = (split(of, blobs), split(of, &all));
            assert!(longest(&split, blobs) <= 1041, "{of}");
            let (count, bytes) = moved(&split, &grown, blobs);
            assert!(count <= 10 && bytes <= 10, "{of}: {count} and {bytes} of 1000 moved");
        }
        for of in [1, 8] {
            let share = 1000 / (usize::from(of) + 1);
            let (count, bytes) = moved(&split(of, blobs), &split(of + 1, blobs), blobs);
            assert!(
                (share..share + 10).contains(&(count + 2)) && bytes <= share as u64 + 20,
                "{of}: {count} and {bytes}"
            );
        }
    }

    #[test]
    fn few_blobs() {
        for of in [4, 8] {
            let mut all_moved = Vec::new();
            for seed in 0..40 {
                let all = heavy(seed, 505, 30_300 * MIB, u64::MAX);
                let blobs = &all[..500];
                let largest = blobs.iter().map(|(_, size)| u128::from(*size)).max().expect("one");
                let total: u128 = blobs.iter().map(|(_, size)| u128::from(*size)).sum();
                if largest * u128::from(of) > total {
                    continue;
                }
                let split_up = split(of, blobs);
                let longest = longest(&split_up, blobs);
                assert!(longest <= 1091, "{of} {seed}: {longest}");
                all_moved.push(moved(&split_up, &split(of, &all), blobs));
            }
            all_moved.sort_unstable();
            let median = all_moved[all_moved.len() / 2];
            assert!(all_moved.len() > 20 && median.0 <= 30 && median.1 <= 30, "{of}: {all_moved:?}");
        }
    }

    #[test]
    fn sizes_alone_where_they_are_few_and_large() {
        let named = |sizes: &[u64]| -> Vec<(Digest, u64)> {
            sizes.iter().enumerate().map(|(n, size)| (Digest::of(&n.to_le_bytes()), size.saturating_mul(MIB))).collect()
        };
        for (of, sizes, most) in [
            (3, &[5, 5, 4, 4, 3, 3][..], 1000),
            (2, &[3, 3, 2, 2, 2], 1166),
            (4, &[9, 8, 8, 7, 7, 6, 6, 5, 4, 4], 1125),
            (8, &[1, 1, 1], 2667),
            (2, &[100, 1, 1], 1961),
        ] {
            let blobs = named(sizes);
            assert!(longest(&split(of, &blobs), &blobs) <= most, "{sizes:?}: {}", longest(&split(of, &blobs), &blobs));
        }
        let empty = named(&[0; 40]);
        let shards: std::collections::BTreeSet<u16> =
            empty.iter().map(|(digest, _)| split(3, &empty).shard_of(digest)).collect();
        assert_eq!(shards.len(), 3);
        let vast = named(&[u64::MAX; 8]);
        assert_eq!(longest(&split(4, &vast), &vast), 1000);
    }

    proptest::proptest! {
        #[test]
        fn whatever_their_order(
            sizes in proptest::collection::vec(proptest::prop_oneof![0..50_u64, 0..1_u64 << 40], 1..200),
            of in 1..40_u16,
            by in 0..200_usize,
        ) {
            let blobs: Vec<(Digest, u64)> =
                sizes.iter().enumerate().map(|(n, size)| (Digest::of(&n.to_le_bytes()), *size)).collect();
            let mut twice = blobs.clone();
            twice.reverse();
            twice.rotate_left(by % blobs.len());
            twice.extend_from_slice(&blobs[..by % blobs.len()]);
            let (once, twice) = (split(of, &blobs), split(of, &twice));
            for (digest, _) in &blobs {
                let shard = once.shard_of(digest);
                proptest::prop_assert_eq!(shard, twice.shard_of(digest));
                let mine = (1..=of).filter(|i| once.is_mine(Shard { index: *i, of }, digest)).count();
                proptest::prop_assert_eq!(mine, 1);
            }
            // No worse than greedy, and so than a third more than what is possible.
            let (most, total) = (sizes.iter().max().expect("one"), sizes.iter().map(|n| u128::from(*n)).sum::<u128>());
            let least = u128::from(*most).max(total.div_ceil(of.into()));
            let mut loads = vec![0_u128; of.into()];
            for (digest, size) in &blobs {
                loads[usize::from(once.shard_of(digest)) - 1] += u128::from(*size);
            }
            proptest::prop_assert!(loads.iter().max().expect("one") * 100 <= least * 150 + 200);
        }
    }

    #[test]
    fn shards_by_name() {
        for (text, shard) in [("1/1", Some((1, 1))), ("3/8", Some((3, 8))), ("4096/4096", Some((4096, 4096)))] {
            assert_eq!(text.parse::<Shard>().ok().map(|shard| (shard.index, shard.of)), shard);
            assert_eq!(text.parse::<Shard>().expect("one").to_string(), text);
        }
        for (text, word) in [
            ("0/4", "counted from 1"),
            ("5/4", "counted from 1"),
            ("0/0", "counted from 1"),
            ("1/4097", "4096 shards"),
            ("1/99999999", "4096 shards"),
            ("4", "write it like 2/8"),
            ("1/", "write it like 2/8"),
            ("/4", "write it like 2/8"),
            ("+1/4", "write it like 2/8"),
            ("1/2/3", "write it like 2/8"),
            ("99999999999999999999999/4", "write it like 2/8"),
        ] {
            let error = text.parse::<Shard>().expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert_eq!(Shard::of_job(Some("0"), Some("4")), Ok(Shard { index: 1, of: 4 }));
        assert_eq!(Shard::of_job(Some("3"), Some("4")), Ok(Shard { index: 4, of: 4 }));
        for (index, completions, word) in [
            (None, Some("4"), "JOB_COMPLETION_INDEX is not set"),
            (Some("0"), None, "JOB_COMPLETIONS is not set"),
            (Some("4"), Some("4"), "5/4 is none"),
            (Some("a"), Some("4"), "JOB_COMPLETION_INDEX=\"a\""),
            (Some("0"), Some(""), "JOB_COMPLETIONS=\"\""),
        ] {
            let error = Shard::of_job(index, completions).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
