//! Carrying images: into archives and layouts, from one registry to another, and to where there is no network at all.

mod apply;
mod contents;
mod copy;
mod create;
mod export;
mod inventory;
mod mirror;
mod output;
mod pack;
mod push;

use std::io;
use std::path::PathBuf;

pub use apply::{Bundle, Flaw, open_all, verify_files};
pub use contents::{BundledBlob, BundledImage, Contents};
pub use copy::{Copied, CopyRequest, Images, Report, copy};
pub use create::{Create, Created, create};
pub use export::{Destination, Export, Exported, export};
pub use inventory::Inventory;
pub use mirror::{MirrorRequest, lock, mirror};
pub use output::{Form, Written};
pub use push::{Moved, Pushed, What};

use crate::oci::{Digest, DocumentError, Platform};
use crate::root::RootError;
use crate::spec::NoDestination;
use crate::{bake, catalog, content, registry, source};

/// Why images are not carried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Where they are did not give something.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// They could not be resolved.
    #[error(transparent)]
    Bake(#[from] bake::Error),
    /// The content store of a root cannot be used.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// The catalog of a root cannot be used.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// A root cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Some images cannot be had.
    #[error("{} of the images cannot be had; nothing was written", .0.len())]
    Images(Vec<bake::Outcome>),
    /// The system did not do something.
    #[error("{action} {} failed", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A blob is not as long as its descriptor says.
    #[error("blob {digest} has {got} bytes or more; its descriptor says {size}")]
    Length {
        /// Which one.
        digest: Digest,
        /// What its descriptor says, in bytes.
        size: u64,
        /// What came.
        got: u64,
    },
    /// A blob is not what its digest says.
    #[error("blob {expected} came as {got}")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// The file system has too little space.
    #[error("{} needs {} MiB, and {} MiB are free", path.display(), needed >> 20, free >> 20)]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
        /// In bytes.
        needed: u64,
        /// In bytes.
        free: u64,
    },
    /// An archive of images that is no bundle.
    #[error("{} is no bundle: it does not say what it carries; `prebake bake oci-archive:{}` takes its images", .0.display(), .0.display())]
    NoBundle(PathBuf),
    /// A signature was asked for, and there is none.
    #[error("{} is not signed", .0.display())]
    Unsigned(PathBuf),
    /// The signature is by nobody who is trusted, or of something else.
    #[error("the signature of {} is not by one of the keys, or it was changed since", .0.display())]
    WrongSignature(PathBuf),
    /// What a bundle says of itself cannot be.
    #[error("{} cannot be used: {why}", path.display())]
    Contents {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Blobs that a bundle takes for granted are not there.
    #[error("{}", lacking(path, blobs, *count, since.as_ref()))]
    Lacking {
        /// The bundle.
        path: PathBuf,
        /// The first of them.
        blobs: Vec<Digest>,
        /// How many.
        count: usize,
        /// The inventory it was made against.
        since: Option<Digest>,
    },
    /// What `prebake inventory` writes is something else.
    #[error("it is no inventory that can be used: {why}")]
    Inventory {
        /// Why.
        why: &'static str,
    },
    /// An image cannot be carried out of where it is.
    #[error("{image} cannot be exported: {why}")]
    Export {
        /// Which image.
        image: String,
        /// Why.
        why: String,
    },
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
    /// They were not named when the mirror was locked.
    #[error("{}", .0.iter().map(|name| format!("{name} is not in the lock; `prebake mirror --lock` adds it")).collect::<Vec<_>>().join("\n"))]
    NotLocked(Vec<String>),
    /// It is not what was locked.
    #[error("{digest} was not part of it when it was locked; `prebake mirror --lock` locks it anew")]
    Unlocked {
        /// What is new.
        digest: Digest,
    },
    /// It has no name at the destination.
    #[error(transparent)]
    Destination(#[from] NoDestination),
    /// It was told to stop.
    #[error("stopped before it was complete")]
    Stopped,
    /// A thread of prebake's own was lost.
    #[error("an internal task failed")]
    Task,
}

fn lacking(path: &std::path::Path, blobs: &[Digest], count: usize, since: Option<&Digest>) -> String {
    let names: Vec<&str> = blobs.iter().map(Digest::as_str).collect();
    let more = if count > names.len() { format!(" and {} more", count - names.len()) } else { String::new() };
    let why = match since {
        Some(since) => format!(
            "; the bundle was made against inventory {since}: make a new one with `prebake inventory`, and the bundle against that"
        ),
        None => "; the bundle is damaged".to_owned(),
    };
    format!("{} needs {}{more}, which this root does not have{why}", path.display(), names.join(", "))
}

/// What this module gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
