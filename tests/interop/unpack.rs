//! Images unpacked by us and by containerd: the same snapshots, file for file and record for record, and the same images
//! refused.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use ::prebake::layer::{Compression, compress};
use ::prebake::oci::Digest;

use crate::peers;
use crate::sides::{Pair, Side};
use crate::stack::{self, Image, Stack};
use crate::support::content::demo;
use crate::support::prebake::prebake;

/// Differences that are shown of one image.
const SHOWN: usize = 40;
/// Failing stacks after which a campaign stops.
const ENOUGH: usize = 5;
/// Smaller stacks that are tried to show a failure.
const SMALLER: usize = 150;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap())
}

/// The seeds to try: as many as `PREBAKE_STACKS` says, from `PREBAKE_SEED` on; that one alone when it is all that is given.
fn seeds(default: u64) -> Range<u64> {
    let stacks = variable("PREBAKE_STACKS").map(|n| n * default / STACKS);
    match variable("PREBAKE_SEED") {
        Some(seed) => seed..seed + stacks.unwrap_or(1),
        None => 0..stacks.unwrap_or(default),
    }
}

const STACKS: u64 = 200;

/// What a campaign came to.
#[derive(Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    /// Stacks that our own model of containerd judges differently.
    surprises: Vec<String>,
    failures: Vec<String>,
}

impl Tally {
    fn add(&mut self, pair: &Pair, seed: u64, stack: &Stack) {
        let outcome = pair.judge(&stack.image(), seed.is_multiple_of(5));
        let expected = stack.refusal();
        if outcome.left.is_ok() != expected.is_none() {
            self.surprises.push(format!("seed {seed}: {:?}, the model says {expected:?}", outcome.left));
        }
        let count = if outcome.left.is_ok() { &mut self.accepted } else { &mut self.refused };
        *count += 1;
        if !outcome.differences.is_empty() {
            let small = shrink(pair, stack);
            let outcome = pair.judge(&small.image(), true);
            let shown: Vec<&String> = outcome.differences.iter().take(SHOWN).collect();
            let count = outcome.differences.len();
            self.failures
                .push(format!("seed {seed}, made small:\n{}{count} differences: {shown:#?}", small.describe()));
        }
    }
}

/// The first differences, and the beginnings of long ones.
fn shown(differences: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = differences.iter().take(SHOWN).map(|line| line.chars().take(400).collect()).collect();
    if differences.len() > SHOWN {
        lines.push(format!("and {} more", differences.len() - SHOWN));
    }
    lines
}

/// A smaller stack on which both sides still differ.
fn shrink(pair: &Pair, stack: &Stack) -> Stack {
    let mut stack = stack.clone();
    let mut tries = 0;
    'smaller: loop {
        for less in stack.smaller() {
            tries += 1;
            if tries > SMALLER {
                return stack;
            }
            if !pair.judge(&less.image(), false).differences.is_empty() {
                stack = less;
                continue 'smaller;
            }
        }
        return stack;
    }
}

fn campaign(pair: &Pair, seeds: Range<u64>, wanted: impl Fn(&Stack) -> bool) {
    let mut tally = Tally::default();
    for seed in seeds {
        let stack = stack::draw(seed);
        if wanted(&stack) {
            tally.add(pair, seed, &stack);
        }
        if tally.failures.len() == ENOUGH {
            break;
        }
    }
    eprintln!("{} stacks accepted, {} refused; surprises: {:#?}", tally.accepted, tally.refused, tally.surprises);
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n"));
    // What the stacks reach is counted by the model.
    assert!(tally.surprises.len() <= (tally.accepted + tally.refused) / 50, "the model is wrong too often");
}

/// The left side is containerd in that release, the right one prebake.
fn pair(release: &'static str, dir: &Path) -> Pair {
    Pair::new(Side::containerd(release, dir), Side::prebake(dir), dir)
}

/// What holds of prebake's root after all of it.
fn is_sound(pair: &Pair) {
    let root = pair.right().root();
    prebake(root.ancestors().nth(3).unwrap(), "check").expect(0);
}

/// Until 2.0, containerd knows no Docker layers with zstd.
fn old_enough(stack: &Stack) -> bool {
    !stack.features().contains("documents, Docker, with zstd")
}

/// The corners that stacks reach, by the model: else they are no test of them.
#[test]
fn the_stacks_reach_every_corner() {
    let mut accepted: BTreeMap<&str, usize> = BTreeMap::new();
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    for stack in (0..500).map(stack::draw) {
        match stack.refusal() {
            None => stack.features().into_iter().for_each(|feature| *accepted.entry(feature).or_default() += 1),
            Some(reason) => *refused.entry(reason).or_default() += 1,
        }
    }
    eprintln!("accepted: {accepted:#?}\nrefused: {refused:#?}");
    for (known, seen, least) in [(stack::ACCEPTED, &accepted, 4), (stack::REFUSED, &refused, 1)] {
        let rare: Vec<_> = known.iter().filter(|name| seen.get(*name).is_none_or(|count| *count < least)).collect();
        let unknown: Vec<_> = seen.keys().filter(|name| !known.contains(name)).collect();
        assert!(rare.is_empty() && unknown.is_empty(), "rare: {rare:?}, unknown: {unknown:?}");
    }
    let share = accepted["documents, OCI"] + accepted["documents, Docker"];
    assert!(share > 300, "{share} of 500 are accepted");
}

/// An image of real files, packages put on top of them and others removed.
fn debian() -> Image {
    let layer = |i: usize| {
        let tar = fs::read(peers::dir().join(format!("debian/layer{i}.tar"))).unwrap();
        let blob = compress(&tar[..], Compression::Gzip).unwrap().0;
        (Compression::Gzip.oci_media_type(), blob, Digest::of(&tar))
    };
    Image::new((0..4).map(layer).collect(), false)
}

#[track_caller]
fn is_unpacked_alike(pair: &Pair, name: &str, image: &Image) {
    let outcome = pair.judge(image, true);
    assert_eq!((outcome.left, outcome.right), (Ok(()), Ok(())), "{name}");
    assert!(outcome.differences.is_empty(), "{name}: {:#?}", shown(&outcome.differences));
}

#[test]
fn random_stacks_are_unpacked_as_containerd_does() {
    let dir = tempfile::tempdir().unwrap();
    let pair = pair("2.1.9", dir.path());
    campaign(&pair, seeds(STACKS), |_| true);
    is_sound(&pair);
}

#[test]
fn random_stacks_are_unpacked_as_an_old_containerd_does() {
    let dir = tempfile::tempdir().unwrap();
    let pair = pair("1.6.20", dir.path());
    campaign(&pair, seeds(STACKS / 4), old_enough);
    is_sound(&pair);
}

#[test]
fn real_images_are_unpacked_as_containerd_does() {
    let dir = tempfile::tempdir().unwrap();
    let pair = pair("2.1.9", dir.path());
    is_unpacked_alike(&pair, "debian", &debian());
    let demo = demo();
    let runnable: Vec<Image> = demo.tags.keys().filter_map(|name| Image::of(&demo, name)).collect();
    assert!(runnable.len() >= 3, "{} images", runnable.len());
    for image in &runnable {
        is_unpacked_alike(&pair, "demo", image);
    }
    is_sound(&pair);
}

#[test]
fn two_releases_unpack_random_stacks_in_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new(Side::containerd("2.1.9", dir.path()), Side::containerd("1.6.20", dir.path()), dir.path());
    campaign(&pair, seeds(20), old_enough);
    is_unpacked_alike(&pair, "debian", &debian());
}
