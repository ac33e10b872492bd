//! How two directories differ, path by path: type, owner, mode, time, extended attributes, links and contents.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Error;
use super::tree::{file_type, join, open_to_list};

/// Differences that are told one by one.
const SHOWN: usize = 10;
/// Bytes of contents that are compared at a time.
const BUFFER: usize = 1 << 18;
/// What a host gives to files that it looks after, not a layer.
const OF_THE_HOST: &[u8] = b"security.selinux";

/// How two directories differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// The first of them, a line each.
    pub shown: Vec<String>,
    /// How many there are.
    pub count: u64,
}

impl Differences {
    fn add(&mut self, path: &[u8], what: impl FnOnce() -> String) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            let path = if path.is_empty() { ".".to_owned() } else { Error::lossy(path) };
            self.shown.push(format!("{path:?} {}", what()));
        }
    }
}

/// Compares what is there, `found`, with what should be, `made`. Where that has the time `any`, in seconds since 1970, `found`
/// may have any.
///
/// # Errors
/// The system's.
pub fn differences(made: &OwnedFd, found: &OwnedFd, any: Option<i64>) -> io::Result<Differences> {
    let mut compare = Compare { any, links: [HashMap::new(), HashMap::new()], all: Differences::default() };
    let [left, right] = [made, found].map(rustix::fs::fstat);
    compare.node(&[], [made, found], b".", [left?, right?])?;
    // Paths, because a deep tree would take as many open directories.
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let name: &[u8] = if path.is_empty() { b"." } else { &path };
        let dirs = [open_to_list(made.as_fd(), name)?, open_to_list(found.as_fd(), name)?];
        let [left, right] = [list(&dirs[0])?, list(&dirs[1])?];
        for (name, stat) in &left {
            let inside = join(&path, name);
            let Some(other) = right.get(name) else {
                compare.all.add(&inside, || "is missing".to_owned());
                continue;
            };
            if file_type(stat) != file_type(other) {
                let [should, is] = [stat, other].map(|stat| word(file_type(stat)));
                compare.all.add(&inside, || format!("is a {is}, and should be a {should}"));
                continue;
            }
            compare.node(&inside, [&dirs[0], &dirs[1]], name, [*stat, *other])?;
            if file_type(stat) == FileType::Directory {
                todo.push(inside);
            }
        }
        for name in right.keys().filter(|name| !left.contains_key(*name)) {
            compare.all.add(&join(&path, name), || "is in no layer".to_owned());
        }
    }
    Ok(compare.all)
}

fn list(dir: &OwnedFd) -> io::Result<BTreeMap<Vec<u8>, Stat>> {
    let mut found = BTreeMap::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            found.insert(name.to_vec(), rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?);
        }
    }
    Ok(found)
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::Unknown => "something else",
    }
}

struct Compare {
    any: Option<i64>,
    /// The first path of each inode that has several, in either directory.
    links: [HashMap<(u64, u64), Vec<u8>>; 2],
    all: Differences,
}

impl Compare {
    /// Compares two of one type, at `name` in these directories.
    fn node(&mut self, path: &[u8], dirs: [&OwnedFd; 2], name: &[u8], [made, found]: [Stat; 2]) -> io::Result<()> {
        let mut unequal = |what: &str, should: String, is: String| {
            if should != is {
                self.all.add(path, || format!("has the {what} {is}, and should have {should}"));
            }
        };
        let kind = file_type(&made);
        if kind != FileType::Symlink {
            let mode = |stat: &Stat| format!("{:04o}", stat.st_mode & 0o7777);
            unequal("mode", mode(&made), mode(&found));
        }
        let owner = |stat: &Stat| format!("{}:{}", stat.st_uid, stat.st_gid);
        unequal("owner", owner(&made), owner(&found));
        if self.any != Some(made.st_mtime) {
            let time = |stat: &Stat| format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
            unequal("time", time(&made), time(&found));
        }
        if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
            unequal("device number", made.st_rdev.to_string(), found.st_rdev.to_string());
        }
        let [should, is] = [attributes_at(dirs[0], name)?, attributes_at(dirs[1], name)?];
        if should != is {
            let shown = |all: &BTreeMap<Vec<u8>, Vec<u8>>| {
                let all = all.iter().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
                all.collect::<Vec<_>>().join(" ")
            };
            let words = format!("has the extended attributes [{}], and should have [{}]", shown(&is), shown(&should));
            self.all.add(path, || words);
        }
        if kind == FileType::Directory {
            return Ok(());
        }
        let [made_first, found_first] = [(0, &made), (1, &found)].map(|(side, stat)| {
            let key = (stat.st_dev, stat.st_ino);
            self.links[side].entry(key).or_insert_with(|| path.to_vec()).clone()
        });
        if made_first != found_first {
            let [should, is] = [&made_first, &found_first].map(|path| Error::lossy(path));
            self.all.add(path, || format!("is the same file as {is:?}, and should be the same as {should:?}"));
        }
        match kind {
            FileType::Symlink => {
                let read = |dir: &OwnedFd| rustix::fs::readlinkat(dir, name, Vec::new());
                let [should, is] = [read(dirs[0])?, read(dirs[1])?];
                if should != is {
                    self.all.add(path, || format!("leads to {is:?}, and should lead to {should:?}"));
                }
            }
            FileType::RegularFile if made.st_size != found.st_size => {
                self.all.add(path, || format!("has {} bytes, and should have {}", found.st_size, made.st_size));
            }
            // Another name of it was compared.
            FileType::RegularFile
                if made_first == path
                    && made.st_size > 0
                    && !same_contents(open(dirs[0], name)?, open(dirs[1], name)?)? =>
            {
                self.all.add(path, || "has other contents than in its layer".to_owned());
            }
            _ => {}
        }
        Ok(())
    }
}

fn open(dir: &OwnedFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?))
}

fn same_contents(mut left: File, mut right: File) -> io::Result<bool> {
    let mut buffers = [vec![0; BUFFER], vec![0; BUFFER]];
    loop {
        let n = left.read(&mut buffers[0])?;
        if n == 0 {
            return Ok(true);
        }
        match right.read_exact(&mut buffers[1][..n]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if buffers[0][..n] != buffers[1][..n] {
            return Ok(false);
        }
    }
}

fn attributes_at(dir: &OwnedFd, name: &[u8]) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    attributes(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name)))
}

/// The extended attributes of what is at a path; a link's own. Those of the host's security module are left out.
///
/// # Errors
/// The system's.
pub fn attributes(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 1 << 16];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut all = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty() && *name != OF_THE_HOST) {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        all.insert(name.to_vec(), value);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    type Harm = fn(&std::path::Path);

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("d")).expect("made");
        fs::write(at("d/f"), "text").expect("written");
        fs::hard_link(at("d/f"), at("d/g")).expect("linked");
        symlink("f", at("d/s")).expect("linked");
        for name in ["d/s", "d/f", "d", "."] {
            date(&at(name));
        }
        dir
    }

    fn date(path: &std::path::Path) {
        let time = rustix::fs::Timespec { tv_sec: 1000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("dated");
    }

    #[test]
    fn each_kind_of_difference() {
        let made = tree();
        let open = |dir: &tempfile::TempDir| OwnedFd::from(File::open(dir.path()).expect("opened"));
        let look = |found: &tempfile::TempDir| differences(&open(&made), &open(found), None).expect("compared");
        assert_eq!(look(&tree()), Differences::default());
        let harms: [(&str, Harm); 6] = [
            ("has the mode", |dir| {
                fs::set_permissions(dir.join("d/f"), fs::Permissions::from_mode(0o600)).expect("set");
            }),
            ("other contents", |dir| fs::write(dir.join("d/f"), "texT").expect("written")),
            ("should lead to \"f\"", |dir| {
                fs::remove_file(dir.join("d/s")).expect("removed");
                symlink("g", dir.join("d/s")).expect("linked");
            }),
            ("is in no layer", |dir| fs::write(dir.join("d/new"), "").expect("written")),
            ("is missing", |dir| fs::remove_file(dir.join("d/s")).expect("removed")),
            ("should be the same as \"d/f\"", |dir| {
                fs::remove_file(dir.join("d/g")).expect("removed");
                fs::write(dir.join("d/g"), "text").expect("written");
            }),
        ];
        for (words, harm) in harms {
            let found = tree();
            harm(found.path());
            let all = look(&found);
            assert!(all.shown.iter().any(|line| line.contains(words)), "{words}: {all:?}");
        }
    }
}
