//! What was fetched and unpacked, into containerd's records.

use std::collections::HashMap;
use std::sync::Arc;

use super::each::Images;
use super::unpack::{Stack, Unpacker};
use super::{Error, Event, Failure, Listener, Outcome, Result};
use crate::bootstrap::offline::{self, Unpacked, UnpackedLayer};
use crate::catalog::ImageRecord;
use crate::content::Store;
use crate::metadata::{self, MetaDb, labels};
use crate::oci::Digest;
use crate::parallel;
use crate::root::Root;
use crate::snapshot::{self, Dirs, New, OVERLAYFS, Overlay, Present};

/// How far apart the numbers in the names of two snapshots are: containerd takes one to prepare a layer, and one to commit
/// it.
const NUMBERS: u64 = 2;

/// An image that is complete, but for its records.
#[derive(Debug)]
pub(super) struct Baked {
    pub(super) record: ImageRecord,
    /// Its layers, when they are in snapshots.
    pub(super) stack: Option<Arc<Stack>>,
}

/// The snapshots of a namespace.
pub(super) struct Snapshots {
    overlay: Overlay,
    namespace: String,
    /// Names that containerd's metadata has, by key.
    named: HashMap<String, String>,
    /// The last number in a name.
    sequence: u64,
}

impl Snapshots {
    /// Opens the snapshotter, and makes sure that snapshots can be made.
    ///
    /// # Errors
    /// [`Error`]; also when a process lacks a capability, or the file system something.
    pub(super) fn open(root: &Root, namespace: &str, meta: &mut MetaDb) -> Result<Self> {
        snapshot::check(root)?;
        let overlay = Overlay::create(root)?;
        let found = meta.read(|tx| {
            let mut named = HashMap::new();
            for row in metadata::snapshots(tx, namespace)? {
                let row = row?;
                if row.snapshotter == OVERLAYFS {
                    named.insert(row.key, row.name);
                }
            }
            Ok((named, metadata::snapshot_sequence(tx, namespace, OVERLAYFS)?))
        })?;
        let (named, sequence) = found.unwrap_or_default();
        Ok(Self { overlay, namespace: namespace.to_owned(), named, sequence })
    }

    pub(super) fn dirs(&self) -> Dirs {
        self.overlay.dirs()
    }

    /// Which layers of an image are unpacked and whole, from the lowest up.
    pub(super) fn present(&self, stack: &Stack) -> Vec<Present> {
        self.overlay.present(&self.namespace, &stack.chain(), &self.named)
    }

    /// Publishes what was unpacked of these images.
    ///
    /// # Errors
    /// [`Error::Snapshot`]; then nothing is.
    fn publish(&mut self, stacks: &[&Stack], unpacker: &Unpacker, root: &Root) -> Result<Vec<Unpacked>> {
        let mut names: HashMap<Digest, (String, u64)> = HashMap::new();
        let mut new = Vec::new();
        let mut unpacked = Vec::new();
        for stack in stacks {
            let present = self.present(stack);
            let mut below: Option<String> = None;
            let mut layers = Vec::new();
            for (i, layer) in stack.layers.iter().enumerate() {
                let mut labels = layer.labels.clone();
                labels.insert(labels::SNAPSHOT_REF.to_owned(), layer.chain.to_string());
                let (name, number) = if let Some(known) = names.get(&layer.chain) {
                    known.clone()
                } else if let Some(present) = present.get(i) {
                    (present.name.clone(), number_of(&present.name))
                } else {
                    let (staged, usage) = unpacker.take(&layer.chain).ok_or(Error::Task)?;
                    self.sequence += NUMBERS;
                    let name = format!("{}/{}/{}", self.namespace, self.sequence, layer.chain);
                    new.push(New { name: name.clone(), parent: below, staged, usage, labels: labels.clone() });
                    (name, self.sequence)
                };
                names.insert(layer.chain.clone(), (name.clone(), number));
                below = Some(name.clone());
                layers.push(UnpackedLayer {
                    blob: layer.descriptor.digest.clone(),
                    diff_id: layer.diff_id.clone(),
                    chain: layer.chain.clone(),
                    name,
                    number,
                    labels,
                });
            }
            unpacked.push(Unpacked { config: stack.config.clone(), layers });
        }
        self.overlay.publish(new, || root.sync())?;
        Ok(unpacked)
    }
}

/// The number in a snapshot's name; where there is none, it does not matter.
fn number_of(name: &str) -> u64 {
    name.split('/').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Gives the images that are whole their records: the snapshotter's first, then all of containerd's in one commit.
///
/// # Errors
/// [`Error`] when the metadata could not be written.
pub(super) fn record(
    root: &Root,
    store: &Store,
    meta: &mut MetaDb,
    namespace: &str,
    images: Images<Baked>,
    snapshots: Option<(&mut Snapshots, &Unpacker)>,
    listener: &dyn Listener,
) -> Result<Vec<Outcome>> {
    let mut ready = Vec::new();
    let mut stacks = Vec::new();
    let mut outcomes = Vec::new();
    let look = |(name, image): (String, Option<Result<Baked, Failure>>)| {
        let ready = |Baked { record, stack }| match offline::ready(store, record) {
            Ok(ready) => Ok((ready, stack)),
            Err(error) => Err(Failure::new(&error.into())),
        };
        (name, image.unwrap_or_else(|| Err(Failure::stopped())).and_then(ready))
    };
    for (name, image) in parallel::map(images, look) {
        let failure = match image {
            Ok((image, stack)) => {
                ready.push(image);
                stacks.push(stack);
                None
            }
            Err(failure) => Some(failure),
        };
        outcomes.push(Outcome { name, failure });
    }
    if let Some((snapshots, unpacker)) = snapshots {
        let with_stack: Vec<&Stack> = stacks.iter().flatten().map(|stack| &**stack).collect();
        let mut unpacked = snapshots.publish(&with_stack, unpacker, root)?.into_iter();
        for (image, _) in ready.iter_mut().zip(&stacks).filter(|(_, stack)| stack.is_some()) {
            image.unpacked = unpacked.next();
        }
    } else {
        root.sync()?;
    }
    let changed = offline::bootstrap(meta, namespace, &ready)?;
    listener.on(&Event::Bootstrapped { namespace, images: ready.len(), changed });
    Ok(outcomes)
}
