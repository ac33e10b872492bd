//! Where images come from: registries, and places on this machine that hold them.
//!
//! A place is what a person names: `oci:DIR`, `oci-archive:FILE`, `docker-archive:FILE`, `containerd:ROOT`, `bundle:FILE`. Opened it
//! is a [`Local`]: images by name, and blobs by digest, whatever holds them. [`Sources`] asks either for an image's bytes.

mod archive;
mod docker;
mod local;
mod sources;

use std::io;
use std::path::PathBuf;

pub use archive::{part_path, parts};
pub use local::{Held, IMAGE_NAME, Local, REF_NAME};
pub use sources::{Blob, Chosen, Sources, chosen};

use crate::layer::TarError;
use crate::oci::{Digest, DocumentError, MAX_DOCUMENT};
use crate::root::RootError;
use crate::{content, metadata, registry};

/// Why a source does not give something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry did not.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The system did not.
    #[error("reading {} failed", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no archive, or a broken one.
    #[error("{} is not an archive that can be read", path.display())]
    Archive {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: TarError,
    },
    /// Two members of an archive have one name, and nobody can tell which is meant.
    #[error("{} has two members named {name:?}", path.display())]
    Twice {
        /// Which file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// What makes a directory or an archive one of images is not there.
    #[error("{place} has no {what}; is it of that kind?")]
    Lacks {
        /// Which place.
        place: String,
        /// What it should have.
        what: &'static str,
    },
    /// A file of it says something that cannot be.
    #[error("{what} of {place} cannot be used: {why}")]
    Unusable {
        /// Which place.
        place: String,
        /// Which file of it.
        what: String,
        /// Why.
        why: String,
    },
    /// A document of it cannot be used.
    #[error("{what} of {place} cannot be used")]
    Document {
        /// Which place.
        place: String,
        /// Which document.
        what: String,
        /// Why.
        source: DocumentError,
    },
    /// A file of it has more bytes than one of its kind may have.
    #[error("{what} of {place} has more than {MAX_DOCUMENT} bytes")]
    TooLarge {
        /// Which place.
        place: String,
        /// Which file of it.
        what: String,
    },
    /// No image of that name.
    #[error("{place} has no image {name:?}; it has {}", list(has))]
    NoImage {
        /// Which place.
        place: String,
        /// Which image.
        name: String,
        /// Names of those it has.
        has: Vec<String>,
    },
    /// No name was given, and there is more than one image, or none.
    #[error("{place} has {}; name one behind a colon", list(has))]
    Which {
        /// Which place.
        place: String,
        /// Names of those it has.
        has: Vec<String>,
    },
    /// An image without a name of its own cannot be listed in containerd.
    #[error("{place} does not say how its image {tag:?} is named; say it in front: NAME={place}")]
    Nameless {
        /// Which place.
        place: String,
        /// What it says of the image.
        tag: String,
    },
    /// No such blob.
    #[error("{place} does not have blob {digest}")]
    Absent {
        /// Which place.
        place: String,
        /// Which blob.
        digest: Digest,
    },
    /// A blob that is not what its digest says.
    #[error("blob {digest} of {place} is {got}")]
    Damaged {
        /// Which place.
        place: String,
        /// Which blob.
        digest: Digest,
        /// What its bytes are.
        got: Digest,
    },
    /// A part of a split file is missing.
    #[error("{} is missing: {} is split into parts, and all are needed", path.display(), of.display())]
    Part {
        /// Which one.
        path: PathBuf,
        /// Of which file.
        of: PathBuf,
    },
    /// A content store cannot be read.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// containerd's metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    /// A root cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A thread of prebake's own was lost.
    #[error("an internal task failed")]
    Task,
}

/// Names that an error tells.
const TOLD: usize = 10;

fn list(names: &[String]) -> String {
    match names {
        [] => "no image at all".to_owned(),
        names if names.len() > TOLD => format!("{} and {} more", names[..TOLD].join(", "), names.len() - TOLD),
        names => names.join(", "),
    }
}

impl Error {
    /// Whether the same might succeed if it were asked for again.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Registry(error) if error.is_passing())
    }

    /// Whether there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Registry(registry::Error::NotFound { .. }) | Self::NoImage { .. } | Self::Absent { .. })
    }
}

/// What this module gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
