//! Who gets a blob from its registry: one of those who need it, as long as it lives.
//!
//! A claim is an object that only one can create: `claims/sha256/HEX/0`. It says who wrote it and how long it may be silent; it is
//! written anew while its claimant lives, and removed when the blob is stored or given up. Whoever finds one that did not change
//! for so long, by its own clock, creates the next one (`…/1`), which again only one can. No condition but "where there is
//! nothing" is needed, which all stores know, directories among them, and no two clocks are compared; but a claim that is
//! much older than it may be is not watched first. Some stores let two create it, one over the other: so who created one reads it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{Cache, Result, Turn, lock};
use crate::oci::Digest;

/// Claims of one blob, of which all but the last were left by those who died.
const MOST: u32 = 64;
/// A claim is written anew so often until it would expire.
const RENEWALS: u32 = 4;
/// What a claim says of how long it may be silent is believed up to here.
const LONGEST_EXPIRY: Duration = Duration::from_mins(10);
/// Clocks may differ by this, summer time among it.
const CLOCKS: Duration = Duration::from_mins(150);
/// A claim is looked at again after a quarter of the time that it is waited for, within these.
const SHORTEST_POLL: Duration = Duration::from_millis(200);
const LONGEST_POLL: Duration = Duration::from_secs(3);
/// Claims are not longer than this.
const MAX_TEXT: u64 = 4096;

/// What a claim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Text {
    holder: String,
    /// Of the holder's.
    claim: u64,
    /// Times that it was written anew.
    renewal: u64,
    /// How long it may stay as it is.
    expires_after_seconds: u64,
}

/// Somebody else's claim, as it was when it last changed.
pub(super) struct Watch {
    text: Text,
    generation: u32,
    /// Claims before this one are dead.
    first: u32,
    since: Instant,
    /// When it was first met.
    met: Instant,
}

/// The right to be the one who gets a blob from its registry. Dropped, it is given up, and what was stored stays.
pub struct Claim {
    pub(super) cache: Arc<Cache>,
    pub(super) digest: Digest,
    /// Without one, the store knows no claims.
    generation: Option<u32>,
    renewing: Option<Renewing>,
}

struct Renewing {
    /// When something last came of the blob.
    alive: watch::Sender<Instant>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Text {
    fn expiry(&self) -> Duration {
        Duration::from_secs(self.expires_after_seconds).min(LONGEST_EXPIRY)
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn key(digest: &Digest, generation: u32) -> String {
    format!("claims/{}/{}/{generation}", digest.algorithm().name(), digest.hex())
}

impl Cache {
    pub(super) async fn claim(self: &Arc<Self>, digest: &Digest) -> Result<Turn> {
        if !self.may_write() {
            return Ok(Turn::Alone);
        }
        if self.unconditional.load(Ordering::Relaxed) {
            return Ok(Turn::Ours(Claim {
                cache: self.clone(),
                digest: digest.clone(),
                generation: None,
                renewing: None,
            }));
        }
        let text = Text {
            holder: self.holder.clone(),
            claim: self.claims.fetch_add(1, Ordering::Relaxed),
            renewal: 0,
            expires_after_seconds: self.claim_expiry.as_secs().max(1),
        };
        let mut generation = lock(&self.watched).get(digest).map_or(0, |watch| watch.first);
        while generation < MOST {
            let key = key(digest, generation);
            let said = self.store.put_new(&key, text.to_json()).await?;
            let is_ours = |theirs: &Text| theirs.holder == text.holder && theirs.claim == text.claim;
            // Whose it is, the claim itself says: an answer may be lost, and stores that look first and write then say yes to two.
            let theirs = match self.read_claim(digest, generation).await {
                Ok(Some(theirs)) if !is_ours(&theirs.0) => theirs,
                // It was given up between the two; whoever is next is told by the next look.
                Ok(None) => return Ok(self.watch(digest, None)),
                Err(error) if !said => return Err(error),
                Ok(Some(_)) | Err(_) => return Ok(Turn::Ours(Claim::new(self, digest, generation, text))),
            };
            if !self.is_dead(digest, generation, &theirs) {
                return Ok(Turn::Theirs);
            }
            generation += 1;
        }
        Ok(Turn::Alone)
    }

    /// A claim, and how long ago it was written by the store's clock and ours.
    async fn read_claim(&self, digest: &Digest, generation: u32) -> Result<Option<(Text, Duration)>> {
        let Some((object, bytes)) = self.store.get_small(&key(digest, generation), MAX_TEXT).await? else {
            return Ok(None);
        };
        let age = (chrono::Utc::now() - object.modified).to_std().unwrap_or_default();
        let text = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // What cannot be read is somebody's all the same, and does not change.
        let unknown = || Text { holder: String::new(), claim: 0, renewal: 0, expires_after_seconds: 60 };
        Ok(Some((text.unwrap_or_else(unknown), age)))
    }

    fn watch(&self, digest: &Digest, found: Option<(u32, &Text)>) -> Turn {
        let now = Instant::now();
        let mut watched = lock(&self.watched);
        match (watched.get_mut(digest), found) {
            (Some(watch), Some((generation, text))) => {
                if watch.generation != generation || watch.text != *text {
                    (watch.generation, watch.text, watch.since) = (generation, text.clone(), now);
                }
            }
            (None, Some((generation, text))) => {
                self.counters.waited.fetch_add(1, Ordering::Relaxed);
                let watch = Watch { text: text.clone(), generation, first: 0, since: now, met: now };
                watched.insert(digest.clone(), watch);
            }
            (_, None) => drop(watched.remove(digest)),
        }
        Turn::Theirs
    }

    /// Whether a claim did not change for as long as it may be silent.
    fn is_dead(&self, digest: &Digest, generation: u32, (text, age): &(Text, Duration)) -> bool {
        let expiry = text.expiry();
        self.watch(digest, Some((generation, text)));
        let mut watched = lock(&self.watched);
        let Some(watch) = watched.get_mut(digest) else { return false };
        let is_dead = *age > expiry + CLOCKS || watch.since.elapsed() > expiry;
        if is_dead {
            watch.first = generation + 1;
        }
        is_dead
    }

    /// Waits until another one's claim changed what it means: it is gone, or dead.
    pub async fn wait(&self, digest: &Digest) {
        loop {
            let Some((generation, met)) = lock(&self.watched).get(digest).map(|watch| (watch.generation, watch.met))
            else {
                return sleep(SHORTEST_POLL).await;
            };
            sleep((met.elapsed() / 4).clamp(SHORTEST_POLL, LONGEST_POLL)).await;
            match self.read_claim(digest, generation).await {
                Ok(Some(theirs)) if !self.is_dead(digest, generation, &theirs) => {}
                Ok(Some(_)) => return,
                Ok(None) => return drop(lock(&self.watched).remove(digest)),
                // Whoever asks next meets the same failure, and counts it.
                Err(_) => return,
            }
        }
    }
}

impl Claim {
    fn new(cache: &Arc<Cache>, digest: &Digest, generation: u32, text: Text) -> Self {
        lock(&cache.watched).remove(digest);
        let (renewed, key) = (cache.clone(), key(digest, generation));
        let (stop, mut stopped) = oneshot::channel();
        let (alive, lived) = watch::channel(Instant::now());
        let task = tokio::spawn(async move {
            let mut text = text;
            let pause = text.expiry() / RENEWALS;
            while timeout(pause, &mut stopped).await.is_err() {
                // A claimant that gets nothing is no use to those who wait. It may wait for a blob that one of them has.
                if lived.borrow().elapsed() > text.expiry() {
                    continue;
                }
                text.renewal += 1;
                // One that fails, or takes too long, is made up for by the next.
                let _ = timeout(pause, renewed.store.put(&key, vec![text.to_json().into()])).await;
            }
        });
        let renewing = Some(Renewing { alive, stop, task });
        Self { cache: cache.clone(), digest: digest.clone(), generation: Some(generation), renewing }
    }

    /// Something came of the blob.
    pub(super) fn is_alive(&self) {
        if let Some(renewing) = &self.renewing {
            renewing.alive.send_replace(Instant::now());
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (Some(generation), Some(renewing)) = (self.generation, self.renewing.take()) else { return };
        let _ = renewing.stop.send(());
        let (cache, digest) = (self.cache.clone(), self.digest.clone());
        let give_up = async move {
            // A renewal that is under way would bring it back.
            let _ = renewing.task.await;
            for generation in (0..=generation).rev() {
                let _ = cache.store.delete(&key(&digest, generation)).await;
            }
        };
        self.cache.behind(give_up);
    }
}
