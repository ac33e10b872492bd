//! Buffers for decoded contents, used again and again.

use std::io::{self, Read};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes a match may reach back (RFC 1951, section 2).
pub(super) const WINDOW: usize = 32 * 1024;
/// Most bytes of contents in a [`Block`].
pub(super) const BLOCK: usize = 256 * 1024;
/// Most buffers kept for later.
const KEPT: usize = 64;

/// A pool of buffers, each of a window and a block.
#[derive(Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty pool; buffers are made when they are needed.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A buffer of `WINDOW + BLOCK` bytes with anything in it.
    pub(super) fn take(&self) -> Vec<u8> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| vec![0; WINDOW + BLOCK])
    }

    /// How many buffers wait to be used again.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Keeps a buffer for later.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(buffer);
        }
    }
}

/// Some bytes of the contents of a gzip stream: at least one and at most 256 KiB. Its buffer goes back to its pool
/// when it is dropped.
pub struct Block {
    buffer: Vec<u8>,
    end: usize,
    pool: Arc<Buffers>,
}

impl Block {
    /// The next bytes of a reader, as many as there are room for; `None` at its end.
    ///
    /// # Errors
    /// The reader's.
    pub fn read(pool: &Arc<Buffers>, reader: &mut impl Read) -> io::Result<Option<Self>> {
        let mut block = Self::new(pool.take(), WINDOW, Arc::clone(pool));
        while block.end < block.buffer.len() {
            match reader.read(&mut block.buffer[block.end..]) {
                Ok(0) => break,
                Ok(n) => block.end += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((!block.is_empty()).then_some(block))
    }

    /// The contents are `buffer[WINDOW..end]`.
    pub(super) fn new(buffer: Vec<u8>, end: usize, pool: Arc<Buffers>) -> Self {
        Self { buffer, end, pool }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[WINDOW..self.end]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.buffer));
    }
}
