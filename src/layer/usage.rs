//! What a directory takes on a disk, by what is in it and in blocks of 4 KiB: close to what containerd asks the disk for at
//! commit (`continuity/fs.DiskUsage`), and the same on every file system and at every moment, which the disk's answer is not.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Stat};

use super::tree::{file_type, join, open_to_list};

/// Bytes of a block of nearly every file system.
const BLOCK: u64 = 4096;
/// The longest symbolic link that needs no block, in bytes (ext4's `i_block`).
const SHORT_LINK: u64 = 59;
/// What an entry of a directory takes besides its name, and what that is rounded to, in bytes (ext4's `ext4_dir_entry_2`).
const ENTRY: u64 = 8;
const ENTRY_ALIGN: u64 = 4;
/// What `st_blocks` counts in, in bytes.
const SECTOR: u64 = 512;

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
    let mut add = |bytes: u64| {
        total.inodes += 1;
        total.bytes += bytes.next_multiple_of(BLOCK);
    };
    walk(dir, &mut |seen| {
        match seen {
            Seen::Directory { entries, .. } => add(*entries),
            Seen::Other(stat) => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                add(match file_type(stat) {
                    FileType::RegularFile => size,
                    FileType::Symlink if size > SHORT_LINK => size,
                    _ => 0,
                });
            }
        }
        Ok(())
    })?;
    Ok(total)
}

/// What everything in a directory, and the directory, takes on this disk now, as the system says (`du`).
///
/// # Errors
/// The system's.
pub fn disk_usage(dir: &OwnedFd) -> io::Result<Usage> {
    let mut total = Usage::default();
    walk(dir, &mut |seen| {
        let stat = match seen {
            Seen::Directory { dir, .. } => rustix::fs::fstat(dir)?,
            Seen::Other(stat) => **stat,
        };
        total.inodes += 1;
        total.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * SECTOR;
        Ok(())
    })?;
    Ok(total)
}

/// Something in a directory.
enum Seen<'s> {
    /// A directory, which comes after what it has; and what the names in it take, in bytes.
    Directory { dir: &'s OwnedFd, entries: u64 },
    /// Anything else.
    Other(&'s Stat),
}

/// Gives `f` everything in a directory, and the directory; what has several names once.
fn walk(dir: &OwnedFd, f: &mut dyn FnMut(&Seen<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut linked = HashSet::new();
    // Paths, because a deep tree would take as many open directories.
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let open = open_to_list(dir.as_fd(), if path.is_empty() { b"." } else { &path })?;
        let mut entries = 0;
        for entry in Dir::read_from(&open)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            entries += ENTRY + (name.len() as u64).next_multiple_of(ENTRY_ALIGN);
            if matches!(name, b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(&open, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if file_type(&stat) == FileType::Directory {
                todo.push(join(&path, name));
            } else if stat.st_nlink <= 1 || linked.insert((stat.st_dev, stat.st_ino)) {
                f(&Seen::Other(&stat))?;
            }
        }
        f(&Seen::Directory { dir: &open, entries })?;
    }
    Ok(())
}
