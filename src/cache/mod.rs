//! A cache of blobs that many bakers share, in an object store.
//!
//! Blobs and documents are stored by digest under `blobs/`, and read by whoever has a digest to verify them by: what the store
//! says is believed as little as what a registry says. Who is about to get a blob from its registry writes a claim first, under a
//! condition that only one can meet (`claims/`); the others wait for what the first one stores. A claim is renewed while its
//! claimant lives, and ends where the blob is stored, given up, or silent for too long. What a run used it notes in one object
//! (`used/`), so that what nobody needs any more can be found.
//!
//! A cache saves requests; it never decides. Where it fails, is full, or says nothing, registries are asked, unless it is required.

mod blob;
mod care;
mod claim;
#[cfg(feature = "cache")]
mod http;
#[cfg(feature = "cache")]
mod store;
#[cfg(not(feature = "cache"))]
#[path = "absent.rs"]
mod store;
mod url;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, watch};

pub use self::blob::{Reader, Stored, Writer};
pub use self::care::{Pruned, Pruning, Stats, Unsound};
pub use self::claim::Claim;
use self::claim::Watch;
use self::store::Store;
pub use self::store::{BoxError, ClientFor};
pub use self::url::CacheUrl;
use crate::oci::Digest;

/// How long a claimant may be silent, unless asked otherwise.
pub const DEFAULT_CLAIM_EXPIRY: Duration = Duration::from_mins(1);
/// The key of what says that there is a cache, and of which version.
const MARKER: &str = "prebake-cache";
const VERSION: &str = "1\n";
/// The marker is not longer than this.
const MAX_MARKER: u64 = 1024;
/// So many failures one after another, and the store is not asked any more.
const FAILURES: u32 = 3;
/// How long a run waits at its end for what is still being stored.
const LAST_WAIT: Duration = Duration::from_mins(2);

/// Which cache, and how much it matters.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it is.
    pub url: CacheUrl,
    /// Whether a run fails when the cache does.
    pub required: bool,
    /// How long a claimant of a blob may be silent before another one takes its place.
    pub claim_expiry: Duration,
    /// Whether a directory that is not there yet is made.
    pub make: bool,
}

/// Why a cache does not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store said so.
    #[error("{doing} {what} of the cache {place} failed")]
    Store {
        /// In one word.
        why: Why,
        /// What was being done.
        doing: &'static str,
        /// To which key.
        what: String,
        /// The cache.
        place: String,
        /// The store's answer.
        source: BoxError,
    },
    /// The store said nothing.
    #[error("{doing} {what} of the cache {place} failed: nothing came for a minute")]
    Silent {
        /// What was being done.
        doing: &'static str,
        /// To which key.
        what: String,
        /// The cache.
        place: String,
    },
    /// The store takes bytes too slowly to be of use.
    #[error("writing {what} of the cache {place} was given up: it took nothing for 15 seconds")]
    Slow {
        /// To which key.
        what: String,
        /// The cache.
        place: String,
    },
    /// Another prebake made it, in another way.
    #[error("the cache {place} is of version {version:?}, which this prebake does not know")]
    Version {
        /// The cache.
        place: String,
        /// What its marker says.
        version: String,
    },
    /// There is something else there, or nothing.
    #[error(
        "there is no cache at {place}: nothing is there under the key {MARKER:?}, which the first run that bakes with it puts there"
    )]
    NoCache {
        /// The cache.
        place: String,
    },
    /// Nobody can have one.
    #[error("this prebake was built without caches (the feature `cache`)")]
    Without,
    /// It failed too often to be asked again.
    #[error("the cache {place} failed {FAILURES} times in a row and is not asked any more")]
    Off {
        /// The cache.
        place: String,
    },
}

/// Why a store does not do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is nothing of that name, or no such bucket.
    Absent,
    /// There is something already.
    Exists,
    /// We may not.
    Refused,
    /// There is no room.
    Full,
    /// It cannot be reached, or fails.
    Failing,
}

/// What this module gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is stored under a key of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    /// Below the prefix.
    key: String,
    /// In bytes.
    size: u64,
    modified: DateTime<Utc>,
}

/// Bytes on their way out of a store.
type Stream = BoxStream<'static, Result<Bytes>>;

/// What a user may want to know of a cache.
#[derive(Debug)]
pub enum Trouble<'t> {
    /// It is not asked any more.
    Off(&'t Error),
    /// An object was not what its digest says; it was removed where that is allowed, and the registry is asked.
    Wrong(&'t Digest),
    /// The store takes nothing from us: what is there is used.
    ReadOnly,
    /// Something could not be stored; other things may be.
    NotStored(&'t Error),
    /// The store knows no conditional writes: two bakers may get the same blob from its registry.
    Unconditional,
}

impl Trouble<'_> {
    /// In one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off(_) => "off",
            Self::Wrong(_) => "wrong",
            Self::ReadOnly => "read-only",
            Self::NotStored(_) => "not-stored",
            Self::Unconditional => "unconditional",
        }
    }
}

/// Takes troubles.
pub type Tell = Arc<dyn Fn(&Trouble<'_>) + Send + Sync>;

/// What a run had of its cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Blobs and documents that came from it.
    pub hits: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// Blobs and documents that were put into it.
    pub stored: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Blobs and documents that another baker was waited for.
    pub waited: u64,
    /// Objects that were not what their digests say.
    pub wrong: u64,
    /// Times that it did not do something.
    pub failures: u64,
    /// Requests to the store that read something.
    pub reads: u64,
    /// Requests to the store that wrote or listed something.
    pub writes: u64,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    hit_bytes: AtomicU64,
    stored: AtomicU64,
    stored_bytes: AtomicU64,
    waited: AtomicU64,
    wrong: AtomicU64,
    failures: AtomicU64,
}

/// A cache, shared by all that a process does.
pub struct Cache {
    store: Store,
    required: bool,
    claim_expiry: Duration,
    tell: Tell,
    opened: OnceCell<()>,
    off: AtomicBool,
    read_only: AtomicBool,
    unconditional: AtomicBool,
    /// Failures since the last success; of blobs that were to be stored, apart.
    in_a_row: AtomicU32,
    not_stored_in_a_row: AtomicU32,
    /// Why something was not stored first, for whom the cache is required.
    not_stored: Mutex<Option<Error>>,
    counters: Counters,
    /// By what others tell this process's claims from theirs.
    holder: String,
    claims: AtomicU64,
    watched: Mutex<HashMap<Digest, Watch>>,
    /// What was found out before it was needed.
    turns: Mutex<HashMap<Digest, Turn>>,
    /// Blobs that may be wrong: what came of them did not have their digest.
    doubted: Mutex<HashSet<Digest>>,
    /// Wrong objects that could not be removed.
    ignored: Mutex<HashSet<Digest>>,
    /// What was read and stored since it was last noted.
    used: Mutex<BTreeSet<Digest>>,
    /// How much is still being written behind whoever asked for it.
    behind: watch::Sender<usize>,
}

/// Who gets a blob.
pub enum Turn {
    /// The cache has it.
    Here,
    /// This run, from the registry; what comes is to be written to the claim.
    Ours(Claim),
    /// Another run does; to be asked again after [`Cache::wait`].
    Theirs,
    /// This run, from the registry; the cache is not to be bothered.
    Alone,
}

impl Cache {
    /// Talks to nobody yet. `None` where there can be no cache, which `tell` is told, and none is required.
    ///
    /// # Errors
    /// [`Error::Store`], where the cache is required: the environment says too little of who we are, or something impossible.
    pub fn open(options: Options, client_for: ClientFor, tell: Tell) -> Result<Option<Arc<Self>>> {
        let Options { url, required, claim_expiry, make } = options;
        let store = match Store::open(&url, client_for, make) {
            Err(error) if !required => {
                tell(&Trouble::Off(&error));
                return Ok(None);
            }
            store => store?,
        };
        Ok(Some(Arc::new(Self {
            store,
            required,
            claim_expiry,
            tell,
            opened: OnceCell::new(),
            off: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            unconditional: AtomicBool::new(false),
            in_a_row: AtomicU32::new(0),
            not_stored_in_a_row: AtomicU32::new(0),
            not_stored: Mutex::default(),
            counters: Counters::default(),
            holder: holder(),
            claims: AtomicU64::new(0),
            watched: Mutex::default(),
            turns: Mutex::default(),
            doubted: Mutex::default(),
            ignored: Mutex::default(),
            used: Mutex::default(),
            behind: watch::Sender::new(0),
        })))
    }

    /// Its URL.
    pub fn place(&self) -> &str {
        self.store.place()
    }

    /// What this run had of it.
    pub fn usage(&self) -> Usage {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { hits, hit_bytes, stored, stored_bytes, waited, wrong, failures } = &self.counters;
        let (reads, writes) = self.store.requests();
        Usage {
            hits: of(hits),
            hit_bytes: of(hit_bytes),
            stored: of(stored),
            stored_bytes: of(stored_bytes),
            waited: of(waited),
            wrong: of(wrong),
            failures: of(failures),
            reads,
            writes,
        }
    }

    /// Who is to get a blob, of this size where that is known: the cache, this run, or another one.
    ///
    /// # Errors
    /// [`Error`], where the cache is required.
    pub async fn turn(self: &Arc<Self>, digest: &Digest, size: Option<u64>) -> Result<Turn> {
        if let Some(turn) = lock(&self.turns).remove(digest) {
            return Ok(turn);
        }
        let turn = self.try_turn(digest, size).await;
        self.or_alone(turn)
    }

    /// Whether it is another one's turn. Else the next [`Cache::turn`] says what was found out now.
    ///
    /// # Errors
    /// As [`Cache::turn`].
    pub async fn is_theirs(self: &Arc<Self>, digest: &Digest, size: u64) -> Result<bool> {
        let turn = self.turn(digest, Some(size)).await?;
        let is_theirs = matches!(turn, Turn::Theirs);
        if !is_theirs {
            lock(&self.turns).insert(digest.clone(), turn);
        }
        Ok(is_theirs)
    }

    async fn try_turn(self: &Arc<Self>, digest: &Digest, size: Option<u64>) -> Result<Turn> {
        if !self.is_on().await? {
            return Ok(Turn::Alone);
        }
        if self.is_here(digest, size).await? {
            return Ok(Turn::Here);
        }
        let turn = self.claim(digest).await?;
        // Whoever had the claim before may have stored it since.
        if matches!(turn, Turn::Ours(_)) && self.is_here(digest, size).await? {
            return Ok(Turn::Here);
        }
        self.worked();
        Ok(turn)
    }

    async fn is_here(self: &Arc<Self>, digest: &Digest, size: Option<u64>) -> Result<bool> {
        if lock(&self.ignored).contains(digest) {
            return Ok(false);
        }
        if lock(&self.doubted).contains(digest) {
            return self.resolve_doubt(digest).await;
        }
        let found = self.store.head(&blob_key(digest)).await?;
        self.worked();
        match found {
            // Which of the two is wrong, only the bytes can say: whoever names a blob may name another size.
            Some(object) if size.is_some_and(|size| size != object.size) => self.resolve_doubt(digest).await,
            found => Ok(found.is_some()),
        }
    }

    /// Says that what came from the cache did not have this digest: it is verified before it is used again.
    pub fn doubt(&self, digest: &Digest) {
        if lock(&self.used).contains(digest) {
            lock(&self.doubted).insert(digest.clone());
        }
    }

    /// Whether the cache has a blob whose bytes are right; wrong ones go.
    async fn resolve_doubt(&self, digest: &Digest) -> Result<bool> {
        let is_right = self.is_right(digest).await?;
        lock(&self.doubted).remove(digest);
        if is_right == Some(false) {
            self.discard(digest).await;
        }
        Ok(is_right == Some(true))
    }

    /// Removes what is not what its digest says.
    async fn discard(&self, digest: &Digest) {
        self.counters.wrong.fetch_add(1, Ordering::Relaxed);
        lock(&self.used).remove(digest);
        (self.tell)(&Trouble::Wrong(digest));
        if self.store.delete(&blob_key(digest)).await.is_err() {
            lock(&self.ignored).insert(digest.clone());
        }
    }

    /// Whether the store is to be asked; the first one asks it for its marker.
    async fn is_on(&self) -> Result<bool> {
        if self.off.load(Ordering::Relaxed) {
            return if self.required { Err(Error::Off { place: self.place().to_owned() }) } else { Ok(false) };
        }
        match self.opened.get_or_try_init(|| self.greet()).await {
            Ok(()) => Ok(true),
            Err(error) if self.required => Err(error),
            Err(error) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                self.switch_off(&error);
                Ok(false)
            }
        }
    }

    /// Makes sure that it can be reached, and finds out what it can do.
    async fn greet(&self) -> Result<()> {
        let made = match self.store.put_new(MARKER, VERSION.to_owned()).await {
            Err(Error::Store { why: Why::Refused, .. }) => None,
            Err(Error::Store { why: Why::Full, .. }) if !self.required => None,
            made => Some(made?),
        };
        // Nobody but a store that does not know the condition takes it twice.
        if made == Some(true) && self.store.put_new(MARKER, VERSION.to_owned()).await? {
            self.unconditional.store(true, Ordering::Relaxed);
            (self.tell)(&Trouble::Unconditional);
        }
        // Whoever may not even read has no use for it.
        self.is_marked().await?;
        if made.is_none() {
            self.write_no_more();
        }
        Ok(())
    }

    /// Whether there is a cache of our version; an error where there is one of another.
    async fn is_marked(&self) -> Result<bool> {
        match self.store.get_small(MARKER, MAX_MARKER).await? {
            None => Ok(false),
            Some((_, Some(text))) if *text == *VERSION.as_bytes() => Ok(true),
            Some((_, text)) => {
                let version = String::from_utf8_lossy(&text.unwrap_or_default()).trim().to_owned();
                Err(Error::Version { place: self.place().to_owned(), version })
            }
        }
    }

    fn write_no_more(&self) {
        if !self.read_only.swap(true, Ordering::Relaxed) {
            (self.tell)(&Trouble::ReadOnly);
        }
    }

    fn may_write(&self) -> bool {
        !self.read_only.load(Ordering::Relaxed) && !self.off.load(Ordering::Relaxed)
    }

    fn worked(&self) {
        self.in_a_row.store(0, Ordering::Relaxed);
    }

    /// Counts a failure; after several in a row the store is not asked any more, and not written to where it has no room or says
    /// no: what it has is of use, and others need not wait for what this run could not store.
    fn failed(&self, error: &Error) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        if let Error::Store { why: Why::Refused | Why::Full, doing: "writing", .. } = error {
            return self.write_no_more();
        }
        if self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.switch_off(error);
        }
    }

    /// Counts a blob that was not stored, the first of which is told of; after several in a row nothing is written any more. What
    /// is there is read all the same: a store may answer, and take nothing large.
    fn failed_to_store(&self, error: Error) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let is_for_good = matches!(error, Error::Store { why: Why::Refused | Why::Full, .. });
        {
            let mut first = lock(&self.not_stored);
            if first.is_none() && !is_for_good && self.may_write() {
                (self.tell)(&Trouble::NotStored(&error));
            }
            first.get_or_insert(error);
        }
        if is_for_good || self.not_stored_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.write_no_more();
        }
    }

    fn switch_off(&self, error: &Error) {
        if !self.off.swap(true, Ordering::Relaxed) {
            (self.tell)(&Trouble::Off(error));
        }
    }

    /// What a failure comes to: nothing but a slower run, unless the cache is required.
    fn or_alone(&self, turn: Result<Turn>) -> Result<Turn> {
        match turn {
            Err(error) if !self.required => {
                self.failed(&error);
                Ok(Turn::Alone)
            }
            other => other,
        }
    }

    fn hit(&self, digest: &Digest, bytes: u64) {
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        self.counters.hit_bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.used).insert(digest.clone());
    }

    fn stored(&self, digest: &Digest, bytes: u64) {
        self.worked();
        self.not_stored_in_a_row.store(0, Ordering::Relaxed);
        self.counters.stored.fetch_add(1, Ordering::Relaxed);
        self.counters.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.used).insert(digest.clone());
    }

    /// Does something that nobody waits for before the end of the run.
    fn behind(&self, work: impl Future<Output = ()> + Send + 'static) {
        // Where nothing runs any more, claims expire.
        let Ok(runtime) = Handle::try_current() else { return };
        let behind = Behind::begin(&self.behind);
        runtime.spawn(async move {
            work.await;
            drop(behind);
        });
    }

    /// Waits until everything is stored that is on its way, and notes what was used. To be called at the end of a run.
    ///
    /// # Errors
    /// [`Error`], where the cache is required.
    pub async fn settle(&self) -> Result<()> {
        lock(&self.turns).clear();
        let mut behind = self.behind.subscribe();
        let in_time = tokio::time::timeout(LAST_WAIT, behind.wait_for(|left| *left == 0)).await.is_ok();
        let used = std::mem::take(&mut *lock(&self.used));
        // Also where there was no room, or nothing is taken from us: what is small may find its place.
        if !used.is_empty() && !self.off.load(Ordering::Relaxed) {
            self.note(&used).await?;
        }
        match lock(&self.not_stored).take() {
            Some(error) if self.required => Err(error),
            None if self.required && !in_time => Err(Error::Silent {
                doing: "writing",
                what: "the last blobs".to_owned(),
                place: self.place().to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Notes what was used, so that it is not pruned.
    async fn note(&self, used: &BTreeSet<Digest>) -> Result<()> {
        let text = used.iter().fold(String::new(), |text, digest| text + digest.as_str() + "\n");
        let key = format!("used/{}-{}", Utc::now().format("%Y%m%dT%H%M%S"), random());
        match self.store.put(&key, vec![text.into()]).await {
            Err(error) if self.required && self.may_write() => Err(error),
            Err(error) if self.may_write() => {
                self.failed(&error);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Something that is still being written. What ends may begin something else before it does: a claim that is given up.
struct Behind(watch::Sender<usize>);

impl Behind {
    fn begin(all: &watch::Sender<usize>) -> Self {
        all.send_modify(|left| *left += 1);
        Self(all.clone())
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.0.send_modify(|left| *left -= 1);
    }
}

fn blob_key(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Something that nobody else comes to.
fn random() -> String {
    let mut bytes = [0; 8];
    // Where the system has nothing by chance, the claim's number tells claims of this process apart.
    let _ = SystemRandom::new().fill(&mut bytes);
    format!("{:016x}", u64::from_le_bytes(bytes))
}

/// Who this process is, for people who read claims too.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}/{}", host.trim(), std::process::id(), random())
}

/// A lock whose holder may have panicked: nothing here is left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
