//! A store beside a containerd that runs on the same root.
//!
//! A blob that containerd does not know yet goes with the first collection that removes anything (`metadata/content.go`,
//! `garbageCollect`), so it gets a second name where no collection looks: anything in the plugin's directory besides
//! `blobs/` and `ingest/`. A name costs no room.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{DIR_MODE, Entry, Error, PLUGIN, Result, Store, blobs_dir, ingest};
use crate::oci::{Algorithm, Digest};
use crate::root::Root;

/// In the plugin's directory.
const OWN: &str = "prebake";

fn own_blobs(algorithm: Algorithm) -> String {
    format!("{PLUGIN}/{OWN}/blobs/{}", algorithm.name())
}

impl Store {
    /// Opens a store beside that of a containerd that runs on the root. What is written to it stays out of containerd's sight
    /// until it is [offered](Self::offer); what containerd's own has, it has as well.
    ///
    /// # Errors
    /// [`Error::Root`], [`Error::Io`].
    pub fn create_beside(root: &Root) -> Result<Self> {
        let own = root.make_containerd_dir(&format!("{PLUGIN}/{OWN}/ingest"), DIR_MODE)?;
        ingest::sweep(&own)?;
        let [sha256, sha512] =
            Algorithm::ALL.map(|algorithm| root.make_containerd_dir(&own_blobs(algorithm), DIR_MODE));
        let blobs = [Some(sha256?), Some(sha512?)];
        let [sha256, sha512] =
            Algorithm::ALL.map(|algorithm| root.make_containerd_dir(&blobs_dir(algorithm), DIR_MODE));
        Ok(Self { top: None, ingest: Some(own), blobs, containerds: Some([sha256?, sha512?]) })
    }

    /// Where containerd has a blob, or would, when this store is beside its own.
    fn containerds(&self, digest: &Digest) -> Option<PathBuf> {
        self.containerds.as_ref().map(|dirs| dirs[digest.algorithm() as usize].join(digest.hex()))
    }

    /// Keeps a blob that containerd's store has, whatever is collected there.
    pub(super) fn hold(&self, digest: &Digest) -> Result<()> {
        let (Some(theirs), Some(own)) = (self.containerds(digest), self.path(digest)) else { return Ok(()) };
        match fs::hard_link(&theirs, &own) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
                Err(Error::io("holding", &theirs)(e))
            }
            _ => Ok(()),
        }
    }

    /// Puts a blob that is held where containerd finds it; `false` when it is there already. Another file by its name, which
    /// is damaged then, is replaced.
    ///
    /// # Errors
    /// [`Error::Io`], also when it is not held.
    pub fn offer(&self, digest: &Digest) -> Result<bool> {
        let (Some(theirs), Some(ingest)) = (self.containerds(digest), &self.ingest) else { return Ok(false) };
        let own = self.existing(digest)?;
        let error = |e| Error::io("offering", &own)(e);
        let file = fs::symlink_metadata(&own).map_err(error)?;
        if fs::symlink_metadata(&theirs).is_ok_and(|there| (there.dev(), there.ino()) == (file.dev(), file.ino())) {
            return Ok(false);
        }
        // Not in `blobs/`, where a name that is no digest would stop every collection.
        let name = ingest.join(digest.hex());
        // What a kill left of another try.
        let _ = fs::remove_file(&name);
        fs::hard_link(&own, &name).and_then(|()| fs::rename(&name, &theirs)).map_err(error)?;
        Ok(true)
    }

    /// Makes the names of what was [offered](Self::offer) durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync_offered(&self) -> Result<()> {
        for dir in self.containerds.iter().flatten() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("syncing", dir))?;
        }
        Ok(())
    }

    /// Holds nothing any more but what is `needed`: what else is held is containerd's by now, or nobody's.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn let_go(&self, needed: impl Fn(&Digest) -> bool) -> Result<()> {
        if self.containerds.is_none() {
            return Ok(());
        }
        for entry in self.entries()? {
            let path = match entry {
                Entry::Blob(digest, _) if needed(&digest) => continue,
                Entry::Blob(digest, _) => self.existing(&digest)?,
                Entry::Stranger(path) => path,
            };
            fs::remove_file(&path).map_err(Error::io("removing", &path))?;
        }
        Ok(())
    }

    /// Puts in place what a prebake held beside a containerd that runs no more.
    pub(super) fn take_over(&self, root: &Root) -> Result<()> {
        let Some(own) = root.containerd_dir(&format!("{PLUGIN}/{OWN}"))? else { return Ok(()) };
        let held = Self::open_held(root)?;
        for entry in held.entries()? {
            if let Entry::Blob(digest, _) = entry {
                let (from, to) = (held.existing(&digest)?, self.existing(&digest)?);
                // Where both are one file, this does nothing.
                fs::rename(&from, &to).map_err(Error::io("renaming", &from))?;
            }
        }
        for dir in self.blobs.iter().flatten() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("syncing", dir))?;
        }
        fs::remove_dir_all(&own).map_err(Error::io("removing", &own))
    }

    fn open_held(root: &Root) -> Result<Self> {
        let [sha256, sha512] = Algorithm::ALL.map(|algorithm| root.containerd_dir(&own_blobs(algorithm)));
        Ok(Self { top: None, ingest: None, blobs: [sha256?, sha512?], containerds: None })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::root::CONTAINERD_ROOT;

    fn blobs(dir: &Path, plugin: &str) -> PathBuf {
        dir.join(CONTAINERD_ROOT).join(PLUGIN).join(plugin).join("sha256")
    }

    #[test]
    fn what_is_held_outlives_a_collection() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = Root::new(dir.path(), CONTAINERD_ROOT);
        let digest = Digest::of(b"bytes");
        let theirs = blobs(dir.path(), "blobs").join(digest.hex());
        let own = blobs(dir.path(), "prebake/blobs").join(digest.hex());

        let store = Store::create_beside(&root).expect("made");
        assert!(store.stat(&digest).expect("looked").is_none());
        fs::write(&theirs, b"bytes").expect("written");
        assert_eq!(store.stat(&digest).expect("held").expect("there").size, 5);
        assert!(!store.offer(&digest).expect("there"));
        fs::remove_file(&theirs).expect("collected");
        assert!(store.offer(&digest).expect("linked"));
        assert_eq!(fs::metadata(&theirs).expect("there").nlink(), 2);
        store.sync_offered().expect("synced");
        fs::remove_file(&theirs).expect("removed");
        fs::write(&theirs, b"wrong").expect("damaged");
        assert!(store.offer(&digest).expect("replaced"));
        assert_eq!(fs::read(&theirs).expect("there"), b"bytes");

        store.let_go(|held| *held == digest).expect("kept");
        assert!(own.exists());
        store.let_go(|_| false).expect("let go");
        assert!(!own.exists() && theirs.exists());
    }

    #[test]
    fn what_a_kill_left_is_taken_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = Root::new(dir.path(), CONTAINERD_ROOT);
        Store::create_beside(&root).expect("made");
        let (held, both) = (Digest::of(b"held"), Digest::of(b"both"));
        let own = blobs(dir.path(), "prebake/blobs");
        fs::write(own.join(held.hex()), b"held").expect("written");
        fs::write(own.join(both.hex()), b"both").expect("written");
        fs::hard_link(own.join(both.hex()), blobs(dir.path(), "blobs").join(both.hex())).expect("linked");
        let store = Store::create(&root).expect("made");
        for digest in [&held, &both] {
            store.verify(digest).expect("in place");
        }
        assert!(!own.exists() && !own.ancestors().nth(2).expect("a parent").exists());
    }
}
