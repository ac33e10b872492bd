//! The Huffman tables of one deflate block, and how its header describes them (RFC 1951, sections 3.2.5 to 3.2.7).

use super::bits::Bits;
use super::error::GzipError;
use super::huffman::{self, END_OF_BLOCK, LITERAL, MAX_BITS, SPECIAL};

/// Bits looked up first for a literal or length.
pub(super) const LITLEN_ROOT: usize = 11;
/// Bits looked up first for a distance.
pub(super) const DIST_ROOT: usize = 8;
/// Bits of the longest code for a code length.
const PRECODE_ROOT: usize = 7;

/// Entries for literals and lengths: a complete code of 288 symbols needs at most 2,342 (zlib's `enough 288 11 15`).
pub(super) const LITLEN_SIZE: usize = 4096;
/// Entries for distances: a complete code of 32 symbols needs at most 402 (zlib's `enough 32 8 15`).
pub(super) const DIST_SIZE: usize = 512;

/// Most literal and length symbols a block may describe.
const MAX_LITLEN: usize = 286;
/// Most distance symbols a block may describe.
const MAX_DIST: usize = 30;
/// The symbol that ends a block.
const END: usize = 256;
/// Order in which the lengths of the precode are stored.
const PRECODE_ORDER: [u8; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Entries of literals and lengths without their codes.
const LITLEN_SYMBOLS: [u32; 288] = litlen_symbols();
/// Entries of distances without their codes.
const DIST_SYMBOLS: [u32; 32] = dist_symbols();
/// Entries of code lengths without their codes.
const PRECODE_SYMBOLS: [u32; 19] = precode_symbols();

const fn litlen_symbols() -> [u32; 288] {
    let mut symbols = [SPECIAL; 288];
    let mut symbol = 0;
    while symbol < END {
        symbols[symbol] = LITERAL | (symbol as u32) << 16;
        symbol += 1;
    }
    symbols[END] = SPECIAL | END_OF_BLOCK;
    let (mut base, mut index) = (3, 0);
    while index < 28 {
        let extra = if index < 8 { 0 } else { index / 4 - 1 };
        symbols[257 + index as usize] = base << 16 | extra;
        base += 1 << extra;
        index += 1;
    }
    symbols[285] = 258 << 16;
    symbols
}

const fn dist_symbols() -> [u32; 32] {
    let mut symbols = [SPECIAL; 32];
    let (mut base, mut index) = (1, 0);
    while index < 30 {
        let extra = if index < 4 { 0 } else { index / 2 - 1 };
        symbols[index as usize] = base << 16 | extra;
        base += 1 << extra;
        index += 1;
    }
    symbols
}

const fn precode_symbols() -> [u32; 19] {
    let mut symbols = [0; 19];
    let mut symbol = 0;
    while symbol < 19 {
        symbols[symbol] = (symbol as u32) << 16;
        symbol += 1;
    }
    symbols
}

/// Decoding tables of a block.
pub(super) struct Tables {
    /// Literals, lengths and the end of the block.
    pub(super) litlen: [u32; LITLEN_SIZE],
    /// Distances.
    pub(super) dist: [u32; DIST_SIZE],
    precode: [u32; 1 << PRECODE_ROOT],
    fixed: bool,
}

impl Tables {
    /// Tables of no block yet.
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            litlen: [SPECIAL; LITLEN_SIZE],
            dist: [SPECIAL; DIST_SIZE],
            precode: [SPECIAL; 1 << PRECODE_ROOT],
            fixed: false,
        })
    }

    /// Makes them the tables of a block with fixed codes (section 3.2.6).
    pub(super) fn set_fixed(&mut self) {
        if self.fixed {
            return;
        }
        let mut lengths = [8_u8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.fixed = huffman::build(&mut self.litlen, LITLEN_ROOT, &lengths, &LITLEN_SYMBOLS)
            && huffman::build(&mut self.dist, DIST_ROOT, &[5; 32], &DIST_SYMBOLS);
    }

    /// Reads the header of a block with dynamic codes (section 3.2.7), which begins behind the block's type.
    /// Zeros are read behind the end of `bits`.
    pub(super) fn read_dynamic(&mut self, bits: &mut Bits<'_>) -> Result<(), GzipError> {
        self.fixed = false;
        let litlen_count = bits.take(5) + 257;
        let dist_count = bits.take(5) + 1;
        let precode_count = bits.take(4) + 4;
        if litlen_count > MAX_LITLEN || dist_count > MAX_DIST {
            return Err(GzipError::Deflate("too many codes"));
        }
        let mut precode = [0_u8; 19];
        for &symbol in &PRECODE_ORDER[..precode_count] {
            precode[usize::from(symbol)] = bits.take(3) as u8;
        }
        if !huffman::build(&mut self.precode, PRECODE_ROOT, &precode, &PRECODE_SYMBOLS) {
            return Err(GzipError::Deflate("invalid code of code lengths"));
        }
        let mut lengths = [0_u8; MAX_LITLEN + MAX_DIST];
        let lengths = &mut lengths[..litlen_count + dist_count];
        self.read_lengths(bits, lengths)?;
        let (litlen, dist) = lengths.split_at(litlen_count);
        if litlen[END] == 0 {
            return Err(GzipError::Deflate("no end-of-block code"));
        }
        if !huffman::build(&mut self.litlen, LITLEN_ROOT, litlen, &LITLEN_SYMBOLS) {
            return Err(GzipError::Deflate("invalid literal and length code"));
        }
        if !huffman::build(&mut self.dist, DIST_ROOT, dist, &DIST_SYMBOLS) {
            return Err(GzipError::Deflate("invalid distance code"));
        }
        Ok(())
    }

    /// Reads the code lengths of both codes, which are run-length encoded with the precode.
    fn read_lengths(&self, bits: &mut Bits<'_>, lengths: &mut [u8]) -> Result<(), GzipError> {
        let mut done = 0;
        while done < lengths.len() {
            let next = bits.peek();
            let entry = self.precode[next as usize & ((1 << PRECODE_ROOT) - 1)];
            if entry & SPECIAL != 0 {
                return Err(GzipError::Deflate("invalid code of a code length"));
            }
            let used = entry & 0xff;
            let next = (next >> used) as usize;
            let symbol = (entry >> 16) as usize;
            if symbol <= MAX_BITS {
                lengths[done] = symbol as u8;
                done += 1;
                bits.skip(used);
                continue;
            }
            let (value, repeat, extra) = match symbol {
                16 if done == 0 => return Err(GzipError::Deflate("repeat of no code length")),
                16 => (lengths[done - 1], 3 + (next & 3), 2),
                17 => (0, 3 + (next & 7), 3),
                _ => (0, 11 + (next & 127), 7),
            };
            let run = lengths.get_mut(done..done + repeat).ok_or(GzipError::Deflate("too many code lengths"))?;
            run.fill(value);
            done += repeat;
            bits.skip(used + extra);
        }
        Ok(())
    }
}
