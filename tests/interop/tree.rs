//! A directory tree as a value, and how two of them differ.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Debug, Write as _};
use std::fs::{self, Metadata};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::prebake::oci::Digest;
use rustix::fs::{lgetxattr, llistxattr, major, minor};

/// Nanoseconds since 1970.
pub type Nanos = i128;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File { size: u64, digest: Digest },
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

/// ext4's, in those of `Node::blocks`.
const A_BLOCK: u64 = 8;

/// All that can be known of a file, except what nobody decides: inode numbers and change times.
#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of 512 bytes.
    pub blocks: u64,
    pub mtime: Nanos,
    /// None for directories: listing one, as every measuring of a tree does, changes it.
    pub atime: Option<Nanos>,
    pub links: Option<u64>,
    /// The first path of the same inode.
    pub same_as: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    /// By how many blocks two like it may differ. How much ext4 needs to map a large file depends on the holes that it finds
    /// on the disk, and it finds them when it writes, some time later; how it splits a large directory is its affair too, and
    /// where it keeps extended attributes.
    fn slack(&self) -> u64 {
        let simple = if self.kind == Kind::Directory { A_BLOCK } else { 8 * A_BLOCK };
        let attributes = if self.xattrs.is_empty() { 0 } else { A_BLOCK };
        attributes + if self.blocks > simple { A_BLOCK } else { 0 }
    }
}

/// Nodes by path; the tree's own root is the empty path. What cannot be looked at is an error's text.
pub type Tree = BTreeMap<Vec<u8>, Result<Node, String>>;

/// Reads a tree: first what is known of all files, because to read one's contents changes its times under every name.
pub fn read(root: &Path) -> Tree {
    let mut looked = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let full = at(root, &path);
        let meta = full.symlink_metadata();
        if meta.as_ref().is_ok_and(Metadata::is_dir) {
            // A directory that cannot be listed shows in its node.
            left.extend(fs::read_dir(&full).into_iter().flatten().map(|entry| path.join(entry.unwrap().file_name())));
        }
        looked.insert(path.into_os_string().into_vec(), (full, meta));
    }
    let mut first = HashMap::new();
    let node = |(name, (full, meta)): (Vec<u8>, (PathBuf, io::Result<Metadata>))| {
        let node = meta.and_then(|meta| node(&full, &meta, &name, &mut first));
        (name, node.map_err(|error| error.to_string()))
    };
    looked.into_iter().map(node).collect()
}

fn at(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

fn node(path: &Path, meta: &Metadata, name: &[u8], first: &mut HashMap<(u64, u64), Vec<u8>>) -> io::Result<Node> {
    let nanos = |seconds: i64, nanos: i64| Nanos::from(seconds) * 1_000_000_000 + Nanos::from(nanos);
    let kind = meta.file_type();
    let directory = kind.is_dir();
    let device = (major(meta.rdev()), minor(meta.rdev()));
    let kind = if directory {
        drop(fs::read_dir(path)?);
        Kind::Directory
    } else if kind.is_file() {
        Kind::File { size: meta.len(), digest: Digest::of(&fs::read(path)?) }
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(path)?.into_os_string().into_vec())
    } else if kind.is_char_device() {
        Kind::Char(device.0, device.1)
    } else if kind.is_block_device() {
        Kind::Block(device.0, device.1)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        Kind::Socket
    };
    Ok(Node {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        blocks: meta.blocks(),
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        atime: (!directory).then(|| nanos(meta.atime(), meta.atime_nsec())),
        links: (!directory).then(|| meta.nlink()),
        same_as: first.entry((meta.dev(), meta.ino())).or_insert_with(|| name.to_vec()).clone(),
        xattrs: xattrs(path)?,
    })
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 1 << 16];
    let len = llistxattr(path, &mut names)?;
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let len = lgetxattr(path, name, &mut value)?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// Inodes, bytes on the disk, and by how many these may differ from what was counted before: as containerd counts them
/// (continuity `fs.DiskUsage`).
pub fn usage(tree: &Tree) -> (u64, u64, u64) {
    let own = tree.iter().filter_map(|(path, node)| node.as_ref().ok().filter(|node| node.same_as == *path));
    own.fold((0, 0, 0), |(inodes, bytes, slack), node| {
        (inodes + 1, bytes + node.blocks * 512, slack + node.slack() * 512)
    })
}

/// When prebake is told that everything was made: what containerd takes the clock's time for.
pub const EPOCH: u32 = 1_234_567_891;

/// The time in which a test ran, and [`EPOCH`]. Two times within it are the same: each was "now" when its file was made.
#[derive(Debug, Clone)]
pub struct Now(RangeInclusive<Nanos>);

impl Now {
    /// From an instant to this one; the clock of file systems is a little behind.
    pub fn since(start: SystemTime) -> Self {
        let nanos = |time: SystemTime| Nanos::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        Self(nanos(start - Duration::from_millis(100))..=nanos(SystemTime::now()))
    }

    fn same(&self, left: Nanos, right: Nanos) -> bool {
        left == right || self.is_now(left) && self.is_now(right)
    }

    fn is_now(&self, time: Nanos) -> bool {
        self.0.contains(&time) || time == Nanos::from(EPOCH) * 1_000_000_000
    }

    /// As [`Self::same`], and an access to one that was seen on one side only is none: to follow a symlink changes its
    /// time (once a day, by relatime), and who finds out otherwise where it leads does not.
    fn same_access(&self, kind: &Kind, left: Nanos, right: Nanos) -> bool {
        let followed = matches!(kind, Kind::Symlink(_)) && (self.is_now(left) || self.is_now(right));
        followed || self.same(left, right)
    }
}

/// The differences, a line for each.
pub fn differences(left: &Tree, right: &Tree, now: &Now) -> Vec<String> {
    let mut lines = Vec::new();
    let paths: std::collections::BTreeSet<&Vec<u8>> = left.keys().chain(right.keys()).collect();
    for path in paths {
        let mut found = Found { path, lines: &mut lines };
        match (left.get(path), right.get(path)) {
            (Some(Ok(left)), Some(Ok(right))) => found.nodes(left, right, now),
            (Some(Err(left)), Some(Err(right))) => found.unequal("error", left, right),
            (left, right) => found.say("there", &summary(left), &summary(right)),
        }
    }
    lines
}

fn summary(node: Option<&Result<Node, String>>) -> String {
    match node {
        None => "nothing".to_owned(),
        Some(Err(error)) => error.clone(),
        Some(Ok(node)) => format!("{:?} {:o} {}:{}", node.kind, node.mode, node.uid, node.gid),
    }
}

struct Found<'f> {
    path: &'f [u8],
    lines: &'f mut Vec<String>,
}

impl Found<'_> {
    fn say(&mut self, what: &str, left: &str, right: &str) {
        let path = if self.path.is_empty() { ".".to_owned() } else { self.path.escape_ascii().to_string() };
        self.lines.push(format!("{path}: {what}: {left} | {right}"));
    }

    fn unequal<T: PartialEq + Debug>(&mut self, what: &str, left: T, right: T) {
        if left != right {
            self.say(what, &format!("{left:?}"), &format!("{right:?}"));
        }
    }

    fn nodes(&mut self, left: &Node, right: &Node, now: &Now) {
        self.unequal("kind", &left.kind, &right.kind);
        if left.mode != right.mode {
            self.say("mode", &format!("{:o}", left.mode), &format!("{:o}", right.mode));
        }
        self.unequal("owner", left.uid, right.uid);
        self.unequal("group", left.gid, right.gid);
        // A hard link's header takes capabilities from the file; whether a block goes with them depends on the order in
        // which the attributes were set, and containerd's is that of a map in Go.
        let shared = left.links.is_some_and(|links| links > 1) && !left.xattrs.is_empty();
        let slack = if shared { A_BLOCK } else { left.slack().max(right.slack()) };
        if left.blocks.abs_diff(right.blocks) > slack {
            self.unequal("blocks", left.blocks, right.blocks);
        }
        self.unequal("links", left.links, right.links);
        if left.same_as != right.same_as {
            self.say(
                "same inode as",
                &left.same_as.escape_ascii().to_string(),
                &right.same_as.escape_ascii().to_string(),
            );
        }
        if !now.same(left.mtime, right.mtime) {
            self.unequal("mtime", left.mtime, right.mtime);
        }
        if let (Some(l), Some(r)) = (left.atime, right.atime)
            && !now.same_access(&left.kind, l, r)
        {
            self.unequal("atime", l, r);
        }
        let text = |xattrs: &BTreeMap<Vec<u8>, Vec<u8>>| {
            xattrs.iter().fold(String::new(), |mut all, (name, value)| {
                write!(all, " {}=0x{}", name.escape_ascii(), hex::encode(value)).unwrap();
                all
            })
        };
        if left.xattrs != right.xattrs {
            self.say("xattrs", &text(&left.xattrs), &text(&right.xattrs));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{XattrFlags, lsetxattr};

    use super::*;
    use crate::peers::run;

    /// A tree with one of everything.
    fn example(dir: &Path) {
        fs::create_dir_all(dir.join("d/e")).unwrap();
        fs::write(dir.join("d/file"), "text").unwrap();
        fs::hard_link(dir.join("d/file"), dir.join("d/link")).unwrap();
        fs::write(dir.join("d/other"), "text").unwrap();
        symlink("file", dir.join("d/sym")).unwrap();
        for device in ["char c 1 3", "block b 7 8", "fifo p", "whiteout c 0 0"] {
            let (name, numbers) = device.split_once(' ').unwrap();
            run(std::process::Command::new("mknod").arg(dir.join(name)).args(numbers.split(' ')));
        }
        run(std::process::Command::new("find").arg(dir).args(["-exec", "touch", "-hd", "2001-01-01", "{}", "+"]));
    }

    fn set_xattr(path: &Path, name: &str, value: &[u8]) {
        lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    /// A change to a tree, by a shell, and what must be said of it.
    #[test]
    fn every_difference_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("left");
        example(&left);
        set_xattr(&left.join("d"), "trusted.overlay.opaque", b"y");
        set_xattr(&left.join("d/file"), "user.a", b"a\0b");
        for (change, wanted) in [
            ("chmod 4755 d/file", vec!["d/file: mode: 644 | 4755", "d/link: mode: 644 | 4755"]),
            ("chown -h 1 d/sym", vec!["d/sym: owner: 0 | 1"]),
            ("chgrp 2 whiteout", vec!["whiteout: group: 0 | 2"]),
            ("touch -hmd 2001-01-01T00:00:00.000000001 d/sym", vec!["d/sym: mtime: "]),
            ("touch -ad 2002-01-01 d/other", vec!["d/other: atime: "]),
            ("touch -d 2001-01-02 d", vec!["d: mtime: "]),
            ("rm fifo; touch -d 2001-01-01 .", vec!["fifo: there: Fifo 644 0:0 | nothing"]),
            ("chmod 700 .", vec![".: mode: 755 | 700"]),
            ("printf texT >d/other; touch -d 2001-01-01 d/other", vec!["d/other: kind: "]),
            ("rm d/sym; ln -s File d/sym; touch -hd 2001-01-01 d/sym d", vec!["d/sym: kind: Symlink"]),
            ("rm char; mknod char c 1 4; touch -d 2001-01-01 char .", vec!["char: kind: Char(1, 3) | Char(1, 4)"]),
            (
                "ln -f d/other d/link; touch -d 2001-01-01 d/other d",
                vec!["d/file: links: Some(2) | Some(1)", "d/link: same inode as: d/file | d/link"],
            ),
        ] {
            let right = dir.path().join("right");
            run(std::process::Command::new("cp").arg("-a").arg(&left).arg(&right));
            run(std::process::Command::new("sh").arg("-ec").arg(change).current_dir(&right));
            let found = differences(&read(&left), &read(&right), &Now::since(SystemTime::now()));
            for line in &wanted {
                assert!(found.iter().any(|found| found.starts_with(line.trim_end())), "{change}: {found:#?}");
            }
            fs::remove_dir_all(&right).unwrap();
        }
        let right = dir.path().join("right");
        run(std::process::Command::new("cp").arg("-a").arg(&left).arg(&right));
        set_xattr(&right.join("d"), "trusted.overlay.opaque", b"x");
        set_xattr(&right.join("d/file"), "user.a", b"a\0");
        let found = differences(&read(&left), &read(&right), &Now::since(SystemTime::now()));
        let values = |left: &str, right: &str| format!("user.a=0x{left} |  user.a=0x{right}");
        assert!(found[0].starts_with("d: xattrs:  trusted.overlay.opaque=0x79 | "), "{found:#?}");
        assert!(
            found[1].starts_with("d/file: xattrs: ") && found[1].ends_with(&values("610062", "6100")),
            "{found:#?}"
        );
        assert_eq!(found.len(), 3, "with d/link: {found:#?}");
    }

    #[test]
    fn a_tree_equals_its_like_and_now_equals_now() {
        let start = SystemTime::now();
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        example(&left);
        example(&right);
        let look = |now: &Now| differences(&read(&left), &read(&right), now);
        let none = Now(0..=0);
        assert_eq!(look(&none), [""; 0]);
        for tree in [&left, &right] {
            fs::create_dir(tree.join("new")).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        let found = (read(&left), read(&right));
        assert_eq!(differences(&found.0, &found.1, &Now::since(start)), [""; 0]);
        let old = differences(&found.0, &found.1, &none);
        let old: Vec<&String> = old.iter().filter(|line| !line.contains("atime")).collect();
        assert!(old.iter().all(|line| line.contains("mtime")) && old.len() == 2, "{old:#?}");
    }
}
