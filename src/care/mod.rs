//! Looking after a root: what is in it, and whether containerd would start it.

mod anatomy;
mod check;
mod compare;
mod diff;
mod discard;
mod du;
mod dump;
mod finding;
mod gc;
mod graph;
mod image;
mod list;
mod prune;
mod release;
mod repair;
mod seal;
mod start;
mod state;
mod used;
mod ways;
mod whole;
mod why;

pub use check::{Check, CheckReport, check};
pub use diff::{Changed, Difference, FileChange, Side, SideImage, diff};
pub use discard::{Discard, Discarded, Discards, discard_layers};
pub use du::{DiskUse, ImageUse, du};
pub use dump::dump;
pub use finding::{Finding, Severity};
pub use gc::{Collect, Collected, Garbage, gc};
pub use list::{Kept, ListedImage, images};
pub use prune::{Decision, Fate, Kept as KeptNames, Prune, Pruned, Unused, Which, prune};
pub use release::{Release, ReleaseError, TESTED_RELEASES};
pub use repair::{Fetch, Mended, Missing, Repair, RepairFrom, RepairReport, repair};
pub use seal::seal;
pub use start::{ImageStart, Start, StartReport, Verdict, would_start};
pub use used::Need;
pub use why::{Step, Way, Why, why};

use std::io;
use std::path::PathBuf;

use crate::oci::Digest;
use crate::root::RootError;
use crate::{catalog, content, layer, metadata, snapshot, source};

/// Why a root cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The content store cannot be read.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// A place that holds images cannot be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// containerd's metadata cannot be read, or a containerd runs.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// The root cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// prebake's catalog cannot be read or written.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// Snapshots cannot be removed.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// Something is damaged, so that nobody knows who needs what.
    #[error("{0}; nothing is removed from a root that is damaged: `prebake check` says more")]
    Unsound(String),
    /// There is no such image.
    #[error("there is no image {0:?}; `prebake images` lists those there are")]
    NoImage(String),
    /// A layer cannot be read.
    #[error("reading layer {digest} failed")]
    Layer {
        /// Its blob.
        digest: Digest,
        /// Why.
        source: layer::Error,
    },
    /// An image would be lost with the catalog.
    #[error(
        "{image} in namespace {namespace} was fetched, and containerd does not know of it: `prebake bootstrap` it, or `prebake gc --fetched`, first"
    )]
    Fetched {
        /// containerd's namespace.
        namespace: String,
        /// The image name.
        image: String,
    },
    /// A file cannot be read.
    #[error("reading {} failed", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Nothing is called so.
    #[error("nothing in the root is called {0:?}")]
    NoObject(String),
    /// Several images are called so.
    #[error("{0:?} may mean several images; say more of the digest")]
    Ambiguous(String),
}

type Result<T, E = Error> = std::result::Result<T, E>;
