//! From bytes on the way in to a blob in place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono::{SecondsFormat, Utc};
use rustix::fs::OFlags;

use super::{BLOB_MODE, DIR_MODE, Error, READ_BUFFER, Result, Store};
use crate::oci::{Descriptor, Digest, Hasher};
use crate::root;

/// What is worth to be gone on with, in bytes; less is asked for anew.
const RESUME_FROM: u64 = 1 << 20;
/// Beside containerd's files of an ingest, one of our own: by what a server knows again what it sent.
const TAG_FILE: &str = "etag";

/// A write that is not finished. Dropped, it removes what it wrote, unless that is worth to be gone on with.
#[derive(Debug)]
pub struct Ingest {
    files: IngestDir,
    data: File,
    hasher: Hasher,
    written: u64,
    digest: Digest,
    size: u64,
    target: PathBuf,
}

/// A finished write whose size and digest are right: only [`Ingest::verify`] makes one.
#[derive(Debug)]
pub struct VerifiedBlob {
    files: IngestDir,
    data: File,
    target: PathBuf,
}

/// The directory of an ingest; removed when dropped, unless it is to stay.
#[derive(Debug)]
struct IngestDir {
    path: PathBuf,
    stays: bool,
}

impl IngestDir {
    fn new(path: PathBuf) -> Self {
        Self { path, stays: false }
    }
}

impl Drop for IngestDir {
    fn drop(&mut self) {
        if !self.stays {
            // A leftover is taken over by the next bake, or swept by containerd.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Store {
    /// Starts to write a blob in `namespace`, under containerd's name for such a write (`remotes.MakeRefKey`). What an
    /// earlier run left under that name is gone on with; if it is whole, the [`VerifiedBlob`] comes at once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn ingest(&self, namespace: &str, kind: &str, blob: &Descriptor) -> Result<Started> {
        let reference = format!("{namespace}/1/{kind}-{}", blob.digest);
        let target = self.existing(&blob.digest)?;
        let missing = || Error::io("opening", Path::new("ingest"))(io::ErrorKind::NotFound.into());
        let dir = self.ingest.as_ref().ok_or_else(missing)?.join(Digest::of(reference.as_bytes()).hex());
        if let Some((data, hasher, written)) = left(&dir, blob)? {
            let files = IngestDir::new(dir);
            let ingest = Ingest { files, data, hasher, written, digest: blob.digest.clone(), size: blob.size, target };
            if written < blob.size {
                return Ok(Started::New(Box::new(ingest)));
            }
            if let Ok(whole) = ingest.verify() {
                return Ok(Started::Whole(whole));
            }
            return self.ingest(namespace, kind, blob);
        }
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", &dir)(e)),
            _ => {}
        }
        let error = |e| Error::io("writing", &dir)(e);
        fs::DirBuilder::new().mode(DIR_MODE).create(&dir).map_err(error)?;
        let files = IngestDir::new(dir.clone());
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true);
        let total = blob.size.to_string();
        for (name, text) in [("ref", &reference), ("startedat", &now), ("updatedat", &now), ("total", &total)] {
            fs::write(dir.join(name), text).map_err(error)?;
        }
        let data = OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("data")).map_err(error)?;
        Ok(Started::New(Box::new(Ingest {
            files,
            data,
            hasher: Hasher::new(blob.digest.algorithm()),
            written: 0,
            digest: blob.digest.clone(),
            size: blob.size,
            target,
        })))
    }
}

/// An ingest that nobody writes to any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its directory.
    pub path: PathBuf,
    /// What the store calls it (`ref`); `None` where it does not say.
    pub reference: Option<String>,
    /// Bytes its files take on disk.
    pub disk: u64,
}

impl Left {
    /// Removes it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.path).map_err(Error::io("removing", &self.path))
    }
}

impl Store {
    /// The ingests there are, while nobody writes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn ingests(&self) -> Result<Vec<Left>> {
        let Some(dir) = &self.ingest else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(Error::io("listing", dir))? {
            let path = entry.map_err(Error::io("listing", dir))?.path();
            if !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                continue;
            }
            let files = fs::read_dir(&path).map_err(Error::io("listing", &path))?;
            let disk =
                files.flatten().filter_map(|file| file.metadata().ok()).map(|meta| root::disk_usage(&meta)).sum();
            let reference = fs::read_to_string(path.join("ref")).ok();
            found.push(Left { path, reference, disk });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }
}

/// How an ingest begins.
#[derive(Debug)]
pub enum Started {
    /// Bytes are needed: all, or those that are missing.
    New(Box<Ingest>),
    /// An earlier run was ended between the last byte and the commit.
    Whole(VerifiedBlob),
}

/// The data of an earlier ingest of this blob, where it is worth something, hashed and ready to be added to.
fn left(dir: &Path, blob: &Descriptor) -> Result<Option<(File, Hasher, u64)>> {
    // Not a link to somewhere else.
    if !fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir()) {
        return Ok(None);
    }
    let path = dir.join("data");
    let Ok(mut data) =
        OpenOptions::new().read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path)
    else {
        return Ok(None);
    };
    let error = |e| Error::io("reading", &path)(e);
    let len = data.metadata().map_err(error)?.len();
    if len != blob.size && !(RESUME_FROM..blob.size).contains(&len) {
        return Ok(None);
    }
    let mut hasher = Hasher::new(blob.digest.algorithm());
    let mut buffer = vec![0; READ_BUFFER];
    let mut written = 0;
    loop {
        match data.read(&mut buffer).map_err(error)? {
            0 => return Ok(Some((data, hasher, written))),
            n => {
                hasher.update(&buffer[..n]);
                written += n as u64;
            }
        }
    }
}

/// Removes ingests without data: their run was ended between the rename of the data and the removal of the rest.
pub(super) fn sweep(ingests: &Path) -> Result<()> {
    for entry in fs::read_dir(ingests).map_err(Error::io("listing", ingests))? {
        let path = entry.map_err(Error::io("listing", ingests))?.path();
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        if is_dir && !path.join("data").exists() {
            fs::remove_dir_all(&path).map_err(Error::io("removing", &path))?;
        }
    }
    Ok(())
}

impl Ingest {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`] as soon as there are more than the blob may have; [`Error::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        if self.written > self.size {
            return Err(Error::TooLong { digest: self.digest.clone(), expected: self.size });
        }
        self.hasher.update(bytes);
        self.data.write_all(bytes).map_err(|e| Error::io("writing", &self.files.path.join("data"))(e))
    }

    /// How many bytes are there.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The entity tag that [`Ingest::tag`] left with the bytes.
    pub fn entity_tag(&self) -> Option<String> {
        fs::read_to_string(self.files.path.join(TAG_FILE)).ok()
    }

    /// Remembers by what the server knows again what it sends, for a run that goes on with it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn tag(&self, entity_tag: &str) -> Result<()> {
        if self.size < RESUME_FROM {
            return Ok(());
        }
        let path = self.files.path.join(TAG_FILE);
        fs::write(&path, entity_tag).map_err(|e| Error::io("writing", &path)(e))
    }

    /// The file that is written to, to be read meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(&self) -> Result<File> {
        self.data.try_clone().map_err(|e| Error::io("opening", &self.files.path.join("data"))(e))
    }

    /// Ends the write.
    ///
    /// # Errors
    /// [`Error::TooShort`]: what was written stays, if it is worth to be gone on with. [`Error::WrongDigest`]: it is gone.
    pub fn verify(mut self) -> Result<VerifiedBlob> {
        if self.written < self.size {
            self.files.stays = self.written >= RESUME_FROM;
            return Err(Error::TooShort { digest: self.digest, expected: self.size, got: self.written });
        }
        let got = self.hasher.finish();
        if got != self.digest {
            return Err(Error::WrongDigest { expected: self.digest, got });
        }
        Ok(VerifiedBlob { files: self.files, data: self.data, target: self.target })
    }
}

impl VerifiedBlob {
    /// Puts the blob in place: synced, read-only, renamed, its directory synced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        let error = |e| Error::io("committing", &self.target)(e);
        self.data.sync_data().map_err(error)?;
        self.data.set_permissions(fs::Permissions::from_mode(BLOB_MODE)).map_err(error)?;
        let parent = self.target.parent().unwrap_or(Path::new("."));
        fs::rename(self.files.path.join("data"), &self.target).map_err(error)?;
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(error)
    }
}
