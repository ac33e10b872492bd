//! Members one after the other, decoded into blocks.

use std::io::Read;
use std::sync::Arc;

use super::buffers::{Block, Buffers, WINDOW};
use super::deflate::{Deflate, Output, Stop};
use super::error::GzipError;
use super::input::Input;
use super::member::{self, Check};

/// Bytes of input read at a time.
const SEGMENT: usize = 128 * 1024;

/// What comes next in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The first member's header.
    Start,
    /// Deflate data.
    Contents,
    /// Another member's header, or the stream's end.
    Between,
    /// Nothing.
    Ended,
    /// Nothing after an error.
    Failed,
}

/// The contents of a gzip stream of one or more members, in blocks.
pub struct Gunzip<R> {
    input: Input<R>,
    deflate: Deflate,
    stage: Stage,
    check: Check,
    pool: Arc<Buffers>,
    buffer: Vec<u8>,
    /// Where the next byte goes.
    at: usize,
    /// Where the member's contents begin, if that is in the buffer.
    floor: usize,
    /// How far the contents are in `check`.
    checked: usize,
}

impl<R: Read> Gunzip<R> {
    /// Decodes what `source` gives into buffers of `pool`. Nothing is read yet.
    pub fn new(source: R, pool: Arc<Buffers>) -> Self {
        Self::with_segments(source, pool, SEGMENT)
    }

    /// As [`Self::new`], with input read in segments of so many bytes.
    pub(super) fn with_segments(source: R, pool: Arc<Buffers>, segment: usize) -> Self {
        Self {
            input: Input::new(source, segment),
            deflate: Deflate::new(),
            stage: Stage::Start,
            check: Check::default(),
            buffer: pool.take(),
            pool,
            at: WINDOW,
            floor: WINDOW,
            checked: WINDOW,
        }
    }

    /// The next block of contents; `None` at the end, when all of the stream was read and verified.
    /// Nothing can be read after an error.
    pub fn next_block(&mut self) -> Result<Option<Block>, GzipError> {
        let result = self.decode();
        if result.is_err() {
            self.stage = Stage::Failed;
        }
        result
    }

    fn decode(&mut self) -> Result<Option<Block>, GzipError> {
        loop {
            match self.stage {
                Stage::Start | Stage::Between => {
                    if member::read_header(&mut self.input)? {
                        self.stage = Stage::Contents;
                        self.deflate.restart();
                        self.floor = self.at;
                    } else if self.stage == Stage::Start {
                        return Err(GzipError::Truncated);
                    } else {
                        self.stage = Stage::Ended;
                    }
                }
                Stage::Contents => {
                    let (slice, bit) = self.input.position()?;
                    let mut output = Output { bytes: &mut self.buffer, at: self.at, floor: self.floor };
                    let stop = self.deflate.run(slice, bit, &mut output)?;
                    self.at = output.at;
                    match stop {
                        Stop::Input => {}
                        Stop::Output => return Ok(Some(self.take_block())),
                        Stop::End => {
                            self.update_check();
                            self.check.finish(&mut self.input)?;
                            self.stage = Stage::Between;
                        }
                    }
                }
                Stage::Ended if self.at == WINDOW => return Ok(None),
                Stage::Ended => return Ok(Some(self.take_block())),
                Stage::Failed => return Err(GzipError::Failed),
            }
        }
    }

    fn update_check(&mut self) {
        self.check.update(&self.buffer[self.checked..self.at]);
        self.checked = self.at;
    }

    /// Hands over what is decoded, and goes on in a buffer that begins with its last bytes.
    fn take_block(&mut self) -> Block {
        self.update_check();
        let mut next = self.pool.take();
        let moved = self.at - WINDOW;
        next[..WINDOW].copy_from_slice(&self.buffer[moved..self.at]);
        let block = Block::new(std::mem::replace(&mut self.buffer, next), self.at, Arc::clone(&self.pool));
        self.floor = self.floor.saturating_sub(moved);
        (self.at, self.checked) = (WINDOW, WINDOW);
        block
    }
}
