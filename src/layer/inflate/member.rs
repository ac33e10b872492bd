//! Headers and trailers of gzip members (RFC 1952, section 2.3), as Go's `compress/gzip` reads them.

use std::io::Read;

use crc32fast::Hasher;

use super::error::GzipError;
use super::input::Input;

const MAGIC: [u8; 2] = [0x1f, 0x8b];
const DEFLATE: u8 = 8;
const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;
/// Bytes in front of the optional fields.
const FIXED: usize = 10;
/// Most bytes of a name or a comment with the zero behind it, as in Go.
const MAX_STRING: usize = 512;

/// Checksum and size of a member's contents.
#[derive(Default)]
pub(super) struct Check {
    hasher: Hasher,
    /// Modulo 2³².
    size: u32,
}

impl Check {
    /// Takes more contents into account.
    pub(super) fn update(&mut self, contents: &[u8]) {
        self.hasher.update(contents);
        self.size = self.size.wrapping_add(contents.len() as u32);
    }

    /// Reads the trailer, which must agree.
    pub(super) fn finish<R: Read>(&mut self, input: &mut Input<R>) -> Result<(), GzipError> {
        let check = std::mem::take(self);
        let crc = u32::from_le_bytes(bytes(input)?);
        let size = u32::from_le_bytes(bytes(input)?);
        if crc == check.hasher.finalize() && size == check.size { Ok(()) } else { Err(GzipError::Checksum) }
    }
}

/// Reads a member's header; `false` where the stream ends instead.
pub(super) fn read_header<R: Read>(input: &mut Input<R>) -> Result<bool, GzipError> {
    let Some(first) = input.byte()? else { return Ok(false) };
    let mut fixed = [first; FIXED];
    fixed[1..].copy_from_slice(&bytes::<R, { FIXED - 1 }>(input)?);
    if fixed[..2] != MAGIC || fixed[2] != DEFLATE {
        return Err(GzipError::Header("not a gzip member"));
    }
    let flags = fixed[3];
    let mut hasher = Hasher::new();
    hasher.update(&fixed);
    if flags & FEXTRA != 0 {
        let length = bytes(input)?;
        hasher.update(&length);
        for _ in 0..u16::from_le_bytes(length) {
            hasher.update(&bytes::<R, 1>(input)?);
        }
    }
    for flag in [FNAME, FCOMMENT] {
        if flags & flag != 0 {
            skip_string(input, &mut hasher)?;
        }
    }
    if flags & FHCRC != 0 {
        let expected = u16::from_le_bytes(bytes(input)?);
        if u32::from(expected) != hasher.finalize() & 0xffff {
            return Err(GzipError::Header("wrong checksum of the header"));
        }
    }
    Ok(true)
}

/// Steps over a string that ends with a zero.
fn skip_string<R: Read>(input: &mut Input<R>, hasher: &mut Hasher) -> Result<(), GzipError> {
    for _ in 0..MAX_STRING {
        let byte = bytes::<R, 1>(input)?;
        hasher.update(&byte);
        if byte == [0] {
            return Ok(());
        }
    }
    Err(GzipError::Header("a name or comment is too long"))
}

/// The next `N` bytes, which must be there.
fn bytes<R: Read, const N: usize>(input: &mut Input<R>) -> Result<[u8; N], GzipError> {
    let mut bytes = [0; N];
    for byte in &mut bytes {
        *byte = input.byte()?.ok_or(GzipError::Truncated)?;
    }
    Ok(bytes)
}
