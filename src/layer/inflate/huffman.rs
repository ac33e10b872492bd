//! Decoding tables for canonical Huffman codes (RFC 1951, section 3.2.2).
//!
//! A table is looked up with the next bits of the stream. Its first `1 << root` entries stand for codes of up to `root`
//! bits; longer codes go through an entry that leads to a subtable behind them. An entry says at once how many bits to
//! drop and what the symbol means:
//!
//! ```text
//!  bit 31     30…16                       15        14        13             11…8            7…0
//!  LITERAL    literal, base or subtable   SPECIAL   SUBTABLE  END_OF_BLOCK   bits of code    bits of code + extra bits
//!                                                                            (subtable: its index bits)
//! ```
//!
//! An entry that is SPECIAL and nothing else stands for a code that must not occur.

/// The symbol is a literal byte.
pub(super) const LITERAL: u32 = 1 << 31;
/// The entry is none for a literal, a length or a distance.
pub(super) const SPECIAL: u32 = 1 << 15;
/// The entry leads to a subtable.
pub(super) const SUBTABLE: u32 = 1 << 14;
/// The symbol ends its block.
pub(super) const END_OF_BLOCK: u32 = 1 << 13;

/// Most bits of a code.
pub(super) const MAX_BITS: usize = 15;
/// Most symbols of a code.
const MAX_SYMBOLS: usize = 288;

/// Fills `table`, whose first `1 << root` entries are looked up first, for the code with these `lengths` (0: no code).
/// `symbols` holds the entry of each symbol without the bits of its code.
///
/// `false` for lengths that Go's `compress/flate` refuses: over-subscribed or incomplete ones, except for a single code
/// of one bit and for none at all.
pub(super) fn build(table: &mut [u32], root: usize, lengths: &[u8], symbols: &[u32]) -> bool {
    let mut count = [0_u16; MAX_BITS + 1];
    for &length in lengths {
        count[usize::from(length) & MAX_BITS] += 1;
    }
    count[0] = 0;
    let kraft: usize = (1..=MAX_BITS).map(|length| usize::from(count[length]) << (MAX_BITS - length)).sum();
    let single = kraft == 1 << (MAX_BITS - 1) && count[1] == 1;
    if kraft == 0 || single {
        table.fill(SPECIAL);
    } else if kraft != 1 << MAX_BITS {
        return false;
    }
    let mut next = [0_u16; MAX_BITS + 2];
    for length in 1..=MAX_BITS {
        next[length + 1] = next[length] + count[length];
    }
    let mut sorted = [0_u16; MAX_SYMBOLS];
    for (symbol, &length) in (0_u16..).zip(lengths) {
        if length != 0 {
            let place = &mut next[usize::from(length) & MAX_BITS];
            sorted[usize::from(*place)] = symbol;
            *place += 1;
        }
    }
    if single {
        let entry = entry(symbols[usize::from(sorted[0])], 1);
        table[..1 << root].iter_mut().step_by(2).for_each(|slot| *slot = entry);
    } else if kraft != 0 {
        let sorted = &sorted[..usize::from(next[MAX_BITS])];
        let (code, rest) = fill_root(table, root, &count, sorted, symbols);
        fill_subtables(table, root, code, &count, rest, symbols);
    }
    true
}

/// The entry of a symbol whose code has `length` bits.
fn entry(symbol: u32, length: usize) -> u32 {
    let length = length as u32;
    symbol + (length << 8 | length)
}

/// The code behind `code`, both of `length` bits and with their first bit lowest, as the stream has them.
/// `None` behind the last one.
fn successor(code: usize, length: usize) -> Option<usize> {
    let zeros = !code & ((1 << length) - 1);
    let highest = 1 << zeros.checked_ilog2()?;
    Some(code & (highest - 1) | highest)
}

/// Fills in the codes of up to `root` bits; returns the first longer code and the symbols that have longer ones.
fn fill_root<'a>(
    table: &mut [u32],
    root: usize,
    count: &[u16; MAX_BITS + 1],
    mut sorted: &'a [u16],
    symbols: &[u32],
) -> (usize, &'a [u16]) {
    let mut code = 0;
    for (length, &count) in count.iter().enumerate().take(root + 1).skip(1) {
        let half = 1 << (length - 1);
        if length > 1 {
            table.copy_within(..half, half);
        }
        let (now, later) = sorted.split_at(usize::from(count));
        sorted = later;
        for &symbol in now {
            table[code] = entry(symbols[usize::from(symbol)], length);
            code = successor(code, length).unwrap_or(0);
        }
    }
    (code, sorted)
}

/// Fills in the codes of more than `root` bits, the first of which is `code`.
fn fill_subtables(
    table: &mut [u32],
    root: usize,
    mut code: usize,
    count: &[u16; MAX_BITS + 1],
    sorted: &[u16],
    symbols: &[u32],
) {
    let mut length = root + 1;
    let mut left = count.get(length).map_or(0, |&count| usize::from(count));
    let mut prefix = usize::MAX;
    let (mut start, mut end) = (0, 1 << root);
    for &symbol in sorted {
        while left == 0 {
            length += 1;
            left = usize::from(count[length]);
        }
        if code & ((1 << root) - 1) != prefix {
            prefix = code & ((1 << root) - 1);
            // As many index bits as make the codes that begin with this prefix, all in order, fill the subtable.
            let mut index_bits = length - root;
            let mut used = left;
            while used < 1 << index_bits {
                index_bits += 1;
                used <<= 1;
                used += usize::from(count[root + index_bits]);
            }
            start = end;
            end = start + (1 << index_bits);
            table[prefix] = SPECIAL | SUBTABLE | (start << 16 | index_bits << 8 | root) as u32;
        }
        let entry = entry(symbols[usize::from(symbol)], length - root);
        table[start + (code >> root)..end].iter_mut().step_by(1 << (length - root)).for_each(|slot| *slot = entry);
        left -= 1;
        code = successor(code, length).unwrap_or(0);
    }
}
