//! Archives that hold images, as opposed to layers: where their members lie, and how to get at them when they are compressed.

use std::io::{self, BufReader, Read, Seek, Write};
use std::sync::Arc;

use super::at::{ReadAt, Section};
use super::inflate::{Block, Buffers, Gunzip, GzipError};
use super::read::{EntryKind, Reader, TarError};
use super::stream::{GZIP_MAGIC, ZSTD_MAGIC, ZSTD_WINDOW_LOG};

/// Members of an archive.
const MAX_MEMBERS: usize = 1 << 20;
/// Bytes that are read at a time while headers are looked for.
const LOOK: usize = 4096;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path, as it is written there.
    pub path: Vec<u8>,
    /// Whether it is a file or a link, and what kind.
    pub kind: EntryKind,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Where its contents begin.
    pub at: u64,
    /// How long they are.
    pub size: u64,
}

/// Finds the members of an archive; contents are passed over, not read.
///
/// # Errors
/// [`TarError`].
pub fn members(archive: &Arc<dyn ReadAt>) -> Result<Vec<Member>, TarError> {
    let mut reader = Reader::new(BufReader::with_capacity(LOOK, Section::new(archive.clone(), 0, archive.len())));
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let (at, size) = reader.lies()?;
        if at.checked_add(size).is_none_or(|end| end > archive.len()) {
            return Err(TarError::Bad("it ends in the middle of a file"));
        }
        if all.len() == MAX_MEMBERS {
            return Err(TarError::Bad("more members than an archive of images has"));
        }
        all.push(Member { path: entry.path, kind: entry.kind, link: entry.link, at, size });
        reader.seek_past()?;
    }
    Ok(all)
}

impl<R: Read + Seek> Reader<BufReader<R>> {
    /// Where the current entry's contents begin, and how long they are.
    fn lies(&mut self) -> Result<(u64, u64), TarError> {
        if self.is_sparse() {
            return Err(TarError::Bad("a sparse file in an archive of images"));
        }
        Ok((self.source().stream_position()?, self.left()))
    }

    fn seek_past(&mut self) -> Result<(), TarError> {
        let left = self.left();
        let left = i64::try_from(left).map_err(|_| TarError::Bad("it ends in the middle of a file"))?;
        self.source().seek_relative(left)?;
        self.passed();
        Ok(())
    }
}

/// Whether bytes that begin so are compressed with gzip or zstd.
pub fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(&GZIP_MAGIC) || start.starts_with(&ZSTD_MAGIC.to_le_bytes())
}

/// Writes what compressed bytes hold, at most `limit` bytes of it.
///
/// # Errors
/// The system's; broken compression, or more than allowed.
pub fn decompress(mut source: impl Read + Send, out: &mut impl Write, limit: u64) -> io::Result<()> {
    let mut start = Vec::new();
    source.by_ref().take(4).read_to_end(&mut start)?;
    let gzip = start.starts_with(&GZIP_MAGIC);
    let source = io::Cursor::new(start).chain(source);
    let pool = Buffers::new();
    let mut left = limit;
    let mut write = |block: Block| {
        left = left
            .checked_sub(block.len() as u64)
            .ok_or_else(|| io::Error::other(format!("it decompresses to more than {limit} bytes")))?;
        out.write_all(&block)
    };
    if gzip {
        let mut blocks = Gunzip::new(source, pool);
        let failed = |error| match error {
            GzipError::Read(source) => source,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        };
        while let Some(block) = blocks.next_block().map_err(failed)? {
            write(block)?;
        }
    } else {
        let mut decoder = zstd::stream::read::Decoder::new(source)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        while let Some(block) = Block::read(&pool, &mut decoder)? {
            write(block)?;
        }
    }
    Ok(())
}
