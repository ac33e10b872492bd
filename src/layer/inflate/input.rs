//! The compressed stream, cut into segments that overlap.

use std::io::{ErrorKind, Read};

use super::deflate::Slice;
use super::error::GzipError;
use super::symbols::INPUT_MARGIN;

/// Bytes that a segment shares with the next one. What begins in a segment can be read to its end there: the longest
/// header of a block has 562 bytes, and the inner loop reads [`INPUT_MARGIN`] bytes ahead.
const TAIL: usize = 1024;

/// A part of the compressed stream: [`TAIL`] bytes more than the next segment's begin, or what is left of the stream,
/// and zeros behind it.
pub(super) struct Segment {
    bytes: Vec<u8>,
    /// Where the next segment takes over; in the last one, where the stream ends.
    limit: usize,
    end: usize,
}

impl Segment {
    /// What a decoder works on.
    pub(super) fn slice(&self) -> Slice<'_> {
        Slice { bytes: &self.bytes, limit: self.limit, end: self.end, last: self.is_last() }
    }

    /// Whether the stream ends in this segment.
    fn is_last(&self) -> bool {
        self.limit == self.end
    }
}

/// A compressed stream and the position in it.
pub(super) struct Input<R> {
    source: R,
    /// Bytes of a segment before the next one takes over.
    segment: usize,
    /// `None` before anything is read.
    current: Option<Segment>,
    /// Bits into the current segment.
    bit: usize,
    spare: Option<Vec<u8>>,
}

impl<R: Read> Input<R> {
    /// At the beginning of `source`, of which nothing is read yet, and which is to be cut into segments of so many bytes.
    pub(super) fn new(source: R, segment: usize) -> Self {
        Self { source, segment, current: None, bit: 0, spare: None }
    }

    /// The segment to decode and the position in it, in bits.
    pub(super) fn position(&mut self) -> Result<(Slice<'_>, &mut usize), GzipError> {
        while self.current.as_ref().is_none_or(|segment| self.bit >= segment.limit * 8 && !segment.is_last()) {
            self.advance()?;
        }
        let current = self.current.as_ref().ok_or(GzipError::Truncated)?;
        Ok((current.slice(), &mut self.bit))
    }

    /// The next whole byte; `None` at the stream's end.
    pub(super) fn byte(&mut self) -> Result<Option<u8>, GzipError> {
        let (slice, bit) = self.position()?;
        *bit = bit.next_multiple_of(8);
        let byte = slice.bytes[..slice.end].get(*bit / 8).copied();
        *bit += 8 * usize::from(byte.is_some());
        Ok(byte)
    }

    /// Goes on to the next segment.
    fn advance(&mut self) -> Result<(), GzipError> {
        let previous = self.current.take();
        let next = self.read_segment(previous.as_ref())?;
        if let Some(previous) = previous {
            self.bit -= previous.limit * 8;
            self.spare = Some(previous.bytes);
        }
        self.current = Some(next);
        Ok(())
    }

    /// Reads the segment behind `previous`.
    fn read_segment(&mut self, previous: Option<&Segment>) -> Result<Segment, GzipError> {
        let full = self.segment + TAIL;
        let mut bytes = self.spare.take().unwrap_or_else(|| vec![0; full]);
        let shared = previous.map_or(&[][..], |previous| &previous.bytes[previous.limit..previous.end]);
        bytes[..shared.len()].copy_from_slice(shared);
        let mut end = shared.len();
        while end < full {
            match self.source.read(&mut bytes[end..full]) {
                Ok(0) => break,
                Ok(count) => end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if end == full {
            return Ok(Segment { bytes, limit: self.segment, end });
        }
        bytes.truncate(end);
        bytes.resize(end + INPUT_MARGIN, 0);
        Ok(Segment { bytes, limit: end, end })
    }
}
