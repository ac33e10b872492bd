//! An image's bytes, from its registry or from the place it was found in.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;

use super::{Error, Held, Local, Result};
use crate::cache::{Cache, Stored};
use crate::oci::{Descriptor, Digest, Document, MAX_DOCUMENT, Reference, media_type};
use crate::registry::{self, Client, Notify, RawDocument, Room, Waiting};
use crate::spec::{Named, Place};

/// Bytes of a blob that are read from a place at a time.
const CHUNK: usize = 1 << 20;

/// Where images come from: registries, but for those that were found in places.
pub struct Sources {
    client: Arc<Client>,
    places: HashMap<Reference, (Arc<Local>, Held)>,
}

impl Sources {
    /// Registries alone.
    ///
    /// # Errors
    /// [`Error::Registry`].
    pub fn new(options: registry::Options, notify: Notify) -> Result<Self> {
        Ok(Self { client: Arc::new(Client::new(options, notify)?), places: HashMap::new() })
    }

    /// Registries alone, through a client that others use as well.
    pub fn through(client: Arc<Client>) -> Self {
        Self { client, places: HashMap::new() }
    }

    /// An image, under this name, from a place; the first one counts.
    pub fn put(&mut self, reference: Reference, local: Arc<Local>, held: Held) {
        self.places.entry(reference).or_insert((local, held));
    }

    /// Whether an image comes from a place.
    pub fn is_local(&self, reference: &Reference) -> bool {
        self.places.contains_key(reference)
    }

    /// As [`Client::room`].
    pub async fn room(&self, bytes: u64) -> Room {
        self.client.room(bytes).await
    }

    /// As [`Client::gave_wrong`].
    pub fn gave_wrong(&self, reference: &Reference, digest: &Digest) {
        self.client.gave_wrong(reference.registry(), digest);
    }

    /// As [`Client::waits_for`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn waits_for(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Option<Waiting>> {
        if self.is_local(reference) {
            return Ok(None);
        }
        Ok(self.client.waits_for(&descriptor.digest, descriptor.size).await?)
    }

    /// As [`registry::Blob::into_cache`]; a place's blobs are not for others.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn bring_to_cache(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        came: &(dyn Fn(u64) + std::marker::Sync),
    ) -> Result<Option<Stored>> {
        match self.blob(reference, blob, 0, None) {
            Blob::Registry(blob) => Ok(blob.into_cache(came).await?),
            Blob::Local(_) => Ok(Some(Stored::Not)),
        }
    }

    /// As [`Client::settle`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn settle(&self) -> Result<()> {
        Ok(self.client.settle().await?)
    }

    /// The cache that registries' blobs go by.
    pub fn cache(&self) -> Option<&Arc<Cache>> {
        self.client.cache()
    }

    /// As [`Client::head`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn head(&self, reference: &Reference) -> Result<Option<Digest>> {
        match self.places.get(reference) {
            Some((_, held)) => Ok(Some(held.target.digest.clone())),
            None => Ok(self.client.head(reference).await?),
        }
    }

    /// As [`Client::document`].
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
        let Some((local, held)) = self.places.get(reference) else {
            return Ok(self.client.document(reference, target, limit, room).await?);
        };
        let descriptor = if target == reference.target() {
            held.target.clone()
        } else if let Ok(digest) = target.parse::<Digest>() {
            Descriptor::new("", digest, 0)
        } else {
            local.find(target)?.target.clone()
        };
        let mut raw = self.small(local, &descriptor.digest, room).await?;
        // Whoever asks for a name takes what comes for what it leads to.
        let got = Digest::of_as(&raw.bytes, Some(&descriptor.digest));
        if got != descriptor.digest {
            return Err(Error::Damaged { place: local.place().to_owned(), digest: descriptor.digest, got });
        }
        raw.media_type = descriptor.media_type;
        Ok(raw)
    }

    /// As [`Client::small_blob`].
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
        match self.places.get(reference) {
            Some((local, _)) => self.small(local, digest, room).await,
            None => Ok(self.client.small_blob(reference, digest, limit, room).await?),
        }
    }

    async fn small(&self, local: &Arc<Local>, digest: &Digest, room: Option<Room>) -> Result<RawDocument> {
        let room = match room {
            Some(room) => room,
            None => self.client.room(local.size(digest)?.unwrap_or(0).min(MAX_DOCUMENT)).await,
        };
        let (local, digest) = (local.clone(), digest.clone());
        let bytes = blocking(move || local.small(&digest)).await?;
        Ok(RawDocument::new(bytes.into(), room))
    }

    /// As [`Client::referrers`]; in a place, those of its own that say so, and those that its tags stand in for.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn referrers(&self, reference: &Reference, subject: &Digest) -> Result<Vec<Descriptor>> {
        let Some((local, _)) = self.places.get(reference) else {
            return Ok(self.client.referrers(reference, subject).await?);
        };
        let (local, subject) = (local.clone(), subject.clone());
        blocking(move || {
            let Ok(list) = local.find(&subject.as_tag()) else { return Ok(Vec::new()) };
            let bytes = local.small(&list.target.digest)?;
            match Document::parse(&bytes, media_type::OCI_INDEX) {
                Ok((Document::Index(index), _)) => Ok(index.manifests),
                _ => Ok(Vec::new()),
            }
        })
        .await
    }

    /// As [`Client::blob`].
    pub fn blob(&self, reference: &Reference, descriptor: &Descriptor, from: u64, tag: Option<String>) -> Blob {
        match self.places.get(reference) {
            Some((local, _)) => {
                Blob::Local(LocalBlob { local: local.clone(), digest: descriptor.digest.clone(), from, reader: None })
            }
            None => Blob::Registry(Box::new(self.client.blob(reference, descriptor, from, tag))),
        }
    }
}

/// The images that a person names, and the places they are in; without one, its registry has it. `open` opens places.
///
/// # Errors
/// [`Error`]; also where a place does not say what its image is called.
pub fn chosen(named: &Named, open: &mut dyn FnMut(&Place) -> Result<Arc<Local>>) -> Result<Vec<Chosen>> {
    match named {
        Named::Registry(reference) => Ok(vec![(reference.clone(), None)]),
        Named::As(reference, place) => {
            let local = open(place)?;
            let held = local.image()?;
            Ok(vec![(reference.clone(), Some((local, held)))])
        }
        Named::Place(place) => {
            let local = open(place)?;
            let mut all = Vec::new();
            for held in local.chosen()? {
                let reference = held.reference().ok_or_else(|| Error::Nameless {
                    place: local.place().to_owned(),
                    tag: held.name.clone().unwrap_or_else(|| held.target.digest.to_string()),
                })?;
                all.push((reference, Some((local.clone(), held))));
            }
            Ok(all)
        }
    }
}

/// An image's name, and the place it is in with what it is there.
pub type Chosen = (Reference, Option<(Arc<Local>, Held)>);

/// A blob on its way.
pub enum Blob {
    /// From a registry.
    Registry(Box<registry::Blob>),
    /// From a place.
    Local(LocalBlob),
}

/// A blob that is read.
pub struct LocalBlob {
    local: Arc<Local>,
    digest: Digest,
    from: u64,
    reader: Option<Box<dyn Read + Send>>,
}

impl Blob {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Registry(blob) => Ok(blob.chunk().await?),
            Self::Local(blob) => blob.chunk().await,
        }
    }

    /// As [`registry::Blob::begins_in`].
    pub fn begins_in(&mut self, here: File) {
        if let Self::Registry(blob) = self {
            blob.begins_in(here);
        }
    }

    /// As [`registry::Blob::pause`].
    pub fn pause(&mut self) {
        if let Self::Registry(blob) = self {
            blob.pause();
        }
    }

    /// Who gives it.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Registry(blob) => blob.host(),
            Self::Local(blob) => Some(blob.local.place()),
        }
    }

    /// As [`registry::Blob::entity_tag`].
    pub fn entity_tag(&self) -> Option<&str> {
        match self {
            Self::Registry(blob) => blob.entity_tag(),
            Self::Local(_) => None,
        }
    }
}

impl LocalBlob {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let (local, digest, from) = (self.local.clone(), self.digest.clone(), self.from);
        let reader = self.reader.take();
        let (reader, bytes) = blocking(move || {
            let mut reader = match reader {
                Some(reader) => reader,
                None => local.read(&digest, from)?,
            };
            let mut bytes = Vec::with_capacity(CHUNK);
            let read = reader.by_ref().take(CHUNK as u64).read_to_end(&mut bytes);
            read.map_err(|source| Error::Io { path: local.place().into(), source })?;
            Ok((reader, bytes))
        })
        .await?;
        self.reader = Some(reader);
        Ok((!bytes.is_empty()).then(|| bytes.into()))
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(|_| Error::Task)?
}
