//! What a registry can be asked for; which of its hosts answers is decided here.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::auth::{Auth, Place, Rights};
use super::blob::{Direct, Origin, PARTS};
use super::hosts::{Capabilities, Host, HostsDirs};
use super::patience::Patience;
use super::send::{Answer, Ask, Sender};
use super::through::Blob;
use super::tls::Trust;
use super::{Error, Notice, Notify, Options, Result, lock};
use crate::cache::{Cache, Trouble};
use crate::oci::{Descriptor, Digest, Document, MAX_DOCUMENT, Reference, media_type};

/// A registry's own word for what it sends (distribution specification).
pub(super) const DIGEST_HEADER: &str = "docker-content-digest";
/// Referrers of one digest after which no further page is asked for.
const MAX_REFERRERS: usize = 256;
/// Pages of a list that are asked for.
const MAX_PAGES: usize = 100;
/// What all documents under way may take together, in KiB: two of the largest.
const ROOM: u32 = 16 << 10;

/// A client for any number of registries.
pub struct Client {
    pub(super) sender: Arc<Sender>,
    pub(super) auth: Auth,
    plain_http: bool,
    dirs: HostsDirs,
    hosts: Mutex<HashMap<String, Vec<Arc<Host>>>>,
    room: Arc<Semaphore>,
    /// Room for parts of blobs that came before their turn.
    parts: Arc<Semaphore>,
    /// Registries that are asked for no parts.
    partless: Mutex<HashSet<String>>,
    pub(super) cache: Option<Arc<Cache>>,
}

/// An index, manifest or config as received. While one lives, it takes room that others wait for.
#[derive(Debug)]
pub struct RawDocument {
    /// Exactly the bytes of the body.
    pub bytes: Bytes,
    /// The registry's `Content-Type`, without parameters; empty when it gave none.
    pub media_type: String,
    /// The query of the next page, where there is one.
    pub(super) next: Option<Vec<(String, String)>>,
    _room: Room,
}

/// Room for a document in memory, given back when its last clone is dropped. To be taken before any lock, or two could wait
/// for each other.
#[derive(Debug, Clone)]
pub struct Room(#[expect(dead_code, reason = "held for its drop")] Arc<OwnedSemaphorePermit>);

impl Client {
    /// Makes a client; `notify` is told of what a user may want to know. Needs a process-wide rustls provider, see
    /// [`crate::install_tls`].
    ///
    /// # Errors
    /// [`Error::Tls`].
    pub fn new(options: Options, notify: Notify) -> Result<Self> {
        let sender = Arc::new(Sender::new(Trust::new(&options.ca_files)?, options.manners, notify.clone()));
        let to_stores = sender.clone();
        let client_for = Arc::new(move |url: &Url, may_be_plain| to_stores.http_for_store(url, may_be_plain));
        let tell = Arc::new(move |trouble: &Trouble<'_>| notify(&Notice::Cache(trouble)));
        let cache = options.cache.map(|options| Cache::open(options, client_for, tell)).transpose()?.flatten();
        Ok(Self {
            cache,
            sender,
            auth: Auth::new(options.keychain),
            plain_http: options.plain_http,
            dirs: options.hosts,
            hosts: Mutex::default(),
            room: Arc::new(Semaphore::new(ROOM as usize)),
            parts: Arc::new(Semaphore::new(PARTS)),
            partless: Mutex::default(),
        })
    }

    /// Waits until there is room for a document of that many bytes.
    pub async fn room(&self, bytes: u64) -> Room {
        match self.room.clone().acquire_many_owned(kib(bytes)).await {
            Ok(permit) => Room(Arc::new(permit)),
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    fn try_room(&self, bytes: u64) -> Option<Room> {
        Some(Room(Arc::new(self.room.clone().try_acquire_many_owned(kib(bytes)).ok()?)))
    }

    /// Gets an index or manifest by tag or digest; at most `limit` bytes. Without `room` it takes some, once it is known how
    /// much.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn document(
        &self,
        reference: &Reference,
        target: &str,
        limit: u64,
        room: Option<Room>,
    ) -> Result<RawDocument> {
        let digest = self.digest_for_cache(reference, target).await?;
        let target = digest.as_ref().map_or(target, Digest::as_str);
        let what = format!("{}{}{target}", reference.repository(), if target.contains(':') { "@" } else { ":" });
        let accept = media_type::DOCUMENTS.join(", ");
        let ask = Ask::new("manifests", target, &accept, &what);
        match &digest {
            Some(digest) => self.small_through(reference, &ask, digest, limit, room).await,
            None => self.collect(reference, &ask, limit, room).await,
        }
    }

    /// Gets a config: a blob that is small, at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn small_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        limit: u64,
        room: Option<Room>,
    ) -> Result<RawDocument> {
        let what = format!("blob {digest}");
        let ask = Ask::new("blobs", digest.as_str(), "*/*", &what);
        self.small_through(reference, &ask, digest, limit, room).await
    }

    /// The digest of what a tag names, by the registry's word; `None` when it does not say.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        self.head_of(reference, reference.target()).await
    }

    pub(super) async fn head_of(&self, reference: &Reference, tag: &str) -> Result<Option<Digest>> {
        let what = format!("{}:{tag}", reference.repository());
        let accept = media_type::DOCUMENTS.join(", ");
        let ask = Ask { method: Method::HEAD, ..Ask::new("manifests", tag, &accept, &what) };
        let answer = self.patiently(reference, &ask).await?;
        Ok(said_digest(&answer).and_then(|text| text.parse().ok()))
    }

    /// What refers to a digest, by the API or by the tag that stands in for it; what neither knows has none.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn referrers(&self, reference: &Reference, subject: &Digest) -> Result<Vec<Descriptor>> {
        self.list_referrers(reference, subject, Rights::Pull).await
    }

    pub(super) async fn list_referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        rights: Rights<'_>,
    ) -> Result<Vec<Descriptor>> {
        let what = format!("referrers of {}@{subject}", reference.repository());
        let tag = subject.as_tag();
        let lists = [
            Ask::new("referrers", subject.as_str(), media_type::OCI_INDEX, &what),
            Ask::new("manifests", &tag, media_type::OCI_INDEX, &what),
        ];
        for ask in lists {
            let mut ask = Ask { rights, ..ask };
            let mut all = Vec::new();
            for page in 1.. {
                let raw = match self.collect(reference, &ask, MAX_DOCUMENT, None).await {
                    Ok(raw) => raw,
                    Err(Error::NotFound { .. } | Error::NoHost { .. } | Error::Status { status: 400..500, .. }) => {
                        break;
                    }
                    Err(error) => return Err(error),
                };
                // Whoever does not know the API may answer with anything.
                let Ok((Document::Index(index), _)) = Document::parse(&raw.bytes, &raw.media_type) else { break };
                all.extend(index.manifests);
                match raw.next {
                    Some(query) if page < MAX_PAGES && all.len() < MAX_REFERRERS => ask.query = query,
                    _ => return Ok(all),
                }
            }
        }
        Ok(Vec::new())
    }

    /// Starts to get a blob, whose first `from` bytes are here, with the entity tag they had. Broken transfers go on where
    /// they stopped; whether the bytes are right is for the reader to verify.
    pub fn blob(
        self: &Arc<Self>,
        reference: &Reference,
        descriptor: &Descriptor,
        from: u64,
        tag: Option<String>,
    ) -> Blob {
        let direct = Direct::new(self.clone(), reference.clone(), descriptor.clone(), from, tag);
        Blob::new(self.cache.clone(), descriptor.clone(), direct, from)
    }

    /// What came of a blob was wrong: its registry is asked for no parts of blobs any more, and what a cache has of it is verified
    /// before it is used again.
    pub fn gave_wrong(&self, registry: &str, digest: &Digest) {
        self.gives_no_parts(registry);
        if let Some(cache) = &self.cache {
            cache.doubt(digest);
        }
    }

    pub(super) fn gives_no_parts(&self, registry: &str) {
        lock(&self.partless).insert(registry.to_owned());
    }

    pub(super) fn is_partless(&self, registry: &str) -> bool {
        lock(&self.partless).contains(registry)
    }

    /// Room for one more part, where it could begin now.
    pub(super) fn room_for_part(&self, from: &Origin) -> Option<OwnedSemaphorePermit> {
        let gate = self.sender.gate(from.address.as_ref().unwrap_or(&from.host.base));
        if gate.is_free() { self.parts.clone().try_acquire_owned().ok() } else { None }
    }

    /// Asks for a blob: the registry, and where that does not have it, whom the manifest names. They are not told who we are.
    pub(super) async fn blob_from(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        ask: &Ask<'_>,
    ) -> Result<Answer> {
        let missing = match self.once(reference, ask).await {
            Err(error @ Error::NotFound { .. }) => error,
            other => return other,
        };
        let urls = descriptor.urls().iter().filter_map(|url| Url::parse(url).ok());
        let mut worst = None;
        for url in urls.filter(|url| matches!(url.scheme(), "http" | "https")) {
            match self.sender.ask_at(&Arc::new(Host::unknown(&url)), &url, ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) => worst = worst.or(Some(error)),
            }
        }
        Err(worst.unwrap_or(missing))
    }

    /// Asks whoever answered before.
    pub(super) async fn once_more(&self, from: &Origin, reference: &Reference, ask: &Ask<'_>) -> Result<Answer> {
        if let Some(address) = &from.address {
            return self.sender.ask_at(&from.host, address, ask).await;
        }
        let place = Place { host: &from.host, repository: reference.repository(), what: ask.what, rights: ask.rights };
        self.sender.ask(&self.auth, place, reference.registry(), ask).await
    }

    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.sender.tries(), self.sender.notify.clone())
    }

    /// Asks until there is an answer, or nothing to be gained.
    pub(super) async fn patiently(&self, reference: &Reference, ask: &Ask<'_>) -> Result<Answer> {
        let mut patience = self.patience();
        loop {
            match self.once(reference, ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    /// Asks the hosts in their order, until one answers.
    pub(super) async fn once(&self, reference: &Reference, ask: &Ask<'_>) -> Result<Answer> {
        let registry = reference.registry();
        let mut hosts: Vec<Arc<Host>> =
            self.hosts(registry)?.into_iter().filter(|host| allows(host.capabilities, ask)).collect();
        if ask.rights != Rights::Pull {
            // What is pushed is all in one place, as containerd has it.
            hosts.truncate(1);
        }
        // Whoever wants to be left alone is, unless nobody else has it.
        hosts.sort_by_key(|host| self.sender.is_closed(host));
        let mut worst: Option<Error> = None;
        for host in &hosts {
            let place = Place { host, repository: reference.repository(), what: ask.what, rights: ask.rights };
            match self.sender.ask(&self.auth, place, registry, ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    // What passes is worth another try; else the first that tells most.
                    let rank = |error: &Error| (error.is_passing(), error.weight());
                    if worst.as_ref().is_none_or(|worst| rank(&error) > rank(worst)) {
                        worst = Some(error);
                    }
                }
            }
        }
        Err(worst.unwrap_or_else(|| Error::NoHost { registry: registry.to_owned(), what: ask.what.to_owned() }))
    }

    fn hosts(&self, registry: &str) -> Result<Vec<Arc<Host>>> {
        let mut known = lock(&self.hosts);
        if let Some(hosts) = known.get(registry) {
            return Ok(hosts.clone());
        }
        let hosts = self.dirs.hosts(registry, self.plain_http)?;
        let hosts: Vec<_> = hosts.into_iter().map(Arc::new).collect();
        known.insert(registry.to_owned(), hosts.clone());
        Ok(hosts)
    }

    /// Asks for something small until it comes whole.
    pub(super) async fn collect(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
        limit: u64,
        room: Option<Room>,
    ) -> Result<RawDocument> {
        let mut patience = self.patience();
        let mut room = room;
        loop {
            let error = match self.once(reference, ask).await {
                Err(error) => error,
                Ok(answer) => {
                    let promised = answer.response.content_length().unwrap_or(limit);
                    if promised > limit {
                        return Err(too_large(&answer, ask, limit));
                    }
                    if room.is_none() {
                        room = self.try_room(promised);
                    }
                    let Some(room) = room.clone() else {
                        // Whoever has room may wait for this answer's turn.
                        drop(answer);
                        room = Some(self.room(promised).await);
                        continue;
                    };
                    match self.read(answer, ask, limit, room).await {
                        Ok(document) => return Ok(document),
                        Err(error) => error,
                    }
                }
            };
            patience.after(error).await?;
        }
    }

    async fn read(&self, mut answer: Answer, ask: &Ask<'_>, limit: u64, room: Room) -> Result<RawDocument> {
        let host = answer.host.authority().to_owned();
        let header = |name: &str| answer.response.headers().get(name).and_then(|value| value.to_str().ok());
        let declared = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let media_type = declared.split(';').next().unwrap_or_default().trim().to_owned();
        let claimed = header(DIGEST_HEADER).map(str::to_owned);
        let next = header("link").and_then(|link| next_page(answer.response.url(), link));
        let promised = answer.response.content_length().unwrap_or(0);
        let mut all = Vec::new();
        while let Some(chunk) = self.sender.chunk(&mut answer, ask.what).await? {
            if all.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large(&answer, ask, limit));
            }
            // Grown to what came, and never to twice of it.
            all.reserve_exact(chunk.len().max(usize::try_from(promised).unwrap_or(0).saturating_sub(all.len())));
            all.extend_from_slice(&chunk);
        }
        // A tag's document can be verified by nothing else.
        if let Some(claimed) = claimed.filter(|_| !ask.target.contains(':')) {
            let digest = claimed.parse::<Digest>().ok();
            let got = Digest::of_as(&all, digest.as_ref());
            if digest.as_ref() != Some(&got) {
                return Err(Error::WrongClaim { host, what: ask.what.to_owned(), claimed, got: got.to_string() });
            }
        }
        Ok(RawDocument { bytes: all.into(), media_type, next, _room: room })
    }
}

impl RawDocument {
    /// A document that was got elsewhere.
    pub fn new(bytes: Bytes, room: Room) -> Self {
        Self { bytes, media_type: String::new(), next: None, _room: room }
    }
}

/// The digest of what was asked for, by the registry's word.
pub(super) fn said_digest(answer: &Answer) -> Option<&str> {
    answer.response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok())
}

/// The query of a `Link` header with `rel="next"` (distribution specification, "Listing Referrers").
fn next_page(at: &Url, link: &str) -> Option<Vec<(String, String)>> {
    let (target, relation) = link.strip_prefix('<')?.split_once('>')?;
    let next = at.join(target).ok().filter(|_| relation.contains("next"))?;
    // Where it is of another kind, there is none.
    (next.path() == at.path()).then(|| next.query_pairs().into_owned().collect())
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(ROOM).min(ROOM)
}

fn too_large(answer: &Answer, ask: &Ask<'_>, limit: u64) -> Error {
    Error::TooLarge { host: answer.host.authority().to_owned(), what: ask.what.to_owned(), limit }
}

/// Tags are asked only of hosts that may resolve (`filterHosts`).
fn allows(capabilities: Capabilities, ask: &Ask<'_>) -> bool {
    match ask.kind {
        _ if ask.rights != Rights::Pull => capabilities.push,
        "referrers" => capabilities.referrers,
        "tags" => capabilities.pull && capabilities.resolve,
        "manifests" if !ask.target.contains(':') => capabilities.pull && capabilities.resolve,
        _ => capabilities.pull,
    }
}
