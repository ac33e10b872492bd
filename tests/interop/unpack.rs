//! Images unpacked by us and by containerd: the same snapshots, file for file and record for record, and the same images
//! refused.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use ::prebake::layer::{Compression, compress};
use ::prebake::oci::{Digest, Document};

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

/// The seeds to try: `PREBAKE_SEED` alone, or as many as `PREBAKE_STACKS` says.
fn seeds(default: u64) -> Range<u64> {
    match variable("PREBAKE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("PREBAKE_STACKS").map_or(default, |n| n * default / STACKS),
    }
}

const STACKS: u64 = 60;

/// What a campaign came to.
#[derive(Default)]
struct Tally {
    accepted: BTreeMap<&'static str, usize>,
    refused: BTreeMap<&'static str, usize>,
    counts: [usize; 2],
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
        self.counts[usize::from(outcome.left.is_err())] += 1;
        if outcome.left.is_ok() {
            stack.features().into_iter().for_each(|feature| *self.accepted.entry(feature).or_default() += 1);
        } else {
            *self.refused.entry(expected.unwrap_or("unforeseen")).or_default() += 1;
        }
        if !outcome.differences.is_empty() {
            let small = shrink(pair, stack);
            let outcome = pair.judge(&small.image(), true);
            let shown: Vec<&String> = outcome.differences.iter().take(SHOWN).collect();
            let count = outcome.differences.len();
            self.failures
                .push(format!("seed {seed}, made small:\n{}{count} differences: {shown:#?}", small.describe()));
        }
    }

    fn print(&self) {
        for (feature, count) in &self.accepted {
            eprintln!("{count:4} accepted: {feature}");
        }
        for (reason, count) in &self.refused {
            eprintln!("{count:4} refused: {reason}");
        }
        eprintln!("{} accepted, {} refused; surprises: {:#?}", self.counts[0], self.counts[1], self.surprises);
    }
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

fn campaign(pair: &Pair, seeds: Range<u64>, wanted: impl Fn(&Stack) -> bool) -> Tally {
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
    tally.print();
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n"));
    tally
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

#[test]
fn two_releases_unpack_random_stacks_in_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new(Side::containerd("2.1.9", dir.path()), Side::containerd("1.6.20", dir.path()), dir.path());
    campaign(&pair, seeds(20), old_enough);
}
