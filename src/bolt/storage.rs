//! The one I/O seam of a database: a file, or memory.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;

use super::{Error, Result};

/// What a database needs of the thing it lies on. Offsets and lengths are bytes.
pub trait Storage: Send + Sync {
    /// Length now.
    fn len(&self) -> io::Result<u64>;
    /// Whether there is nothing yet.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buf` from `offset`; an end before that is an error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`.
    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Grows to `len`.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// Returns when everything written before is durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// Which `flock` to take; bbolt takes the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// To write. Excludes a running containerd and every reader.
    Exclusive,
    /// To read. Excludes writers.
    Shared,
}

/// A database in a file, under `flock` as long as it lives.
#[derive(Debug)]
pub struct FileStorage(File);

impl FileStorage {
    /// Opens an existing file and locks it.
    ///
    /// # Errors
    /// [`Error::Locked`] at once when another process holds a conflicting lock; [`Error::Io`] otherwise.
    pub fn open(path: &Path, lock: Lock) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(lock == Lock::Exclusive)
            // A link could lead out of the root that is being baked; a pipe would never open.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)
            .map_err(Error::io("opening"))?;
        if !file.metadata().map_err(Error::io("opening"))?.is_file() {
            return Err(Error::NotBolt("not a regular file"));
        }
        Self::lock(file, lock)
    }

    /// Makes a new, empty file with this mode, locked for writing.
    ///
    /// # Errors
    /// As [`FileStorage::open`]; also when the file exists.
    pub fn create(path: &Path, mode: u32) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(mode);
        let file = options.open(path).map_err(Error::io("creating"))?;
        // Whatever the umask.
        file.set_permissions(Permissions::from_mode(mode)).map_err(Error::io("creating"))?;
        Self::lock(file, Lock::Exclusive)
    }

    /// The file by its descriptor: still this file when its name leads elsewhere.
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    fn lock(file: File, lock: Lock) -> Result<Self> {
        let locked = match lock {
            Lock::Exclusive => file.try_lock(),
            Lock::Shared => file.try_lock_shared(),
        };
        match locked {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Locked),
            Err(TryLockError::Error(source)) => Err(Error::Io { action: "locking", source }),
        }
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// A database in memory. Clones share it, so that a test can look at it, or reopen it.
#[derive(Debug, Default, Clone)]
pub struct MemStorage(Arc<Mutex<Vec<u8>>>);

impl MemStorage {
    /// Starts with the bytes of a whole file.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    /// The bytes now.
    pub fn bytes(&self) -> Vec<u8> {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range(bytes: &[u8], len: usize, offset: u64) -> io::Result<Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
    let end = start.checked_add(len).filter(|end| *end <= bytes.len());
    end.map(|end| start..end).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl Storage for MemStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.locked().len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.locked();
        buf.copy_from_slice(&bytes[range(&bytes, buf.len(), offset)?]);
        Ok(())
    }
    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.locked();
        let range = range(&bytes, buf.len(), offset)?;
        bytes[range].copy_from_slice(buf);
        Ok(())
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.locked().resize(len, 0);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A database on a disk that loses power, fills up, or fails, at a chosen step. For tests of what survives.
///
/// Every write, change of length and sync is a step. Reads see what was written; the disk holds for certain only what was
/// synced. Clones share the disk.
#[derive(Debug, Clone, Default)]
pub struct CrashStorage(Arc<Mutex<Crash>>);

#[derive(Debug, Default)]
struct Crash {
    /// What the disk holds for certain.
    durable: Vec<u8>,
    /// What was asked of it since.
    unsynced: Vec<Operation>,
    /// What reads see.
    seen: Vec<u8>,
    steps: u64,
    fault: Option<Fault>,
    dead: bool,
}

#[derive(Debug, Clone)]
enum Operation {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// What happens at a step, counted from 0.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Power goes while the step is under way; everything after it fails.
    PowerCut(u64),
    /// The step, and only it, fails with this error and does nothing.
    Error(u64, io::ErrorKind),
}

/// What becomes of the writes that were not synced when power went.
#[derive(Debug, Clone, Copy)]
pub enum Unsynced {
    /// None reached the disk.
    Lost,
    /// All did.
    Kept,
    /// Any of them did, in any order; drawn by the seed.
    Reordered(u64),
    /// Any of their sectors did, in any order; drawn by the seed.
    Torn(u64),
}

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

impl CrashStorage {
    /// A disk that holds `bytes`, on which `fault` happens.
    pub fn new(bytes: Vec<u8>, fault: Option<Fault>) -> Self {
        Self(Arc::new(Mutex::new(Crash { seen: bytes.clone(), durable: bytes, fault, ..Crash::default() })))
    }

    /// How many steps were taken.
    pub fn steps(&self) -> u64 {
        self.locked().steps
    }

    /// What a machine finds on the disk when power is back.
    pub fn after(&self, unsynced: Unsynced) -> Vec<u8> {
        let crash = self.locked();
        let mut disk = crash.durable.clone();
        let mut operations = crash.unsynced.clone();
        let seed = match unsynced {
            Unsynced::Lost => return disk,
            Unsynced::Kept => {
                for operation in &operations {
                    operation.apply(&mut disk);
                }
                return disk;
            }
            Unsynced::Reordered(seed) => seed,
            Unsynced::Torn(seed) => {
                operations = operations.into_iter().flat_map(Operation::sectors).collect();
                seed
            }
        };
        let mut state = seed;
        let mut draw = |n: usize| {
            // Knuth's MMIX generator, its high bits.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        for i in (1..operations.len()).rev() {
            operations.swap(i, draw(i + 1));
        }
        operations.iter().filter(|_| draw(2) == 0).for_each(|operation| operation.apply(&mut disk));
        disk
    }

    fn locked(&self) -> MutexGuard<'_, Crash> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Operation {
    fn apply(&self, disk: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                // A write whose change of length was lost still lengthens the file.
                if disk.len() < at + bytes.len() {
                    disk.resize(at + bytes.len(), 0);
                }
                disk[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Length(len) => disk.resize(*len, 0),
        }
    }

    fn sectors(self) -> Vec<Self> {
        match self {
            Self::Write(at, bytes) => bytes
                .chunks(SECTOR)
                .enumerate()
                .map(|(i, sector)| Self::Write(at + i * SECTOR, sector.to_vec()))
                .collect(),
            length @ Self::Length(_) => vec![length],
        }
    }
}

impl Crash {
    /// Takes a step, which does `operation`; `None` is a sync.
    fn step(&mut self, operation: Option<Operation>) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("the power is off"));
        }
        let step = self.steps;
        self.steps += 1;
        match self.fault {
            Some(Fault::Error(at, kind)) if at == step => return Err(kind.into()),
            Some(Fault::PowerCut(at)) if at == step => {
                self.unsynced.extend(operation);
                self.dead = true;
                return Err(io::Error::other("the power went off"));
            }
            _ => {}
        }
        if let Some(operation) = operation {
            operation.apply(&mut self.seen);
            self.unsynced.push(operation);
        } else {
            self.durable.clone_from(&self.seen);
            self.unsynced.clear();
        }
        Ok(())
    }
}

impl Storage for CrashStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.locked().seen.len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let crash = self.locked();
        buf.copy_from_slice(&crash.seen[range(&crash.seen, buf.len(), offset)?]);
        Ok(())
    }
    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut crash = self.locked();
        let range = range(&crash.seen, buf.len(), offset)?;
        crash.step(Some(Operation::Write(range.start, buf.to_vec())))
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.locked().step(Some(Operation::Length(len)))
    }
    fn sync(&mut self) -> io::Result<()> {
        self.locked().step(None)
    }
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process, as "name (pid N)".
    pub process: String,
    /// Which lock, when the kernel tells.
    pub lock: Option<Lock>,
}

/// The process that holds a `flock` on `path`, when the kernel tells (`/proc/locks`).
pub fn lock_holder(path: &Path) -> Option<Holder> {
    let meta = std::fs::metadata(path).ok()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let known = locks.lines().find_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 4711 fe:01:131 0 EOF"; "->" marks a waiter
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, kind, pid, at, ..] = fields[..] else { return None };
        let lock = if kind == "READ" { Lock::Shared } else { Lock::Exclusive };
        (at == file).then(|| (pid.to_owned(), Some(lock)))
    });
    // Some file systems, btrfs among them, show another device there: then whoever has the file open.
    let (pid, lock) = known.or_else(|| {
        let own = std::process::id().to_string();
        let pids = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut pids = pids.filter(|pid| *pid != own && pid.bytes().all(|b| b.is_ascii_digit()));
        let holder = pids.find(|pid| {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.filter_map(|fd| std::fs::metadata(fd.path()).ok())
                .any(|fd| fd.dev() == meta.dev() && fd.ino() == meta.ino())
        })?;
        Some((holder, None))
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = if name.trim().is_empty() { "a process" } else { name.trim() };
    Some(Holder { process: format!("{name} (pid {pid})"), lock })
}
