//! meta.db: how it is built, and records that cannot be read.

use crate::bolt;
use crate::care::finding::{Findings, REPAIR, Severity};
use crate::care::state::{Meta, State};
use crate::metadata::{self, Error};

pub(super) fn findings(state: &State, found: &mut Findings) {
    const DB: &str = "meta.db";
    let snapshots: usize = state.snapshotters.iter().map(|snapshotter| snapshotter.dirs.len()).sum();
    let some = format!("although there are {} blobs and {snapshots} directories of snapshots", state.files.len());
    let empty = state.files.is_empty() && snapshots == 0;
    match &state.meta {
        Meta::Absent if empty => {}
        Meta::Absent => found.error(
            DB,
            format!("is not there, or empty, {some}"),
            "containerd starts without any image, and its garbage collection removes all of them in time",
        ),
        Meta::Damaged(why, None) => found.error(DB, why, "containerd does not start"),
        Meta::Damaged(_, Some(report)) => structure(DB, report, found),
        Meta::Readable(report) => {
            structure(DB, report, found);
            if state.spaces.is_empty() && !empty {
                found.warn(
                    DB,
                    format!("has no records, {some}"),
                    "containerd starts without any image; `prebake bootstrap` makes fetched ones known to it",
                );
            }
        }
    }
    for bucket in &state.foreign {
        let consequence = "containerd 2 deletes it when it migrates the database";
        found.add(Severity::Warning, format!("{DB}: bucket {bucket}"), "is not containerd's", consequence, "");
    }
    for space in &state.spaces {
        for error in &space.all.wrong {
            let (object, problem) = match error {
                Error::Record { path, what } => (path.clone(), (*what).to_owned()),
                other => (DB.to_owned(), crate::kind::chain(other)),
            };
            let images = format!("v1/{}/images", space.name());
            let consequence = if object.starts_with(&images) {
                "containerd fails to list images with it, and does not start where CRI does so in this namespace"
            } else {
                "containerd fails where it meets it"
            };
            found.error(object, problem, consequence);
        }
        if metadata::check_namespace(space.name()).is_err() {
            let problem = "is no name containerd accepts for a namespace";
            found.add(Severity::Warning, space.name(), problem, "containerd refuses every request for it", "");
        }
    }
}

/// What is wrong with a database's pages.
pub(super) fn structure(object: &str, report: &bolt::Report, found: &mut Findings) {
    for finding in &report.findings {
        let consequence = match &finding.problem {
            bolt::Problem::Leaked { .. } => "containerd never uses their room again",
            problem if problem.is_fatal() => "containerd fails or panics when it gets there",
            _ => "containerd panics when it deletes there",
        };
        found.add(Severity::of(&finding.problem), object, finding.to_string(), consequence, REPAIR);
    }
    if report.one_meta {
        found.error(
            object,
            "has only one valid meta page",
            "containerd goes by that one: what the last commit wrote is lost, unless it never ended; with the other one, all is",
        );
    }
}
