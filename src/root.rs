//! The target root: a chroot, a mounted disk image, an empty folder. Paths are resolved as a process inside it would see
//! them, so that a symlink to `/elsewhere` leads to `ROOT/elsewhere` and nothing is ever written outside.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};

/// Where containerd keeps its state, inside a root.
pub const CONTAINERD_ROOT: &str = "var/lib/containerd";
/// Where prebake keeps its own, inside a root.
const PREBAKE_STATE: &str = "var/lib/prebake";
/// containerd ≥ 1.7.29, 2.0.7 and 2.1.5 make it so, and tighten one that is there.
const CONTAINERD_MODE: u32 = 0o700;
const PLUGIN_MODE: u32 = 0o755;

/// A root directory, and the containerd state in it. Making one writes nothing.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    containerd: PathBuf,
}

/// A path in the root that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{action} {} failed", path.display())]
pub struct RootError {
    action: &'static str,
    path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

impl RootError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }
}

/// What a file system has, in bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// That this process may use, in bytes.
    pub free: u64,
    /// In bytes.
    pub total: u64,
    /// That this process may use; `None` where they are not counted.
    pub free_inodes: Option<u64>,
}

impl Root {
    /// A root at `path`, with containerd's state at `containerd` inside it.
    pub fn new(path: impl Into<PathBuf>, containerd: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), containerd: containerd.into() }
    }

    /// The directory of a containerd plugin, made where it is missing; `plugin` is relative to containerd's state.
    ///
    /// # Errors
    /// [`RootError`] when it cannot be made.
    pub fn make_containerd_dir(&self, plugin: &str, mode: u32) -> Result<PathBuf, RootError> {
        self.make(&self.containerd, CONTAINERD_MODE)?;
        self.make(&self.containerd.join(plugin), mode)
    }

    /// The directory of a containerd plugin; `None` when it does not exist.
    ///
    /// # Errors
    /// [`RootError`] when that cannot be told.
    pub fn containerd_dir(&self, plugin: &str) -> Result<Option<PathBuf>, RootError> {
        self.find(&self.containerd.join(plugin))
    }

    /// Any directory; `None` when it does not exist.
    ///
    /// # Errors
    /// [`RootError`] when that cannot be told.
    pub fn dir(&self, inside: &Path) -> Result<Option<PathBuf>, RootError> {
        self.find(inside)
    }

    /// Any directory, made where it is missing.
    ///
    /// # Errors
    /// [`RootError`] when it cannot be made.
    pub fn make_dir(&self, inside: &Path) -> Result<PathBuf, RootError> {
        self.make(inside, PLUGIN_MODE)
    }

    /// prebake's own directory, made where it is missing.
    ///
    /// # Errors
    /// [`RootError`] when it cannot be made.
    pub fn make_state_dir(&self) -> Result<PathBuf, RootError> {
        self.make(Path::new(PREBAKE_STATE), PLUGIN_MODE)
    }

    /// prebake's own directory; `None` when it does not exist.
    ///
    /// # Errors
    /// [`RootError`] when that cannot be told.
    pub fn state_dir(&self) -> Result<Option<PathBuf>, RootError> {
        self.find(Path::new(PREBAKE_STATE))
    }

    /// Makes everything written to the root's file system durable (`syncfs`).
    ///
    /// # Errors
    /// [`RootError`] when the system could not write all of it.
    pub fn sync(&self) -> Result<(), RootError> {
        let error = |source| RootError { action: "syncing", path: self.path.clone(), source };
        let dir = self.find(&self.containerd)?.unwrap_or_else(|| self.path.clone());
        rustix::fs::syncfs(File::open(dir).map_err(error)?).map_err(|errno| error(errno.into()))
    }

    /// The directories from the root down to containerd's state, which comes last, and to prebake's own; those that exist.
    ///
    /// # Errors
    /// [`RootError`] when that cannot be told.
    pub fn ways(&self) -> Result<[Vec<PathBuf>; 2], RootError> {
        let way = |to: &Path| {
            let mut found = Vec::new();
            for part in to.ancestors().collect::<Vec<_>>().into_iter().rev() {
                found.extend(self.find(part)?);
            }
            Ok(found)
        };
        Ok([way(&self.containerd)?, way(Path::new(PREBAKE_STATE))?])
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the root's file system has, for this process.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn space(&self) -> Result<Space, RootError> {
        let error = |errno: rustix::io::Errno| RootError::new("measuring", &self.path, errno.into());
        let dir = match self.find(&self.containerd)? {
            Some(dir) => dir,
            // Where it will be made.
            None => std::path::absolute(&self.path)
                .unwrap_or_else(|_| self.path.clone())
                .ancestors()
                .find(|dir| dir.exists())
                .unwrap_or(Path::new("/"))
                .to_owned(),
        };
        let stat = rustix::fs::statvfs(&dir).map_err(error)?;
        Ok(Space {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            // Some file systems have no fixed number, and say 0.
            free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
        })
    }

    fn find(&self, inside: &Path) -> Result<Option<PathBuf>, RootError> {
        let error = |source| RootError { action: "opening", path: self.path.join(inside), source };
        let root = match File::open(&self.path) {
            Ok(root) => root,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(error(e)),
        };
        resolve(root, inside).map_err(error)
    }

    /// Makes `inside` with every directory on the way; the last one gets `mode`.
    fn make(&self, inside: &Path, mode: u32) -> Result<PathBuf, RootError> {
        let error = |source| RootError { action: "making", path: self.path.join(inside), source };
        if !self.path.is_dir() {
            fs::create_dir_all(&self.path).map_err(error)?;
            fs::set_permissions(&self.path, Permissions::from_mode(PLUGIN_MODE)).map_err(error)?;
        }
        let root = File::open(&self.path).map_err(error)?;
        let parts: Vec<Component<'_>> = inside.components().filter(|c| matches!(c, Component::Normal(_))).collect();
        let mut done = PathBuf::new();
        let mut at = fs::canonicalize(&self.path).map_err(error)?;
        for (i, part) in parts.iter().enumerate() {
            done.push(part);
            if let Some(there) = resolve(&root, &done).map_err(error)? {
                at = there;
                continue;
            }
            let new = at.join(part);
            let mode = if i + 1 == parts.len() { mode } else { PLUGIN_MODE };
            match rustix::fs::mkdir(&new, Mode::from_raw_mode(mode)) {
                // Whatever the umask.
                Ok(()) => fs::set_permissions(&new, Permissions::from_mode(mode)).map_err(error)?,
                // Another prebake, or a containerd, made it meanwhile.
                Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(error(errno.into())),
            }
            // Whatever will be renamed into it must not become durable before it.
            File::open(&at).and_then(|parent| parent.sync_all()).map_err(error)?;
            let missing = || error(io::ErrorKind::NotADirectory.into());
            at = resolve(&root, &done).map_err(error)?.ok_or_else(missing)?;
        }
        Ok(at)
    }
}

/// What a file takes on disk, in bytes.
pub(crate) fn disk_usage(meta: &fs::Metadata) -> u64 {
    /// What `st_blocks` counts in, in bytes.
    const SECTOR: u64 = 512;
    meta.blocks() * SECTOR
}

/// Says of a file or directory that it was last changed at `time`, in seconds since 1970.
///
/// # Errors
/// [`RootError`].
pub fn date(path: &Path, time: i64) -> Result<(), RootError> {
    let time = Timespec { tv_sec: time, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| RootError::new("dating", path, errno.into()))
}

/// The real path of the directory `inside` a root; `None` when there is nothing.
fn resolve(root: impl AsFd, inside: &Path) -> io::Result<Option<PathBuf>> {
    let inside: PathBuf = inside.components().filter(|c| !matches!(c, Component::RootDir)).collect();
    let inside = if inside.as_os_str().is_empty() { PathBuf::from(".") } else { inside };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, &inside, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    {
        Ok(dir) => {
            use std::os::fd::AsRawFd;
            let real = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            real.map(Some).map_err(|error| match fs::exists("/proc/self") {
                Ok(false) => io::Error::other("/proc is not mounted, and prebake needs it"),
                _ => error,
            })
        }
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_stay_inside() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("var")).expect("made");
        fs::create_dir_all(root.join("data")).expect("made");
        std::os::unix::fs::symlink("/data", root.join("var/lib")).expect("linked");
        let made = Root::new(&root, CONTAINERD_ROOT).make_containerd_dir("plugin", 0o755).expect("made");
        assert_eq!(made, fs::canonicalize(&root).expect("there").join("data/containerd/plugin"));
        let climbing = Root::new(&root, "../../../escape").make_containerd_dir("plugin", 0o755).expect("made");
        assert!(climbing.starts_with(fs::canonicalize(&root).expect("there")));
    }
}
