//! Whether this process, on this file system, can make snapshots.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, Uid, XattrFlags};
use rustix::thread::CapabilitySet;

/// What is needed, and what for.
const NEEDED: [(CapabilitySet, &str, &str); 7] = [
    (CapabilitySet::CHOWN, "CAP_CHOWN", "files of other owners"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE", "directories that nobody may write to"),
    (CapabilitySet::FOWNER, "CAP_FOWNER", "modes and times of files of other owners"),
    (CapabilitySet::FSETID, "CAP_FSETID", "setgid files of other groups"),
    (CapabilitySet::MKNOD, "CAP_MKNOD", "devices, and overlayfs' whiteouts"),
    (CapabilitySet::SETFCAP, "CAP_SETFCAP", "capabilities of files"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN", "overlayfs' opaque directories, which are trusted.* attributes"),
];

/// Why snapshots cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The process lacks capabilities.
    #[error("unpacking needs {0}; run as root, or without --unpack: containerd then unpacks at first use")]
    Capabilities(String),
    /// The file system, or the user namespace, lacks something.
    #[error("layers cannot be unpacked there: {what} {why}; use another file system, or do not unpack")]
    FileSystem {
        /// What was tried.
        what: &'static str,
        /// How that went.
        why: String,
    },
}

/// What keeps this process from making snapshots in a directory, if anything.
///
/// # Errors
/// The system's, when that cannot be told.
pub(super) fn check(dir: &Path) -> io::Result<Option<Unfit>> {
    let effective = rustix::thread::capabilities(None)?.effective;
    let missing: Vec<String> = NEEDED
        .into_iter()
        .filter(|(capability, ..)| !effective.contains(*capability))
        .map(|(_, name, what)| format!("{name} (for {what})"))
        .collect();
    if !missing.is_empty() {
        return Ok(Some(Unfit::Capabilities(missing.join(", "))));
    }
    let path = dir.join("fs/probe");
    let attribute = |name: &'static str, value: &[u8]| rustix::fs::setxattr(&path, name, value, XattrFlags::empty());
    fs::create_dir(&path)?;
    // Capabilities in a user namespace are not worth what they say.
    let tried = [
        ("making a device", rustix::fs::mknodat(CWD, path.join("device"), FileType::CharacterDevice, Mode::empty(), 0)),
        (
            "giving a file away",
            rustix::fs::chownat(CWD, &path, Some(Uid::from_raw(1)), Some(Gid::from_raw(1)), AtFlags::empty()),
        ),
        ("setting a user.* attribute", attribute("user.prebake", b"y")),
        ("setting a trusted.* attribute", attribute("trusted.overlay.opaque", b"y")),
    ];
    for (what, result) in tried {
        if let Err(errno) = result {
            return Ok(Some(Unfit::FileSystem { what, why: format!("failed: {}", io::Error::from(errno)) }));
        }
    }
    for entry in Dir::read_from(File::open(&path)?)? {
        // containerd's overlayfs snapshotter refuses such a file system.
        if entry?.file_type() == FileType::Unknown {
            let why = "does not tell what its entries are (d_type)".to_owned();
            return Ok(Some(Unfit::FileSystem { what: "listing a directory", why }));
        }
    }
    Ok(None)
}
