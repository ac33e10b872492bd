//! Go's encodings of numbers and times.

use chrono::{DateTime, TimeDelta, Utc};

/// Seconds from 0001-01-01 to 1970-01-01 (Go `time.unixToInternal`).
const UNIX_TO_GO: i64 = 62_135_596_800;
/// `time.Time.MarshalBinary`, version 1: {version u8, seconds i64, nanoseconds u32, zone offset in minutes i16}, big endian.
const TIME_LEN: usize = 15;

/// Go `binary.PutVarint`: zigzag, then as [`uvarint`].
pub(super) fn varint(n: i64) -> Vec<u8> {
    uvarint((n.cast_unsigned() << 1) ^ (n >> 63).cast_unsigned())
}

/// Go `binary.PutUvarint`: seven bits a byte.
pub(super) fn uvarint(mut rest: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push((rest & 0x7f) as u8);
    out
}

/// Go `binary.Varint` over the whole of `bytes`.
pub(super) fn parse_varint(bytes: &[u8]) -> Option<i64> {
    let n = parse_uvarint(bytes)?;
    Some((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
}

/// A key among the `parents` of a snapshotter: ids of parent and child with a zero byte between (containerd
/// `storage.parentKey`).
pub(super) fn link(parent: u64, child: u64) -> Vec<u8> {
    [uvarint(parent), vec![0], uvarint(child)].concat()
}

/// The ids in what [`link`] makes.
pub(super) fn parse_link(key: &[u8]) -> Option<(u64, u64)> {
    // The last byte of a varint has no high bit, and only the number 0, which no id is, has a zero byte at its end.
    let end = key.iter().position(|byte| byte & 0x80 == 0)?;
    let (parent, rest) = key.split_at(end + 1);
    Some((parse_uvarint(parent)?, parse_uvarint(rest.strip_prefix(&[0])?)?))
}

/// Go `binary.Uvarint` over the whole of `bytes`.
pub(super) fn parse_uvarint(bytes: &[u8]) -> Option<u64> {
    let mut n: u64 = 0;
    let (last, more) = bytes.split_last()?;
    if bytes.len() > 10 || last & 0x80 != 0 || more.iter().any(|byte| byte & 0x80 == 0) {
        return None;
    }
    for (i, byte) in bytes.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        n |= bits.checked_shl(7 * u32::try_from(i).ok()?).filter(|shifted| shifted >> (7 * i) == bits)?;
    }
    Some(n)
}

/// Go's binary form of a time in UTC, which it marks by the offset -1.
pub(super) fn time(at: DateTime<Utc>) -> Vec<u8> {
    let mut out = vec![1];
    out.extend((at.timestamp() + UNIX_TO_GO).to_be_bytes());
    out.extend(at.timestamp_subsec_nanos().to_be_bytes());
    out.extend((-1i16).to_be_bytes());
    out
}

/// The instant in Go's binary form; the zone does not matter.
pub(super) fn parse_time(bytes: &[u8]) -> Option<DateTime<Utc>> {
    // Version 2 has a sixteenth byte for zones with odd seconds.
    if bytes.len() < TIME_LEN || !matches!(bytes[0], 1 | 2) {
        return None;
    }
    let seconds = i64::from_be_bytes(bytes[1..9].try_into().ok()?).checked_sub(UNIX_TO_GO)?;
    let nanos = u32::from_be_bytes(bytes[9..13].try_into().ok()?);
    DateTime::from_timestamp(seconds, 0)?.checked_add_signed(TimeDelta::nanoseconds(i64::from(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_go_writes_them() {
        for (n, bytes) in [
            (3, &[0x06][..]),
            (4, &[0x08]),
            (-1, &[0x01]),
            (381, &[0xfa, 0x05]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            assert_eq!(varint(n), bytes);
            assert_eq!(parse_varint(bytes), Some(n));
        }
        for bad in [
            &[][..],
            &[0x80],
            &[0x06, 0x06],
            &[0xff; 10],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
        ] {
            assert_eq!(parse_varint(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn links_between_snapshots() {
        assert_eq!(link(1, 2), [1, 0, 2]);
        assert_eq!(parse_link(&link(300, u64::MAX)), Some((300, u64::MAX)));
        assert_eq!(parse_link(&[0x80, 0x01, 0, 0xff, 0x01]), Some((128, 255)));
        for bad in [&[][..], &[1], &[1, 2], &[0x80], &[1, 0], &[1, 0, 0x80]] {
            assert_eq!(parse_link(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn times_as_go_writes_them() {
        let at = DateTime::parse_from_rfc3339("2023-11-14T22:13:20.123456789Z").expect("a time").to_utc();
        let bytes = [1, 0, 0, 0, 0x0e, 0xdc, 0xe5, 0xe8, 0, 0x07, 0x5b, 0xcd, 0x15, 0xff, 0xff];
        assert_eq!(time(at), bytes);
        assert_eq!(parse_time(&bytes), Some(at));
        assert_eq!(parse_time(&bytes[1..]), None);
        assert_eq!(parse_time(&[0xff; 15]), None);
    }
}
