//! Layer bytes: compression, tar streams, and what they make of a directory.

mod apply;
mod at;
mod differ;
mod dirs;
mod frames;
mod inflate;
mod members;
mod pack;
mod read;
mod stream;
mod tree;
mod usage;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

pub use apply::{Lowers, Onto};
pub use at::{Files, ReadAt, Section};
pub use differ::{Differences, attributes, differences};
pub use frames::{Frames, zstd_content};
pub use inflate::{Block, Buffers, Gunzip, GzipError};
pub use members::{Member, decompress, is_compressed, members};
pub use pack::{Compression, compress, member_header, padding, tar, zstd_frame};
pub use read::{Entry, EntryKind, Reader, TarError, Time};
pub use stream::{Job, entries, entries_keeping, unpack};
pub use usage::{Usage, disk_usage, usage};

use crate::oci::Digest;

/// Bytes of an entry's path that an error shows.
const SHOWN: usize = 200;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The layer's bytes cannot be read any further.
    #[error("reading the layer failed")]
    Source(#[source] io::Error),
    /// The compression is broken, or ends too early.
    #[error("its {kind} cannot be decompressed")]
    Compression {
        /// Which one.
        kind: &'static str,
        /// Where it fails.
        source: io::Error,
    },
    /// Not an archive, or a broken one.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry cannot be made.
    #[error("{action} {path:?} failed")]
    Entry {
        /// The entry's path.
        path: String,
        /// What was being done.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Something about the directory as a whole.
    #[error("writing the layer failed")]
    Io(#[from] io::Error),
    /// An entry of a type containerd refuses.
    #[error("{path:?} is of the type {:?}, which containerd refuses", char::from(*flag))]
    UnknownEntry {
        /// The entry's path.
        path: String,
        /// Its type flag.
        flag: u8,
    },
    /// A whiteout that would name its own directory, or the one above.
    #[error("{0:?} is not a valid whiteout")]
    BadWhiteout(String),
    /// More bytes than allowed.
    #[error("it unpacks to more than {limit} bytes; allow more with --max-unpacked if that is right")]
    TooLarge {
        /// How many are allowed.
        limit: u64,
    },
    /// What was unpacked is not what the image's config says.
    #[error("it unpacks to {got}, and the image's config says {expected}")]
    WrongDiffId {
        /// What the config says.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// containerd has no decompressor for it.
    #[error("containerd cannot unpack the media type {0:?}")]
    UnknownMediaType(String),
    /// It was told to stop, or what it waited for will not come.
    #[error("stopped before it was complete")]
    Stopped,
}

/// What this module gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn lossy(path: &[u8]) -> String {
        let text = String::from_utf8_lossy(path);
        match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.into_owned(),
        }
    }

    /// Whether other bytes of the layer might do better; else its bytes have nothing to do with it, or cannot be had.
    pub fn is_of_bytes(&self) -> bool {
        !matches!(self, Self::Source(_) | Self::Io(_) | Self::UnknownMediaType(_) | Self::Stopped)
    }

    fn entry(path: &[u8], action: &'static str, source: io::Error) -> Self {
        Self::Entry { path: Self::lossy(path), action, source }
    }

    /// An error of the system while something was done for an entry.
    fn of(self, path: &[u8], action: &'static str) -> Self {
        match self {
            Self::Io(source) => Self::entry(path, action, source),
            other => other,
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Removes a directory with everything in it, however deep, without following links; nothing there is fine.
///
/// # Errors
/// The system's.
pub fn remove_dir(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    match std::fs::File::open(parent) {
        Ok(parent) => Ok(tree::remove_all(parent.as_fd(), name.as_bytes())?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
