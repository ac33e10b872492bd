//! The systemd unit of a first boot: it bootstraps what was fetched into the root, once, through the containerd that has just
//! started, and before kubelet asks for it.
//!
//! ```text
//! ROOT/etc/systemd/system/prebake.service
//! ROOT/etc/systemd/system/multi-user.target.wants/prebake.service → ../prebake.service
//! ROOT/var/lib/prebake/bootstrapped        made by the unit when it is done; while it is there, the unit does nothing
//! ```

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::root::{Root, RootError};

/// The unit's name.
pub const NAME: &str = "prebake.service";
const DIR: &str = "etc/systemd/system";
/// What systemd reads as `WantedBy=`: `systemctl enable` makes the same link.
const WANTS: &str = "etc/systemd/system/multi-user.target.wants";
const FILE_MODE: u32 = 0o644;

/// Why the unit is not in the root.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A directory of the root cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The system refused.
    #[error("writing {} failed", path.display())]
    Io {
        /// What was being written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// The unit's text; `arguments` are those of `prebake` on the machine that starts.
pub fn text(arguments: &[String]) -> String {
    let command: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    format!(
        "# Installed by `prebake bootstrap --install-unit`.\n\
         [Unit]\n\
         Description=Make prebaked images known to containerd\n\
         ConditionPathExists=/var/lib/prebake/catalog.redb\n\
         ConditionPathExists=!/var/lib/prebake/bootstrapped\n\
         Wants=containerd.service\n\
         After=containerd.service\n\
         Before=kubelet.service\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=prebake {}\n\
         ExecStartPost=touch /var/lib/prebake/bootstrapped\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        command.join(" ")
    )
}

/// As systemd reads it back (systemd.service(5), "COMMAND LINES"; systemd.unit(5), "SPECIFIERS").
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=,+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    let escaped: String = argument
        .chars()
        .map(|c| match c {
            '\\' => "\\\\".to_owned(),
            '"' => "\\\"".to_owned(),
            '%' => "%%".to_owned(),
            '$' => "$$".to_owned(),
            '\n' => "\\n".to_owned(),
            c => c.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

/// Writes the unit into a root and enables it, as `systemctl enable` would; where it is, it is written anew. Its path.
///
/// # Errors
/// [`Error`].
pub fn install(root: &Root, arguments: &[String]) -> Result<PathBuf, Error> {
    let (dir, wants) = (root.make_dir(Path::new(DIR))?, root.make_dir(Path::new(WANTS))?);
    let path = dir.join(NAME);
    let write = |new: &Path| {
        let mut file = File::create_new(new)?;
        // Whatever the umask.
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        file.write_all(text(arguments).as_bytes())?;
        file.sync_all()
    };
    replace(&path, write)?;
    replace(&wants.join(NAME), |new| symlink(format!("../{NAME}"), new))?;
    Ok(path)
}

/// Makes something beside its name and gives it that: a link that is there is not followed.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    let error = |source| Error::Io { path: path.to_owned(), source };
    // Which systemd takes for no unit, should it stay.
    let new = path.with_extension("service.new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => {}
    }
    make(&new).and_then(|()| fs::rename(&new, path)).map_err(error)?;
    let dir = path.parent().unwrap_or(path);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_through() {
        for (argument, quoted) in [
            ("--address", "--address"),
            ("/run/containerd/containerd.sock", "/run/containerd/containerd.sock"),
            ("a b", "\"a b\""),
            ("50%", "\"50%%\""),
            ("$HOME\"\\", "\"$$HOME\\\"\\\\\""),
            ("", "\"\""),
        ] {
            assert_eq!(super::quoted(argument), quoted);
        }
    }

    #[test]
    fn links_in_the_root_lead_nowhere_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("etc")).expect("made");
        fs::create_dir_all(&outside).expect("made");
        symlink("../../../../outside", root.join("etc/systemd")).expect("linked");
        fs::create_dir_all(root.join("outside/system")).expect("made");
        symlink(outside.join("file"), root.join("outside/system").join(NAME)).expect("linked");
        let root = Root::new(&root, "var/lib/containerd");
        for _ in 0..2 {
            let path = install(&root, &["bootstrap".to_owned()]).expect("installed");
            assert!(fs::read_to_string(&path).expect("there").contains("\nExecStart=prebake bootstrap\n"));
            let link = path.with_file_name("multi-user.target.wants").join(NAME);
            assert_eq!(fs::read(link).expect("a link that leads to it"), fs::read(&path).expect("there"));
        }
        assert_eq!(fs::read_dir(&outside).expect("there").count(), 0);
        assert!(root.path().join("outside/system").join(NAME).exists());
    }
}
