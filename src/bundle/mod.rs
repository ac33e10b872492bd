//! Images on their way elsewhere: copied to a registry, one by one or as a mirror.

mod copy;
mod mirror;
mod push;

pub use copy::{Copied, CopyRequest, Images, Report, copy};
pub use mirror::{MirrorRequest, mirror};
pub use push::{Moved, Pushed, Pusher, What};

use crate::oci::{Digest, DocumentError, Platform};
use crate::spec::NoDestination;
use crate::{registry, source};

/// Why an image does not get where it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not to be had where it is.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The registry that it goes to does not take it.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// One of its documents cannot be used.
    #[error("{what} cannot be used")]
    Document {
        /// Which one.
        what: String,
        /// Why.
        source: DocumentError,
    },
    /// What came of a document is another one.
    #[error("what {from} gave for {digest} is {got}")]
    WrongDocument {
        /// Where it came from.
        from: String,
        /// What was asked for.
        digest: Digest,
        /// What came.
        got: Digest,
    },
    /// A part of it is not there.
    #[error("{digest}, which belongs to the image, is not there; --platform names the platforms that are to be copied")]
    Incomplete {
        /// The document that is missing.
        digest: Digest,
        /// Who says so.
        source: Box<source::Error>,
    },
    /// It is not for that platform.
    #[error("there is none for {wanted}; there is one for {has}")]
    NoPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        has: String,
    },
    /// The name that it should get is that of another one.
    #[error("{to} names another image than {digest}, which would go there")]
    WrongName {
        /// The name.
        to: String,
        /// What would go there.
        digest: Digest,
    },
    /// Indexes in indexes, without an end.
    #[error("its indexes are nested too deep")]
    TooDeep,
    /// More documents than an image has.
    #[error("it has too many documents")]
    TooManyDocuments,
    /// What lists the referrers of something at the destination is no list.
    #[error("{tag} should list what refers to an image, and is something else")]
    NoList {
        /// The tag that stands in for the API.
        tag: String,
    },
    /// No tag fits.
    #[error("no tag of {repository} fits {}", tags.join(", "))]
    NoTags {
        /// The repository.
        repository: String,
        /// The patterns.
        tags: Vec<String>,
    },
    /// It has no name at the destination.
    #[error(transparent)]
    Destination(#[from] NoDestination),
}

/// What this module gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
