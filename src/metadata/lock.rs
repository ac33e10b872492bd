//! Who may use a root: one prebake that writes, or several that read; and no containerd.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::{Error, Result};
use crate::bolt::{self, FileStorage, Lock, lock_holder};
use crate::root::Root;

/// prebake's own lock, in its own directory: whoever waits for it waits for a prebake.
const FILE: &str = "lock";
const FILE_MODE: u32 = 0o644;
/// How often a lock that is taken is tried again; bbolt does it as often.
const RETRY: Duration = Duration::from_millis(50);
/// How often a lock is tried again whose holder the kernel does not name.
const UNSEEN_RETRIES: u32 = 10;
/// How long to wait for another prebake, unless asked otherwise.
pub const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// How to wait for another prebake. Nobody waits for a containerd, which would hold its lock for ever.
pub struct Wait<'a> {
    /// For how long.
    pub timeout: Duration,
    /// Hears, once, of whom is waited for.
    pub tell: &'a (dyn Fn(&str) + Sync),
    /// Ends the waiting when it becomes true.
    pub stop: &'a AtomicBool,
}

/// A prebake's turn on a root, and nothing else: containerd's databases are those of the containerd that runs.
#[derive(Debug)]
pub struct Turn {
    _file: Option<File>,
}

impl Turn {
    /// Takes it, waiting for another prebake.
    ///
    /// # Errors
    /// [`Error::Waited`] when that does not finish in time; [`Error::Io`], [`Error::Root`].
    pub fn take(root: &Root, wait: &Wait<'_>) -> Result<Self> {
        Ok(Self { _file: Waiting::new(wait).turn(root, Lock::Exclusive)? })
    }
}

/// Waiting that is under way.
pub(super) struct Waiting<'a> {
    wait: &'a Wait<'a>,
    since: Option<Instant>,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(wait: &'a Wait<'a>) -> Self {
        Self { wait, since: None }
    }

    /// Sleeps a little, or says that `path` is busy when it has waited long enough.
    fn again(&mut self, path: &Path, holder: String) -> Result<()> {
        let since = *self.since.get_or_insert_with(|| {
            if !self.wait.timeout.is_zero() {
                (self.wait.tell)(&holder);
            }
            Instant::now()
        });
        if since.elapsed() >= self.wait.timeout || self.wait.stop.load(Ordering::Relaxed) {
            return Err(Error::Waited { path: path.to_owned(), holder, waited: self.wait.timeout });
        }
        std::thread::sleep(RETRY);
        Ok(())
    }

    /// Takes prebake's own lock, waiting for another prebake. To read, there need not be one.
    pub(super) fn turn(&mut self, root: &Root, lock: Lock) -> Result<Option<File>> {
        let dir = match lock {
            Lock::Exclusive => Some(root.make_state_dir()?),
            Lock::Shared => root.state_dir()?,
        };
        let Some(path) = dir.map(|dir| dir.join(FILE)) else { return Ok(None) };
        let write = lock == Lock::Exclusive;
        let mut options = OpenOptions::new();
        // A link could lead out of the root that is being baked; a pipe would never open.
        options
            .read(true)
            .write(write)
            .create(write)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(e) if !write && e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path, source }),
        };
        if write {
            // Whatever the umask; somebody else's file is as it is.
            let _ = file.set_permissions(Permissions::from_mode(FILE_MODE));
        }
        loop {
            let locked = if write { file.try_lock() } else { file.try_lock_shared() };
            match locked {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {
                    let holder = lock_holder(&path).map(|holder| holder.process);
                    self.again(&path, holder.unwrap_or_else(|| "another prebake".to_owned()))?;
                }
                Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
            }
        }
    }

    /// Opens and locks a database; `None` when there is none. Waits for readers only: who writes is a containerd.
    pub(super) fn database(&mut self, path: &Path, lock: Lock) -> Result<Option<FileStorage>> {
        let mut unseen = 0;
        loop {
            match FileStorage::open(path, lock) {
                Ok(storage) => return Ok(Some(storage)),
                Err(bolt::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(bolt::Error::Locked) => {}
                Err(source) => return Err(Error::Bolt { path: path.to_owned(), source }),
            }
            let Some(holder) = lock_holder(path) else {
                // It was released just now, or the holder cannot be seen from here: then it counts as a containerd.
                unseen += 1;
                if unseen > UNSEEN_RETRIES {
                    let holder = "a process outside this container".to_owned();
                    return Err(Error::Busy { path: path.to_owned(), holder });
                }
                std::thread::sleep(RETRY);
                continue;
            };
            if holder.lock != Some(Lock::Shared) {
                return Err(Error::Busy { path: path.to_owned(), holder: holder.process });
            }
            self.again(path, holder.process)?;
        }
    }
}
