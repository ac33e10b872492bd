//! What a random entry has besides its name.

use super::archive::{Contents, Entry, Format, Sparse, Time};
use crate::support::rng::Rng;

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len())]
}

/// Gives an entry a mode, an owner, times, extended attributes and a format.
pub fn set(rng: &mut Rng, entry: &mut Entry) {
    entry.mode = mode(rng);
    entry.uid = id(rng);
    entry.gid = id(rng);
    entry.mtime = time(rng);
    if rng.one_in(6) {
        entry.atime = Some(time(rng));
    }
    if rng.one_in(20) && matches!(entry.flag, b'1'..=b'6') {
        entry.claimed = Some(1000);
    }
    if rng.one_in(4) {
        for _ in 0..=rng.below(3) {
            let (name, value) = xattr(rng, entry.flag);
            if entry.xattrs.iter().all(|(other, _)| *other != name) {
                entry.xattrs.push((name, value));
            }
        }
    }
    entry.format = pick(rng, &[Format::V7, Format::Ustar, Format::Gnu, Format::Gnu, Format::Pax, Format::Pax]);
}

fn mode(rng: &mut Rng) -> i64 {
    let permissions = match rng.below(4) {
        0 => 0o755,
        1 => 0o644,
        2 => i64::try_from(rng.below(0o1000)).unwrap(),
        _ => i64::try_from(rng.below(0o10000)).unwrap(),
    };
    let kind = if rng.one_in(12) { pick(rng, &[0o040_000, 0o100_000, 0o120_000, 0o020_000, 0o140_000]) } else { 0 };
    permissions | kind
}

fn id(rng: &mut Rng) -> i64 {
    match rng.below(24) {
        0 => -1,
        1 => pick(rng, &[-2, -1000, i64::from(i32::MIN)]),
        2 => pick(rng, &[65_534, 65_535, 65_536, 100_000]),
        3 => pick(rng, &[0o7_777_777, 0o10_000_000, 3_000_000]),
        4 => pick(rng, &[i64::from(u32::MAX) - 1, i64::from(u32::MAX), 1 << 32, (1 << 32) + 7, i64::from(i32::MAX)]),
        5..9 => i64::try_from(rng.below(2000)).unwrap(),
        _ => 0,
    }
}

fn time(rng: &mut Rng) -> Time {
    let seconds = match rng.below(16) {
        0 => pick(rng, &[0, -1, -2, -86_400 * 365 * 30, i64::from(i32::MIN)]),
        1 => pick(rng, &[9_223_372_036, 9_223_372_037, 1 << 34, 253_402_300_799]),
        2 => pick(rng, &[1 << 31, (1 << 31) - 1, 1 << 32, 0o77_777_777_777]),
        _ => 1_000_000_000 + i64::try_from(rng.below(600_000_000)).unwrap(),
    };
    let nanos = if rng.one_in(4) { pick(rng, &[1, 999_999_999, 854_775_807, 854_775_808, 123_456_789]) } else { 0 };
    (seconds, nanos)
}

fn xattr(rng: &mut Rng, flag: u8) -> (Vec<u8>, Vec<u8>) {
    let value = match rng.below(4) {
        0 => Vec::new(),
        1 => b"line\nwith\0a NUL=\xff".to_vec(),
        2 => rng.bytes(300),
        _ => b"value".to_vec(),
    };
    let name = match rng.below(10) {
        0 => return (b"security.capability".to_vec(), capabilities(rng)),
        1 => pick(rng, &["trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.x"]),
        2 => pick(rng, &["nowhere.name", "nodots"]),
        3 => "security.other",
        4 if flag == b'5' && rng.one_in(2) => return (b"system.posix_acl_default".to_vec(), acl(rng)),
        4 if matches!(flag, b'0' | b'5') => return (b"system.posix_acl_access".to_vec(), acl(rng)),
        4 if rng.one_in(4) => return (b"system.posix_acl_default".to_vec(), acl(rng)),
        5 => "user.overlay.opaque",
        _ => pick(rng, &["user.a", "user.b", "user.with space"]),
    };
    (name.as_bytes().to_vec(), value)
}

/// `struct vfs_cap_data` (linux/capability.h), version 2 or 3.
fn capabilities(rng: &mut Rng) -> Vec<u8> {
    let mut value = vec![1, 0, 0, 2];
    value.extend(rng.bytes(4));
    value.extend([0; 12]);
    if rng.one_in(12) {
        value.truncate(7);
    } else if rng.one_in(3) {
        value[3] = 3;
        value.extend(u32::try_from(rng.below(2) * 1000).unwrap().to_le_bytes());
    }
    value
}

/// An access control list as the kernel takes it (`linux/posix_acl_xattr.h`).
fn acl(rng: &mut Rng) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let user = 1000 + u32::try_from(rng.below(3)).unwrap();
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in [(1_u16, NOBODY), (2, user), (4, NOBODY), (0x10, NOBODY), (0x20, NOBODY)] {
        value.extend(tag.to_le_bytes());
        value.extend(u16::try_from(rng.below(8)).unwrap().to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// What is in a regular file.
pub fn contents(rng: &mut Rng) -> Contents {
    match rng.below(24) {
        0..4 => Contents::Plain(Vec::new()),
        4 => {
            let len = 100_000 + rng.below(200_000);
            Contents::Plain(rng.bytes(len))
        }
        5..10 => Contents::Plain(b"the same everywhere\n".repeat(1 + 400 * rng.below(2))),
        10..13 => sparse(rng),
        _ => {
            let len = rng.below(9000);
            Contents::Plain(rng.bytes(len))
        }
    }
}

fn sparse(rng: &mut Rng) -> Contents {
    let version = pick(rng, &[Sparse::OldGnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10]);
    let mut fragments = Vec::new();
    let mut at = 0;
    for _ in 0..[1, 2, 5, 30][rng.below(4)] {
        at += 512 * rng.below(20) as u64;
        let len = 512 * (1 + rng.below(4));
        fragments.push((at, rng.bytes(len)));
        at += len as u64;
    }
    let hole = rng.below(50_000) as u64;
    if hole > 0 {
        // What GNU tar writes: an empty fragment at the end.
        fragments.push((at + hole, Vec::new()));
    }
    Contents::Sparse(version, at + hole, fragments)
}
