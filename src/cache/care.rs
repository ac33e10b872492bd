//! What is in a cache, whether it is right, and what of it nobody needs any more.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use serde::Serialize;

use super::{Cache, Error, Object, Result, blob_key};
use crate::oci::Digest;

/// Objects that are read or removed at a time.
const AT_ONCE: usize = 8;
/// What was stored or used in this time is somebody's who is at it.
const GRACE: Duration = Duration::from_hours(1);
/// A claim of this age is nobody's.
const OLD_CLAIM: Duration = Duration::from_hours(24);
/// What is known of what was used is kept for so long at least.
const NOTES: Duration = Duration::from_hours(24 * 90);
/// A note of what a run used is not longer than this.
const MAX_NOTE: u64 = 64 << 20;

/// What is in a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Blobs and documents.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The largest of them, in bytes.
    pub largest: u64,
    /// When the oldest was stored.
    pub oldest: Option<DateTime<Utc>>,
    /// When the newest was.
    pub newest: Option<DateTime<Utc>>,
    /// Claims there are now.
    pub claims: u64,
    /// Notes of what runs used.
    pub runs: u64,
    /// Objects that are nothing of a cache's.
    pub unknown: u64,
}

/// An object that is not what its digest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unsound {
    /// What it should be.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it is gone.
    pub removed: bool,
}

/// What is to go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pruning {
    /// What no run used or stored for so long.
    pub unused: Option<Duration>,
    /// What is too much for this many bytes; what was used longest ago goes first.
    pub max_size: Option<u64>,
    /// Nothing goes; what would is told.
    pub dry_run: bool,
}

/// What went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Blobs and documents that went.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs and documents that stay.
    pub kept: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Claims that went: of claimants that died a day ago or before.
    pub claims: u64,
    /// Notes that went.
    pub notes: u64,
    /// Files that writers to a directory left who were killed before they had names.
    pub unnamed: u64,
}

impl Cache {
    /// That there is a cache of our version. Other things have blobs by their digests too: an OCI layout, containerd's own.
    async fn known(&self) -> Result<()> {
        if self.is_marked().await? { Ok(()) } else { Err(Error::NoCache { place: self.place().to_owned() }) }
    }

    /// What there is.
    ///
    /// # Errors
    /// [`super::Error`].
    pub async fn stats(&self) -> Result<Stats> {
        self.known().await?;
        let mut stats = Stats::default();
        let mut all = self.store.list("");
        while let Some(object) = all.try_next().await? {
            match object.key.split_once('/') {
                Some(("blobs", _)) if digest_of(&object.key).is_some() => {
                    stats.blobs += 1;
                    stats.bytes += object.size;
                    stats.largest = stats.largest.max(object.size);
                    stats.oldest = stats.oldest.into_iter().chain([object.modified]).min();
                    stats.newest = stats.newest.into_iter().chain([object.modified]).max();
                }
                Some(("claims", _)) => stats.claims += 1,
                Some(("used", _)) => stats.runs += 1,
                None if object.key == super::MARKER => {}
                _ => stats.unknown += 1,
            }
        }
        Ok(stats)
    }

    /// Reads every blob; those that are not what their digests say, and how many were looked at. Where `remove` is said, they go.
    /// `seen` is told of each one's bytes.
    ///
    /// # Errors
    /// [`super::Error`].
    pub async fn check(&self, remove: bool, seen: &(dyn Fn(u64) + Sync)) -> Result<(Vec<Unsound>, u64)> {
        self.known().await?;
        let mut looked_at = 0;
        let mut unsound = Vec::new();
        let blobs = self.store.list("blobs");
        let each = blobs.try_filter_map(async |object| Ok(digest_of(&object.key).map(|digest| (digest, object))));
        let each = each.map(|found| async {
            let (digest, object) = found?;
            let is_right = self.is_right(&digest).await?;
            seen(object.size);
            let mut removed = false;
            if remove && is_right == Some(false) {
                self.store.delete(&object.key).await?;
                removed = true;
            }
            let wrong = Unsound { digest, size: object.size, removed };
            Ok::<_, Error>((is_right == Some(false)).then_some(wrong))
        });
        let mut each = pin!(each.buffer_unordered(AT_ONCE));
        while let Some(wrong) = each.try_next().await? {
            looked_at += 1;
            unsound.extend(wrong);
        }
        unsound.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok((unsound, looked_at))
    }

    /// Removes what nobody needs any more. Others may bake meanwhile: what they do not find they get from registries, and what
    /// was stored or used within the last hour, or is claimed, stays.
    ///
    /// # Errors
    /// [`super::Error`]; what is gone by then is gone.
    pub async fn prune(&self, pruning: Pruning) -> Result<Pruned> {
        self.known().await?;
        let Pruning { unused, max_size, dry_run } = pruning;
        let now = Utc::now();
        let age = |at: DateTime<Utc>| (now - at).to_std().unwrap_or_default();
        let mut pruned = Pruned::default();
        let claims: Vec<Object> = self.store.list("claims").try_collect().await?;
        let claimed: HashSet<&str> = claims.iter().filter_map(|claim| Some(claim.key.rsplit_once('/')?.0)).collect();
        let notes: Vec<Object> = self.store.list("used").try_collect().await?;
        let used = self.last_used(&notes).await?;
        let mut blobs = Vec::new();
        let mut all = self.store.list("blobs");
        while let Some(object) = all.try_next().await? {
            if let Some(digest) = digest_of(&object.key) {
                let last = used.get(&digest).map_or(object.modified, |used| object.modified.max(*used));
                blobs.push((last, object));
            }
        }
        drop(all);
        // What was used longest ago first; of one run, the largest.
        blobs.sort_by(|(a, one), (b, other)| (a, other.size, &one.key).cmp(&(b, one.size, &other.key)));
        let mut bytes: u64 = blobs.iter().map(|(_, object)| object.size).sum();
        let mut going = Vec::new();
        for (last, object) in blobs {
            let is_unused = unused.is_some_and(|unused| age(last) > unused);
            let is_too_much = max_size.is_some_and(|most| bytes > most);
            let is_claimed = claimed.contains(object.key.replacen("blobs/", "claims/", 1).as_str());
            if (is_unused || is_too_much) && age(last) > GRACE && !is_claimed {
                bytes -= object.size;
                pruned.blobs += 1;
                pruned.bytes += object.size;
                going.push(object.key);
            } else {
                pruned.kept += 1;
                pruned.kept_bytes += object.size;
            }
        }
        let old_claims = claims.iter().filter(|claim| age(claim.modified) > OLD_CLAIM);
        let old_notes = notes.iter().filter(|note| age(note.modified) > unused.unwrap_or_default().max(NOTES));
        for (olds, count) in
            [(old_claims.collect::<Vec<_>>(), &mut pruned.claims), (old_notes.collect(), &mut pruned.notes)]
        {
            *count = olds.len() as u64;
            going.extend(olds.into_iter().map(|object| object.key.clone()));
        }
        let ours = ["blobs", "claims", "used"];
        pruned.unnamed = self.store.remove_unnamed(&ours, (now - GRACE).into(), dry_run).await?;
        if !dry_run {
            let mut removed = pin!(iter(&going).map(|key| self.store.delete(key)).buffer_unordered(AT_ONCE));
            while removed.try_next().await?.is_some() {}
        }
        Ok(pruned)
    }

    /// When each blob was used last, by what runs noted.
    async fn last_used(&self, notes: &[Object]) -> Result<HashMap<Digest, DateTime<Utc>>> {
        let mut used: HashMap<Digest, DateTime<Utc>> = HashMap::new();
        let each =
            iter(notes).map(async |note| Ok::<_, Error>((note, self.store.get_small(&note.key, MAX_NOTE).await?)));
        let mut each = pin!(each.buffer_unordered(AT_ONCE));
        while let Some((note, text)) = each.try_next().await? {
            let Some((_, Some(text))) = text else { continue };
            for digest in String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse::<Digest>().ok()) {
                let last = used.entry(digest).or_insert(note.modified);
                *last = note.modified.max(*last);
            }
        }
        Ok(used)
    }
}

/// The digest that an object of `blobs` is named by.
fn digest_of(key: &str) -> Option<Digest> {
    let (algorithm, hex) = key.strip_prefix("blobs/")?.split_once('/')?;
    let digest: Digest = format!("{algorithm}:{hex}").parse().ok()?;
    (blob_key(&digest) == key).then_some(digest)
}
