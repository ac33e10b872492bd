//! Framing of members (RFC 1952).

use super::support::{gunzip, gzip, member, structured};
use crate::layer::inflate::GzipError;

/// A member with these flags and fields between header and deflate data.
fn with_header(flags: u8, fields: &[u8], contents: &[u8]) -> Vec<u8> {
    let plain = gzip(contents, 6);
    let mut out = plain[..10].to_vec();
    out[3] = flags;
    out.extend_from_slice(fields);
    out.extend_from_slice(&plain[10..]);
    out
}

#[test]
fn members_are_concatenated() {
    let (a, b) = (structured(100_000, 20), structured(300, 21));
    for list in [[&a[..], &b], [&b, &a], [&b, &b], [&[], &b], [&b, &[]], [&[], &[]]] {
        let stream: Vec<u8> = list.iter().flat_map(|contents| gzip(contents, 6)).collect();
        assert!(gunzip(&stream).unwrap() == list.concat());
    }
    let stream: Vec<u8> = (0..3000).flat_map(|_| gzip(&b, 6)).collect();
    assert!(gunzip(&stream).unwrap() == b.repeat(3000));
}

#[test]
fn a_member_does_not_reach_into_the_one_before() {
    // A fixed block: the length 3 at distance 1, then the end.
    let deflate = [0b0000_0011, 0b0000_0010, 0];
    let mut stream = gzip(b"contents", 6);
    stream.extend(member(&deflate, b"sss"));
    assert!(matches!(gunzip(&stream), Err(GzipError::Deflate("distance too far back"))));
}

#[test]
fn optional_fields_are_stepped_over() {
    let extra = [3, 0, 1, 2, 3];
    let long = vec![0xff; 2 + 65_535];
    for (flags, fields) in [
        (0, &b""[..]),
        (1, b""),
        (4, &extra),
        (4, &long),
        (8, b"name\0"),
        (16, b"a comment\0"),
        (8 | 16, b"name\0comment\0"),
        (4 | 8 | 16, b"\x02\0xyname\0comment\0"),
        (0xe0, b""),
    ] {
        assert_eq!(gunzip(&with_header(flags, fields, b"contents")).unwrap(), b"contents", "flags {flags:#x}");
    }
}

#[test]
fn a_name_or_comment_has_at_most_511_bytes() {
    for flag in [8, 16] {
        let mut fields = vec![b'x'; 511];
        fields.push(0);
        assert_eq!(gunzip(&with_header(flag, &fields, b"contents")).unwrap(), b"contents");
        fields.insert(0, b'x');
        assert!(matches!(gunzip(&with_header(flag, &fields, b"contents")), Err(GzipError::Header(_))));
    }
}

#[test]
fn the_checksum_of_a_header_is_verified() {
    let header = [0x1f, 0x8b, 8, 2 | 8, 0, 0, 0, 0, 0, 255, b'n', 0];
    let crc = crc32fast::hash(&header).to_le_bytes();
    let plain = gzip(b"contents", 6);
    let mut stream = [&header[..], &crc[..2], &plain[10..]].concat();
    assert_eq!(gunzip(&stream).unwrap(), b"contents");
    stream[header.len()] ^= 1;
    assert!(matches!(gunzip(&stream), Err(GzipError::Header(_))));
}

#[test]
fn checksum_and_size_are_verified() {
    let plain = gzip(b"contents", 6);
    for from_end in 1..=8 {
        let mut stream = plain.clone();
        let at = stream.len() - from_end;
        stream[at] ^= 0x40;
        assert!(matches!(gunzip(&stream), Err(GzipError::Checksum)));
    }
}

#[test]
fn every_truncation_is_an_error() {
    for level in [0, 1, 6] {
        let stream = gzip(&structured(3000, 22), level);
        for end in 0..stream.len() {
            assert!(matches!(gunzip(&stream[..end]), Err(GzipError::Truncated)), "{end} of level {level}");
        }
    }
}

#[test]
fn nothing_may_follow_the_last_member() {
    let plain = gzip(b"contents", 6);
    for garbage in [&[0; 10][..], &[0; 512], b"garbage at the end", &[0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 0]] {
        assert!(matches!(gunzip(&[&plain, garbage].concat()), Err(GzipError::Header(_))));
    }
    for garbage in [&[0][..], &[0; 9], &[0x1f, 0x8b]] {
        assert!(matches!(gunzip(&[&plain, garbage].concat()), Err(GzipError::Truncated)));
    }
}
