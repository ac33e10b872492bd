//! Contents come back as they went in.

use std::io::{self, Read};

use super::support::{Numbers, drain, gunzip, gunzip_segments, gzip, structured};
use crate::layer::inflate::buffers::BLOCK;
use crate::layer::inflate::{Buffers, Gunzip, GzipError};

#[test]
fn every_small_size_comes_back() {
    let contents = structured(700, 1);
    for size in 0..contents.len() {
        for level in [0, 1, 6] {
            assert_eq!(gunzip(&gzip(&contents[..size], level)).unwrap(), &contents[..size], "{size} at level {level}");
        }
    }
}

#[test]
fn every_level_comes_back() {
    for (size, seed) in [(70_000, 2), (BLOCK, 3), (3 * BLOCK + 17, 4)] {
        let contents = structured(size, seed);
        for level in 0..=9 {
            assert!(gunzip(&gzip(&contents, level)).unwrap() == contents, "{size} at level {level}");
        }
    }
}

#[test]
fn extremes_come_back() {
    let mut numbers = Numbers::new(5);
    let noise: Vec<u8> = (0..1_000_000).map(|_| numbers.below(256) as u8).collect();
    let far: Vec<u8> = noise[..32_768].iter().copied().cycle().take(400_000).collect();
    for contents in [noise, far, vec![0; 3_000_000], b"ab".repeat(400_000), b"abcdefghijklmno".repeat(50_000)] {
        for level in [0, 1, 6, 9] {
            assert!(gunzip(&gzip(&contents, level)).unwrap() == contents);
        }
    }
}

#[test]
fn segments_of_any_size_make_no_difference() {
    let contents = structured(300_000, 6);
    let pool = Buffers::new();
    for level in [0, 1, 6] {
        let stream = gzip(&contents, level);
        for segment in [1, 2, 7, 64, 1000, 1023, 1024, 1025, 4096, stream.len() - 1024, stream.len() - 1, stream.len()]
        {
            assert!(gunzip_segments(&stream, segment, &pool).unwrap() == contents, "{segment} at level {level}");
        }
    }
}

/// Gives few bytes at a time, and is interrupted now and then.
struct Dribble<'a>(&'a [u8], Numbers);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.1.below(4) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = (1 + self.1.below(50)).min(buffer.len());
        self.0.read(&mut buffer[..count])
    }
}

#[test]
fn a_source_may_give_few_bytes_at_a_time() {
    let contents = structured(200_000, 7);
    let stream = gzip(&contents, 6);
    let gunzip = Gunzip::new(Dribble(&stream, Numbers::new(8)), Buffers::new());
    assert!(drain(gunzip).unwrap() == contents);
}

#[test]
fn an_error_of_the_source_is_reported() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let stream = gzip(&structured(500_000, 9), 6);
    let mut gunzip = Gunzip::new(stream[..stream.len() / 2].chain(Broken), Buffers::new());
    let error = loop {
        match gunzip.next_block() {
            Ok(block) => assert!(block.is_some()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, GzipError::Read(_)), "{error}");
    assert!(matches!(gunzip.next_block(), Err(GzipError::Failed)));
}

#[test]
fn blocks_are_full_and_their_buffers_used_again() {
    let contents = structured(6 * BLOCK, 10);
    let stream = gzip(&contents, 6);
    let pool = Buffers::new();
    let mut gunzip = Gunzip::new(&stream[..], pool.clone());
    let mut sizes = Vec::new();
    while let Some(block) = gunzip.next_block().unwrap() {
        sizes.push(block.len());
    }
    drop(gunzip);
    assert!(sizes.len() >= 6 && sizes.iter().all(|&size| size <= BLOCK), "{sizes:?}");
    assert!(sizes[..sizes.len() - 1].iter().all(|&size| size > BLOCK - 1024), "{sizes:?}");
    assert!(pool.idle() <= 3, "{} buffers for one block at a time", pool.idle());
}
