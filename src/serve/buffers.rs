//! Memory for bytes on their way, bounded for all connections together: a few large buffers for whoever takes them fast, and
//! a small one for each of the others, so that a client that stops to read holds next to nothing.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Bytes of a large buffer: one call of the kernel for many, and it still fits a core's cache.
const LARGE: usize = 256 << 10;
/// Bytes of a small one.
const SMALL: usize = 16 << 10;
/// Large buffers, at most: 16 MiB.
const MAX_LARGE: usize = 64;

/// The large buffers.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Pool>);

#[derive(Default)]
struct Pool {
    idle: Vec<Vec<u8>>,
    /// How many are in use.
    out: usize,
}

/// A buffer to read into.
pub(super) enum Buffer {
    Large(Large),
    Small,
}

/// A large buffer, which goes back when dropped.
pub(super) struct Large {
    bytes: Vec<u8>,
    filled: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// A buffer for so many bytes, or fewer; a large one to those who take them fast, while there are any.
    pub(super) fn take(self: &Arc<Self>, wanted: u64, fast: bool) -> Buffer {
        if !fast || wanted <= SMALL as u64 {
            return Buffer::Small;
        }
        let mut pool = self.pool();
        if pool.out == MAX_LARGE {
            return Buffer::Small;
        }
        pool.out += 1;
        let bytes = pool.idle.pop();
        drop(pool);
        Buffer::Large(Large { bytes: bytes.unwrap_or_else(|| vec![0; LARGE]), filled: 0, home: self.clone() })
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let mut pool = self.home.pool();
        pool.out -= 1;
        pool.idle.push(std::mem::take(&mut self.bytes));
    }
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Buffer {
    /// Reads `most` bytes, or what fits; fewer only at the end.
    ///
    /// # Errors
    /// The reader's.
    pub(super) fn read(self, reader: &mut dyn Read, most: u64) -> io::Result<Bytes> {
        match self {
            Self::Large(mut large) => {
                let end = usize::try_from(most).unwrap_or(LARGE).min(LARGE);
                large.filled = fill(reader, &mut large.bytes[..end])?;
                Ok(Bytes::from_owner(large))
            }
            Self::Small => {
                let mut bytes = vec![0; usize::try_from(most).unwrap_or(SMALL).min(SMALL)];
                let filled = fill(reader, &mut bytes)?;
                bytes.truncate(filled);
                Ok(bytes.into())
            }
        }
    }
}

fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_few_and_come_back() {
        let buffers = Arc::new(Buffers::default());
        let data = vec![7; 300 << 10];
        let take =
            || buffers.take(data.len() as u64, true).read(&mut &data[..], data.len() as u64).expect("read").len();
        let held: Vec<_> = (0..MAX_LARGE).map(|_| buffers.take(LARGE as u64, true)).collect();
        assert_eq!(take(), SMALL);
        drop(held);
        assert_eq!(take(), LARGE);
        assert_eq!(buffers.pool().idle.len(), MAX_LARGE);
        assert_eq!(buffers.pool().out, 0);
        assert_eq!(buffers.take(9, true).read(&mut &data[..], 9).expect("read").len(), 9);
    }
}
