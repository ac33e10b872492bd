//! containerd's content store (`plugins/content/local`): blobs, and ingests on their way to become one.
//!
//! ```text
//! io.containerd.content.v1.content/
//!   blobs/<algorithm>/<hex>          0444; nothing else may lie here: a stranger's name stops containerd's garbage
//!                                    collection
//!   ingest/<sha256 of the ref>/      data, ref, startedat, updatedat, total; swept by containerd when it does not know it
//!   prebake/{blobs,ingest}/          the same, of prebake: only where a containerd runs, which never looks here
//! ```
//!
//! An [`Ingest`] takes bytes, becomes a [`VerifiedBlob`] when size and digest are right, and only that can be committed.

mod beside;
mod growing;
mod ingest;
mod walk;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use growing::{Growing, GrowingReader, Writer};
pub use ingest::{Ingest, Left, Started, VerifiedBlob};
pub use walk::{Walk, WalkError, walk};

use crate::oci::{Algorithm, Digest, Hasher};
use crate::root::{self, Root, RootError};

/// The plugin's directory in containerd's state.
const PLUGIN: &str = "io.containerd.content.v1.content";
const DIR_MODE: u32 = 0o755;
const BLOB_MODE: u32 = 0o444;
/// Bytes read at a time when a blob is hashed.
const READ_BUFFER: usize = 1 << 18;

/// Why the content store could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error("{action} {} failed", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A directory of the store cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// More bytes came than the descriptor promised.
    #[error("more than the promised {expected} bytes of {digest} came")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// The promised size, in bytes.
        expected: u64,
    },
    /// Fewer bytes came than the descriptor promised.
    #[error("only {got} of {expected} bytes of {digest} came")]
    TooShort {
        /// The blob.
        digest: Digest,
        /// The promised size, in bytes.
        expected: u64,
        /// What came, in bytes.
        got: u64,
    },
    /// The bytes are not what the digest names.
    #[error("the bytes that came for {expected} have the digest {got}")]
    WrongDigest {
        /// The blob.
        expected: Digest,
        /// What came.
        got: Digest,
    },
}

/// What this module gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// A blob's file, as `stat` sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// In bytes.
    pub size: u64,
    /// Last modification, nanoseconds since 1970: with the size, what a file is recognised by.
    pub mtime: i64,
    /// Bytes it takes on disk.
    pub disk: u64,
    /// Permission bits.
    pub mode: u32,
}

impl Stat {
    /// Whether the file may be read by its owner, and written to and executed by nobody, as containerd leaves blobs.
    pub fn is_read_only(&self) -> bool {
        self.mode & 0o333 == 0 && self.mode & 0o400 != 0
    }
}

/// An entry found in `blobs/`.
#[derive(Debug)]
pub enum Entry {
    /// A blob with a proper name.
    Blob(Digest, Stat),
    /// Something that must not be there.
    Stranger(PathBuf),
}

/// A content store. Opening one writes nothing. Its directories are resolved inside the root, each by itself: any of them
/// may be a link there.
#[derive(Debug, Clone)]
pub struct Store {
    /// Where the directories of the algorithms are.
    top: Option<PathBuf>,
    ingest: Option<PathBuf>,
    blobs: [Option<PathBuf>; Algorithm::ALL.len()],
    /// Where the blobs of the containerd are that runs beside this store.
    containerds: Option<[PathBuf; Algorithm::ALL.len()]>,
}

fn blobs_dir(algorithm: Algorithm) -> String {
    format!("{PLUGIN}/blobs/{}", algorithm.name())
}

impl Store {
    /// Opens the store of a root, to read; it may not exist yet.
    ///
    /// # Errors
    /// [`Error::Root`].
    pub fn open(root: &Root) -> Result<Self> {
        let [sha256, sha512] = Algorithm::ALL.map(|algorithm| root.containerd_dir(&blobs_dir(algorithm)));
        let [top, ingest] = ["blobs", "ingest"].map(|dir| root.containerd_dir(&format!("{PLUGIN}/{dir}")));
        Ok(Self { top: top?, ingest: ingest?, blobs: [sha256?, sha512?], containerds: None })
    }

    /// Opens the store of a root that nobody else writes to, to write; makes its directories, takes over what a prebake held
    /// beside a containerd, and removes what is left of ingests whose blob is in place.
    ///
    /// # Errors
    /// [`Error::Root`], [`Error::Io`].
    pub fn create(root: &Root) -> Result<Self> {
        root.make_containerd_dir(&format!("{PLUGIN}/ingest"), DIR_MODE)?;
        for algorithm in Algorithm::ALL {
            root.make_containerd_dir(&blobs_dir(algorithm), DIR_MODE)?;
        }
        let store = Self::open(root)?;
        store.take_over(root)?;
        store.ingest.as_deref().map_or(Ok(()), ingest::sweep)?;
        Ok(store)
    }

    /// Where a blob lies, or would; `None` when its directory does not exist.
    fn path(&self, digest: &Digest) -> Option<PathBuf> {
        self.blobs[digest.algorithm() as usize].as_ref().map(|dir| dir.join(digest.hex()))
    }

    /// As [`Store::path`], for a blob that is expected to be there.
    fn existing(&self, digest: &Digest) -> Result<PathBuf> {
        let missing = || Error::io("opening", Path::new(digest.as_str()))(io::ErrorKind::NotFound.into());
        self.path(digest).ok_or_else(missing)
    }

    /// The file of a blob, if there is one. Beside a containerd, it is held from then on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn stat(&self, digest: &Digest) -> Result<Option<Stat>> {
        self.hold(digest)?;
        let Some(path) = self.path(digest) else { return Ok(None) };
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(Some(stat(&meta))),
            Ok(_) => Err(Error::io("opening", &path)(io::Error::other("it is not a file"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("opening", &path)(e)),
        }
    }

    /// Says of a blob that it was made at `time`, in seconds since 1970, unless it is older; what it is like then.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn date(&self, digest: &Digest, time: i64) -> Result<Option<Stat>> {
        let stat = self.stat(digest)?;
        if stat.is_none_or(|stat| stat.mtime <= time.saturating_mul(1_000_000_000)) {
            return Ok(stat);
        }
        let path = self.existing(digest)?;
        root::date(&path, time)?;
        self.stat(digest)
    }

    /// The bytes of a blob that is known to be small.
    ///
    /// # Errors
    /// [`Error::Io`], also when it has more than `limit` bytes; [`Error::WrongDigest`].
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let path = self.existing(digest)?;
        let read = |file: File| {
            let len = file.metadata()?.len().min(limit);
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 1);
            file.take(limit + 1).read_to_end(&mut bytes).map(|_| bytes)
        };
        let bytes = File::open(&path).and_then(read).map_err(Error::io("reading", &path))?;
        if bytes.len() as u64 > limit {
            return Err(Error::io("reading", &path)(io::Error::other(format!("it has more than {limit} bytes"))));
        }
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        match hasher.finish() {
            got if got == *digest => Ok(bytes),
            got => Err(Error::WrongDigest { expected: digest.clone(), got }),
        }
    }

    /// Opens a blob to be read; nothing is verified.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.existing(digest)?;
        File::open(&path).map_err(Error::io("opening", &path))
    }

    /// Makes a blob's file read-only, as containerd leaves it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn protect(&self, digest: &Digest) -> Result<()> {
        let path = self.existing(digest)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(BLOB_MODE)).map_err(Error::io("protecting", &path))
    }

    /// What lies beside the directories of the algorithms that prebake knows; containerd passes it over, or keeps blobs of
    /// another algorithm there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn beside(&self) -> Result<Vec<PathBuf>> {
        let Some(top) = &self.top else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in fs::read_dir(top).map_err(Error::io("listing", top))? {
            let name = entry.map_err(Error::io("listing", top))?.file_name();
            if !Algorithm::ALL.iter().any(|algorithm| name == algorithm.name()) {
                found.push(top.join(name));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Hashes the file of a blob.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::WrongDigest`] when it is damaged.
    pub fn verify(&self, digest: &Digest) -> Result<()> {
        let path = self.existing(digest)?;
        let mut file = File::open(&path).map_err(Error::io("opening", &path))?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; READ_BUFFER];
        loop {
            match file.read(&mut buffer).map_err(Error::io("reading", &path))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        match hasher.finish() {
            got if got == *digest => Ok(()),
            got => Err(Error::WrongDigest { expected: digest.clone(), got }),
        }
    }

    /// Removes the file of a blob; nothing there is fine.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, digest: &Digest) -> Result<()> {
        let Some(path) = self.path(digest) else { return Ok(()) };
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Everything in `blobs/`, in no order.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for algorithm in Algorithm::ALL {
            let Some(dir) = &self.blobs[algorithm as usize] else { continue };
            let listing = match fs::read_dir(dir) {
                Ok(listing) => listing,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("listing", dir)(e)),
            };
            for entry in listing {
                let entry = entry.map_err(Error::io("listing", dir))?;
                let meta = entry.metadata().map_err(Error::io("opening", &entry.path()))?;
                let name = entry.file_name();
                let digest = name.to_str().and_then(|name| format!("{}:{name}", algorithm.name()).parse().ok());
                found.push(match digest {
                    Some(digest) if meta.is_file() => Entry::Blob(digest, stat(&meta)),
                    _ => Entry::Stranger(entry.path()),
                });
            }
        }
        Ok(found)
    }
}

fn stat(meta: &fs::Metadata) -> Stat {
    Stat {
        size: meta.size(),
        mtime: meta.mtime().wrapping_mul(1_000_000_000).wrapping_add(meta.mtime_nsec()),
        disk: root::disk_usage(meta),
        mode: meta.mode() & 0o7777,
    }
}
