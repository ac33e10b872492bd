//! The content store: blobs, what lies among them, and writes that did not end.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::care::finding::{Findings, Severity};
use crate::care::state::State;
use crate::kind::chain;
use crate::oci::Digest;
use crate::parallel;

/// Hashes every blob; those whose bytes are wrong, and how. `progress` as in [`super::check`].
pub(in crate::care) fn hash(state: &State, progress: &(dyn Fn(u64, u64) + Sync)) -> Vec<(Digest, String)> {
    let total = state.files.values().map(|stat| stat.size).sum();
    let done = AtomicU64::new(0);
    let verify = |(digest, size): (&Digest, u64)| {
        let result = state.store.verify(digest);
        progress(done.fetch_add(size, Ordering::Relaxed) + size, total);
        result.err().map(|error| (digest.clone(), chain(&error)))
    };
    let blobs = state.files.iter().map(|(digest, stat)| (digest, stat.size)).collect();
    parallel::map(blobs, verify).into_iter().flatten().collect()
}

pub(super) fn findings(state: &State, bad: &[(Digest, String)], found: &mut Findings) {
    for (digest, why) in bad {
        found.error(
            digest.to_string(),
            why,
            "containerd uses it as it is: unpacking it fails, or makes something else of it",
        );
    }
    for path in &state.strangers {
        found.error(
            path.display().to_string(),
            "is not a blob",
            "containerd's garbage collection stops at it, every time",
        );
    }
    for path in state.store.beside().into_iter().flatten() {
        found.info(
            path.display().to_string(),
            "is no directory of blobs that prebake knows",
            "containerd passes it over, unless it is named like an algorithm; not looked at",
        );
    }
    for (digest, stat) in state.files.iter().filter(|(_, stat)| !stat.is_read_only()) {
        found.warn(
            digest.to_string(),
            format!("has the mode {:04o}, and should have 0444", stat.mode),
            "containerd uses it as it is, and whoever may can change it",
        );
    }
    ingests(state, found);
    if let Some(why) = &state.catalog {
        let consequence =
            "containerd does not know of it; a bake fails until it is removed, and hashes all blobs once then";
        found.warn("prebake's catalog", why, consequence);
    }
}

fn ingests(state: &State, found: &mut Findings) {
    for left in &state.ingests {
        let object = left.path.display().to_string();
        let Some(reference) = &left.reference else {
            found.warn(
                object,
                "is a write without a name (no file ref)",
                "containerd logs an error at each collection",
            );
            continue;
        };
        let rows = state.spaces.iter().flat_map(|space| &space.all.ingests);
        let (problem, consequence) = if rows.clone().any(|row| row.backend == *reference) {
            (
                "is a write that did not end, and has a record",
                "containerd goes on with it, or removes it when its time has passed",
            )
        } else {
            (
                "is a write that did not end, and has no record",
                "the next bake of it goes on where it broke off; containerd's next collection of content removes it",
            )
        };
        found.info(format!("{object} ({reference})"), problem, consequence);
    }
    for space in &state.spaces {
        for row in &space.all.ingests {
            let there = state.ingests.iter().any(|left| left.reference.as_deref() == Some(row.backend.as_str()));
            if !there && row.expected.is_none() {
                found.add(
                    Severity::Info,
                    format!("{}/ingests/{}", space.name(), row.reference),
                    "has a record and no directory",
                    "containerd forgets it when its time has passed",
                    "",
                );
            }
        }
    }
}
