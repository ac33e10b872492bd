//! Contents of gzip streams (RFC 1952), decoded faster than by a decoder that keeps a ring buffer: matches are copied
//! inside of one flat buffer, which begins with the last 32 KiB of the buffer before it and is handed over whole.
//!
//! What is accepted is what Go's `compress/gzip` and `compress/flate` accept, to the byte.

#![allow(clippy::cast_possible_truncation, reason = "bits are picked out of words all over")]
#![allow(
    clippy::inline_always,
    reason = "what is called for each symbol must not be a call, however small the binary is built"
)]

mod bits;
mod buffers;
mod deflate;
mod error;
mod huffman;
mod input;
mod member;
mod reader;
mod symbols;
mod tables;
#[cfg(test)]
mod tests;

pub use buffers::{Block, Buffers};
pub use error::GzipError;
pub use reader::Gunzip;
