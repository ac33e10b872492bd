//! Blocks made by hand (RFC 1951).

use super::support::{BitWriter, gunzip, gzip, member, structured};
use crate::layer::inflate::GzipError;

/// Order of the precode's lengths.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The header of a final dynamic block with these lengths: code lengths 0 to 15 have codes of four bits.
fn dynamic(litlen: &[usize], dist: &[usize]) -> BitWriter {
    let mut bits = BitWriter::default();
    bits.put(1, 1).put(2, 2).put(litlen.len() - 257, 5).put(dist.len() - 1, 5).put(15, 4);
    for symbol in ORDER {
        bits.put(if symbol < 16 { 4 } else { 0 }, 3);
    }
    for &length in litlen.iter().chain(dist) {
        bits.code(length, 4);
    }
    bits
}

/// Lengths of 257 or more symbols, all zero but those given.
fn lengths(count: usize, given: &[(usize, usize)]) -> Vec<usize> {
    let mut lengths = vec![0; count];
    for &(symbol, length) in given {
        lengths[symbol] = length;
    }
    lengths
}

fn decode(bits: &mut BitWriter, contents: &[u8]) -> Result<Vec<u8>, GzipError> {
    gunzip(&member(&bits.finish(), contents))
}

fn refused(result: Result<Vec<u8>, GzipError>, why: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, GzipError::Deflate(reason) if reason == why), "{error} instead of {why:?}");
}

#[test]
fn dynamic_codes_are_read() {
    // a: 0, the end: 10, length 3: 11; distance 1: 0
    let (litlen, dist) = (lengths(258, &[(97, 1), (256, 2), (257, 2)]), [1]);
    let mut bits = dynamic(&litlen, &dist);
    bits.code(0, 1).code(0b11, 2).code(0, 1).code(0b10, 2);
    assert_eq!(decode(&mut bits, b"aaaa").unwrap(), b"aaaa");
    // the other code of the only distance
    let mut bits = dynamic(&litlen, &dist);
    bits.code(0, 1).code(0b11, 2).code(1, 1).code(0b10, 2);
    refused(decode(&mut bits, b"aaaa"), "invalid distance");
    // a distance where there is no code for any
    let mut bits = dynamic(&litlen, &[0]);
    bits.code(0, 1).code(0b11, 2).code(0, 1).code(0b10, 2);
    refused(decode(&mut bits, b"aaaa"), "invalid distance");
    // no distance needed
    let mut bits = dynamic(&litlen, &[0]);
    bits.code(0, 1).code(0b10, 2);
    assert_eq!(decode(&mut bits, b"a").unwrap(), b"a");
}

#[test]
fn longest_codes_are_read() {
    let mut litlen = lengths(286, &[(256, 15), (255, 15)]);
    (1..15).for_each(|length| litlen[length] = length);
    let mut dist = vec![0; 30];
    (0..15).for_each(|symbol| dist[symbol] = symbol + 1);
    dist[15] = 15;
    let mut bits = dynamic(&litlen, &dist);
    (1..15).for_each(|length| _ = bits.code((1 << length) - 2, length));
    bits.code(0x7ffe, 15).code(0x7fff, 15);
    let contents: Vec<u8> = (1..15).chain([255]).collect();
    assert_eq!(decode(&mut bits, &contents).unwrap(), contents);
}

#[test]
fn incomplete_and_oversubscribed_codes_are_refused() {
    let good = lengths(257, &[(97, 1), (256, 1)]);
    let end_only = lengths(257, &[(256, 1)]);
    assert_eq!(decode(dynamic(&end_only, &[0]).code(0, 1), b"").unwrap(), b"");
    for litlen in [
        lengths(257, &[(97, 1), (256, 2)]),
        lengths(257, &[(97, 1), (98, 1), (256, 1)]),
        lengths(257, &[(256, 2)]),
        lengths(257, &[(97, 1), (98, 2), (256, 15)]),
    ] {
        refused(decode(&mut dynamic(&litlen, &[0]), b""), "invalid literal and length code");
    }
    for dist in [&[1, 2][..], &[1, 1, 1], &[2], &[15, 15]] {
        refused(decode(&mut dynamic(&good, dist), b""), "invalid distance code");
    }
    refused(decode(&mut dynamic(&lengths(257, &[(97, 1), (98, 1)]), &[0]), b""), "no end-of-block code");
    let mut bits = BitWriter::default();
    bits.put(1, 1).put(2, 2).put(0, 5).put(0, 5).put(0, 4).put(1, 3).put(1, 3).put(1, 3).put(0, 3);
    refused(decode(&mut bits, b""), "invalid code of code lengths");
}

#[test]
fn counts_of_codes_are_limited() {
    for (litlen, dist, result) in
        [(29, 29, "invalid distance code"), (30, 29, "too many codes"), (29, 30, "too many codes")]
    {
        let mut bits = BitWriter::default();
        bits.put(1, 1).put(2, 2).put(litlen, 5).put(dist, 5).put(15, 4);
        for symbol in ORDER {
            bits.put(if symbol < 16 { 4 } else { 0 }, 3);
        }
        (0..257 + litlen).for_each(|symbol| _ = bits.code(usize::from(symbol == 256 || symbol == 0), 4));
        (0..=dist).for_each(|_| _ = bits.code(1, 4));
        refused(decode(&mut bits, b""), result);
    }
}

#[test]
fn repeats_of_code_lengths_stay_inside() {
    // 16, 17 and 18 have codes of two bits: 01, 10 and 11; 0 has 00.
    let begin = || {
        let mut bits = BitWriter::default();
        bits.put(1, 1).put(2, 2).put(0, 5).put(0, 5).put(0, 4);
        bits.put(2, 3).put(2, 3).put(2, 3).put(2, 3);
        bits
    };
    refused(decode(begin().code(1, 2).put(0, 2), b""), "repeat of no code length");
    let mut bits = begin();
    bits.code(3, 2).put(127, 7).code(3, 2).put(110, 7);
    refused(decode(&mut bits, b""), "too many code lengths");
    let mut bits = begin();
    bits.code(3, 2).put(127, 7).code(3, 2).put(109, 7);
    refused(decode(&mut bits, b""), "no end-of-block code");
}

#[test]
fn stored_blocks_are_copied() {
    let mut bits = BitWriter::default();
    bits.put(0, 3).raw(&[0, 0, 255, 255]).put(0, 3).raw(&[3, 0, 252, 255]).raw(b"abc").put(1, 3).raw(&[0, 0, 255, 255]);
    assert_eq!(decode(&mut bits, b"abc").unwrap(), b"abc");
    let mut bits = BitWriter::default();
    refused(decode(bits.put(1, 3).raw(&[3, 0, 252, 254]), b""), "lengths of a stored block differ");
    refused(decode(BitWriter::default().put(7, 3), b""), "reserved block type");
}

#[test]
fn fixed_blocks_know_forbidden_symbols() {
    for symbol in [286, 287] {
        let mut bits = BitWriter::default();
        bits.put(1, 1).put(1, 2).code(0b1100_0000 + symbol - 280, 8);
        refused(decode(&mut bits, b""), "invalid literal or length");
    }
    for distance in [30, 31] {
        let mut bits = BitWriter::default();
        bits.put(1, 1).put(1, 2).code(0x30 + 97, 8).code(1, 7).code(distance, 5);
        refused(decode(&mut bits, b""), "invalid distance");
    }
}

#[test]
fn distances_reach_to_the_beginning_and_no_further() {
    for (back, good) in [(5, true), (6, false)] {
        let mut bits = BitWriter::default();
        bits.put(1, 1).put(1, 2);
        for byte in *b"abcde" {
            bits.code(0x30 + usize::from(byte), 8);
        }
        // length 3, distances 5 and 6 (code 4 and one extra bit), the end
        bits.code(1, 7).code(4, 5).put(back - 5, 1).code(0, 7);
        let result = decode(&mut bits, b"abcdeabc");
        assert_eq!(result.is_ok(), good);
        if good {
            assert_eq!(result.unwrap(), b"abcdeabc");
        }
    }
    // 32 KiB in stored blocks, then as far back as it goes: length 258, distance 32,768
    for (stored, good) in [(32_768_usize, true), (32_767, false)] {
        let contents = structured(stored, 30);
        let mut bits = BitWriter::default();
        let (low, high) = (stored as u8, (stored >> 8) as u8);
        bits.put(0, 3).raw(&[low, high, !low, !high]).raw(&contents);
        bits.put(1, 1).put(1, 2).code(0b1100_0101, 8).code(29, 5).put(0x1fff, 13).code(0, 7);
        let all = [&contents[..], &contents[..258]].concat();
        assert_eq!(decode(&mut bits, &all).is_ok_and(|out| out == all), good);
    }
}

#[test]
fn damage_is_noticed_and_never_panics() {
    let contents = structured(4000, 31);
    for level in [0, 1, 6] {
        let stream = gzip(&contents, level);
        let mut padding = 0;
        for at in 0..stream.len() * 8 {
            let mut damaged = stream.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let result = gunzip(&damaged);
            // time, flags without a meaning and the system of a header are not verified by anything
            let free = (4..10).contains(&(at / 8)) || (at / 8 == 3 && (at % 8 == 0 || at % 8 >= 5));
            assert!(result.is_ok() || !free, "bit {at} of level {level}");
            if let Ok(out) = result {
                assert!(out == contents, "bit {at} of level {level}");
                padding += usize::from(!free);
            }
        }
        assert!(padding < 8, "{padding} bits of level {level} made no difference");
    }
}
