//! Releases of containerd, and by which rules each of them collects garbage.

use std::fmt;
use std::str::FromStr;

/// The releases that start on baked roots in every run of the tests.
pub const TESTED_RELEASES: [&str; 3] = ["1.6.20", "1.7.24", "2.1.9"];

/// A release of containerd, by its first two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    major: u32,
    minor: u32,
}

/// A text that names no release that prebake knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no release of containerd from 1.6 on, such as 2.1")]
pub struct ReleaseError(String);

impl Release {
    /// The oldest that reads what prebake writes.
    const OLDEST: Self = Self::new(1, 6);
    /// Images are objects of the collection, which may expire (containerd#9406).
    pub(super) const IMAGES_EXPIRE: Self = Self::new(2, 0);
    /// `gc.bref.*` labels.
    const BACK_REFERENCES: Self = Self::new(2, 2);
    /// `gc.cond.*` labels.
    const CONDITIONS: Self = Self::new(2, 3);

    pub(super) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Release {
    type Err = ReleaseError;

    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        let error = || ReleaseError(text.to_owned());
        let mut numbers = text.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().ok());
        let release = match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) => Self { major, minor },
            _ => return Err(error()),
        };
        if release < Self::OLDEST { Err(error()) } else { Ok(release) }
    }
}

/// What a collection goes by (containerd `core/metadata/gc.go` of the releases named).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "releases differ in them independently of each other")]
pub(super) struct Rules {
    /// An image whose `gc.expire` has passed is none; from 2.0.
    pub(super) images_expire: bool,
    /// `gc.ref.image` refers to images, and leases may keep them; from 2.0.
    pub(super) images_referred: bool,
    /// What a sandbox refers to is kept; from 1.7.
    pub(super) sandboxes: bool,
    /// `gc.bref.*`; from 2.2, which also takes `gc.root` for the beginning of a key.
    pub(super) back_references: bool,
    /// `gc.cond.*`; from 2.3.
    pub(super) conditions: bool,
}

impl Rules {
    /// Those of a release; without one, what any release would keep is kept. `migrated`: the database is one that containerd 2
    /// has used.
    pub(super) fn new(release: Option<Release>, migrated: bool) -> Self {
        let from = |first: Release| release.is_none_or(|release| release >= first);
        Self {
            images_expire: release.map_or(migrated, |release| release >= Release::IMAGES_EXPIRE),
            images_referred: from(Release::IMAGES_EXPIRE),
            sandboxes: from(Release::new(1, 7)),
            back_references: from(Release::BACK_REFERENCES),
            conditions: from(Release::CONDITIONS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_by_their_numbers() {
        for (text, shown) in [("1.6", "1.6"), ("1.7.24", "1.7"), ("v2.1.9", "2.1"), ("2.10.0-beta.0", "2.10")] {
            assert_eq!(text.parse::<Release>().expect(text).to_string(), shown);
        }
        for text in ["", "2", "1.5", "two.one", "2.x"] {
            text.parse::<Release>().expect_err(text);
        }
        assert!("1.7".parse::<Release>().expect("one") < "2.0".parse().expect("another"));
    }
}
