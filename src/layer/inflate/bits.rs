//! Bits of a slice, lowest bit of each byte first (RFC 1951, section 3.1.1).

/// A position in a slice of bytes, counted in bits. Zeros are read behind the slice's end.
#[derive(Clone)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Bits<'a> {
    /// Begins `position` bits into `bytes`.
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    /// How many bits into the slice this is.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The next bits, at least 57 of them.
    pub(super) fn peek(&self) -> u64 {
        let start = self.position / 8;
        let rest = self.bytes.get(start..).unwrap_or_default();
        let word = rest.first_chunk().copied().unwrap_or_else(|| {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            word
        });
        u64::from_le_bytes(word) >> (self.position % 8)
    }

    /// Steps over `count` bits.
    pub(super) fn skip(&mut self, count: u32) {
        self.position += count as usize;
    }

    /// The next `count` bits, at most 32.
    pub(super) fn take(&mut self, count: u32) -> usize {
        let bits = self.peek() & ((1 << count) - 1);
        self.skip(count);
        bits as usize
    }

    /// Steps to the next whole byte.
    pub(super) fn align(&mut self) {
        self.position = self.position.next_multiple_of(8);
    }
}
