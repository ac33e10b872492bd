//! What a root says of when its parts were made: what the images say, or one time for all, never the clock. The same images
//! then make the same root.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::oci::Digest;

/// The latest time that is believed: later ones some file systems cannot hold.
const LATEST: i64 = u32::MAX as i64;

/// The times of a bake's parts, in whole seconds.
#[derive(Debug, Default)]
pub struct Times {
    /// One for all (`SOURCE_DATE_EPOCH`).
    epoch: Option<DateTime<Utc>>,
    parts: HashMap<Digest, DateTime<Utc>>,
    latest: DateTime<Utc>,
}

impl Times {
    /// Times of images to come; `epoch`, in seconds since 1970, stands for all of them.
    pub fn new(epoch: Option<u32>) -> Self {
        let epoch = epoch.and_then(|seconds| DateTime::from_timestamp(seconds.into(), 0));
        Self { epoch, latest: epoch.unwrap_or_default(), ..Self::default() }
    }

    /// Adds an image that was `created` then, as its config has it, with its blobs and chains. What several images have is
    /// as old as the oldest of them.
    pub fn add<'d>(&mut self, created: Option<&str>, parts: impl Iterator<Item = &'d Digest>) {
        let time = self.image(created);
        self.latest = self.latest.max(time);
        for part in parts {
            let known = self.parts.entry(part.clone()).or_insert(time);
            *known = time.min(*known);
        }
    }

    /// The time of an image; 1970 of one that does not tell.
    pub fn image(&self, created: Option<&str>) -> DateTime<Utc> {
        let said = || {
            let seconds = DateTime::parse_from_rfc3339(created?).ok()?.timestamp();
            DateTime::from_timestamp(Some(seconds).filter(|seconds| (0..=LATEST).contains(seconds))?, 0)
        };
        self.epoch.or_else(said).unwrap_or_default()
    }

    /// The time of a blob or a chain.
    pub fn part(&self, digest: &Digest) -> DateTime<Utc> {
        self.epoch.or_else(|| self.parts.get(digest).copied()).unwrap_or_default()
    }

    /// The latest of all images' times: that of directories and databases.
    pub fn latest(&self) -> DateTime<Utc> {
        self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(time: DateTime<Utc>) -> i64 {
        assert_eq!(time.timestamp_subsec_nanos(), 0);
        time.timestamp()
    }

    #[test]
    fn parts_are_as_old_as_the_oldest_image() {
        let [shared, own] = [b"shared".as_slice(), b"own"].map(Digest::of);
        let mut times = Times::new(None);
        times.add(Some("2024-05-06T07:08:09.123456789Z"), [&shared, &own].into_iter());
        times.add(Some("2023-01-01T01:00:00+01:00"), [&shared].into_iter());
        assert_eq!(seconds(times.part(&own)), 1_714_979_289);
        assert_eq!(seconds(times.part(&shared)), 1_672_531_200);
        assert_eq!(seconds(times.latest()), 1_714_979_289);
        assert_eq!(seconds(times.part(&Digest::of(b"unknown"))), 0);
    }

    #[test]
    fn one_time_for_all() {
        let part = Digest::of(b"part");
        let mut times = Times::new(Some(1_000_000_007));
        times.add(Some("2024-05-06T07:08:09Z"), [&part].into_iter());
        for time in [times.part(&part), times.latest(), times.image(None), times.part(&Digest::of(b"unknown"))] {
            assert_eq!(seconds(time), 1_000_000_007);
        }
    }

    #[test]
    fn what_is_no_time_is_1970() {
        let times = Times::new(None);
        for said in [None, Some(""), Some("yesterday"), Some("0001-01-01T00:00:00Z"), Some("9999-12-31T23:59:59Z")] {
            assert_eq!(seconds(times.image(said)), 0, "{said:?}");
        }
    }
}
