//! Layers made from a list of files, the same bytes every time.

use std::io::{self, Write};

use crate::oci::media_type;

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

/// A file of a layer. Owner 0:0, time 1970.
#[derive(Debug, Clone)]
pub struct File {
    /// Path without a leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub kind: Kind,
}

/// What a file is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// With these bytes.
    Regular(Vec<u8>),
    /// A directory.
    Directory,
    /// To this target.
    Symlink(String),
}

/// A tar of files in the given order.
///
/// # Errors
/// A path that tar cannot hold.
pub fn tar(files: &[File]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(file.mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let mut append = |kind: tar::EntryType, bytes: &[u8]| {
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, &file.path, bytes)
        };
        match &file.kind {
            Kind::Regular(bytes) => append(tar::EntryType::Regular, bytes)?,
            Kind::Directory => append(tar::EntryType::Directory, &[])?,
            Kind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, &file.path, target)?;
            }
        }
    }
    builder.into_inner()
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

/// Compresses, with levels that suit small fixtures.
///
/// # Errors
/// None in practice: the output is memory.
pub fn compress(bytes: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    match compression {
        Compression::None => Ok(bytes.to_vec()),
        Compression::Gzip => {
            let mut encoder = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes)?;
            encoder.finish()
        }
        Compression::Zstd => zstd::encode_all(bytes, zstd::DEFAULT_COMPRESSION_LEVEL),
    }
}
