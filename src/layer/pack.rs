//! Layers made from a list of files, the same bytes every time.

use std::io::{self, Read};

use super::read::{Entry, EntryKind, Time};
use crate::oci::{Algorithm, Digest, Hasher, media_type};

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    #[default]
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The media type of such a layer in an OCI manifest.
    pub fn oci_media_type(self) -> String {
        let suffix = match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        };
        format!("{}{suffix}", media_type::OCI_LAYER)
    }
}

impl Entry {
    /// An entry that belongs to 0:0 and is of 1970: mode 0755 for directories, 0777 for symbolic links, 0644 for others.
    pub fn new(path: impl Into<Vec<u8>>, kind: EntryKind) -> Self {
        let mode = match kind {
            EntryKind::Directory => 0o755,
            EntryKind::Symlink => 0o777,
            _ => 0o644,
        };
        let (path, link, xattrs) = (path.into(), Vec::new(), Vec::new());
        let mtime = Time { seconds: 0, nanos: 0 };
        Self { path, kind, link, mode, uid: 0, gid: 0, mtime, atime: None, size: 0, device: (0, 0), xattrs }
    }
}

/// What a number may be at most in a field of seven octal digits, which is what every reader of archives understands.
const OCTAL_7: i64 = 0o7_777_777;

/// A tar of entries in the given order, each with its contents: ustar, with PAX records for what does not fit its fields. Paths
/// and links are written as they are, good or not.
///
/// # Errors
/// An attribute whose name is not UTF-8.
pub fn tar(entries: &[(Entry, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (entry, contents) in entries {
        let contents = if entry.kind == EntryKind::Regular { &contents[..] } else { &[] };
        let records = records(entry)?;
        if !records.is_empty() {
            builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        }
        builder.append(&header(entry, contents.len()), contents)?;
    }
    builder.into_inner()
}

/// PAX records (pax(1), "pax Extended Header") of what the header has no room for.
fn records(entry: &Entry) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut records = Vec::new();
    let mut put = |key: &str, value: Vec<u8>| records.push((key.to_owned(), value));
    if entry.path.len() > NAME {
        put("path", entry.path.clone());
    }
    if entry.link.len() > NAME {
        put("linkpath", entry.link.clone());
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > OCTAL_7 {
            put(key, id.to_string().into_bytes());
        }
    }
    let Time { seconds, nanos } = entry.mtime;
    if seconds < 0 || nanos > 0 {
        // A time before 1970 with a fraction is counted from its second downwards.
        let text = match (seconds, nanos) {
            (seconds, 0) => seconds.to_string(),
            (seconds @ 0.., nanos) => format!("{seconds}.{nanos:09}"),
            (seconds, nanos) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
        };
        put("mtime", text.into_bytes());
    }
    for (name, value) in &entry.xattrs {
        let name = std::str::from_utf8(name).map_err(io::Error::other)?;
        records.push((format!("SCHILY.xattr.{name}"), value.clone()));
    }
    Ok(records)
}

/// Bytes that the header has for a name.
const NAME: usize = 100;

fn header(entry: &Entry, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    let mut flag = tar::EntryType::Regular;
    match entry.kind {
        EntryKind::Regular | EntryKind::Other(_) | EntryKind::Global => {}
        EntryKind::HardLink => flag = tar::EntryType::Link,
        EntryKind::Symlink => flag = tar::EntryType::Symlink,
        EntryKind::Char => flag = tar::EntryType::Char,
        EntryKind::Block => flag = tar::EntryType::Block,
        EntryKind::Directory => flag = tar::EntryType::Directory,
        EntryKind::Fifo => flag = tar::EntryType::Fifo,
    }
    if let EntryKind::Other(other) = entry.kind {
        flag = tar::EntryType::new(other);
    }
    header.set_entry_type(flag);
    let unsigned = |n: i64, max: i64| u64::try_from(n.clamp(0, max)).unwrap_or(0);
    header.set_mode(u32::try_from(entry.mode & 0o7777).unwrap_or(0));
    header.set_uid(unsigned(entry.uid, OCTAL_7));
    header.set_gid(unsigned(entry.gid, OCTAL_7));
    header.set_mtime(unsigned(entry.mtime.seconds, i64::MAX));
    header.set_size(size as u64);
    if let Some(ustar) = header.as_ustar_mut() {
        for (field, bytes) in [(&mut ustar.name, &entry.path), (&mut ustar.linkname, &entry.link)] {
            let len = bytes.len().min(NAME);
            field[..len].copy_from_slice(&bytes[..len]);
        }
        if matches!(entry.kind, EntryKind::Char | EntryKind::Block) {
            let number = |n: i64| u32::try_from(n).unwrap_or(0);
            ustar.set_device_major(number(entry.device.0));
            ustar.set_device_minor(number(entry.device.1));
        }
    }
    header.set_cksum();
    header
}

/// The header of a file in an archive: mode 0644, owner 0:0, time 1970. Its contents follow, and [`padding`].
///
/// # Errors
/// A path that tar cannot hold.
pub fn member_header(path: &str, size: u64) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path)?;
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

/// Bytes of zeros behind the contents of a file in an archive.
pub fn padding(size: u64) -> usize {
    usize::try_from(size % 512).map_or(0, |rest| (512 - rest) % 512)
}

/// A zstd frame that says how many bytes it holds.
///
/// # Errors
/// None in practice: the output is memory.
pub fn zstd_frame(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(bytes, zstd::DEFAULT_COMPRESSION_LEVEL)
}

/// Compresses what `source` gives, and tells the digest of that: the same bytes on every machine, at the usual levels.
///
/// # Errors
/// Those of `source`.
pub fn compress(source: impl Read, compression: Compression) -> io::Result<(Vec<u8>, Digest)> {
    let mut source = Hashed { inner: source, hasher: Hasher::new(Algorithm::Sha256) };
    let mut bytes = Vec::new();
    match compression {
        Compression::None => {
            io::copy(&mut source, &mut bytes)?;
        }
        Compression::Gzip => {
            let level = flate2::Compression::default();
            let mut encoder = flate2::GzBuilder::new().mtime(0).write(bytes, level);
            io::copy(&mut source, &mut encoder)?;
            bytes = encoder.finish()?;
        }
        Compression::Zstd => zstd::stream::copy_encode(&mut source, &mut bytes, zstd::DEFAULT_COMPRESSION_LEVEL)?,
    }
    Ok((bytes, source.hasher.finish()))
}

struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}
