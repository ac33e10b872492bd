//! Putting a root right: each part in its turn, from the databases' pages up to what is in snapshots. Whatever is sound stays
//! as it is; a kill at any moment leaves the old or the new of each part, and the next repair goes on.

mod blobs;
mod databases;
mod rebuild;
mod records;
mod snapshots;
mod sources;
mod targets;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
pub use sources::{From as RepairFrom, Missing};

use super::check::{self, Check, CheckReport};
use super::finding::{Finding, Findings, Severity};
use super::state::State;
use super::{Result, ways};
use crate::bolt::Lock;
use crate::kind::chain;
use crate::metadata::{self, Error, MetaDb, Tx, Wait};
use crate::oci::Digest;
use crate::root::Root;

/// What a repair does.
#[derive(Default)]
pub struct Repair {
    /// Only tell.
    pub dry_run: bool,
    /// Look for damage in what is in snapshots first.
    pub snapshots: bool,
    /// Bring back layers that were discarded.
    pub restore_layers: bool,
    /// Where blobs are taken from, instead of registries.
    pub from: Option<RepairFrom>,
    /// Most bytes that a layer may unpack to.
    pub max_unpacked: u64,
}

/// Fetches blobs into the root's content store; of each, why it did not come, if it did not.
pub type Fetch<'f> = dyn FnMut(&[Missing]) -> Vec<Option<String>> + 'f;

/// Something that was put right, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// What.
    pub object: String,
    /// What was done to it.
    pub done: String,
}

/// What a repair came to.
#[derive(Debug, Default, Serialize)]
pub struct RepairReport {
    /// What was off before.
    pub found: Vec<Finding>,
    /// What was done, or would be.
    pub mended: Vec<Mended>,
    /// What is off afterwards.
    pub remaining: Vec<Finding>,
    /// What could not be done, and why.
    pub failed: Vec<Mended>,
}

impl RepairReport {
    /// Whether a check finds no error afterwards, and everything could be done.
    pub fn is_sound(&self) -> bool {
        self.failed.is_empty() && self.remaining.iter().all(|finding| finding.severity != Severity::Error)
    }
}

/// Repairs a root. `progress` hears of bytes that are hashed and unpacked.
///
/// # Errors
/// [`super::Error`] when the root cannot be looked at or written to.
pub fn repair(
    root: &Root,
    options: &Repair,
    fetch: &mut Fetch<'_>,
    progress: &(dyn Fn(u64, u64) + Sync),
    wait: &Wait<'_>,
) -> Result<RepairReport> {
    let mut report = RepairReport { found: before(root, options, progress, wait)?, ..RepairReport::default() };
    for way in ways::look(root)? {
        let done = way.mend(root, options.dry_run)?;
        report.mended.push(Mended { object: way.path.display().to_string(), done });
    }
    let lock = if options.dry_run { Lock::Shared } else { Lock::Exclusive };
    let meta = match MetaDb::lock(root, lock, wait) {
        Ok(meta) => meta,
        // Only told of, what is in the way is still there.
        Err(Error::Bolt { .. }) if options.dry_run => {
            return Ok(RepairReport { remaining: report.found.clone(), ..report });
        }
        Err(error) => return Err(error.into()),
    };
    let (bad, unreachable) = (BTreeMap::new(), BTreeMap::new());
    let mut work = Work {
        root,
        options,
        fetch,
        progress,
        meta,
        report,
        bad,
        unreachable,
        temporary: BTreeSet::new(),
        keep_unknown: false,
        lost: false,
    };
    work.all()?;
    Ok(work.report)
}

/// What a check says before anything is done.
fn before(
    root: &Root,
    options: &Repair,
    progress: &(dyn Fn(u64, u64) + Sync),
    wait: &Wait<'_>,
) -> Result<Vec<Finding>> {
    let snapshots = options.snapshots.then_some(options.max_unpacked);
    // Blobs are hashed once, further on.
    let check = Check { quick: true, snapshots: snapshots.filter(|_| options.dry_run) };
    Ok(check::check(root, &check, progress, wait)?.findings)
}

/// A repair under way.
struct Work<'w, 'f> {
    root: &'w Root,
    options: &'w Repair,
    fetch: &'w mut Fetch<'f>,
    progress: &'w (dyn Fn(u64, u64) + Sync),
    meta: MetaDb,
    report: RepairReport,
    /// Blobs whose bytes are wrong, and how.
    bad: BTreeMap<Digest, String>,
    /// Blobs that could not be had, and why.
    unreachable: BTreeMap<Digest, String>,
    /// Layers that are here only to be unpacked.
    temporary: BTreeSet<Digest>,
    /// Whether there are images that nobody can name any more: what is theirs stays.
    keep_unknown: bool,
    /// Whether anything of `meta.db` may be lost.
    lost: bool,
}

impl Work<'_, '_> {
    fn all(&mut self) -> Result<()> {
        self.lost = self.databases()?;
        if self.state()?.is_readable() || self.options.dry_run {
            self.hash()?;
            self.strangers()?;
            self.malformed()?;
            self.targets()?;
            // What is unpacked needs no layers: that is to be known before any are fetched.
            self.snapshots(true)?;
            self.blobs()?;
            self.bootstrap()?;
            self.records()?;
            self.snapshots(self.keep_unknown)?;
            self.rebuild()?;
            self.references()?;
            self.leave()?;
        }
        self.after()
    }

    /// The root as it is now.
    fn state(&mut self) -> Result<State> {
        State::read(self.root, Ok(&mut self.meta))
    }

    fn is_dry(&self) -> bool {
        self.options.dry_run
    }

    fn did(&mut self, object: impl Into<String>, done: impl Into<String>) {
        self.report.mended.push(Mended { object: object.into(), done: done.into() });
    }

    fn cannot(&mut self, object: impl Into<String>, why: impl Into<String>) {
        let failed = Mended { object: object.into(), done: why.into() };
        if !self.report.failed.contains(&failed) {
            self.report.failed.push(failed);
        }
    }

    /// Changes `meta.db` in one commit, unless it is only to be told of.
    fn write(&mut self, f: impl FnOnce(&mut Tx<'_>) -> metadata::Result<()>) -> Result<()> {
        if !self.options.dry_run {
            self.meta.write(f)?;
        }
        Ok(())
    }

    fn hash(&mut self) -> Result<()> {
        let state = self.state()?;
        self.bad = check::hash(&state, self.progress).into_iter().collect();
        let mut found = Findings::default();
        for (digest, why) in &self.bad {
            found.error(
                digest.to_string(),
                why,
                "containerd uses it as it is: unpacking it fails, or makes something else",
            );
        }
        self.report.found.append(&mut found.0);
        Ok(())
    }

    /// What a check says when all is done.
    fn after(&mut self) -> Result<()> {
        if self.is_dry() {
            self.report.remaining = self.report.found.clone();
            return Ok(());
        }
        let mut found = Findings::default();
        ways::findings(&ways::look(self.root)?, &mut found);
        let state = self.state()?;
        let bad: Vec<_> = self.bad.iter().map(|(digest, why)| (digest.clone(), why.clone())).collect();
        let CheckReport { findings, .. } = check::report(&state, &bad, found);
        self.report.remaining.extend(findings);
        Ok(())
    }
}

/// An error in words, for a part that could not be done.
fn words(error: &dyn std::error::Error) -> String {
    chain(error)
}
