//! What a directory takes on its disk, as containerd counts it at commit (`continuity/fs.DiskUsage`).

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType};

use super::tree::{file_type, join, open_to_list};

/// Bytes of a block as `stat` counts them.
const BLOCK: u64 = 512;

/// What a directory takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files, directories and everything else, itself included; hard links once.
    pub inodes: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Counts everything in a directory, and the directory.
///
/// # Errors
/// The system's.
pub fn usage(dir: &OwnedFd) -> io::Result<Usage> {
    let mut total = Usage::default();
    let mut add = |blocks: i64| {
        total.inodes += 1;
        total.bytes += u64::try_from(blocks).unwrap_or(0) * BLOCK;
    };
    add(rustix::fs::fstat(dir)?.st_blocks);
    let mut linked = HashSet::new();
    // Paths, because a deep tree would take as many open directories.
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let open = open_to_list(dir.as_fd(), if path.is_empty() { b"." } else { &path })?;
        for entry in Dir::read_from(&open)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(&open, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if file_type(&stat) == FileType::Directory {
                todo.push(join(&path, name));
            } else if stat.st_nlink > 1 && !linked.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            add(stat.st_blocks);
        }
    }
    Ok(total)
}
