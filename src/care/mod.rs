//! Looking after a root: what is in it, and whether containerd would start it.

mod check;
mod list;
mod snapshots;

pub use check::{CheckReport, Finding, Severity, check};
pub use list::{Kept, ListedImage, images};

use crate::root::RootError;
use crate::{content, metadata};

/// Why a root cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The content store cannot be read.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// containerd's metadata cannot be read, or a containerd runs.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// The root cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
}

type Result<T, E = Error> = std::result::Result<T, E>;
