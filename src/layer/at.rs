//! Bytes that can be read from anywhere, and at any time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes of a known number.
pub trait ReadAt: Send + Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Reads some from `offset` on; 0 at the end.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Files, one behind the other.
#[derive(Debug)]
pub struct Files {
    /// Where each begins.
    all: Vec<(u64, File)>,
    len: u64,
}

impl Files {
    /// As long as the files are now.
    ///
    /// # Errors
    /// The system's.
    pub fn new(files: Vec<File>) -> io::Result<Self> {
        let mut len = 0;
        let mut all = Vec::new();
        for file in files {
            let size = file.metadata()?.len();
            all.push((len, file));
            len += size;
        }
        Ok(Self { all, len })
    }
}

impl ReadAt for Files {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.all.partition_point(|(start, _)| *start <= offset);
        let Some((start, file)) = n.checked_sub(1).and_then(|n| self.all.get(n)) else { return Ok(0) };
        let end = self.all.get(n).map_or(self.len, |(start, _)| *start);
        let most = buf.len().min(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
        match file.read_at(&mut buf[..most], offset - start)? {
            0 if most > 0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was")),
            n => Ok(n),
        }
    }
}

/// A part of some bytes, read from its beginning to its end.
#[derive(Clone)]
pub struct Section {
    of: Arc<dyn ReadAt>,
    start: u64,
    at: u64,
    end: u64,
}

impl Section {
    /// Those from `start` on, `len` of them or as many as there are.
    pub fn new(of: Arc<dyn ReadAt>, start: u64, len: u64) -> Self {
        let end = start.saturating_add(len).min(of.len());
        Self { of, start, at: start, end }
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX));
        let n = self.of.read_at(&mut buf[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(n) => self.start.checked_add(n),
            SeekFrom::End(n) => self.end.checked_add_signed(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
        };
        self.at = at.filter(|at| *at >= self.start).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at - self.start)
    }
}
