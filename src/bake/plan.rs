//! What a bake will do and take, before it does anything.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::each::{Images, each};
use super::fetch::{Fetcher, Resolved};
use super::lock::of_lock;
use super::part::{Part, brings};
use super::policy::{Keepers, Policies, estimate};
use super::record::Named;
use super::unpack::Stack;
use super::{Error, Failure, Listener, Request, Result, Wanted};
use crate::bolt::Lock;
use crate::content::{Entry, Store};
use crate::layer;
use crate::metadata::{MetaDb, Wait};
use crate::oci::{Descriptor, Digest, Platform};
use crate::root::{Root, Space};
use crate::snapshot::{Present, Stored};
use crate::spec::{Choice, Policy};

/// What a file takes on disk at least, in bytes.
const BLOCK: u64 = 4096;
/// Bytes of a layer for each file in it, before anything is known of it: what layers of Debian's packages come to.
const BYTES_AN_INODE: u64 = 30 << 10;

/// Bytes that may be a guess.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// How many.
    pub bytes: u64,
    /// Whether some of them are guessed.
    pub guessed: bool,
}

impl Estimate {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.guessed |= other.guessed;
    }
}

/// What a bake will do.
#[derive(Debug)]
pub struct Plan {
    /// Each image in the order asked for.
    pub images: Vec<Planned>,
    /// Bytes that come over the network.
    pub fetch: u64,
    /// Bytes that the content store grows by.
    pub store: u64,
    /// Bytes that the snapshots grow by.
    pub snapshots: Estimate,
    /// Inodes that are needed, as far as can be told.
    pub inodes: u64,
    /// Bytes that blobs and snapshots take already; 0 where nobody asked.
    pub used: u64,
    /// What the file system has.
    pub space: Space,
}

/// What a bake will make of an image.
#[derive(Debug)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// containerd's namespace.
    pub namespace: String,
    /// For which machines.
    pub platforms: Vec<Platform>,
    /// What the name leads to; `None` when that is not known.
    pub digest: Option<Digest>,
    /// What becomes of its layers, and why.
    pub choice: Option<Choice>,
    /// All its blobs, in bytes.
    pub compressed: u64,
    /// Its layers unpacked.
    pub unpacked: Estimate,
    /// Of its blobs those that another image of the plan has as well, in bytes.
    pub shared: u64,
    /// Of its blobs those that are there already, in bytes.
    pub present: u64,
    /// Why it would fail.
    pub failure: Option<Failure>,
}

/// What a plan is made on.
pub(super) struct Ground<'g> {
    pub(super) root: &'g Root,
    pub(super) store: &'g Store,
    /// Which layers of an image are unpacked.
    pub(super) present: &'g dyn Fn(&str, &Stack) -> Vec<Present>,
    /// Bytes of all snapshots; `None` where nobody asks what the root takes already, which costs a look at every blob.
    pub(super) snapshots: Option<u64>,
    pub(super) part: Option<&'g Part>,
}

impl Ground<'_> {
    /// What a zstd layer that is there says of its contents.
    fn zstd_content(&self, layer: &Descriptor) -> Result<Option<u64>> {
        let file = self.store.open_blob(&layer.digest)?;
        let content = layer::Files::new(vec![file]).and_then(|file| layer::zstd_content(&file));
        // Whoever unpacks it will say what is wrong with it.
        Ok(content.ok().flatten())
    }

    /// Whether there is room for images whatever of them is there already, which costs no look at the root.
    pub(super) fn has_room(&self, policies: &Policies, images: &Images<Resolved>) -> Result<bool> {
        let (mut bytes, mut inodes) = (0, 0);
        for image in images.iter().filter_map(|(_, image)| image.as_ref()?.as_ref().ok()) {
            let own = image.blobs.iter().filter(|blob| brings(self.part, &blob.descriptor));
            let blobs = own.map(|blob| blob.descriptor.size.next_multiple_of(BLOCK));
            let layers = image.stack.iter().flat_map(|stack| &stack.layers).map(|layer| estimate(&layer.descriptor));
            bytes += blobs.sum::<u64>() + layers.clone().sum::<u64>();
            inodes += image.blobs.len() as u64 + layers.map(|layer| layer / BYTES_AN_INODE + 1).sum::<u64>();
        }
        let Space { free, free_inodes, .. } = self.root.space()?;
        let fits = bytes <= free && free_inodes.is_none_or(|free| inodes <= free);
        Ok(policies.max_store.is_none() && (policies.ignore_space || fits))
    }

    /// Gives each image its policy, and adds up what all of them take. Without the root's metadata, which a containerd has that
    /// runs on it, nothing is discarded.
    pub(super) fn plan(
        &self,
        policies: &Policies,
        meta: Option<&mut MetaDb>,
        images: &mut Images<Resolved>,
    ) -> Result<Plan> {
        for (_, image) in images.iter_mut() {
            if let Some(Ok(image)) = image {
                image.choice = policies.choose(image);
            }
        }
        let resolved = || images.iter().filter_map(|(name, image)| Some((name, image.as_ref()?.as_ref().ok()?)));
        let discards = |image: &Resolved| image.choice.policy == Policy::UnpackDiscard;
        let mut holders: HashMap<Digest, u32> = HashMap::new();
        for blob in resolved().flat_map(|(_, image)| &image.blobs) {
            *holders.entry(blob.descriptor.digest.clone()).or_default() += 1;
        }
        let limit = policies.max_unpacked;
        let mut sums = Sums { ground: self, limit, seen: HashSet::new(), chains: HashSet::new(), holders };
        let mut plan = Plan {
            images: Vec::new(),
            fetch: 0,
            store: 0,
            snapshots: Estimate::default(),
            inodes: 0,
            used: 0,
            space: self.root.space()?,
        };
        let mut keepers = None;
        if let Some(meta) = meta.filter(|_| resolved().any(|(_, image)| discards(image))) {
            let mut all = Keepers::of_root(meta)?;
            resolved().filter(|(_, image)| !discards(image)).for_each(|(name, image)| all.add(name, image));
            keepers = Some(all);
        }
        for (name, image) in images.iter_mut() {
            let mut planned = match image {
                Some(Ok(resolved)) => sums.image(resolved, &mut plan)?,
                other => {
                    let failure = other.as_ref().and_then(|image| image.as_ref().err()).cloned();
                    plan.images.push(Planned::failed(name, failure.unwrap_or_else(Failure::stopped)));
                    continue;
                }
            };
            if let Some(Ok(resolved)) = image
                && let Err(error) = policies.apply(resolved, keepers.as_ref())
            {
                let failure = Failure::new(&error);
                planned.failure = Some(failure.clone());
                *image = Some(Err(failure));
            }
            plan.images.push(planned);
        }
        if let Some(snapshots) = self.snapshots {
            let size = |entry: &Entry| if let Entry::Blob(_, stat) = entry { stat.size } else { 0 };
            plan.used = self.store.entries()?.iter().map(size).sum::<u64>() + snapshots;
        }
        Ok(plan)
    }
}

/// Adds up images, each blob and each chain once.
struct Sums<'g> {
    ground: &'g Ground<'g>,
    /// Most bytes of a layer.
    limit: u64,
    seen: HashSet<Digest>,
    /// By namespace.
    chains: HashSet<(String, Digest)>,
    holders: HashMap<Digest, u32>,
}

impl Sums<'_> {
    /// What a layer that is not unpacked will take: as long as its archive is, where that is told.
    fn unpacked(&self, layer: &Descriptor) -> Result<Estimate> {
        let guess = estimate(layer);
        let told = match layer.media_type.rsplit(['+', '.']).next() {
            Some("tar") => Some(layer.size),
            Some("zstd") if self.ground.store.stat(&layer.digest)?.is_some_and(|stat| stat.size == layer.size) => {
                self.ground.zstd_content(layer)?
            }
            _ => None,
        };
        // Nobody has verified it yet; what is over the limit is refused when it comes to that.
        let told = told.filter(|bytes| *bytes <= self.limit);
        Ok(Estimate { bytes: told.unwrap_or(guess), guessed: told.is_none() })
    }

    fn image(&mut self, image: &Resolved, plan: &mut Plan) -> Result<Planned> {
        let Wanted { reference, namespace, platforms, .. } = &*image.wanted;
        let mut planned = Planned {
            name: reference.to_string(),
            namespace: namespace.clone(),
            platforms: platforms.clone(),
            digest: image.blobs.first().map(|blob| blob.descriptor.digest.clone()),
            choice: Some(image.choice),
            compressed: image.size(),
            unpacked: Estimate::default(),
            shared: 0,
            present: 0,
            failure: None,
        };
        let layers = image.stack.iter().flat_map(|stack| &stack.layers);
        let streamed: HashSet<&Digest> = match image.choice.policy {
            Policy::UnpackDiscard => layers.map(|layer| &layer.descriptor.digest).collect(),
            _ => HashSet::new(),
        };
        for blob in &image.blobs {
            let (digest, size) = (&blob.descriptor.digest, blob.descriptor.size);
            let is_there = self.ground.store.stat(digest)?.is_some_and(|stat| stat.size == size);
            if self.holders.get(digest).is_some_and(|count| *count > 1) {
                planned.shared += size;
            }
            if is_there {
                planned.present += size;
            } else if !streamed.contains(digest)
                && brings(self.ground.part, &blob.descriptor)
                && self.seen.insert(digest.clone())
            {
                plan.fetch += size;
                plan.store += size.next_multiple_of(BLOCK);
                plan.inodes += 1;
            }
        }
        let Some(stack) = &image.stack else { return Ok(planned) };
        let present = (self.ground.present)(namespace, stack);
        for (i, layer) in stack.layers.iter().enumerate() {
            let size = match present.get(i) {
                Some(Present { bytes: Some(bytes), .. }) => Estimate { bytes: *bytes, guessed: false },
                _ => self.unpacked(&layer.descriptor)?,
            };
            planned.unpacked.add(size);
            let is_new = i >= present.len() && self.chains.insert((namespace.clone(), layer.chain.clone()));
            if image.choice.policy == Policy::Fetch || !is_new {
                continue;
            }
            plan.snapshots.add(size);
            plan.inodes += size.bytes / BYTES_AN_INODE + 1;
            if streamed.contains(&layer.descriptor.digest)
                && self.ground.store.stat(&layer.descriptor.digest)?.is_none()
                && self.seen.insert(layer.descriptor.digest.clone())
            {
                plan.fetch += layer.descriptor.size;
            }
        }
        Ok(planned)
    }
}

impl Planned {
    fn failed(name: &str, failure: Failure) -> Self {
        Self {
            name: name.to_owned(),
            namespace: String::new(),
            platforms: Vec::new(),
            digest: None,
            choice: None,
            compressed: 0,
            unpacked: Estimate::default(),
            shared: 0,
            present: 0,
            failure: Some(failure),
        }
    }
}

impl Plan {
    /// What the root grows by, in bytes: what the bake's end takes. While it runs it never takes more.
    pub fn growth(&self) -> u64 {
        self.store + self.snapshots.bytes
    }

    /// Whether there is room for all of it.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::NoInodes`], [`Error::OverLimit`].
    pub fn check(&self, policies: &Policies) -> Result<()> {
        let Space { free, free_inodes, .. } = self.space;
        if let Some(limit) = policies.max_store.filter(|limit| self.used + self.growth() > *limit) {
            return Err(Error::OverLimit { would: self.used + self.growth(), limit });
        }
        if policies.ignore_space {
            return Ok(());
        }
        if self.growth() > free {
            return Err(Error::NoSpace { store: self.store, snapshots: self.snapshots.bytes, free });
        }
        if let Some(free) = free_inodes.filter(|free| self.inodes > *free) {
            return Err(Error::NoInodes { needs: self.inodes, free });
        }
        Ok(())
    }
}

/// Finds out what a bake would do. Nothing is written; of what is not there, documents alone are fetched.
///
/// # Errors
/// [`Error`] when nothing could be begun.
pub async fn plan(request: Request, listener: Arc<dyn Listener>, cancel: impl Future<Output = ()>) -> Result<Plan> {
    let wanted = super::wanted(&request)?;
    tokio::pin!(cancel);
    let tell = |holder: &str| listener.on(&super::Event::Waiting { holder });
    let wait = Wait { timeout: request.lock_timeout, tell: &tell, stop: &AtomicBool::new(false) };
    let mut meta = MetaDb::lock(&request.root, Lock::Shared, &wait)?;
    let store = Store::open(&request.root)?;
    let stored = Stored::of_root(&request.root)?;
    let named = Named::read(&mut meta)?;
    let fetcher = Fetcher::that_looks(&request, store.clone(), listener.clone())?;
    let mut images = if let Some(images) = of_lock(&wanted) {
        images
    } else {
        let unpacks = request.policies.may_unpack(&request.images);
        let resolve = |image| fetcher.resolve(image, unpacks);
        let found = each(wanted, fetcher.pace(), &*listener, cancel, &mut false, resolve).await;
        fetcher.blobs.sources.settle().await?;
        found
    };
    let present = |namespace: &str, stack: &Stack| {
        stored.as_ref().map_or(Vec::new(), |stored| named.present(stored, namespace, stack))
    };
    let snapshots = Some(stored.as_ref().map_or(0, Stored::bytes));
    Ground { root: &request.root, store: &store, present: &present, snapshots, part: request.part.as_ref() }.plan(
        &request.policies,
        Some(&mut meta),
        &mut images,
    )
}
