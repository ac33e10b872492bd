//! The inner loop: symbols of a block with Huffman codes (RFC 1951, section 3.2.3).

use super::error::GzipError;
use super::huffman::{END_OF_BLOCK, LITERAL, SPECIAL, SUBTABLE};
use super::tables::{DIST_ROOT, DIST_SIZE, LITLEN_ROOT, LITLEN_SIZE, Tables};

/// Bytes copied at a time.
const CHUNK: usize = 16;
/// Bytes that must be left in the output for one round of the loop: three literals, the longest match, and what
/// copying whole chunks writes beyond it.
pub(super) const OUTPUT_MARGIN: usize = 3 + 258 + 2 * CHUNK;
/// Bytes that must be readable behind the place where the loop stops: the bit buffer is up to eight bytes ahead, and a
/// round refills it three times.
pub(super) const INPUT_MARGIN: usize = 8 + 3 * 8 + 8;

/// The next bits of the input, kept in a register.
struct BitBuffer<'a> {
    input: &'a [u8],
    /// Where the next refill reads.
    position: usize,
    bits: u64,
    /// How many of `bits` are taken into account, in the lowest byte; the others are whatever is left there.
    count: u32,
}

impl<'a> BitBuffer<'a> {
    #[inline(always)]
    fn new(input: &'a [u8], position: usize) -> Self {
        let mut buffer = Self { input, position: position / 8, bits: 0, count: 0 };
        buffer.refill();
        buffer.drop_bits((position % 8) as u32);
        buffer
    }

    /// Makes it 56 bits or more.
    #[inline(always)]
    fn refill(&mut self) {
        let word: [u8; 8] = match self.input[self.position..].first_chunk() {
            Some(word) => *word,
            None => [0; 8],
        };
        self.bits |= u64::from_le_bytes(word) << (self.count & 63);
        self.position += (7 - (self.count >> 3 & 7)) as usize;
        self.count |= 0b11_1000;
    }

    /// Drops as many bits as the lowest byte of `entry` says.
    #[inline(always)]
    fn drop_bits(&mut self, entry: u32) {
        self.bits >>= entry & 63;
        self.count = self.count.wrapping_sub(entry);
    }

    /// Bits consumed since the input's beginning.
    #[inline(always)]
    fn consumed(&self) -> usize {
        self.position * 8 - (self.count & 63) as usize
    }
}

/// Why the loop stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// The input's limit, or the output's margin was reached.
    Margin,
    /// The block is complete.
    EndOfBlock,
}

/// Decodes symbols from bit `*bit` of `input` to `output[*at..]`, until the block ends, the bit's byte reaches `limit`
/// or fewer than [`OUTPUT_MARGIN`] bytes are left. Matches may reach back to `output[floor]`.
///
/// `input` must go on for [`INPUT_MARGIN`] bytes behind `limit`.
#[inline(never)]
pub(super) fn decode(
    tables: &Tables,
    input: (&[u8], usize),
    bit: &mut usize,
    output: &mut [u8],
    at: &mut usize,
    floor: usize,
) -> Result<Pause, GzipError> {
    let (input, limit) = input;
    let mut bits = BitBuffer::new(input, *bit);
    let mut position = *at;
    let result = rounds(tables, &mut bits, limit + 8, output, &mut position, floor);
    *bit = bits.consumed();
    *at = position;
    result
}

/// The loop of [`decode`]; stops where the bit buffer would read from `limit` on.
#[inline(always)]
fn rounds(
    tables: &Tables,
    bits: &mut BitBuffer<'_>,
    limit: usize,
    output: &mut [u8],
    at: &mut usize,
    floor: usize,
) -> Result<Pause, GzipError> {
    let (litlen, dist) = (&tables.litlen, &tables.dist);
    let Some(room) = output.len().checked_sub(OUTPUT_MARGIN) else { return Ok(Pause::Margin) };
    let mut position = *at;
    bits.refill();
    let mut entry = first(litlen, bits.bits);
    let result = loop {
        if bits.position >= limit || position > room {
            break Ok(Pause::Margin);
        }
        // Three codes of the first lookup need 33 of the 56 bits, two of them and the longest length 42.
        if entry & LITERAL != 0 {
            output[position] = literal(entry);
            bits.drop_bits(entry);
            entry = first(litlen, bits.bits);
            position += 1;
            if entry & LITERAL != 0 {
                output[position] = literal(entry);
                bits.drop_bits(entry);
                entry = first(litlen, bits.bits);
                position += 1;
                if entry & LITERAL != 0 {
                    output[position] = literal(entry);
                    bits.drop_bits(entry);
                    position += 1;
                    entry = first(litlen, bits.bits);
                    bits.refill();
                    continue;
                }
            }
        }
        if entry & SPECIAL != 0 {
            if entry & SUBTABLE != 0 {
                bits.drop_bits(entry);
                entry = litlen[second(entry, bits.bits) & (LITLEN_SIZE - 1)];
            }
            if entry & LITERAL != 0 {
                output[position] = literal(entry);
                bits.drop_bits(entry);
                position += 1;
                entry = first(litlen, bits.bits);
                bits.refill();
                continue;
            }
            if entry & END_OF_BLOCK != 0 {
                bits.drop_bits(entry);
                break Ok(Pause::EndOfBlock);
            }
            if entry & SPECIAL != 0 {
                break Err(GzipError::Deflate("invalid literal or length"));
            }
        }
        let length = value(entry, bits.bits);
        bits.drop_bits(entry);
        bits.refill();
        let mut entry_dist = dist[bits.bits as usize & ((1 << DIST_ROOT) - 1)];
        if entry_dist & SPECIAL != 0 {
            if entry_dist & SUBTABLE != 0 {
                bits.drop_bits(entry_dist);
                entry_dist = dist[second(entry_dist, bits.bits) & (DIST_SIZE - 1)];
            }
            if entry_dist & SPECIAL != 0 {
                break Err(GzipError::Deflate("invalid distance"));
            }
        }
        let distance = value(entry_dist, bits.bits);
        bits.drop_bits(entry_dist);
        entry = first(litlen, bits.bits);
        bits.refill();
        if distance > position - floor {
            break Err(GzipError::Deflate("distance too far back"));
        }
        copy_match(output, position, distance, length);
        position += length;
    };
    *at = position;
    result
}

/// The entry of the next literal or length.
#[inline(always)]
fn first(litlen: &[u32; LITLEN_SIZE], bits: u64) -> u32 {
    litlen[bits as usize & ((1 << LITLEN_ROOT) - 1)]
}

/// Where in the table the subtable's entry for the next bits is.
#[inline(always)]
fn second(entry: u32, bits: u64) -> usize {
    let index_bits = entry >> 8 & 15;
    (entry >> 16) as usize + (bits as usize & ((1 << index_bits) - 1))
}

/// The literal of an entry.
#[inline(always)]
fn literal(entry: u32) -> u8 {
    (entry >> 16) as u8
}

/// The length or distance of an entry with its extra bits, which follow its code in `bits`.
#[inline(always)]
fn value(entry: u32, bits: u64) -> usize {
    let extra = (bits & ((1 << (entry & 63)) - 1)) >> (entry >> 8 & 15);
    (entry >> 16) as usize + extra as usize
}

/// Repeats `length` bytes from `distance` back at `output[at]`; may write up to two chunks beyond them.
#[inline(always)]
fn copy_match(output: &mut [u8], at: usize, distance: usize, length: usize) {
    let end = at + length;
    let mut from = at - distance;
    let mut to = at;
    if distance >= CHUNK {
        loop {
            copy_chunk(output, from, to);
            copy_chunk(output, from + CHUNK, to + CHUNK);
            from += 2 * CHUNK;
            to += 2 * CHUNK;
            if to >= end {
                return;
            }
        }
    }
    if distance == 1 {
        let chunk = [output[from]; CHUNK];
        while to < end {
            output[to..to + CHUNK].copy_from_slice(&chunk);
            to += CHUNK;
        }
        return;
    }
    // Each copy makes the repeated part twice as long, until it is a chunk.
    let mut period = distance;
    while period < CHUNK {
        copy_chunk(output, from, from + period);
        period *= 2;
    }
    to = from + period;
    while to < end {
        copy_chunk(output, from, to);
        from += CHUNK;
        to += CHUNK;
    }
}

/// A load and a store; `copy_within` is a call of memmove in a binary that is built small.
#[inline(always)]
fn copy_chunk(output: &mut [u8], from: usize, to: usize) {
    let mut chunk = [0; CHUNK];
    chunk.copy_from_slice(&output[from..from + CHUNK]);
    output[to..to + CHUNK].copy_from_slice(&chunk);
}
