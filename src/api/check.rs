//! Would containerd start this?

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::Error;
use crate::care::{Check, CheckReport, check as check_root};
use crate::metadata::{DEFAULT_LOCK_TIMEOUT, Wait};
use crate::root::{CONTAINERD_ROOT, Root};

/// Hashes every blob of a root, verifies its databases and follows every reference in them, as `prebake check` does.
///
/// ```
/// let root = std::env::temp_dir().join("prebake-doc-check");
/// # std::fs::create_dir_all(&root)?;
/// let report = prebake::check(&root)?;
/// for finding in &report.findings {
///     eprintln!("{}: {}; containerd {}", finding.object, finding.problem, finding.consequence);
/// }
/// assert!(report.findings.is_empty(), "an empty root is sound");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the root cannot be looked at, or a containerd runs on it ([`Kind::Busy`](crate::Kind::Busy)); what is wrong in it is in the report.
pub fn check(root: impl AsRef<Path>) -> Result<CheckReport, Error> {
    let root = Root::new(root.as_ref(), CONTAINERD_ROOT);
    let wait = Wait { timeout: DEFAULT_LOCK_TIMEOUT, tell: &|_| (), stop: &AtomicBool::new(false) };
    check_root(&root, &Check::default(), &|_, _| (), &wait).map_err(Error::new)
}
