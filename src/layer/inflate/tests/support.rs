//! What the tests have in common.

use std::io::{Read, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::layer::inflate::{Buffers, Gunzip, GzipError};

/// Numbers that are the same in each run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One of `0..below`.
    pub(crate) fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % below
    }
}

/// Contents with text, noise, runs, short periods and repeats from near and far.
pub(crate) fn structured(length: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut out = Vec::with_capacity(length + 4096);
    while out.len() < length {
        match numbers.below(8) {
            0 => (0..numbers.below(200)).for_each(|_| out.push(numbers.below(256) as u8)),
            1 => out.resize(out.len() + numbers.below(700), numbers.below(256) as u8),
            2 => {
                let period: Vec<u8> = (0..=numbers.below(40)).map(|_| numbers.below(256) as u8).collect();
                (0..numbers.below(60)).for_each(|_| out.extend_from_slice(&period));
            }
            3 | 4 if !out.is_empty() => {
                let back = 1 + numbers.below(out.len().min(40_000));
                let start = out.len() - back;
                let count = numbers.below(600).min(back);
                out.extend_from_within(start..start + count);
            }
            _ => (0..numbers.below(300)).for_each(|_| out.push(b"etaoin shrdlu\n"[numbers.below(14)])),
        }
    }
    out.truncate(length);
    out
}

/// `contents` as a gzip member made by flate2.
pub(crate) fn gzip(contents: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(contents).unwrap();
    encoder.finish().unwrap()
}

/// A member with this deflate data, a plain header, and the trailer for `contents`.
pub(crate) fn member(deflate: &[u8], contents: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    out.extend_from_slice(deflate);
    out.extend_from_slice(&crc32fast::hash(contents).to_le_bytes());
    out.extend_from_slice(&(contents.len() as u32).to_le_bytes());
    out
}

/// All that `gunzip` gives.
pub(crate) fn drain<R: Read + Send>(mut gunzip: Gunzip<R>) -> Result<Vec<u8>, GzipError> {
    let mut out = Vec::new();
    while let Some(block) = gunzip.next_block()? {
        assert!(!block.is_empty());
        out.extend_from_slice(&block);
    }
    assert!(gunzip.next_block()?.is_none());
    Ok(out)
}

/// The contents of a stream.
pub(crate) fn gunzip(stream: &[u8]) -> Result<Vec<u8>, GzipError> {
    drain(Gunzip::new(stream, Buffers::new()))
}

/// The contents of a stream that is read in segments of so many bytes.
pub(crate) fn gunzip_segments(stream: &[u8], segment: usize, pool: &Arc<Buffers>) -> Result<Vec<u8>, GzipError> {
    drain(Gunzip::with_segments(stream, Arc::clone(pool), segment))
}

/// Bits put together as deflate has them.
#[derive(Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    count: usize,
}

impl BitWriter {
    /// Appends the lowest `count` bits of `value`, the lowest first.
    pub(crate) fn put(&mut self, value: usize, count: usize) -> &mut Self {
        for bit in 0..count {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.last_mut().unwrap();
            *last |= ((value >> bit & 1) as u8) << (self.count % 8);
            self.count += 1;
        }
        self
    }

    /// Appends a Huffman code, whose highest bit comes first.
    pub(crate) fn code(&mut self, code: usize, count: usize) -> &mut Self {
        (0..count).rev().for_each(|bit| _ = self.put(code >> bit & 1, 1));
        self
    }

    /// Appends whole bytes behind a byte boundary.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.count = self.count.next_multiple_of(8);
        for &byte in bytes {
            self.put(usize::from(byte), 8);
        }
        self
    }

    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}
