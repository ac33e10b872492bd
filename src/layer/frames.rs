//! What is in a zstd file, without decompressing it: its frames, and what their headers say of their contents (RFC 8878, 3.1).
//!
//! ```text
//! frame      magic 4 │ descriptor 1 │ window 0–1 │ dictionary 0–4 │ content size 0–8 │ blocks … │ checksum 0 or 4
//! block      header 3 (last 1 bit, type 2 bits, size 21 bits) │ size bytes, or 1 of a run
//! skippable  magic 4 │ size 4 │ size bytes
//! ```

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use super::at::{ReadAt, Section};
use super::stream::{ZSTD_MAGIC, ZSTD_SKIPPABLE, ZSTD_WINDOW_LOG};

/// Frames of one file; each takes some bytes of memory.
const MAX_FRAMES: usize = 1 << 22;
/// The largest frame whose contents are kept to be read from anywhere, in bytes.
const MAX_SEEKABLE: u64 = 32 << 20;

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    /// Where it begins.
    at: u64,
    /// Its bytes.
    len: u64,
    /// Those of its contents, where its header says.
    content: Option<u64>,
}

/// How many bytes a zstd file decompresses to; `None` when a frame does not say, or when it is none.
///
/// # Errors
/// The system's.
pub fn zstd_content(file: &dyn ReadAt) -> io::Result<Option<u64>> {
    let Some(frames) = frames(file)? else { return Ok(None) };
    Ok(frames.iter().try_fold(0_u64, |sum, frame| sum.checked_add(frame.content?)))
}

/// All frames but skippable ones; `None` when it is no zstd file from its beginning to its end.
fn frames(file: &dyn ReadAt) -> io::Result<Option<Vec<Frame>>> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < file.len() {
        let mut header = [0; 18];
        let got = read_full(file, &mut header, at)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (len, content) = if got >= 8 && word(0) & !0xf == ZSTD_SKIPPABLE {
            (8 + u64::from(word(4)), Some(0))
        } else if got >= 6 && word(0) == ZSTD_MAGIC {
            let Some((blocks, content)) = frame_header(&header[..got]) else { return Ok(None) };
            let checksum = if header[4] & 4 == 0 { 0 } else { 4 };
            let Some(end) = end_of_blocks(file, at + blocks)? else { return Ok(None) };
            (end + checksum - at, content)
        } else {
            return Ok(None);
        };
        if at + len > file.len() || all.len() == MAX_FRAMES {
            return Ok(None);
        }
        if content != Some(0) {
            all.push(Frame { at, len, content });
        }
        at += len;
    }
    Ok((!all.is_empty()).then_some(all))
}

/// Bytes of a frame's header, and of its contents where it says.
fn frame_header(header: &[u8]) -> Option<(u64, Option<u64>)> {
    let descriptor = header[4];
    let single = descriptor & 0x20 != 0;
    if descriptor & 8 != 0 {
        return None;
    }
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = match descriptor >> 6 {
        0 => usize::from(single),
        flag => 1 << flag,
    };
    let begin = 5 + usize::from(!single) + dictionary;
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(header.get(begin..begin + size)?);
    let content = u64::from_le_bytes(bytes) + if size == 2 { 256 } else { 0 };
    Some(((begin + size) as u64, (size > 0).then_some(content)))
}

/// Where a frame's blocks end; `None` when they are none.
fn end_of_blocks(file: &dyn ReadAt, mut at: u64) -> io::Result<Option<u64>> {
    loop {
        let mut header = [0; 4];
        if read_full(file, &mut header[..3], at)? < 3 {
            return Ok(None);
        }
        let header = u32::from_le_bytes(header);
        at += 3 + match header >> 1 & 3 {
            0 | 2 => u64::from(header >> 3),
            1 => 1,
            _ => return Ok(None),
        };
        if header & 1 == 1 {
            return Ok(Some(at));
        }
    }
}

fn read_full(file: &dyn ReadAt, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buf.len() {
        match file.read_at(&mut buf[got..], at + got as u64)? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

/// The contents of a zstd file of frames that are small and say how large their contents are: each is decompressed when it is
/// read, and the last one is kept.
pub struct Frames {
    of: Arc<dyn ReadAt>,
    all: Vec<Frame>,
    /// Where the contents of each begin.
    starts: Vec<u64>,
    len: u64,
    last: Mutex<(usize, Arc<Vec<u8>>)>,
}

impl Frames {
    /// `None` when the file is none such.
    ///
    /// # Errors
    /// The system's.
    pub fn new(of: Arc<dyn ReadAt>) -> io::Result<Option<Self>> {
        let Some(frames) = frames(&*of)? else { return Ok(None) };
        let (mut starts, mut len) = (Vec::new(), 0_u64);
        for frame in &frames {
            let Some(content) = frame.content.filter(|content| *content <= MAX_SEEKABLE) else { return Ok(None) };
            starts.push(len);
            len += content;
        }
        Ok(Some(Self { of, all: frames, starts, len, last: Mutex::new((usize::MAX, Arc::default())) }))
    }

    fn frame(&self, n: usize) -> io::Result<Arc<Vec<u8>>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if last.0 == n {
            return Ok(last.1);
        }
        let Frame { at, len, content } = self.all[n];
        let mut decoder = zstd::stream::read::Decoder::new(Section::new(self.of.clone(), at, len))?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        let size = usize::try_from(content.unwrap_or(0)).unwrap_or(0);
        let mut bytes = Vec::with_capacity(size + 1);
        decoder.take(size as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() != size {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a zstd frame that is not as long as it says"));
        }
        let bytes = Arc::new(bytes);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (n, bytes.clone());
        Ok(bytes)
    }
}

impl ReadAt for Frames {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.len {
            return Ok(0);
        }
        let n = self.starts.partition_point(|start| *start <= offset) - 1;
        let bytes = self.frame(n)?;
        let from = usize::try_from(offset - self.starts[n]).unwrap_or(usize::MAX).min(bytes.len());
        let most = buf.len().min(bytes.len() - from);
        buf[..most].copy_from_slice(&bytes[from..from + most]);
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Memory(Vec<u8>);

    impl ReadAt for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let from = usize::try_from(offset).expect("small").min(self.0.len());
            let most = buf.len().min(self.0.len() - from);
            buf[..most].copy_from_slice(&self.0[from..from + most]);
            Ok(most)
        }
    }

    fn frame(bytes: &[u8], says: bool, checksum: bool) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("an encoder");
        encoder.include_checksum(checksum).expect("set");
        if says {
            encoder.set_pledged_src_size(Some(bytes.len() as u64)).expect("set");
        }
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    #[test]
    fn contents_are_measured_without_decompressing() {
        let noise: Vec<u8> = (0..300_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for size in [0, 1, 255, 256, 257, 65_791, 65_792, 1_200_000] {
            let one = frame(&noise[..size], true, true);
            assert_eq!(zstd_content(&Memory(one.clone())).expect("read"), (size > 0).then_some(size as u64), "{size}");
            let zeros = frame(&vec![0; size + 1], true, false);
            let skippable = [&0x184d_2a51_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"12345"].concat();
            let several = [one, skippable, zeros].concat();
            assert_eq!(zstd_content(&Memory(several.clone())).expect("read"), Some(2 * size as u64 + 1));
            for cut in [1, several.len() / 2, several.len() - 1] {
                assert_eq!(zstd_content(&Memory(several[..cut].to_vec())).expect("read"), None, "{size} {cut}");
            }
        }
        assert_eq!(zstd_content(&Memory(frame(&noise, false, true))).expect("read"), None);
        assert_eq!(zstd_content(&Memory(b"no zstd at all, not at all".to_vec())).expect("read"), None);
    }

    #[test]
    fn contents_are_read_from_anywhere() {
        let parts: Vec<Vec<u8>> = (1..20_u8).map(|n| vec![n; usize::from(n) * 1000]).collect();
        let file = parts.iter().flat_map(|part| frame(part, true, true)).collect();
        let frames = Frames::new(Arc::new(Memory(file))).expect("read").expect("seekable");
        let all = parts.concat();
        assert_eq!(frames.len(), all.len() as u64);
        for (from, len) in [(0, 10), (999, 2), (5_000, 50_000), (all.len() - 1, 1), (all.len(), 0)] {
            let mut got = vec![0; len];
            assert_eq!(read_full(&frames, &mut got, from as u64).expect("read"), len);
            assert_eq!(got, all[from..from + len]);
        }
    }
}
