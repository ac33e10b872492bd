//! An archive's entries into a directory, as containerd applies a layer (`pkg/archive.Apply`).
//!
//! The lowest layer is applied by removing what its whiteouts name; one above others keeps them as overlayfs does. What the
//! kernel would do by itself is not asked for: a new file that is root's already gets no owner.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::dirs::{DirTimes, Umask};
use super::read::{Entry, EntryKind, Reader, Time};
use super::tree::{Tree, clean_name, file_type, join, open_to_list, remove_all, split};
use super::{Error, Result};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What overlayfs knows an opaque directory by.
const OVERLAY_OPAQUE: (&str, &[u8]) = ("trusted.overlay.opaque", b"y");
/// Mode of a directory that no entry makes.
const IMPLIED_MODE: u32 = 0o755;
/// All that may be changed of a mode.
const MODE_BITS: u32 = 0o7777;
/// Directories that are kept open.
const OPEN_DIRS: usize = 64;

/// The nth layer below, the next one being 0, or `None` below the lowest: what directories that no entry makes are like.
pub type Lowers<'a> = dyn Fn(usize) -> Result<Option<OwnedFd>> + 'a;

/// What a layer is applied onto.
pub enum Onto<'a> {
    /// Nothing.
    Nothing,
    /// Layers, which are asked for when they are needed, and may have to be waited for.
    Layers(&'a Lowers<'a>),
}

/// Applies all entries of an archive to a directory. At most `limit` bytes of contents are written. What no entry has a time
/// for gets `time`, in seconds since 1970.
///
/// # Errors
/// [`Error`]; the directory is then to be thrown away.
pub(super) fn apply<R: BufRead>(
    reader: &mut Reader<R>,
    dir: OwnedFd,
    onto: &Onto<'_>,
    limit: u64,
    time: i64,
) -> Result<()> {
    let mut applier = Applier::new(Tree::new(dir), onto, limit, time);
    while let Some(entry) = reader.next_entry()? {
        applier.entry(&entry, reader)?;
    }
    applier.directory_times()
}

/// A directory that entries go into.
struct Dir {
    fd: OwnedFd,
    /// Where it is, which may not be where the entry says.
    path: Vec<u8>,
    /// Whether what is made in it gets the owner and the mode that is asked for, and not the directory's group, or what an
    /// access control list makes of it.
    plain: bool,
}

struct Applier<'a> {
    tree: Tree,
    onto: &'a Onto<'a>,
    /// Those that were asked for so far.
    lowers: Vec<Tree>,
    open: HashMap<Vec<u8>, Rc<Dir>>,
    last: Option<(Vec<u8>, Rc<Dir>)>,
    times: DirTimes,
    /// Those of directories that no entry makes.
    implied: DirTimes,
    /// The time of what no entry has one for.
    time: Timestamps,
    /// Hashes of the paths that entries made; what an opaque directory of the lowest layer keeps.
    made: HashSet<u64>,
    hasher: RandomState,
    /// Whether anything was removed: then a directory's path may lead elsewhere at the end.
    removed: bool,
    umask: Umask,
    owner: (u32, u32),
    left: u64,
    limit: u64,
    acls: bool,
}

impl<'a> Applier<'a> {
    fn new(tree: Tree, onto: &'a Onto<'a>, limit: u64, time: i64) -> Self {
        let time = Timespec { tv_sec: time, tv_nsec: 0 };
        Self {
            tree,
            onto,
            lowers: Vec::new(),
            open: HashMap::new(),
            last: None,
            times: DirTimes::default(),
            implied: DirTimes::default(),
            time: Timestamps { last_access: time, last_modification: time },
            made: HashSet::new(),
            hasher: RandomState::new(),
            removed: false,
            umask: Umask::of_process(),
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            left: limit,
            limit,
            acls: false,
        }
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<()> {
        let path = clean_name(&entry.path);
        // The root itself is left as it is.
        if matches!(path.as_slice(), b"" | b"/") {
            return Ok(());
        }
        let at = |action: &'static str| {
            let path = &entry.path;
            move |source: io::Error| Error::entry(path, action, source)
        };
        let (parent, name) = split(&path);
        let dir = self.parent(parent).map_err(|e| e.of(&entry.path, "making the directory of"))?;
        if let Some(original) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(entry, &dir, name, original);
        }
        let place = Place { dir: &dir, name };
        match entry.kind {
            EntryKind::Directory => self.directory(entry, &place, &path).map_err(at("making the directory"))?,
            EntryKind::Regular => self.file(entry, &place, reader)?,
            EntryKind::Symlink => self.symlink(entry, &place).map_err(at("making the symbolic link"))?,
            EntryKind::HardLink => self.hard_link(entry, &place).map_err(at("making the hard link"))?,
            EntryKind::Char | EntryKind::Block | EntryKind::Fifo => {
                self.node(entry, &place).map_err(at("making the device"))?;
            }
            EntryKind::Global => self.remove(&place).map_err(at("replacing"))?,
            EntryKind::Other(flag) => return Err(Error::UnknownEntry { path: Error::lossy(&entry.path), flag }),
        }
        if matches!(self.onto, Onto::Nothing) {
            self.made.insert(self.hash(&place.path()));
        }
        Ok(())
    }

    fn hash(&self, path: &[u8]) -> u64 {
        self.hasher.hash_one(path)
    }

    /// The directory an entry goes into; made where it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<Dir>> {
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Ok(dir.clone());
        }
        let dir = if let Some(dir) = self.open.get(path) {
            dir.clone()
        } else {
            let dir = Rc::new(self.open_parent(path)?);
            if self.open.len() == OPEN_DIRS {
                self.open.clear();
            }
            self.open.insert(path.to_vec(), dir.clone());
            dir
        };
        self.last = Some((path.to_vec(), dir.clone()));
        Ok(dir)
    }

    fn open_parent(&mut self, path: &[u8]) -> Result<Dir> {
        let plain = path.strip_prefix(b"/").unwrap_or(path);
        let (fd, path) = match self.tree.open_dir(plain) {
            Ok(fd) => (fd, plain.to_vec()),
            Err(Errno::LOOP | Errno::NOENT | Errno::NOTDIR) => {
                let path = self.tree.resolve(path)?;
                (self.make_parents(&path)?, path)
            }
            Err(errno) => return Err(errno.into()),
        };
        let stat = rustix::fs::fstat(&fd)?;
        let plain = !self.acls && stat.st_gid == self.owner.1 && stat.st_mode & Mode::SGID.as_raw_mode() == 0;
        Ok(Dir { fd, path, plain })
    }

    /// Makes a directory that no entry makes, and those above it, each like that of the next layer below that has it
    /// (`mkparent`).
    fn make_parents(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let mut missing = Vec::new();
        let mut at = path;
        let mut fd = loop {
            match self.tree.open_dir(at) {
                Ok(fd) => break fd,
                Err(Errno::NOENT) if !at.is_empty() => {
                    missing.push(at);
                    at = split(at).0;
                }
                Err(errno) => return Err(errno.into()),
            }
        };
        for path in missing.into_iter().rev() {
            let name = split(path).1;
            rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(IMPLIED_MODE))?;
            // Whatever the umask, and the directory it is in.
            rustix::fs::chmodat(&fd, name, Mode::from_raw_mode(IMPLIED_MODE), AtFlags::empty())?;
            let copied = self.copy_from_lower(path, fd.as_fd(), name)?;
            self.implied.push(path, copied.as_ref().unwrap_or(&self.time));
            fd = self.tree.open_dir(path)?;
        }
        Ok(fd)
    }

    /// Gives a new directory what the next layer below that has it says: owner, mode, times, which it returns, and extended
    /// attributes.
    fn copy_from_lower(&mut self, path: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Timestamps>> {
        let Onto::Layers(lowers) = self.onto else { return Ok(None) };
        for n in 0.. {
            if n == self.lowers.len() {
                match lowers(n)? {
                    Some(lower) => self.lowers.push(Tree::new(lower)),
                    None => break,
                }
            }
            let lower = &self.lowers[n];
            let there = lower.resolve(&[b"/", path].concat())?;
            let Some(stat) = lower.stat(&there)? else { continue };
            if file_type(&stat) != FileType::Directory {
                break;
            }
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.st_mode & MODE_BITS), AtFlags::empty())?;
            let times = Timestamps { last_access: accessed(&stat), last_modification: modified(&stat) };
            rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            let from = open_to_list(lower.as_fd(), if there.is_empty() { b"." } else { &there })?;
            self.acls |= copy_xattrs(from.as_fd(), open_to_list(dir, name)?.as_fd())?;
            return Ok(Some(times));
        }
        Ok(None)
    }

    fn whiteout(&mut self, entry: &Entry, dir: &Rc<Dir>, name: &[u8], original: &[u8]) -> Result<()> {
        let error = |source: Errno| Error::entry(&entry.path, "applying the whiteout", source.into());
        match self.onto {
            Onto::Nothing if name == OPAQUE => self.remove_implied(dir).map_err(|e| e.of(&entry.path, "applying")),
            Onto::Layers(_) if name == OPAQUE => {
                let dir = open_to_list(dir.fd.as_fd(), b".").map_err(error)?;
                rustix::fs::fsetxattr(dir, OVERLAY_OPAQUE.0, OVERLAY_OPAQUE.1, XattrFlags::empty()).map_err(error)
            }
            // They would name the directory itself, or the one above.
            _ if matches!(original, b"" | b"." | b"..") => Err(Error::BadWhiteout(Error::lossy(&entry.path))),
            Onto::Nothing => self
                .remove(&Place { dir, name: original })
                .map_err(|e| Error::entry(&entry.path, "applying the whiteout", e)),
            Onto::Layers(_) => {
                let mode = Mode::empty();
                rustix::fs::mknodat(&dir.fd, original, FileType::CharacterDevice, mode, 0).map_err(error)?;
                let place = Place { dir, name: original };
                self.own(entry, &place, true).map_err(error)?;
                place.set_times(&self.time).map_err(error)
            }
        }
    }

    /// An opaque directory of the lowest layer keeps what entries made, and loses what is there without one.
    fn remove_implied(&mut self, dir: &Dir) -> Result<()> {
        let mut todo = vec![dir.path.clone()];
        while let Some(path) = todo.pop() {
            let fd = open_to_list(self.tree.as_fd(), if path.is_empty() { b"." } else { &path })?;
            for entry in rustix::fs::Dir::read_from(&fd)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let inside = join(&path, name);
                if !self.made.contains(&self.hash(&inside)) {
                    self.forget();
                    remove_all(fd.as_fd(), name)?;
                } else if file_type(&rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?) == FileType::Directory {
                    todo.push(inside);
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, place: &Place<'_>) -> io::Result<()> {
        self.forget();
        Ok(remove_all(place.dir.fd.as_fd(), place.name)?)
    }

    /// Something is removed: a directory that is open may no longer be where its path leads.
    fn forget(&mut self) {
        self.removed = true;
        self.open.clear();
        self.last = None;
    }

    /// Makes something where nothing is; what is there goes first.
    fn replacing<T>(&mut self, place: &Place<'_>, make: impl Fn() -> Result<T, Errno>) -> io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(place)?;
                Ok(make()?)
            }
            made => Ok(made?),
        }
    }

    fn directory(&mut self, entry: &Entry, place: &Place<'_>, path: &[u8]) -> io::Result<()> {
        let mode = mode(entry);
        let (dir, name) = (place.dir.fd.as_fd(), place.name);
        let is_dir =
            || rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|s| file_type(&s) == FileType::Directory);
        let make = || rustix::fs::mkdirat(dir, name, mode & Mode::from_raw_mode(0o777));
        let new = match make() {
            Err(Errno::EXIST) if is_dir()? => {
                // What it has becomes another.
                self.open.clear();
                self.last = None;
                false
            }
            Err(Errno::EXIST) => {
                self.remove(place)?;
                make()?;
                true
            }
            made => made.map(|()| true)?,
        };
        self.own(entry, place, new)?;
        if !entry.xattrs.is_empty() {
            let fd = open_to_list(dir, name)?;
            self.acls |=
                set_xattrs(entry, true, |key, value| rustix::fs::fsetxattr(&fd, key, value, XattrFlags::empty()))?;
        }
        if !new || !place.dir.plain || self.acls || self.umask.changes(mode) {
            rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?;
        }
        self.times.push(path, &times(entry));
        Ok(())
    }

    fn file<R: BufRead>(&mut self, entry: &Entry, place: &Place<'_>, reader: &mut Reader<R>) -> Result<()> {
        let error = |action: &'static str| move |source: io::Error| Error::entry(&entry.path, action, source);
        let mode = mode(entry);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || rustix::fs::openat(&place.dir.fd, place.name, flags, mode & Mode::from_raw_mode(0o777));
        let fd = self.replacing(place, make).map_err(error("making the file"))?;
        let mut file = std::fs::File::from(fd);
        loop {
            let chunk = reader.chunk()?;
            if chunk.is_empty() {
                break;
            }
            let len = chunk.len() as u64;
            self.left = self.left.checked_sub(len).ok_or(Error::TooLarge { limit: self.limit })?;
            file.write_all(chunk).map_err(error("writing"))?;
            let len = chunk.len();
            reader.advance(len);
        }
        let finish = || -> io::Result<()> {
            if self.needs_owner(entry, place, true) {
                let (uid, gid) = owner(entry);
                rustix::fs::fchown(&file, uid, gid)?;
            }
            set_xattrs(entry, true, |key, value| rustix::fs::fsetxattr(&file, key, value, XattrFlags::empty()))?;
            if !place.dir.plain || self.acls || !entry.xattrs.is_empty() || self.umask.changes(mode) {
                rustix::fs::fchmod(&file, mode)?;
            }
            Ok(rustix::fs::futimens(&file, &times(entry))?)
        };
        finish().map_err(error("finishing"))
    }

    fn symlink(&mut self, entry: &Entry, place: &Place<'_>) -> io::Result<()> {
        self.replacing(place, || rustix::fs::symlinkat(entry.link.as_slice(), &place.dir.fd, place.name))?;
        self.own(entry, place, true)?;
        place.set_xattrs(entry)?;
        Ok(place.set_times(&times(entry))?)
    }

    fn node(&mut self, entry: &Entry, place: &Place<'_>) -> io::Result<()> {
        let kind = match entry.kind {
            EntryKind::Char => FileType::CharacterDevice,
            EntryKind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        // Each is cut to 32 bits as in containerd, and then both to the 32 bits the system call takes.
        let device = rustix::fs::makedev(low(entry.device.0), low(entry.device.1)) & 0xffff_ffff;
        self.replacing(place, || rustix::fs::mknodat(&place.dir.fd, place.name, kind, mode(entry), device))?;
        self.own(entry, place, true)?;
        place.set_xattrs(entry)?;
        rustix::fs::chmodat(&place.dir.fd, place.name, mode(entry), AtFlags::empty())?;
        Ok(place.set_times(&times(entry))?)
    }

    /// Another name for what the layer has; what the entry says of it is then true of both names.
    fn hard_link(&mut self, entry: &Entry, place: &Place<'_>) -> io::Result<()> {
        let slash = entry.link.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (dir, name) = entry.link.split_at(slash);
        let target = self.tree.resolve(dir)?;
        // With a slash at its end, the last name is followed as well; and a directory cannot have two names.
        let target = match name {
            b"" => target,
            b"." | b".." => return Err(Errno::PERM.into()),
            name => join(&target, name),
        };
        let (dir, name) = split(&target);
        let dir = self.tree.open_dir(dir)?;
        self.replacing(place, || rustix::fs::linkat(&dir, name, &place.dir.fd, place.name, AtFlags::empty()))?;
        // Even to the owner it has: the kernel then takes capabilities from the file, setuid and setgid.
        self.own(entry, place, false)?;
        place.set_xattrs(entry)?;
        let stat = rustix::fs::statat(&place.dir.fd, place.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if file_type(&stat) != FileType::Symlink {
            rustix::fs::chmodat(&place.dir.fd, place.name, mode(entry), AtFlags::empty())?;
        }
        Ok(place.set_times(&times(entry))?)
    }

    fn needs_owner(&self, entry: &Entry, place: &Place<'_>, new: bool) -> bool {
        let (uid, gid) = owner(entry);
        let has = (Some(Uid::from_raw(self.owner.0)), Some(Gid::from_raw(self.owner.1)));
        !(new && place.dir.plain && (uid, gid) == has)
    }

    fn own(&self, entry: &Entry, place: &Place<'_>, new: bool) -> Result<(), Errno> {
        if !self.needs_owner(entry, place, new) {
            return Ok(());
        }
        let (uid, gid) = owner(entry);
        rustix::fs::chownat(&place.dir.fd, place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Last, because whatever is made in a directory changes its time.
    fn directory_times(&mut self) -> Result<()> {
        for (path, times) in std::mem::take(&mut self.implied).iter() {
            match self.tree.open_dir(&path) {
                // What was made or removed in it has changed the time it got.
                Ok(fd) if modified(&rustix::fs::fstat(&fd)?) != times.last_modification => {
                    rustix::fs::utimensat(fd, ".", &self.time, AtFlags::empty())?;
                }
                Ok(_) => {}
                // It was removed, or something took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        rustix::fs::utimensat(&self.tree, ".", &self.time, AtFlags::empty())?;
        let times = std::mem::take(&mut self.times);
        for (path, times) in times.iter() {
            let set = |applier: &mut Self| -> Result<()> {
                // A link that took the directory's place is followed.
                let path = if applier.removed { applier.tree.resolve(&path)? } else { path.clone() };
                let (parent, name) = split(&path);
                if name.is_empty() {
                    return Ok(rustix::fs::utimensat(&applier.tree, ".", &times, AtFlags::empty())?);
                }
                let dir = applier.existing(parent)?;
                Ok(rustix::fs::utimensat(&dir.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
            };
            set(self).map_err(|e| e.of(&path, "setting the times of"))?;
        }
        Ok(())
    }

    /// As [`Applier::parent`], but nothing is made.
    fn existing(&mut self, path: &[u8]) -> Result<Rc<Dir>> {
        if self.removed && !self.open.contains_key(path) {
            // Whatever is missing now was removed.
            self.tree.open_dir(path)?;
        }
        self.parent(path)
    }
}

/// Where an entry goes.
struct Place<'d> {
    dir: &'d Dir,
    name: &'d [u8],
}

impl Place<'_> {
    fn path(&self) -> Vec<u8> {
        join(&self.dir.path, self.name)
    }

    fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        rustix::fs::utimensat(&self.dir.fd, self.name, times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// For what cannot be opened.
    fn set_xattrs(&self, entry: &Entry) -> io::Result<()> {
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        let stat = rustix::fs::statat(&self.dir.fd, self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let takes_user = matches!(file_type(&stat), FileType::RegularFile | FileType::Directory);
        let path = [format!("/proc/self/fd/{}/", self.dir.fd.as_raw_fd()).as_bytes(), self.name].concat();
        let set = |key: &[u8], value: &[u8]| rustix::fs::lsetxattr(path.as_slice(), key, value, XattrFlags::empty());
        set_xattrs(entry, takes_user, set).map(drop)
    }
}

/// Sets an entry's extended attributes but those of the administrator, and those that cannot be there. Whether one of them
/// is an access control list.
fn set_xattrs(entry: &Entry, takes_user: bool, set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>) -> io::Result<bool> {
    for (key, value) in entry.xattrs.iter().filter(|(key, _)| !key.starts_with(b"trusted.")) {
        match set(key, value) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(Errno::PERM) if !takes_user && key.starts_with(b"user.") => {}
            Err(errno) => {
                let key = String::from_utf8_lossy(key);
                let source = io::Error::from(errno);
                return Err(io::Error::new(source.kind(), format!("extended attribute {key}: {source}")));
            }
        }
    }
    Ok(entry.xattrs.iter().any(|(key, _)| key.starts_with(b"system.")))
}

/// Copies extended attributes but those of the administrator; whether one of them is an access control list.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut names = vec![0; 1 << 16];
    let len = match rustix::fs::flistxattr(from, &mut names) {
        Err(Errno::NOTSUP) => return Ok(false),
        len => len?,
    };
    let mut acl = false;
    let mut value = vec![0; 1 << 16];
    for key in names[..len].split(|byte| *byte == 0).filter(|key| !key.is_empty() && !key.starts_with(b"trusted.")) {
        match rustix::fs::fgetxattr(from, key, &mut value) {
            Err(Errno::NOTSUP | Errno::NODATA) => continue,
            len => match rustix::fs::fsetxattr(to, key, &value[..len?], XattrFlags::CREATE) {
                Ok(()) | Err(Errno::NOTSUP | Errno::NODATA | Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            },
        }
        acl |= key.starts_with(b"system.");
    }
    Ok(acl)
}

/// The lower 32 bits, which is what the kernel makes of a longer number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what it is for")]
fn low(number: i64) -> u32 {
    number as u32
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(low(entry.mode) & MODE_BITS)
}

/// Owner and group, cut to 32 bits as the system call does it; −1 leaves them as they are.
fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    let id = |id: i64| Some(low(id)).filter(|id| *id != u32::MAX);
    (id(entry.uid).map(Uid::from_raw), id(entry.gid).map(Gid::from_raw))
}

/// The times an entry gets: the later one for the access, and 1970 for what nanoseconds in 64 bits do not reach.
fn times(entry: &Entry) -> Timestamps {
    const LAST: Time = Time { seconds: i64::MAX / 1_000_000_000, nanos: 854_775_807 };
    const EPOCH: Time = Time { seconds: 0, nanos: 0 };
    let bound = |time: Time| {
        let time = if (EPOCH..=LAST).contains(&time) { time } else { EPOCH };
        Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() }
    };
    let accessed = entry.atime.map_or(entry.mtime, |atime| atime.max(entry.mtime));
    Timestamps { last_access: bound(accessed), last_modification: bound(entry.mtime) }
}

fn accessed(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec.cast_signed() }
}

fn modified(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() }
}
