//! Deflate data block by block (RFC 1951, section 3.2.3).

use super::bits::Bits;
use super::error::GzipError;
use super::symbols::{self, OUTPUT_MARGIN, Pause};
use super::tables::Tables;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A block's header, or the end behind the final block.
    Header,
    /// Symbols of a block with Huffman codes.
    Symbols,
    /// So many bytes of a stored block.
    Stored(usize),
}

/// Why decoding paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The position reached the end of the slice of input.
    Input,
    /// The output is as good as full.
    Output,
    /// The final block ended.
    End,
}

/// A slice of compressed input. Decoding steps begin before `limit` and may read what is behind it; zeros must be there
/// when the stream is over.
#[derive(Clone, Copy)]
pub(super) struct Slice<'a> {
    /// The bytes: at least [`symbols::INPUT_MARGIN`] behind `limit`, or as many zeros as the inner loop may read.
    pub(super) bytes: &'a [u8],
    /// Where the next slice takes over, or the stream ends; in bytes.
    pub(super) limit: usize,
    /// How many bytes are the stream's.
    pub(super) end: usize,
    /// Whether the stream ends here.
    pub(super) last: bool,
}

/// Output in the making: `bytes[floor..at]` is there, and matches may reach back to its beginning.
pub(super) struct Output<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) at: usize,
    pub(super) floor: usize,
}

/// A decoder between two steps. It holds no input: what was consumed is counted in bits, exactly.
pub(super) struct Deflate {
    tables: Box<Tables>,
    state: State,
    last: bool,
}

impl Deflate {
    /// Begins with a block's header.
    pub(super) fn new() -> Self {
        Self { tables: Tables::new(), state: State::Header, last: false }
    }

    /// Begins anew with a block's header.
    pub(super) fn restart(&mut self) {
        self.state = State::Header;
        self.last = false;
    }

    /// Decodes from bit `*bit` of the input on until something stops it.
    pub(super) fn run(
        &mut self,
        input: Slice<'_>,
        bit: &mut usize,
        output: &mut Output<'_>,
    ) -> Result<Stop, GzipError> {
        let result = self.steps(input, bit, output);
        // Whatever was made of the zeros behind the stream's end is no part of it, not even an error.
        let truncated = *bit > input.end * 8 || (input.last && matches!(result, Ok(Stop::Input)));
        if truncated { Err(GzipError::Truncated) } else { result }
    }

    fn steps(&mut self, input: Slice<'_>, bit: &mut usize, output: &mut Output<'_>) -> Result<Stop, GzipError> {
        while *bit < input.limit * 8 {
            match self.state {
                State::Header => {
                    let mut bits = Bits::new(input.bytes, *bit);
                    let result = self.header(&mut bits);
                    *bit = bits.position();
                    result?;
                }
                State::Stored(left) => {
                    if let Some(stop) = self.stored(left, input, bit, output) {
                        return Ok(stop);
                    }
                }
                State::Symbols => {
                    let Output { bytes, at, floor } = output;
                    let pause = symbols::decode(&self.tables, (input.bytes, input.limit), bit, bytes, at, *floor)?;
                    if pause == Pause::EndOfBlock {
                        self.state = State::Header;
                        if self.last {
                            return Ok(Stop::End);
                        }
                    } else if bytes.len() - *at < OUTPUT_MARGIN {
                        return Ok(Stop::Output);
                    }
                }
            }
        }
        Ok(Stop::Input)
    }

    fn header(&mut self, bits: &mut Bits<'_>) -> Result<(), GzipError> {
        self.last = bits.take(1) == 1;
        self.state = match bits.take(2) {
            0 => {
                bits.align();
                let length = bits.take(16);
                if bits.take(16) != length ^ 0xffff {
                    return Err(GzipError::Deflate("lengths of a stored block differ"));
                }
                State::Stored(length)
            }
            1 => {
                self.tables.set_fixed();
                State::Symbols
            }
            2 => {
                self.tables.read_dynamic(bits)?;
                State::Symbols
            }
            _ => return Err(GzipError::Deflate("reserved block type")),
        };
        Ok(())
    }

    /// Copies what is left of a stored block, as far as input and output allow.
    fn stored(&mut self, left: usize, input: Slice<'_>, bit: &mut usize, output: &mut Output<'_>) -> Option<Stop> {
        let start = *bit / 8;
        let room = output.bytes.len() - output.at;
        let count = left.min(input.end.saturating_sub(start)).min(room);
        let from = &input.bytes[start..start + count];
        let to = &mut output.bytes[output.at..output.at + count];
        to.copy_from_slice(from);
        *bit += count * 8;
        output.at += count;
        self.state = State::Stored(left - count);
        if count == left {
            self.state = State::Header;
            self.last.then_some(Stop::End)
        } else if count == room {
            Some(Stop::Output)
        } else {
            None
        }
    }
}
