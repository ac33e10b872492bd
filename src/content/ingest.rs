//! From bytes on the way in to a blob in place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono::{SecondsFormat, Utc};
use rustix::fs::OFlags;

use super::{DIR_MODE, Error, READ_BUFFER, Result, Store};
use crate::oci::{Descriptor, Digest, Hasher};

const BLOB_MODE: u32 = 0o444;

/// A write that is not finished. Dropped, it removes what it wrote.
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

/// The directory of an ingest; removed when dropped.
#[derive(Debug)]
struct IngestDir(PathBuf);

impl Drop for IngestDir {
    fn drop(&mut self) {
        // A leftover is swept by the next bake or by containerd.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Store {
    /// Starts to write a blob in `namespace`, under containerd's name for such a write (`remotes.MakeRefKey`). What an
    /// earlier run left under that name is taken over if it is whole: then the [`VerifiedBlob`] comes at once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn ingest(&self, namespace: &str, kind: &str, blob: &Descriptor) -> Result<Started> {
        let reference = format!("{namespace}/1/{kind}-{}", blob.digest);
        let target = self.existing(&blob.digest)?;
        let missing = || Error::io("opening", Path::new("ingest"))(io::ErrorKind::NotFound.into());
        let dir = self.ingest.as_ref().ok_or_else(missing)?.join(Digest::of(reference.as_bytes()).hex());
        if let Some(data) = whole(&dir, blob)? {
            return Ok(Started::Whole(VerifiedBlob { files: IngestDir(dir), data, target }));
        }
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", &dir)(e)),
            _ => {}
        }
        let error = |e| Error::io("writing", &dir)(e);
        fs::DirBuilder::new().mode(DIR_MODE).create(&dir).map_err(error)?;
        let files = IngestDir(dir.clone());
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

/// How an ingest begins.
#[derive(Debug)]
pub enum Started {
    /// Bytes are needed.
    New(Box<Ingest>),
    /// An earlier run was ended between the last byte and the commit.
    Whole(VerifiedBlob),
}

/// The data of an earlier ingest of exactly this blob.
fn whole(dir: &Path, blob: &Descriptor) -> Result<Option<File>> {
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
    if data.metadata().map_err(error)?.len() != blob.size {
        return Ok(None);
    }
    let mut hasher = Hasher::new(blob.digest.algorithm());
    let mut buffer = vec![0; READ_BUFFER];
    loop {
        match data.read(&mut buffer).map_err(error)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok((hasher.finish() == blob.digest).then_some(data))
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
        self.data.write_all(bytes).map_err(|e| Error::io("writing", &self.files.0.join("data"))(e))
    }

    /// The file that is written to, to be read meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(&self) -> Result<File> {
        self.data.try_clone().map_err(|e| Error::io("opening", &self.files.0.join("data"))(e))
    }

    /// Ends the write.
    ///
    /// # Errors
    /// [`Error::TooShort`], [`Error::WrongDigest`]: what was written is gone.
    pub fn verify(self) -> Result<VerifiedBlob> {
        if self.written < self.size {
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
        fs::rename(self.files.0.join("data"), &self.target).map_err(error)?;
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(error)
    }
}
