//! What is off in a root, what containerd would do about it, and what mends it.

use serde::Serialize;

use crate::bolt::Problem;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// containerd would fail at it, or lose something.
    Error,
    /// containerd lives with it, or removes it.
    Warning,
    /// Nothing is wrong; it is only to be known.
    Info,
}

impl Severity {
    pub(super) fn of(problem: &Problem) -> Self {
        if matches!(problem, Problem::Leaked { .. }) { Self::Warning } else { Self::Error }
    }
}

/// Something that is off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where: a blob, an image, a record, a file.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What containerd would do about it.
    pub consequence: String,
    /// The command that mends it; none where nothing is to be mended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Mends most.
pub(super) const REPAIR: &str = "prebake repair";
/// Mends what is in snapshots.
pub(super) const REPAIR_SNAPSHOTS: &str = "prebake repair --snapshots";
/// Mends nothing, because nothing is to be mended.
pub(super) const NOTHING: &str = "";

/// Findings as they come.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn add(
        &mut self,
        severity: Severity,
        object: impl Into<String>,
        problem: impl Into<String>,
        consequence: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let remedy = Some(remedy.into()).filter(|remedy| !remedy.is_empty());
        let (object, problem, consequence) = (object.into(), problem.into(), consequence.into());
        self.0.push(Finding { severity, object, problem, consequence, remedy });
    }

    /// An error that a plain repair mends.
    pub(super) fn error(
        &mut self,
        object: impl Into<String>,
        problem: impl Into<String>,
        consequence: impl Into<String>,
    ) {
        self.add(Severity::Error, object, problem, consequence, REPAIR);
    }

    /// A warning that a plain repair mends.
    pub(super) fn warn(
        &mut self,
        object: impl Into<String>,
        problem: impl Into<String>,
        consequence: impl Into<String>,
    ) {
        self.add(Severity::Warning, object, problem, consequence, REPAIR);
    }

    /// Something to be known.
    pub(super) fn info(
        &mut self,
        object: impl Into<String>,
        problem: impl Into<String>,
        consequence: impl Into<String>,
    ) {
        self.add(Severity::Info, object, problem, consequence, NOTHING);
    }
}
