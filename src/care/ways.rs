//! The directories and databases of containerd's state: whether each is what it has to be, and open to nobody else
//! (containerd-format: the modes that its daemons give them).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::Result;
use super::finding::Findings;
use crate::root::{Root, RootError};

/// Each with the most open mode that any release gives it; a file where that is said.
const ALL: [(&str, u32, bool); 11] = [
    ("", 0o711, false),
    ("io.containerd.content.v1.content", 0o755, false),
    ("io.containerd.content.v1.content/blobs", 0o755, false),
    ("io.containerd.content.v1.content/blobs/sha256", 0o755, false),
    ("io.containerd.content.v1.content/blobs/sha512", 0o755, false),
    ("io.containerd.content.v1.content/ingest", 0o755, false),
    ("io.containerd.metadata.v1.bolt", 0o711, false),
    ("io.containerd.metadata.v1.bolt/meta.db", 0o644, true),
    ("io.containerd.snapshotter.v1.overlayfs", 0o700, false),
    ("io.containerd.snapshotter.v1.overlayfs/snapshots", 0o700, false),
    ("io.containerd.snapshotter.v1.overlayfs/metadata.db", 0o600, true),
];

/// What is not as it has to be.
#[derive(Debug)]
pub(super) struct Way {
    /// Inside containerd's state.
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    pub(super) wrong: Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A file where a directory has to be, or the other way round.
    Kind {
        /// Whether it has to be a file.
        file: bool,
    },
    /// Open to others.
    Open {
        /// Its mode.
        mode: u32,
        /// The mode it should have.
        should: u32,
    },
}

/// Looks at all of them. One that is not there is not needed.
///
/// # Errors
/// [`super::Error::Root`].
pub(super) fn look(root: &Root) -> Result<Vec<Way>> {
    let mut found: Vec<Way> = Vec::new();
    for (name, should, file) in ALL {
        // Below what is no directory there is nothing.
        let blocked = found.iter().any(|way| matches!(way.wrong, Wrong::Kind { .. }) && name.starts_with(way.name));
        if blocked {
            continue;
        }
        let (above, last) = name.rsplit_once('/').unwrap_or(("", name));
        let Some(dir) =
            root.containerd_dir(above).or_else(|error| if name.is_empty() { Ok(None) } else { Err(error) })?
        else {
            continue;
        };
        let path = if last.is_empty() { dir } else { dir.join(last) };
        // Directories may be links inside the root; databases never are.
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() && !file => match root.containerd_dir(name) {
                Ok(Some(dir)) => fs::metadata(dir),
                Ok(None) => continue,
                Err(_) => Ok(meta),
            },
            other => other,
        };
        let Ok(meta) = meta else { continue };
        let mode = meta.mode() & 0o7777;
        let wrong = if meta.is_file() != file || meta.is_dir() == file {
            Wrong::Kind { file }
        } else if mode & 0o777 & !should != 0 {
            Wrong::Open { mode, should }
        } else {
            continue;
        };
        found.push(Way { name, path, wrong });
    }
    Ok(found)
}

/// Tells of them.
pub(super) fn findings(ways: &[Way], found: &mut Findings) {
    for Way { name, path, wrong } in ways {
        let object = if name.is_empty() { path.display().to_string() } else { (*name).to_owned() };
        match wrong {
            Wrong::Kind { file } => {
                let should = if *file { "a regular file" } else { "a directory" };
                found.error(
                    object,
                    format!("is not {should}"),
                    "containerd fails to start, or to use what belongs there",
                );
            }
            Wrong::Open { mode, should } => found.warn(
                object,
                format!("has the mode {mode:04o}, and should have {should:04o}"),
                "containerd leaves it so, and other users of the machine reach what is in it",
            ),
        }
    }
}

impl Way {
    /// Puts it right: a mode that is too open, or what is in the way, which goes to prebake's own directory. What was done.
    ///
    /// # Errors
    /// [`super::Error::Root`].
    pub(super) fn mend(&self, root: &Root, dry_run: bool) -> Result<String> {
        let error = |source| RootError::new("mending", &self.path, source);
        match self.wrong {
            Wrong::Open { mode, should } => {
                let mode = mode & (0o7000 | should);
                if !dry_run {
                    fs::set_permissions(&self.path, fs::Permissions::from_mode(mode)).map_err(error)?;
                }
                Ok(format!("given the mode {mode:04o}"))
            }
            Wrong::Kind { .. } => {
                let name = format!("removed-{}", self.name.rsplit('/').next().unwrap_or_default());
                if dry_run {
                    return Ok(format!("moved out of the way, to var/lib/prebake/{name}"));
                }
                let dir = root.make_state_dir()?;
                let free = (1..=u16::MAX)
                    .map(|n| dir.join(format!("{name}-{n}")))
                    .find(|path| fs::symlink_metadata(path).is_err());
                let to = free.unwrap_or_else(|| dir.join(&name));
                fs::rename(&self.path, &to).map_err(error)?;
                Ok(format!("moved out of the way, to {}", to.display()))
            }
        }
    }
}
