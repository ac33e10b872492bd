//! Bytes from the network to a thread that reads them.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// The bytes of a blob that is not kept.
pub(super) struct Piped {
    pub(super) received: mpsc::Receiver<Bytes>,
    pub(super) chunk: Bytes,
}

impl Read for Piped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.received.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.chunk.len());
        self.chunk.split_to(n).copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}
