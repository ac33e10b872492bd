//! What an entry and a layer have in themselves that is worth having in a test.

use ::prebake::layer::Compression;

use super::Layer;
use super::archive::{Contents, Entry, Format, Sparse, Time};

/// The last instant containerd keeps: 2262-04-11T23:47:16.854775807Z.
const LAST: Time = (9_223_372_036, 854_775_807);

pub fn of_entry(entry: &Entry) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut is = |yes: bool, feature: &'static str| {
        if yes {
            found.push(feature);
        }
    };
    let directory = entry.flag == b'5' || entry.flag == 0 && entry.path.ends_with(b"/");
    match (&entry.contents, entry.flag) {
        (Contents::Sparse(Sparse::Pax00, ..), _) => is(true, "sparse, PAX 0.0"),
        (Contents::Sparse(Sparse::Pax01, ..), _) => is(true, "sparse, PAX 0.1"),
        (Contents::Sparse(Sparse::Pax10, ..), _) => is(true, "sparse, PAX 1.0"),
        (Contents::Plain(bytes), b'0' | 0) if !directory => {
            is(bytes.is_empty(), "file, empty");
            is((1..100_000).contains(&bytes.len()), "file, small");
            is(bytes.len() >= 100_000, "file, large");
        }
        (_, b'3') => is(true, if entry.device == (0, 0) { "device 0:0" } else { "char device" }),
        (_, b'4') => is(true, "block device"),
        (_, b'6') => is(true, "fifo"),
        (_, b'g') => {
            is(true, if entry.go_path() == entry.path { "global records" } else { "global records with a path" });
        }
        _ => {}
    }
    is(directory && entry.flag == 0, "directory by its slash");
    is(entry.flag == 0 && !directory, "file, old type flag");
    is(!directory && entry.path.ends_with(b"/"), "slash behind a file");
    is(entry.path.starts_with(b"/"), "path, absolute");
    is(entry.path.starts_with(b"../"), "path above the root");
    is(entry.path.split(|byte| *byte == b'/').skip(1).any(|part| part == b".."), "path with ..");
    is(entry.path.windows(2).any(|pair| pair == b"//"), "path with //");
    is(!entry.path.is_ascii(), "path beyond ASCII");
    is(entry.claimed.is_some(), "size without contents");
    let large = |n: i64| !(0..1 << 12).contains(&n);
    is(
        matches!(entry.flag, b'3' | b'4') && (large(entry.device.0) || entry.device.1 >= 1 << 20),
        "device, large numbers",
    );
    is(entry.mode & 0o7000 != 0 && entry.flag != b'g', "mode with setuid, setgid or sticky");
    is(entry.mode & !0o7777 != 0, "mode with bits of a type");
    let ids = [entry.uid, entry.gid];
    is(ids.iter().any(|id| *id > 65_535), "owner above 65535");
    is(ids.iter().any(|id| *id > 0o7_777_777), "owner above 2^21");
    is(ids.contains(&-1), "owner -1");
    is(ids.iter().any(|id| *id < -1), "owner below -1");
    is(entry.mtime.1 > 0, "time with nanoseconds");
    is(entry.mtime.0 < 0, "time before 1970");
    is(entry.mtime > LAST, "time beyond 2262");
    is(entry.atime.is_some_and(|atime| atime < entry.mtime), "access before change");
    is(entry.atime.is_some_and(|atime| atime > entry.mtime), "access behind change");
    let format = entry.real_format();
    let long = entry.path.len() > 100;
    is(format == Format::V7, "header, V7");
    is(format == Format::Ustar, "header, ustar");
    is(format == Format::Gnu && long, "long path, GNU");
    is(format == Format::Pax && long, "long path, PAX");
    is(format == Format::Gnu && entry.link.len() > 100, "long link, GNU");
    is(format == Format::Pax && entry.link.len() > 100, "long link, PAX");
    for (name, value) in &entry.xattrs {
        let is_of = |prefix: &[u8]| name.starts_with(prefix);
        let file = matches!(entry.flag, b'0' | b'5' | 0);
        is(is_of(b"user.") && file, "xattr, user");
        is(is_of(b"user.") && matches!(entry.flag, b'2' | b'3' | b'4' | b'6'), "xattr, user, on no file");
        is(is_of(b"trusted."), "xattr, trusted");
        is(is_of(b"security.capability"), "xattr, capabilities");
        is(is_of(b"system."), "xattr, ACL");
        is(is_of(b"nowhere."), "xattr of no name space");
        is(value.is_empty(), "xattr, empty");
        is(value.contains(&0) || value.contains(&b'\n'), "xattr, binary");
    }
    found
}

pub fn of_layer(layer: &Layer) -> Vec<&'static str> {
    let mut found = vec![match layer.compression {
        Compression::None => "layer, not compressed",
        Compression::Gzip => "layer, gzip",
        Compression::Zstd => "layer, zstd",
    }];
    let mut is = |yes: bool, feature: &'static str| {
        if yes {
            found.push(feature);
        }
    };
    is(layer.entries.is_empty(), "layer, empty");
    is(layer.tail.as_ref().is_some_and(|tail| !tail.is_empty()), "layer, bytes behind its end");
    is(layer.tail.is_none(), "layer, no end");
    let files: Vec<&[u8]> = layer
        .entries
        .iter()
        .filter_map(|entry| match &entry.contents {
            Contents::Plain(bytes) if !bytes.is_empty() && entry.flag == b'0' => Some(bytes.as_slice()),
            _ => None,
        })
        .collect();
    is(files.iter().enumerate().any(|(i, file)| files[..i].contains(file)), "file, the same bytes again");
    found
}

/// What stacks that containerd accepts have.
pub const ACCEPTED: &[&str] = &[
    "access before change",
    "access behind change",
    "block device",
    "char device",
    "device 0:0",
    "device, large numbers",
    "directory again",
    "directory behind its whiteout",
    "directory by its slash",
    "directory over a file",
    "directory over a symlink to one",
    "directory replaced later",
    "documents, Docker",
    "documents, Docker, with zstd",
    "documents, OCI",
    "entry below a symlink",
    "entry of the root",
    "fifo",
    "file again",
    "file behind its whiteout",
    "file over a directory",
    "file over a symlink",
    "file, empty",
    "file, large",
    "file, old type flag",
    "file, small",
    "file, the same bytes again",
    "global records",
    "global records with a path",
    "global records with the path of a file",
    "hard link through a symlink",
    "hard link to a device",
    "hard link to a file",
    "hard link to a symlink",
    "header, V7",
    "header, ustar",
    "implied directory",
    "implied directory in layer 0",
    "implied directory over a directory",
    "implied directory over a file",
    "implied directory over a symlink to a directory",
    "implied directory over a whiteout",
    "layer, bytes behind its end",
    "layer, empty",
    "layer, gzip",
    "layer, no end",
    "layer, not compressed",
    "layer, the same again",
    "layer, zstd",
    "long link, GNU",
    "long link, PAX",
    "long path, GNU",
    "long path, PAX",
    "mode with bits of a type",
    "mode with setuid, setgid or sticky",
    "opaque before the rest",
    "opaque behind the rest",
    "opaque implied directory",
    "opaque in layer 0",
    "opaque removes an implied directory",
    "opaque root",
    "owner -1",
    "owner above 2^21",
    "owner above 65535",
    "owner below -1",
    "path above the root",
    "path beyond ASCII",
    "path with ..",
    "path with //",
    "path, absolute",
    "size without contents",
    "slash behind a file",
    "sparse, PAX 0.0",
    "sparse, PAX 0.1",
    "sparse, PAX 1.0",
    "symlink in a circle",
    "symlink over a directory",
    "symlink through a symlink",
    "symlink to a directory",
    "symlink to a file",
    "symlink to an absolute path",
    "symlink to nothing",
    "symlink with ..",
    "time before 1970",
    "time beyond 2262",
    "time with nanoseconds",
    "whiteout behind a directory of the layer",
    "whiteout behind a name of the layer",
    "whiteout of a lower directory",
    "whiteout of a lower name",
    "whiteout of a whiteout's name",
    "whiteout of nothing",
    "xattr of no name space",
    "xattr, ACL",
    "xattr, binary",
    "xattr, capabilities",
    "xattr, empty",
    "xattr, trusted",
    "xattr, user",
    "xattr, user, on no file",
];

/// Why it refuses the others.
pub const REFUSED: &[&str] = &[
    "a blob without a byte",
    "a default ACL of no directory",
    "a directory that is gone in the end",
    "a directory with contents",
    "a file where a directory is needed",
    "a hard link to a directory",
    "a hard link to itself",
    "a hard link to nothing",
    "a symlink to a bad name",
    "a whiteout of what is there",
    "an invalid whiteout",
    "an old sparse file",
    "an unknown type",
    "capabilities that are none",
    "too many symlinks",
];
