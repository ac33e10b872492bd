//! Archives of images: files whose members are read where they lie, split into parts or compressed as they may be.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::{Error, Result};
use crate::layer::{self, EntryKind, Files, Frames, ReadAt, Section, TarError};
use crate::oci::MAX_DOCUMENT;

/// What a compressed archive may decompress to: so many times its size, and so many bytes in any case. Layers that are not
/// compressed come to some ten times.
const MAX_EXPANSION: u64 = 200;
const ALWAYS_ALLOWED: u64 = 64 << 20;
/// Links that are followed from one member to another.
const MAX_LINKS: usize = 16;
/// Parts of one file.
const MAX_PARTS: usize = 9999;

/// The nth part of a file that is split, counted from 1.
pub fn part_path(path: &Path, n: usize) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{n:03}"));
    name.into()
}

/// The files that a path stands for: itself, or the parts it is split into. One of its parts may be named in its place.
///
/// # Errors
/// [`Error::Io`], [`Error::Part`].
pub fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() && split_path(path).is_none_or(|whole| !part_path(&whole, 1).exists()) {
        return Ok(vec![path.to_owned()]);
    }
    let whole = if path.exists() { split_path(path) } else { None }.unwrap_or_else(|| path.to_owned());
    let parts: Vec<_> = (1..=MAX_PARTS).map(|n| part_path(&whole, n)).take_while(|part| part.exists()).collect();
    if parts.is_empty() {
        return Err(Error::Io { path: path.to_owned(), source: io::ErrorKind::NotFound.into() });
    }
    if parts.iter().all(|part| part != path) && path != whole {
        return Err(Error::Part { path: part_path(&whole, parts.len() + 1), of: whole });
    }
    Ok(parts)
}

/// Of which file a path is a part, by its name.
fn split_path(path: &Path) -> Option<PathBuf> {
    let number = path.extension()?.to_str()?;
    (number.len() >= 3 && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| path.with_extension(""))
}

/// An archive that can be read.
pub(super) struct Archive {
    path: PathBuf,
    bytes: Arc<dyn ReadAt>,
    /// Where files lie, and how long they are, by their paths without a dot in front.
    files: HashMap<String, (u64, u64)>,
    /// Where links lead.
    links: HashMap<String, String>,
}

impl Archive {
    /// Opens an archive, whatever it is compressed with. One that cannot be read from anywhere is decompressed into a file
    /// without a name in the folder for temporary files.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        let open = |part: &PathBuf| File::open(part).map_err(io(part));
        let files: Vec<File> = parts(path)?.iter().map(open).collect::<Result<_>>()?;
        let mut bytes: Arc<dyn ReadAt> = Arc::new(Files::new(files).map_err(io(path))?);
        let mut start = [0; 4];
        let n = bytes.read_at(&mut start, 0).map_err(io(path))?;
        if layer::is_compressed(&start[..n]) {
            bytes = match Frames::new(bytes.clone()).map_err(io(path))? {
                Some(frames) => Arc::new(frames),
                None => spool(bytes).map_err(io(path))?,
            };
        }
        let wrong = |source| Error::Archive { path: path.to_owned(), source };
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        for member in layer::members(&bytes).map_err(wrong)? {
            let name = normal(&String::from_utf8_lossy(&member.path));
            let fresh = match member.kind {
                EntryKind::Regular => files.insert(name.clone(), (member.at, member.size)).is_none(),
                EntryKind::Symlink => {
                    let (dir, _) = name.rsplit_once('/').unwrap_or_default();
                    let target = normal(&format!("{dir}/{}", String::from_utf8_lossy(&member.link)));
                    links.insert(name.clone(), target).is_none()
                }
                EntryKind::HardLink => {
                    links.insert(name.clone(), normal(&String::from_utf8_lossy(&member.link))).is_none()
                }
                _ => continue,
            };
            if !fresh {
                return Err(Error::Twice { path: path.to_owned(), name });
            }
        }
        Ok(Self { path: path.to_owned(), bytes, files, links })
    }

    /// Where a file lies, and how long it is.
    pub(super) fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.links.get(name) {
                Some(target) => name = target,
                None => return self.files.get(name).copied(),
            }
        }
        None
    }

    /// What lies at a place, from a byte of it on.
    pub(super) fn section(&self, (at, size): (u64, u64), from: u64) -> Section {
        Section::new(self.bytes.clone(), at + from.min(size), size - from.min(size))
    }

    /// A small file.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(found) = self.find(name) else { return Ok(None) };
        if found.1 > MAX_DOCUMENT {
            return Err(Error::TooLarge { place: self.path.display().to_string(), what: name.to_owned() });
        }
        let mut bytes = Vec::new();
        let read = self.section(found, 0).read_to_end(&mut bytes);
        read.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        Ok(Some(bytes))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn broken(&self, what: &'static str) -> Error {
        Error::Archive { path: self.path.clone(), source: TarError::Bad(what) }
    }
}

/// A path as all writers of archives mean it.
fn normal(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

/// Decompresses into a file that is gone when it is closed.
fn spool(bytes: Arc<dyn ReadAt>) -> io::Result<Arc<dyn ReadAt>> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?);
    let mut out = BufWriter::with_capacity(1 << 18, &file);
    let len = bytes.len();
    let limit = len.saturating_mul(MAX_EXPANSION).max(ALWAYS_ALLOWED);
    layer::decompress(Section::new(bytes, 0, len), &mut out, limit)?;
    out.flush()?;
    drop(out);
    Ok(Arc::new(Files::new(vec![file])?))
}
