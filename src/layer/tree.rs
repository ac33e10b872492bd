//! A directory that is the whole world to the paths in it, as containerd resolves them (`continuity/fs.RootPath`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Symbolic links on the way of one path.
const MAX_LINKS: usize = 255;
/// Longest path the kernel takes, in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Directories that are open at a time while a tree is removed.
const MAX_DEPTH: usize = 64;

/// An entry's path without names that lead nowhere (Go `filepath.Clean`). What begins above the root begins at it, with a
/// slash: symbolic links are followed a little differently from there.
pub(super) fn clean_name(path: &[u8]) -> Vec<u8> {
    let mut depth = 0_usize;
    let mut absolute = path.first() == Some(&b'/');
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(above) => depth = above,
                None => absolute = true,
            },
            _ => depth += 1,
        }
    }
    if absolute { [b"/", clean(path).as_slice()].concat() } else { clean(path) }
}

/// Without names that lead nowhere: no empty ones, no `.`, and no `..`, which takes away the name before it; never with a
/// slash in front.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

/// A clean path's last name, and the path before it; of an absolute one, with its slash.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => path.split_at(1),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Two clean paths, one behind the other.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The directory.
#[derive(Debug)]
pub(super) struct Tree(OwnedFd);

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tree {
    pub(super) fn new(dir: OwnedFd) -> Self {
        Self(dir)
    }

    /// Opens a directory at a clean path that leads over no symbolic link.
    ///
    /// # Errors
    /// `ELOOP` when it does, `ENOTDIR` when it ends in one; `ENOENT`, `ENOTDIR`.
    pub(super) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    }

    /// What is at a clean path; a symbolic link at its end is not followed. `None`: nothing.
    pub(super) fn stat(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        Ok(self.open(path)?.map(rustix::fs::fstat).transpose()?)
    }

    fn open(&self, path: &[u8]) -> io::Result<Option<OwnedFd>> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Where a path leads, as a clean path over no symbolic link; its end need not exist.
    ///
    /// # Errors
    /// Too many links, a path that is too long, a file where a directory is needed.
    pub(super) fn resolve(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let mut links = 0;
        let mut path = path.to_vec();
        loop {
            // What a pass finds may be the text of a link, which may lead over others.
            let before = links;
            let found = self.pass(&path, &mut links)?;
            let done = clean(&found);
            if links == before && found == [b"/", done.as_slice()].concat() {
                return Ok(done);
            }
            path = found;
        }
    }

    /// One pass over the names of a path.
    fn pass(&self, path: &[u8], links: &mut usize) -> io::Result<Vec<u8>> {
        let absolute = path.first() == Some(&b'/');
        let mut at: Option<Vec<u8>> = (absolute || path.is_empty()).then(|| b"/".to_vec());
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let next = clean(&at.as_deref().map_or(name.to_vec(), |at| [at, b"/", name].concat()));
            if next.len() >= MAX_PATH {
                return Err(Errno::NAMETOOLONG.into());
            }
            let next = match self.read_link(&next, links)? {
                None => [b"/", next.as_slice()].concat(),
                Some(target) if target.first() == Some(&b'/') => target,
                Some(target) => match &at {
                    // The link is the first name of a relative path.
                    None => target,
                    Some(at) => {
                        let joined = clean(&[at, &b"/"[..], &target].concat());
                        if at.first() == Some(&b'/') { [b"/", joined.as_slice()].concat() } else { joined }
                    }
                },
            };
            at = Some(next);
        }
        Ok(at.unwrap_or_default())
    }

    /// The target of a symbolic link; `None` when there is something else, or nothing.
    fn read_link(&self, path: &[u8], links: &mut usize) -> io::Result<Option<Vec<u8>>> {
        if *links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let Some(found) = (if path.is_empty() { None } else { self.open(path)? }) else { return Ok(None) };
        if file_type(&rustix::fs::fstat(&found)?) != FileType::Symlink {
            return Ok(None);
        }
        *links += 1;
        Ok(Some(rustix::fs::readlinkat(&found, "", Vec::new())?.into_bytes()))
    }
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Removes what is at a name, a directory with everything in it; nothing there is fine. Links are not followed.
pub(super) fn remove_all(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = open_to_list(dir, name)?;
    loop {
        let mut moved = 0;
        empty(top.as_fd(), top.as_fd(), MAX_DEPTH, &mut moved)?;
        if moved == 0 {
            return rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Empties a directory. What lies deeper than `depth` is moved up to `top`, so that a deep tree takes neither many open
/// files nor a deep stack.
fn empty(dir: BorrowedFd<'_>, top: BorrowedFd<'_>, depth: usize, moved: &mut usize) -> Result<(), Errno> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        if depth == 0 {
            move_up(dir, name.to_bytes(), top, moved)?;
        } else {
            empty(open_to_list(dir, name.to_bytes())?.as_fd(), top, depth - 1, moved)?;
            rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

fn move_up(dir: BorrowedFd<'_>, name: &[u8], top: BorrowedFd<'_>, moved: &mut usize) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let to = format!(".prebake-{moved}");
        match rustix::fs::renameat_with(dir, name, top, to, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

pub(super) fn open_to_list(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(dir: &std::path::Path) -> Tree {
        Tree::new(fs::File::open(dir).expect("opened").into())
    }

    #[test]
    fn paths_are_cleaned_as_go_cleans_them() {
        for (path, cleaned) in [
            ("", ""),
            ("/", ""),
            ("./", ""),
            ("../../x", "x"),
            ("/a//b/./c/", "a/b/c"),
            ("a/../..", ""),
            ("a/..b", "a/..b"),
        ] {
            assert_eq!(clean(path.as_bytes()), cleaned.as_bytes(), "{path}");
        }
    }

    #[test]
    fn links_are_followed_inside() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("a/b")).expect("made");
        fs::write(dir.path().join("file"), "").expect("written");
        for (target, link) in [
            ("/a", "abs"),
            ("a/b", "rel"),
            ("../../../a", "up"),
            ("loop", "loop"),
            ("/nowhere/x", "dangling"),
            ("abs/b/../c", "text"),
            ("/abs/b/../c", "walked"),
        ] {
            symlink(target, dir.path().join(link)).expect("linked");
        }
        let resolve =
            |path: &str| tree(dir.path()).resolve(path.as_bytes()).map(|p| String::from_utf8(p).expect("text"));
        for (path, found) in [
            ("", ""),
            ("abs/", "a"),
            ("abs/b/x", "a/b/x"),
            ("rel/../y", "a/y"),
            ("up/b", "a/b"),
            ("dangling/z", "nowhere/x/z"),
            ("text", "a/c"),
            ("walked", "a/c"),
            ("/../abs", "a"),
            ("missing/../a", "a"),
        ] {
            assert_eq!(resolve(path).expect("resolved"), found, "{path}");
        }
        assert!(resolve("loop/x").is_err());
        assert_eq!(resolve("file/x").expect_err("no directory").kind(), io::ErrorKind::NotADirectory);
        assert!(resolve(&"d/".repeat(4000)).is_err());
        assert_eq!(tree(dir.path()).open_dir(b"abs").expect_err("a link"), Errno::NOTDIR);
        assert_eq!(tree(dir.path()).open_dir(b"abs/b").expect_err("over a link"), Errno::LOOP);
    }

    #[test]
    fn deep_trees_are_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let top = tree(dir.path());
        let mut at = open_to_list(top.as_fd(), b".").expect("opened");
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).expect("made");
            rustix::fs::symlinkat("/", &at, "s").expect("linked");
            at = open_to_list(at.as_fd(), b"d").expect("opened");
        }
        remove_all(top.as_fd(), b"d").expect("removed");
        remove_all(top.as_fd(), b"d").expect("nothing is fine");
        assert!(fs::read_dir(dir.path()).expect("listed").all(|e| e.expect("an entry").file_name() == "s"));
    }
}
