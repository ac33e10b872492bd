//! One image from its source to a registry: blobs, then manifests from the leaves up, and its name last. What is there already
//! stays, so that a push can be repeated after a kill at any moment.

mod documents;
mod referrers;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{self, StreamExt, TryStreamExt, iter};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use self::documents::{Doc, Reader, Tree};
use super::{Error, Result};
use crate::bake::{Event, Listener};
use crate::oci::{Descriptor, Digest, Platform, Reference};
use crate::registry::{self, BlobBytes, Client, Mounted};
use crate::source::{self, Sources};
use crate::spec::{LockedImage, Share};

/// Blobs of one image that are looked for at a time; uploads have a limit of their own.
const AT_ONCE: usize = 16;

/// Pushes images to registries. One for all that go at the same time: what one of them brought is not brought again.
pub(super) struct Pusher {
    client: Arc<Client>,
    listener: Arc<dyn Listener>,
    uploads: Semaphore,
    /// Repositories that have a blob, by registry and blob. Locked while the blob is looked for or moves.
    known: Mutex<HashMap<(String, Digest), Repositories>>,
}

type Repositories = Arc<AsyncMutex<Vec<String>>>;

/// What of an image is pushed.
#[derive(Debug, Clone, Default)]
pub struct What {
    /// Its manifests for these platforms; all of it without any. One: that manifest gets the name. Several: an index of just
    /// those does.
    pub platforms: Vec<Platform>,
    /// What refers to it goes along: of these media or artifact types, or all of it by an empty list.
    pub referrers: Option<Vec<String>>,
    /// Nothing is pushed; what would be is told.
    pub dry_run: bool,
    /// What it consisted of when it was locked; nothing else of it is pushed.
    pub locked: Option<Arc<LockedImage>>,
}

/// Blobs that went one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// How many.
    pub blobs: usize,
    /// All of them together.
    pub bytes: u64,
}

/// What came of a push.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// What has the image's name now.
    pub target: Descriptor,
    /// Uploaded, byte by byte.
    pub uploaded: Moved,
    /// Taken over from another repository of the registry.
    pub mounted: Moved,
    /// Found there.
    pub present: Moved,
    /// Indexes and manifests that were pushed, lists of referrers among them.
    pub documents: usize,
    /// Whether a name had to be given anew.
    pub named: bool,
    /// It is left to other shards: some of its blobs are theirs, and not there yet.
    pub left: bool,
    /// Nothing of it was done.
    pub dry_run: bool,
}

impl Pushed {
    fn none(target: Descriptor, dry_run: bool) -> Self {
        let none = Moved::default();
        Self { target, uploaded: none, mounted: none, present: none, documents: 0, named: false, left: false, dry_run }
    }

    /// Whether everything was there before.
    pub fn is_up_to_date(&self) -> bool {
        self.uploaded.blobs + self.mounted.blobs + self.documents == 0 && !self.named
    }
}

enum Way {
    Present,
    Mounted,
    Uploaded,
}

/// One push.
pub(super) struct Job<'j> {
    /// For events.
    pub(super) name: &'j str,
    pub(super) sources: &'j Sources,
    pub(super) from: &'j Reference,
    pub(super) to: &'j Reference,
    pub(super) what: &'j What,
}

/// What an image consists of that is to be pushed.
pub(super) struct Parts {
    /// What its name led to.
    resolved: Descriptor,
    /// What gets its name.
    target: Descriptor,
    tree: Tree,
    referrers: referrers::Referrers,
}

impl Parts {
    /// For a lock.
    pub(super) fn into_locked(self) -> LockedImage {
        let Tree { documents, blobs, .. } = self.tree;
        let documents = documents.into_iter().map(|doc| doc.descriptor.plain()).collect();
        let blobs = blobs.iter().map(Descriptor::plain).collect();
        LockedImage { target: self.resolved.plain(), platforms: BTreeMap::new(), documents, blobs }
    }
}

impl Pusher {
    /// With so many uploads at a time.
    pub(super) fn new(client: Arc<Client>, listener: Arc<dyn Listener>, concurrency: usize) -> Self {
        let uploads = Semaphore::new(concurrency.max(1));
        Self { client, listener, uploads, known: Mutex::default() }
    }

    /// Brings an image to a registry, under another name. What `from` leads to is asked once; everything else goes by digest.
    /// Of a share, only its blobs; nobody waits for another shard, and whoever is the last to have brought something names it.
    pub(super) async fn push(&self, job: &Job<'_>, share: Option<&Share>) -> Result<Pushed> {
        if let (Some(share), Some(locked)) = (share, &job.what.locked)
            && !share.has_some_of(locked)
        {
            return Ok(Pushed { left: true, ..Pushed::none(locked.target.clone(), job.what.dry_run) });
        }
        let parts = self.parts(job).await?;
        let mut pushed = self.blobs(job, &parts, |digest| share.is_none_or(|share| share.has(digest))).await?;
        pushed.left = share.is_some() && !self.is_whole(job, &parts).await?;
        if !pushed.left {
            self.name(job, &parts, &mut pushed).await?;
        }
        Ok(pushed)
    }

    /// Finds out what an image consists of.
    pub(super) async fn parts(&self, job: &Job<'_>) -> Result<Parts> {
        let Job { sources, from, to, what, .. } = job;
        let reader = Reader { sources, from };
        let doc = reader.resolve().await?;
        let resolved = doc.descriptor.clone();
        let mut tree = reader.choose(doc, &what.platforms).await?;
        let target = tree.documents.last().map(|doc| doc.descriptor.clone()).ok_or(Error::TooDeep)?;
        if to.digest().is_some_and(|digest| *digest != target.digest) {
            return Err(Error::WrongName { to: to.to_string(), digest: target.digest });
        }
        let of_lock = |locked| LockedImage::mirrored(locked).map(|part| &part.digest).collect();
        let locked: Option<HashSet<&Digest>> = what.locked.as_deref().map(of_lock);
        let referrers = match &what.referrers {
            Some(types) => reader.add_referrers(types, locked.as_ref(), &mut tree).await?,
            None => referrers::Referrers::default(),
        };
        if let Some(new) = locked.and_then(|locked| tree.parts().find(|part| !locked.contains(&part.digest))) {
            return Err(Error::Unlocked { digest: new.digest.clone() });
        }
        self.tell_resolved(job, &target, &tree);
        Ok(Parts { resolved, target, tree, referrers })
    }

    /// Sees to it that the repository has the blobs of an image, those that are `own`.
    async fn blobs(&self, job: &Job<'_>, parts: &Parts, own: impl Fn(&Digest) -> bool) -> Result<Pushed> {
        let mut pushed = Pushed::none(parts.target.clone(), job.what.dry_run);
        let own = parts.tree.blobs.iter().filter(|blob| own(&blob.digest));
        let mut moving = iter(own.map(|blob| self.ensure(job, blob)).collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        while let Some((way, size)) = moving.try_next().await? {
            let moved = match way {
                Way::Present => &mut pushed.present,
                Way::Mounted => &mut pushed.mounted,
                Way::Uploaded => &mut pushed.uploaded,
            };
            moved.blobs += 1;
            moved.bytes += size;
        }
        Ok(pushed)
    }

    /// Whether the repository has all blobs of an image.
    async fn is_whole(&self, job: &Job<'_>, parts: &Parts) -> Result<bool> {
        let asked = parts.tree.blobs.iter().map(|blob| self.is_there(job, blob)).collect::<Vec<_>>();
        let mut asked = iter(asked).buffer_unordered(AT_ONCE);
        while let Some(is_there) = asked.try_next().await? {
            if !is_there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn is_there(&self, job: &Job<'_>, blob: &Descriptor) -> Result<bool> {
        let known = self.known(job, &blob.digest);
        let mut known = known.lock().await;
        let own = job.to.repository();
        if known.iter().any(|repository| repository == own) {
            return Ok(true);
        }
        let is_there = self.client.has_blob(job.to, &blob.digest).await?;
        if is_there {
            known.push(own.to_owned());
        }
        Ok(is_there)
    }

    /// Puts what the repository has the blobs of: its documents, and its name last.
    async fn name(&self, job: &Job<'_>, parts: &Parts, pushed: &mut Pushed) -> Result<()> {
        let (Job { to, what, .. }, Parts { tree, referrers, .. }) = (job, parts);
        let mut acknowledged = Vec::new();
        for doc in &tree.documents {
            let digest = &doc.descriptor.digest;
            if self.put(job, digest.as_str(), doc, &mut acknowledged).await? {
                pushed.documents += 1;
            }
        }
        for (tag, doc) in &referrers.tags {
            pushed.documents += usize::from(self.put(job, tag, doc, &mut Vec::new()).await?);
        }
        for list in referrers.lists.values().filter(|_| !what.dry_run) {
            pushed.documents += usize::from(referrers::list(&self.client, to, list, &acknowledged).await?);
        }
        if to.digest().is_none() {
            let target = tree.documents.iter().find(|doc| doc.descriptor.digest == pushed.target.digest);
            if let Some(target) = target {
                pushed.named = self.put(job, to.target(), target, &mut Vec::new()).await?;
            }
        }
        Ok(())
    }

    fn tell_resolved(&self, job: &Job<'_>, target: &Descriptor, tree: &Tree) {
        self.listener.on(&Event::ImageResolved {
            image: job.name,
            digest: &target.digest,
            platforms: &job.what.platforms,
            blobs: tree.parts().count(),
            bytes: tree.parts().map(|part| part.size).sum(),
        });
    }

    /// Puts a document, if it is not there. Whether it was not.
    async fn put(&self, job: &Job<'_>, target: &str, doc: &Doc, acknowledged: &mut Vec<Digest>) -> Result<bool> {
        let Descriptor { media_type, digest, .. } = &doc.descriptor;
        // Images that share it wait: registries are known to spoil a document that is put twice at once.
        let known = self.known(job, digest);
        let _turn = known.lock().await;
        if self.client.has_document(job.to, target, digest).await? {
            return Ok(false);
        }
        if !job.what.dry_run && self.client.put_document(job.to, target, media_type, &doc.bytes).await? {
            acknowledged.push(digest.clone());
        }
        Ok(true)
    }

    /// Which repositories have something; whoever brings it locks this.
    fn known(&self, job: &Job<'_>, digest: &Digest) -> Repositories {
        let key = (job.to.registry().to_owned(), digest.clone());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }

    /// Sees to it that the repository has a blob.
    async fn ensure(&self, job: &Job<'_>, blob: &Descriptor) -> Result<(Way, u64)> {
        let known = self.known(job, &blob.digest);
        let mut known = known.lock().await;
        let own = job.to.repository();
        let is_there =
            known.iter().any(|repository| repository == own) || self.client.has_blob(job.to, &blob.digest).await?;
        let way = if is_there { Way::Present } else { self.bring(job, blob, &known).await? };
        if !matches!(way, Way::Uploaded) {
            self.listener.on(&Event::BlobDone { digest: &blob.digest, size: blob.size, fetched: false });
        }
        if known.iter().all(|repository| repository != own) {
            known.push(own.to_owned());
        }
        Ok((way, blob.size))
    }

    async fn bring(&self, job: &Job<'_>, blob: &Descriptor, known: &[String]) -> Result<Way> {
        let is_neighbour = !job.sources.is_local(job.from)
            && job.from.registry() == job.to.registry()
            && job.from.repository() != job.to.repository();
        let from = known.first().map(String::as_str).or_else(|| is_neighbour.then(|| job.from.repository()));
        if job.what.dry_run {
            return Ok(if from.is_some() { Way::Mounted } else { Way::Uploaded });
        }
        let mut upload = None;
        if let Some(from) = from {
            match self.client.mount(job.to, &blob.digest, from).await? {
                Mounted::Yes => return Ok(Way::Mounted),
                Mounted::Upload(begun) => upload = Some(begun),
                Mounted::No => {}
            }
        }
        let Ok(_turn) = self.uploads.acquire().await else { unreachable!("the semaphore is never closed") };
        let digest = &blob.digest;
        self.listener.on(&Event::BlobStarted { digest, size: blob.size, image: job.name });
        let came = Arc::new(AtomicU64::new(0));
        let bytes = || self.bytes(job, blob, &came);
        match self.client.push_blob(job.to, blob, upload, &bytes).await {
            Ok(()) => {
                self.listener.on(&Event::BlobDone { digest, size: blob.size, fetched: true });
                Ok(Way::Uploaded)
            }
            Err(error) => {
                self.listener.on(&Event::BlobFailed { digest, lost: came.load(Ordering::Relaxed) });
                Err(of_source(error))
            }
        }
    }

    /// The bytes of a blob, from the beginning.
    fn bytes(&self, job: &Job<'_>, blob: &Descriptor, came: &Arc<AtomicU64>) -> BlobBytes {
        let lost = came.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let reason = "the upload broke off";
            self.listener.on(&Event::BlobRetried { digest: &blob.digest, lost, reason });
        }
        let (listener, digest, came) = (self.listener.clone(), blob.digest.clone(), came.clone());
        let coming = job.sources.blob(job.from, blob, 0, None);
        Box::pin(stream::unfold(coming, move |mut coming| {
            let (listener, digest, came) = (listener.clone(), digest.clone(), came.clone());
            async move {
                let next = coming.chunk().await.transpose()?;
                if let Ok(chunk) = &next {
                    came.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    listener.on(&Event::BlobProgress { digest: &digest, bytes: chunk.len() as u64 });
                }
                Some((next.map_err(Into::into), coming))
            }
        }))
    }
}

/// What went wrong at the source is the source's fault.
fn of_source(error: registry::Error) -> Error {
    match error {
        registry::Error::Read { what, source } => match source.downcast::<source::Error>() {
            Ok(source) => Error::Source(*source),
            Err(source) => Error::Registry(registry::Error::Read { what, source }),
        },
        error => Error::Registry(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::chain;

    #[test]
    fn a_source_s_failure_is_told_as_such() {
        let source = source::Error::Task;
        let error = of_source(registry::Error::Read { what: String::new(), source: Box::new(source) });
        assert_eq!(chain(&error), "an internal task failed");
    }
}
