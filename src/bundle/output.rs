//! An archive on its way to a file, or to parts of one: compressed where that is asked for, and with the sums of its files beside
//! it, as `sha256sum -c` takes them. Nothing has its name before all of it is there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{JoinHandle, spawn};

use bytes::Bytes;

use super::{Error, Result};
use crate::layer;
use crate::oci::{Algorithm, Digest, Hasher};
use crate::source::part_path;

/// Bytes of the archive that a zstd frame holds: readers go from one place to another by whole frames.
const FRAME: usize = 1 << 20;
/// Blocks on their way to the thread that sums.
const BLOCKS: usize = 8;

/// How an archive is written.
#[derive(Debug, Clone, Default)]
pub struct Form {
    /// Most bytes of a file; what is longer is split.
    pub split: Option<u64>,
    /// Whether it is compressed with zstd.
    pub compress: bool,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where.
    pub path: PathBuf,
    /// In bytes.
    pub size: u64,
    /// Of its bytes.
    pub sum: Digest,
}

/// An archive that is being written.
pub(super) struct Output {
    path: PathBuf,
    form: Form,
    part: Option<Part>,
    done: Vec<Written>,
    /// Of the archive, not compressed yet.
    frame: Vec<u8>,
}

struct Part {
    path: PathBuf,
    file: File,
    size: u64,
    hash: SyncSender<Bytes>,
    hasher: JoinHandle<Digest>,
}

/// Where the sums of an archive's files are.
pub(super) fn sums_path(path: &Path) -> PathBuf {
    with(path, ".sha256")
}

fn with(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(more);
    name.into()
}

/// What a file is called before it is all there.
pub(super) fn coming(path: &Path) -> PathBuf {
    with(path, ".partial")
}

fn error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action: "writing", path, source }
}

impl Output {
    pub(super) fn new(path: &Path, form: Form) -> Self {
        Self { path: path.to_owned(), form, part: None, done: Vec::new(), frame: Vec::new() }
    }

    /// The next bytes of the archive.
    pub(super) fn put(&mut self, bytes: Bytes) -> Result<()> {
        if !self.form.compress {
            return self.write(bytes);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let n = rest.len().min(FRAME - self.frame.len());
            self.frame.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
            if self.frame.len() == FRAME {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    fn end_frame(&mut self) -> Result<()> {
        let frame = layer::zstd_frame(&self.frame).map_err(error(&self.path))?;
        self.frame.clear();
        self.write(frame.into())
    }

    fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            let split = self.form.split.unwrap_or(u64::MAX);
            if self.part.as_ref().is_some_and(|part| part.size >= split) {
                self.end_part()?;
            }
            let n = self.done.len() + 1;
            let path = || if self.form.split.is_some() { part_path(&self.path, n) } else { self.path.clone() };
            let part = match &mut self.part {
                Some(part) => part,
                none => none.insert(Part::new(path())?),
            };
            let room = usize::try_from(split - part.size).unwrap_or(usize::MAX);
            part.write(bytes.split_to(bytes.len().min(room)))?;
        }
        Ok(())
    }

    fn end_part(&mut self) -> Result<()> {
        if let Some(Part { path, file, size, hash, hasher }) = self.part.take() {
            file.sync_all().map_err(error(&path))?;
            drop(hash);
            let sum = hasher.join().map_err(|_| Error::Task)?;
            self.done.push(Written { path, size, sum });
        }
        Ok(())
    }

    /// Gives the files their names.
    pub(super) fn finish(mut self) -> Result<Vec<Written>> {
        if !self.frame.is_empty() {
            self.end_frame()?;
        }
        self.end_part()?;
        let line = |file: &Written| {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{}  {name}\n", file.sum.hex())
        };
        let (sums, text) = (sums_path(&self.path), self.done.iter().map(line).collect::<String>());
        // What is left of an earlier archive of that name would be taken for parts of this one.
        let first_stale = if self.form.split.is_some() { self.done.len() + 1 } else { 1 };
        for n in first_stale.. {
            if fs::remove_file(part_path(&self.path, n)).is_err() {
                break;
            }
        }
        if self.form.split.is_some() {
            let _ = fs::remove_file(&self.path);
        }
        for file in &self.done {
            fs::rename(coming(&file.path), &file.path).map_err(error(&file.path))?;
        }
        fs::write(&sums, text).map_err(error(&sums))?;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(error(dir))?;
        Ok(std::mem::take(&mut self.done))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let part = self.part.take().map(|part| part.path);
        for path in self.done.iter().map(|file| &file.path).chain(&part) {
            let _ = fs::remove_file(coming(path));
        }
    }
}

impl Part {
    fn new(path: PathBuf) -> Result<Self> {
        let file = File::create(coming(&path)).map_err(error(&path))?;
        let (hash, hashed) = sync_channel::<Bytes>(BLOCKS);
        let hasher = spawn(move || {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            for bytes in hashed {
                hasher.update(&bytes);
            }
            hasher.finish()
        });
        Ok(Self { path, file, size: 0, hash, hasher })
    }

    fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.file.write_all(&bytes).map_err(error(&self.path))?;
        self.size += bytes.len() as u64;
        self.hash.send(bytes).map_err(|_| Error::Task)
    }
}
