//! What is asked for by digest, by way of a cache that many share.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use super::blob::Direct;
use super::{Client, RawDocument, Result, Room};
use crate::cache::{Cache, Claim, Reader, Stored, Turn, Writer};
use crate::oci::{Descriptor, Digest, Reference};

/// A blob on its way: from a cache, or from its registry.
pub struct Blob {
    cache: Option<Arc<Cache>>,
    descriptor: Descriptor,
    direct: Direct,
    way: Way,
    /// The first byte that did not come out yet.
    at: u64,
    /// Its first bytes, where they are here already.
    here: Option<File>,
}

/// Where its next bytes come from.
enum Way {
    /// That is to be found out.
    Unknown,
    /// The cache.
    Cached(Reader),
    /// The registry, and on into the cache.
    Storing(Writer),
    /// The registry.
    Direct,
}

impl Blob {
    pub(super) fn new(cache: Option<Arc<Cache>>, descriptor: Descriptor, direct: Direct, from: u64) -> Self {
        let way = if cache.is_some() { Way::Unknown } else { Way::Direct };
        Self { cache, descriptor, direct, way, at: from, here: None }
    }

    /// Says where the bytes are that are not asked for.
    pub fn begins_in(&mut self, here: File) {
        self.here = Some(here);
    }

    /// The next bytes, as they come; `None` at the end.
    ///
    /// # Errors
    /// [`super::Error`], when asking again is of no use.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            match &mut self.way {
                Way::Unknown => self.way = self.choose().await?,
                Way::Cached(reader) => {
                    if let Some(chunk) = reader.chunk().await? {
                        self.at += chunk.len() as u64;
                        return Ok(Some(chunk));
                    }
                    if self.at >= self.descriptor.size {
                        return Ok(None);
                    }
                    // What is missing comes from the registry, which is not asked for all of it once more.
                    self.way = Way::Direct;
                    self.direct.skip_to(self.at);
                }
                Way::Storing(writer) => {
                    let chunk = self.direct.chunk().await?;
                    match &chunk {
                        Some(chunk) => {
                            self.at += chunk.len() as u64;
                            writer.write(chunk.clone()).await;
                        }
                        None => self.way = Way::Direct,
                    }
                    return Ok(chunk);
                }
                Way::Direct => return self.direct.chunk().await,
            }
        }
    }

    async fn choose(&mut self) -> Result<Way> {
        let Some(cache) = &self.cache else { return Ok(Way::Direct) };
        let Descriptor { digest, size, .. } = &self.descriptor;
        let mut tries = 2;
        let way = loop {
            match cache.turn(digest, Some(*size)).await? {
                Turn::Here => {
                    if let Some(reader) = cache.read(digest, *size, self.at).await? {
                        break Way::Cached(reader);
                    }
                    // What was there was of another size and is gone: its place is to be filled.
                    tries -= 1;
                    if tries == 0 {
                        break Way::Direct;
                    }
                }
                Turn::Ours(claim) => {
                    break Way::Storing(claim.writer(*size, self.here.take().map(|file| (file, self.at))));
                }
                Turn::Theirs => cache.wait(digest).await,
                Turn::Alone => break Way::Direct,
            }
        };
        Ok(way)
    }

    /// Brings it to the cache, and nowhere else: what came of storing it, and `None` where it was there. `came` is told of bytes.
    ///
    /// # Errors
    /// [`super::Error`].
    pub async fn into_cache(mut self, came: &(dyn Fn(u64) + Sync)) -> Result<Option<Stored>> {
        let Some(cache) = self.cache.clone() else { return Ok(Some(Stored::Not)) };
        let digest = &self.descriptor.digest;
        let claim = loop {
            match cache.turn(digest, Some(self.descriptor.size)).await? {
                Turn::Here => return Ok(None),
                Turn::Ours(claim) => break claim,
                Turn::Theirs => cache.wait(digest).await,
                Turn::Alone => return Ok(Some(Stored::Not)),
            }
        };
        let mut writer = claim.writer(self.descriptor.size, None);
        while let Some(chunk) = self.direct.chunk().await? {
            came(chunk.len() as u64);
            if !writer.write(chunk).await {
                break;
            }
        }
        Ok(Some(writer.stored().await))
    }

    /// Lets go of the connection, which others may need; the next call asks for what is missing. Where that takes long, whoever
    /// waits for it to be stored waits no longer (`cache::Claim`).
    pub fn pause(&mut self) {
        self.direct.pause();
    }

    /// Host and port of who was asked last with success, or the cache.
    pub fn host(&self) -> Option<&str> {
        match (&self.way, &self.cache) {
            (Way::Cached(_), Some(cache)) => Some(cache.place()),
            _ => self.direct.host(),
        }
    }

    /// The entity tag of what comes, for a run that goes on with it.
    pub fn entity_tag(&self) -> Option<&str> {
        match self.way {
            Way::Cached(_) => None,
            _ => self.direct.entity_tag(),
        }
    }
}

impl Client {
    /// The cache that blobs and documents go by.
    pub fn cache(&self) -> Option<&Arc<Cache>> {
        self.cache.as_ref()
    }

    /// As [`Cache::settle`].
    ///
    /// # Errors
    /// [`super::Error::Cache`].
    pub async fn settle(&self) -> Result<()> {
        match &self.cache {
            Some(cache) => Ok(cache.settle().await?),
            None => Ok(()),
        }
    }

    /// Waits while another baker is at a blob, if one is: whether that was so. What was found out is not asked for again.
    ///
    /// # Errors
    /// [`super::Error::Cache`].
    pub async fn waits_for(&self, digest: &Digest, size: u64) -> Result<Option<Waiting>> {
        let Some(cache) = &self.cache else { return Ok(None) };
        Ok(cache.is_theirs(digest, size).await?.then(|| Waiting { cache: cache.clone(), digest: digest.clone() }))
    }

    /// Something small by its digest: from the cache, or from the registry and into it.
    pub(super) async fn small_through(
        &self,
        reference: &Reference,
        ask: &super::send::Ask<'_>,
        digest: &Digest,
        limit: u64,
        room: Option<Room>,
    ) -> Result<RawDocument> {
        let Some(cache) = &self.cache else { return self.collect(reference, ask, limit, room).await };
        // Before the room: it is not to be held while another one is waited for.
        let mut found = cache.small(digest, limit).await?;
        let claim: Option<Claim> = loop {
            if found.is_some() {
                break None;
            }
            match cache.turn(digest, None).await? {
                Turn::Here => {
                    found = cache.small(digest, limit).await?;
                    break None;
                }
                Turn::Ours(claim) => break Some(claim),
                Turn::Theirs => cache.wait(digest).await,
                Turn::Alone => break None,
            }
        };
        if let Some(bytes) = found {
            let room = match room {
                Some(room) => room,
                None => self.room(bytes.len() as u64).await,
            };
            return Ok(RawDocument::new(bytes, room));
        }
        let raw = self.collect(reference, ask, limit, room).await?;
        if let Some(claim) = claim {
            claim.store(raw.bytes.clone());
        }
        Ok(raw)
    }

    /// What a tag leads to, where a cache may have it: asked for by its name only, which costs no pull.
    pub(super) async fn digest_for_cache(&self, reference: &Reference, target: &str) -> Result<Option<Digest>> {
        if self.cache.is_none() {
            return Ok(None);
        }
        match target.parse() {
            Ok(digest) => Ok(Some(digest)),
            // A registry that knows no HEAD is asked as it is without a cache; that answer counts.
            Err(_) => match self.head_of(reference, target).await {
                Err(error) if !error.is_passing() => Ok(None),
                found => found,
            },
        }
    }
}

/// Another baker's turn.
pub struct Waiting {
    cache: Arc<Cache>,
    digest: Digest,
}

impl Waiting {
    /// Until it is over.
    pub async fn over(self) {
        self.cache.wait(&self.digest).await;
    }
}
