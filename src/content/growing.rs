//! A blob that is read while it comes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The bytes of an ingest, as far as they came.
#[derive(Debug)]
pub struct Growing {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct State {
    len: u64,
    /// Whether more may come; then, whether the blob is whole and right.
    end: Option<bool>,
}

/// The writing side; dropped before [`Writer::finish`], the readers fail.
#[derive(Debug)]
pub struct Writer(Arc<Growing>);

/// Reads from the beginning. The end comes when the blob is in place, an error when it will not be.
#[derive(Debug)]
pub struct GrowingReader {
    growing: Arc<Growing>,
    at: u64,
}

impl Growing {
    /// Of a file that has `len` bytes, and is being added to.
    pub fn new(file: File, len: u64) -> (Arc<Self>, Writer) {
        let state = Mutex::new(State { len, end: None });
        let growing = Arc::new(Self { file, state, changed: Condvar::new() });
        (growing.clone(), Writer(growing))
    }

    /// A reader of its own.
    pub fn reader(self: &Arc<Self>) -> GrowingReader {
        GrowingReader { growing: self.clone(), at: 0 }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Writer {
    /// So many more bytes are in the file.
    pub fn grew(&self, bytes: u64) {
        self.0.change(|state| state.len += bytes);
    }

    /// The blob is in place.
    pub fn finish(self) {
        self.0.change(|state| state.end = Some(true));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.change(|state| state.end = state.end.or(Some(false)));
    }
}

impl Read for GrowingReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Growing { file, state, changed } = &*self.growing;
        let guard = state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |state: &mut State| state.len == self.at && state.end.is_none();
        let State { len, end } = *changed.wait_while(guard, waiting).unwrap_or_else(PoisonError::into_inner);
        if end == Some(false) {
            return Err(io::Error::other("the blob did not come right"));
        }
        let wanted = buf.len().min(usize::try_from(len - self.at).unwrap_or(usize::MAX));
        let n = file.read_at(&mut buf[..wanted], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_wait_for_bytes_and_for_the_end() {
        for whole in [true, false] {
            let file = tempfile::tempfile().expect("a file");
            let (growing, writer) = Growing::new(file.try_clone().expect("the same"), 0);
            let mut reader = growing.reader();
            let reading = std::thread::spawn(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).map(|_| all)
            });
            for (i, piece) in [b"abc", b"def"].into_iter().enumerate() {
                file.write_all_at(piece, i as u64 * 3).expect("written");
                writer.grew(3);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            if whole {
                writer.finish();
            } else {
                drop(writer);
            }
            assert_eq!(reading.join().expect("no panic").ok(), whole.then(|| b"abcdef".to_vec()));
        }
    }
}
