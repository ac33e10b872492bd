//! Whether everything in a root is as containerd needs it.

mod images;
mod records;
mod references;
mod snapshots;
mod store;

use std::collections::HashSet;

pub(super) use images::lost;
pub(super) use references::{dangling, number_of};
use serde::Serialize;
pub(super) use store::hash;

use super::compare;
use super::finding::{Finding, Findings};
use super::state::{Meta, State};
use super::{Result, ways};
use crate::bolt::Lock;
use crate::kind::chain;
use crate::metadata::{Error, MetaDb, Wait};
use crate::oci::Digest;
use crate::root::Root;

/// How much is looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Check {
    /// Blobs are not hashed.
    pub quick: bool,
    /// Layers are unpacked again and compared with their snapshots; none may unpack to more bytes than this.
    pub snapshots: Option<u64>,
}

/// What a check looked at, and what it found.
#[derive(Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Blobs there are; hashed, unless the check was quick.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Image records looked at.
    pub images: u64,
    /// Blobs no record names: the next garbage collection that removes anything removes them.
    pub unreferenced: u64,
    /// Snapshots whose contents were compared with their layers.
    pub compared: u64,
    /// Everything that is off; empty when the root is sound.
    pub findings: Vec<Finding>,
}

/// Hashes every blob, verifies the databases' structure and follows every reference in them. `progress` hears of bytes done
/// and of all there are, from several threads.
///
/// # Errors
/// [`super::Error`] when the root cannot be looked at; what is wrong in it is in the report.
pub fn check(
    root: &Root,
    options: &Check,
    progress: &(dyn Fn(u64, u64) + Sync),
    wait: &Wait<'_>,
) -> Result<CheckReport> {
    let mut found = Findings::default();
    let ways = ways::look(root)?;
    ways::findings(&ways, &mut found);
    // What is in the way of a directory hides everything in it.
    if ways.iter().any(|way| way.wrong == ways::Wrong::Kind { file: false }) {
        return Ok(CheckReport { findings: found.0, ..CheckReport::default() });
    }
    let mut meta = match MetaDb::lock(root, Lock::Shared, wait) {
        Ok(meta) => Ok(meta),
        Err(error @ Error::Bolt { .. }) => Err(chain(&error)),
        Err(error) => return Err(error.into()),
    };
    let state = State::read(root, meta.as_mut().map_err(|why| why.clone()))?;
    let bad = if options.quick { Vec::new() } else { hash(&state, progress) };
    let mut report = report(&state, &bad, found);
    if let Some(limit) = options.snapshots {
        let mut found = Findings::default();
        let compared = compare::all(root, &state, limit, progress)?;
        report.compared = compared.same + compared.differing.len() as u64;
        compare::findings(&compared, &mut found);
        report.findings.append(&mut found.0);
        report.findings.sort_unstable();
    }
    Ok(report)
}

/// Everything that is off in a root that was read; `bad` are blobs whose bytes are wrong.
pub(super) fn report(state: &State, bad: &[(Digest, String)], mut found: Findings) -> CheckReport {
    let mut report = CheckReport {
        blobs: state.files.len() as u64,
        bytes: state.files.values().map(|stat| stat.size).sum(),
        ..CheckReport::default()
    };
    store::findings(state, bad, &mut found);
    records::findings(state, &mut found);
    let bad: HashSet<&Digest> = bad.iter().map(|(digest, _)| digest).collect();
    for space in &state.spaces {
        references::findings(space, state, &mut found);
        report.images += space.all.images.len() as u64;
        images::findings(space, state, &bad, &mut found);
    }
    let named: HashSet<&Digest> = state.spaces.iter().flat_map(|space| space.all.blobs.keys()).collect();
    report.unreferenced = state.files.keys().filter(|digest| !named.contains(digest)).count() as u64;
    let readable = state.is_readable() || matches!(state.meta, Meta::Absent);
    snapshots::findings(state, readable, &mut found);
    found.0.sort_unstable();
    found.0.dedup();
    report.findings = found.0;
    report
}
