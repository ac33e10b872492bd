//! What is remembered of a layer's directories until its end, and what the process does to the modes of new ones.

use rustix::fs::{Mode, Timespec, Timestamps};

/// Paths of directories with their times, in the order they came. A path shares its beginning with the one before it, so
/// that a million of them take little memory.
#[derive(Default)]
pub(super) struct DirTimes {
    bytes: Vec<u8>,
    last: Vec<u8>,
}

impl DirTimes {
    pub(super) fn push(&mut self, path: &[u8], times: &Timestamps) {
        let shared = self.last.iter().zip(path).take_while(|(a, b)| a == b).count();
        let own = &path[shared..];
        // Paths have at most 4096 bytes: the kernel made the directory.
        for len in [shared, own.len()] {
            self.bytes.extend(u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes());
        }
        self.bytes.extend(own);
        for time in [&times.last_access, &times.last_modification] {
            self.bytes.extend(time.tv_sec.to_le_bytes());
            self.bytes.extend(u32::try_from(time.tv_nsec).unwrap_or(0).to_le_bytes());
        }
        self.last.truncate(shared);
        self.last.extend(own);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Vec<u8>, Timestamps)> {
        let mut rest = self.bytes.as_slice();
        let mut path: Vec<u8> = Vec::new();
        std::iter::from_fn(move || {
            let shared = u16::from_le_bytes(take(&mut rest)?);
            let own = u16::from_le_bytes(take(&mut rest)?);
            path.truncate(shared.into());
            path.extend(rest.split_off(..own.into())?);
            let mut time = || {
                let tv_sec = i64::from_le_bytes(take(&mut rest)?);
                Some(Timespec { tv_sec, tv_nsec: u32::from_le_bytes(take(&mut rest)?).into() })
            };
            Some((path.clone(), Timestamps { last_access: time()?, last_modification: time()? }))
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    rest.split_off(..N)?.try_into().ok()
}

/// What the process takes away from the modes of what it makes.
pub(super) struct Umask(Mode);

impl Umask {
    /// Of this process. It can only be asked for by changing it, which other threads would feel: the kernel shows it as well.
    pub(super) fn of_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        let mask = line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok());
        // Unknown, it may take anything.
        Self(Mode::from_raw_mode(mask.unwrap_or(0o777)))
    }

    /// Whether something made with this mode has another then.
    pub(super) fn changes(&self, mode: Mode) -> bool {
        mode.intersects(self.0 | Mode::SUID | Mode::SGID | Mode::SVTX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_back_in_order() {
        let times = |seconds| {
            let time = |tv_nsec| Timespec { tv_sec: seconds, tv_nsec };
            Timestamps { last_access: time(999_999_999), last_modification: time(0) }
        };
        let paths = ["a", "a/b", "a/b/long name", "a/c", "", "z", "z"];
        let mut all = DirTimes::default();
        for (path, seconds) in paths.iter().zip(1_i64 << 40..) {
            all.push(path.as_bytes(), &times(seconds));
        }
        let back: Vec<_> = all.iter().collect();
        assert_eq!(back.len(), paths.len());
        for ((path, found), (expected, seconds)) in back.iter().zip(paths.iter().zip(1_i64 << 40..)) {
            assert_eq!(path, expected.as_bytes());
            assert_eq!(
                (found.last_access, found.last_modification),
                (times(seconds).last_access, times(seconds).last_modification)
            );
        }
    }

    #[test]
    fn the_umask_is_known() {
        let umask = Umask::of_process();
        assert!(umask.changes(Mode::from_raw_mode(0o4755)));
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        let mode = Mode::from_raw_mode(0o666);
        let file =
            rustix::fs::open(&path, rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, mode).expect("made");
        let got = Mode::from_raw_mode(rustix::fs::fstat(&file).expect("there").st_mode & 0o777);
        assert_eq!(umask.changes(mode), got != mode);
    }
}
