//! What containerd's `archive.Apply` and `fs.RootPath` do with an archive, as far as paths and kinds of files go: so that
//! most stacks are ones it accepts, and that it is known which of its corners each stack reaches. It judges nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::archive::{Contents, Entry, Sparse};
use super::path::{clean, is_within, join, parent, split};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Link(Vec<u8>),
    Other,
    Whiteout,
}

/// Why containerd refuses an entry.
pub type Refusal = &'static str;

/// The files of one layer, by clean, rooted path; the root is not listed.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    pub nodes: BTreeMap<Vec<u8>, Kind>,
    unpacked: BTreeSet<Vec<u8>>,
    /// Names of directories whose times are set at the end.
    directories: Vec<Vec<u8>>,
}

/// The layers below, the topmost last, and the one that is being filled.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub lower: Vec<Rc<Tree>>,
    pub tree: Tree,
    pub seen: BTreeSet<&'static str>,
}

const ROOT: &[u8] = b"/";

impl Tree {
    /// What is at a path whose directories are no symlinks.
    pub fn lstat(&self, path: &[u8]) -> Result<Option<&Kind>, Refusal> {
        if path == ROOT {
            return Ok(Some(&Kind::Directory));
        }
        match self.lstat(&parent(path))? {
            None => Ok(None),
            Some(Kind::Directory) => Ok(self.nodes.get(path)),
            Some(_) => Err("a file where a directory is needed"),
        }
    }

    fn remove(&mut self, path: &[u8]) {
        self.nodes.retain(|other, _| !is_within(other, path));
    }

    /// `fs.RootPath`, without the root in front.
    pub fn root_path(&self, path: &[u8]) -> Result<Vec<u8>, Refusal> {
        if path.is_empty() {
            return Ok(ROOT.to_vec());
        }
        let mut path = path.to_vec();
        let mut links = 0;
        loop {
            let before = links;
            path = self.walk_links(&path, &mut links)?;
            if before == links {
                let rooted = join(ROOT, &path);
                if rooted == path {
                    return Ok(path);
                }
                path = rooted;
            }
        }
    }

    fn walk_links(&self, path: &[u8], links: &mut usize) -> Result<Vec<u8>, Refusal> {
        match split(path) {
            (b"", file) => Ok(self.walk_link(file, links)?.0),
            (ROOT, b"") => Ok(ROOT.to_vec()),
            (dir, b"") => self.walk_links(&dir[..dir.len() - 1], links),
            (dir, file) => {
                let dir = self.walk_links(dir, links)?;
                match self.walk_link(&join(&dir, file), links)? {
                    (new, true) if new.first() != Some(&b'/') => Ok(join(&dir, &new)),
                    (new, _) => Ok(new),
                }
            }
        }
    }

    fn walk_link(&self, path: &[u8], links: &mut usize) -> Result<(Vec<u8>, bool), Refusal> {
        // Go follows 255; more than these are a circle, and not soon found to be one.
        if *links > 40 {
            return Err("too many symlinks");
        }
        let path = join(ROOT, path);
        match self.lstat_through(&path)? {
            Some(Kind::Link(target)) => {
                *links += 1;
                Ok((target.clone(), true))
            }
            _ => Ok((path, false)),
        }
    }

    /// What the kernel finds: it follows symlinks among the directories, of which `fs.RootPath` has not yet thought. What
    /// lies outside of the tree is not known; no name of a stack is one of the machine's.
    fn lstat_through(&self, path: &[u8]) -> Result<Option<&Kind>, Refusal> {
        let mut left: Vec<Vec<u8>> = path[1..].split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut at = ROOT.to_vec();
        let mut links = 0;
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." if at == ROOT => return Ok(None),
                b".." => {
                    at = parent(&at);
                    continue;
                }
                _ => at = join(&at, &part),
            }
            match self.nodes.get(&at) {
                found if left.is_empty() => return Ok(found),
                None => return Ok(None),
                Some(Kind::Directory) => {}
                Some(Kind::Link(target)) if target[0] == b'/' => return Ok(None),
                Some(Kind::Link(target)) => {
                    links += 1;
                    if links > 40 {
                        return Err("too many symlinks");
                    }
                    at = parent(&at);
                    left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(_) => return Err("a file where a directory is needed"),
            }
        }
        Ok(Some(&Kind::Directory))
    }
}

impl Model {
    pub fn is_lowest(&self) -> bool {
        self.lower.is_empty()
    }

    /// Applies an entry.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let flag = match entry.flag {
            // Go's reader knows old sparse files, `archive.Apply` does not.
            _ if matches!(entry.contents, Contents::Sparse(Sparse::OldGnu, ..)) => b'S',
            0 if entry.path.ends_with(b"/") => b'5',
            0 => b'0',
            flag => flag,
        };
        if flag == b'5' && !matches!(&entry.contents, Contents::Plain(bytes) if bytes.is_empty()) {
            return Err("a directory with contents");
        }
        let name = clean(entry.go_path());
        let (dir, base) = split(&name);
        let above = self.tree.root_path(dir)?;
        let path = join(&above, &join(ROOT, base));
        if path == ROOT {
            self.see("entry of the root");
            return Ok(());
        }
        if above != join(ROOT, dir) {
            self.see("entry below a symlink");
        }
        if above != ROOT {
            self.parents(&above)?;
        }
        if !self.whiteout(&path, base)? {
            return Ok(());
        }
        self.replace(&path, flag);
        match flag {
            b'5' => drop(self.tree.nodes.insert(path.clone(), Kind::Directory)),
            b'0' => drop(self.tree.nodes.insert(path.clone(), Kind::File)),
            b'3' if entry.device == (0, 0) => drop(self.tree.nodes.insert(path.clone(), Kind::Whiteout)),
            b'3' | b'4' | b'6' => drop(self.tree.nodes.insert(path.clone(), Kind::Other)),
            b'2' => self.symlink(&path, &entry.link)?,
            b'1' => self.hard_link(&path, entry)?,
            b'g' => {}
            b'S' => return Err("an old sparse file"),
            _ => return Err("an unknown type"),
        }
        self.xattrs(&path, entry)?;
        if flag == b'5' {
            self.tree.directories.push(name);
        }
        self.tree.unpacked.insert(path);
        Ok(())
    }

    /// Whether the last step will go well: the times of directories, some of which may be gone.
    pub fn can_end(&self) -> Result<(), Refusal> {
        for name in &self.tree.directories {
            let path = self.tree.root_path(name)?;
            if self.tree.lstat(&path)?.is_none() {
                return Err("a directory that is gone in the end");
            }
        }
        Ok(())
    }

    /// Ends a layer.
    pub fn end(&mut self) {
        let tree = std::mem::take(&mut self.tree);
        if tree.directories.iter().any(|name| !matches!(tree.lstat(&join(ROOT, name)), Ok(Some(Kind::Directory)))) {
            self.see("directory replaced later");
        }
        self.lower.push(Rc::new(tree));
    }

    fn see(&mut self, feature: &'static str) {
        self.seen.insert(feature);
    }

    fn parents(&mut self, path: &[u8]) -> Result<(), Refusal> {
        match self.tree.lstat(path)? {
            Some(Kind::Directory) => return Ok(()),
            Some(_) => return Err("a file where a directory is needed"),
            None => {}
        }
        let above = parent(path);
        if above != ROOT {
            self.parents(&above)?;
        }
        self.tree.nodes.insert(path.to_vec(), Kind::Directory);
        self.see(if self.is_lowest() { "implied directory in layer 0" } else { "implied directory" });
        for lower in self.lower.iter().rev() {
            let there = lower.root_path(path)?;
            let feature = match lower.lstat(&there)? {
                None => continue,
                Some(Kind::Directory) if there == path => "implied directory over a directory",
                Some(Kind::Directory) => "implied directory over a symlink to a directory",
                Some(Kind::Whiteout) => "implied directory over a whiteout",
                Some(_) => "implied directory over a file",
            };
            self.see(feature);
            break;
        }
        Ok(())
    }

    /// Does what a whiteout asks for; whether there is still a file to write.
    fn whiteout(&mut self, path: &[u8], base: &[u8]) -> Result<bool, Refusal> {
        let dir = parent(path);
        let Some(hidden) = base.strip_prefix(b".wh.") else { return Ok(true) };
        if base == b".wh..wh..opq" {
            self.opaque(&dir);
            return Ok(false);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("an invalid whiteout");
        }
        if hidden.starts_with(b".wh.") {
            self.see("whiteout of a whiteout's name");
        }
        let target = join(&dir, hidden);
        let here = self.tree.lstat(&target)?.cloned();
        let lower = self.lower.iter().rev().find_map(|tree| tree.lstat(&target).ok().flatten().cloned());
        self.see(match (&here, &lower) {
            (Some(Kind::Directory), _) => "whiteout behind a directory of the layer",
            (Some(_), _) => "whiteout behind a name of the layer",
            (None, Some(Kind::Directory)) => "whiteout of a lower directory",
            (None, Some(_)) => "whiteout of a lower name",
            (None, None) => "whiteout of nothing",
        });
        if self.is_lowest() {
            self.tree.remove(&target);
        } else if here.is_some() {
            return Err("a whiteout of what is there");
        } else {
            self.tree.nodes.insert(target, Kind::Whiteout);
        }
        Ok(false)
    }

    fn opaque(&mut self, dir: &[u8]) {
        let inside: Vec<Vec<u8>> =
            self.tree.nodes.keys().filter(|path| is_within(path, dir) && path.as_slice() != dir).cloned().collect();
        if dir == ROOT {
            self.see("opaque root");
        }
        if dir != ROOT && !self.tree.unpacked.contains(dir) {
            self.see("opaque implied directory");
        }
        self.see(if inside.is_empty() { "opaque before the rest" } else { "opaque behind the rest" });
        if self.is_lowest() {
            self.see("opaque in layer 0");
            for path in inside {
                if !self.tree.unpacked.contains(&path) {
                    self.tree.remove(&path);
                    self.see("opaque removes an implied directory");
                }
            }
        }
    }

    fn replace(&mut self, path: &[u8], flag: u8) {
        let Ok(Some(there)) = self.tree.lstat(path).map(Option::<&Kind>::cloned) else { return };
        let to_directory = self
            .tree
            .root_path(path)
            .is_ok_and(|real| real != path && self.tree.lstat(&real).is_ok_and(|kind| kind == Some(&Kind::Directory)));
        self.see(match (&there, flag) {
            (Kind::Directory, b'5') => return self.see("directory again"),
            (_, b'g') => "global records with the path of a file",
            (Kind::Directory, b'2') => "symlink over a directory",
            (Kind::Directory, _) => "file over a directory",
            (Kind::Link(_), b'5') if to_directory => "directory over a symlink to one",
            (Kind::Link(_), _) => "file over a symlink",
            (Kind::Whiteout, b'5') => "directory behind its whiteout",
            (Kind::Whiteout, _) => "file behind its whiteout",
            (_, b'5') => "directory over a file",
            _ => "file again",
        });
        self.tree.remove(path);
    }

    fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Refusal> {
        if target.is_empty() || target.len() > 4095 {
            return Err("a symlink to a bad name");
        }
        self.tree.nodes.insert(path.to_vec(), Kind::Link(target.to_vec()));
        let absolute = if target[0] == b'/' { target.to_vec() } else { join(&parent(path), target) };
        let found = self.tree.root_path(&absolute);
        let kind = found.as_ref().map(|real| self.tree.lstat(real).ok().flatten().cloned());
        let through = found.as_ref().is_ok_and(|real| *real != join(ROOT, &absolute));
        self.see(match kind {
            Err(_) => "symlink in a circle",
            Ok(Some(Kind::Directory)) => "symlink to a directory",
            Ok(Some(_)) => "symlink to a file",
            Ok(None) => "symlink to nothing",
        });
        if through {
            self.see("symlink through a symlink");
        }
        if target[0] == b'/' {
            self.see("symlink to an absolute path");
        }
        if target.split(|byte| *byte == b'/').any(|part| part == b"..") {
            self.see("symlink with ..");
        }
        Ok(())
    }

    fn hard_link(&mut self, path: &[u8], entry: &Entry) -> Result<(), Refusal> {
        let (dir, base) = split(&entry.link);
        let above = self.tree.root_path(dir)?;
        let target = join(&above, base);
        if above != join(ROOT, dir) {
            self.see("hard link through a symlink");
        }
        self.see(match self.tree.lstat(&target)?.cloned() {
            None if target == path => return Err("a hard link to itself"),
            None => return Err("a hard link to nothing"),
            Some(Kind::Directory) => return Err("a hard link to a directory"),
            Some(Kind::Link(_)) => "hard link to a symlink",
            Some(Kind::File) => "hard link to a file",
            Some(Kind::Other | Kind::Whiteout) => "hard link to a device",
        });
        let kind = self.tree.nodes[&target].clone();
        self.tree.nodes.insert(path.to_vec(), kind);
        Ok(())
    }

    fn xattrs(&self, path: &[u8], entry: &Entry) -> Result<(), Refusal> {
        // A symlink can have none, which containerd takes for a file system that has none.
        let tolerant = matches!(self.tree.nodes.get(path), Some(Kind::Directory | Kind::Link(_)));
        for (name, value) in &entry.xattrs {
            if name == b"security.capability" && ![20, 24].contains(&value.len()) {
                return Err("capabilities that are none");
            }
            if name == b"system.posix_acl_default" && !tolerant {
                return Err("a default ACL of no directory");
            }
        }
        Ok(())
    }
}
