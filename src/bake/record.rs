//! What was fetched and unpacked, into containerd's records.

use std::collections::{BTreeMap, HashMap};
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
use crate::snapshot::{self, Dirs, New, OVERLAYFS, Overlay, Present, Stored};
use crate::times::Times;

/// How far apart the numbers in the names of two snapshots are: containerd takes one to prepare a layer, and one to commit
/// it.
const NUMBERS: u64 = 2;

/// An image that is complete, but for its records.
#[derive(Debug)]
pub(super) struct Baked {
    pub(super) namespace: String,
    pub(super) record: ImageRecord,
    /// Its layers, when they are in snapshots.
    pub(super) stack: Option<Arc<Stack>>,
}

impl Baked {
    /// One whose layers nobody unpacks.
    pub(super) fn fetched(namespace: &str, record: ImageRecord) -> Self {
        Self { namespace: namespace.to_owned(), record, stack: None }
    }
}

/// What containerd's metadata says of the snapshots of each namespace.
#[derive(Default)]
pub(super) struct Named(HashMap<String, NamedHere>);

#[derive(Default)]
struct NamedHere {
    /// Names by key.
    names: HashMap<String, String>,
    /// The last number in a name.
    sequence: u64,
}

impl Named {
    pub(super) fn read(meta: &mut MetaDb) -> Result<Self> {
        let found = meta.read(|tx| {
            let mut namespaces = HashMap::new();
            for namespace in metadata::namespaces(tx)? {
                let sequence = metadata::snapshot_sequence(tx, &namespace, OVERLAYFS)?;
                let mut named = NamedHere { names: HashMap::new(), sequence };
                for row in metadata::snapshots(tx, &namespace)? {
                    let (row, _) = row?;
                    if row.snapshotter == OVERLAYFS {
                        named.names.insert(row.key, row.name);
                    }
                }
                namespaces.insert(namespace, named);
            }
            Ok(namespaces)
        })?;
        Ok(Self(found.unwrap_or_default()))
    }

    /// Which layers of an image are unpacked and whole, from the lowest up.
    pub(super) fn present(&self, stored: &Stored, namespace: &str, stack: &Stack) -> Vec<Present> {
        let none = HashMap::new();
        stored.present(namespace, &stack.chain(), self.0.get(namespace).map_or(&none, |named| &named.names))
    }
}

/// A root's snapshots, to be added to.
pub(super) struct Snapshots {
    overlay: Overlay,
    named: Named,
}

impl Snapshots {
    /// Opens the snapshotter, and makes sure that snapshots can be made.
    ///
    /// # Errors
    /// [`Error`]; also when a process lacks a capability, or the file system something.
    pub(super) fn open(root: &Root, meta: &mut MetaDb) -> Result<Self> {
        snapshot::check(root)?;
        Ok(Self { overlay: Overlay::create(root)?, named: Named::read(meta)? })
    }

    /// What all of them take, in bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.overlay.stored().bytes()
    }

    pub(super) fn dirs(&self) -> Dirs {
        self.overlay.dirs()
    }

    /// Which layers of an image are unpacked and whole, from the lowest up.
    pub(super) fn present(&self, namespace: &str, stack: &Stack) -> Vec<Present> {
        self.named.present(self.overlay.stored(), namespace, stack)
    }

    /// Publishes what was unpacked of these images.
    ///
    /// # Errors
    /// [`Error::Snapshot`]; then nothing is.
    fn publish(
        mut self,
        stacks: &[(String, &Stack)],
        unpacker: &Unpacker,
        times: &Times,
        root: &Root,
    ) -> Result<Vec<Unpacked>> {
        let mut names: HashMap<(&str, Digest), (String, u64)> = HashMap::new();
        let mut new = Vec::new();
        let mut unpacked = Vec::new();
        for (namespace, stack) in stacks {
            let present = self.present(namespace, stack);
            let sequence = &mut self.named.0.entry(namespace.clone()).or_default().sequence;
            let mut below: Option<String> = None;
            let mut layers = Vec::new();
            for (i, layer) in stack.layers.iter().enumerate() {
                let mut labels = layer.labels.clone();
                labels.insert(labels::SNAPSHOT_REF.to_owned(), layer.chain.to_string());
                let labels = Arc::new(labels);
                let (name, number) = if let Some(known) = names.get(&(namespace.as_str(), layer.chain.clone())) {
                    known.clone()
                } else if let Some(present) = present.get(i) {
                    (present.name.clone(), number_of(&present.name))
                } else {
                    let (staged, usage) = unpacker.take(namespace, &layer.chain).ok_or(Error::Task)?;
                    *sequence += NUMBERS;
                    let name = format!("{namespace}/{sequence}/{}", layer.chain);
                    let (created, labels) = (times.part(&layer.chain), labels.clone());
                    new.push(New { name: name.clone(), parent: below, staged, usage, labels, created });
                    (name, *sequence)
                };
                names.insert((namespace, layer.chain.clone()), (name.clone(), number));
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
    images: Images<Baked>,
    snapshots: Option<(Snapshots, &Unpacker)>,
    times: &Times,
    listener: &dyn Listener,
) -> Result<Vec<Outcome>> {
    let mut ready = Vec::new();
    let mut stacks = Vec::new();
    let mut outcomes = Vec::new();
    let look = |(name, image): (String, Option<Result<Baked, Failure>>)| {
        let ready = |Baked { namespace, record, stack }| match offline::ready(store, &namespace, record) {
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
        outcomes.push(Outcome { name, namespace: String::new(), failure });
    }
    if let Some((snapshots, unpacker)) = snapshots {
        let with_stack: Vec<(String, &Stack)> = ready
            .iter()
            .zip(&stacks)
            .filter_map(|(ready, stack)| Some((ready.namespace().to_owned(), &**stack.as_ref()?)))
            .collect();
        let mut unpacked = snapshots.publish(&with_stack, unpacker, times, root)?.into_iter();
        for (image, _) in ready.iter_mut().zip(&stacks).filter(|(_, stack)| stack.is_some()) {
            image.unpacked = unpacked.next();
        }
    } else {
        root.sync()?;
    }
    drop(stacks);
    let changed = offline::bootstrap(meta, &ready, times)?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for ready in &ready {
        *counts.entry(ready.namespace()).or_default() += 1;
    }
    for (namespace, images) in counts {
        listener.on(&Event::Bootstrapped { namespace, images, changed });
    }
    Ok(outcomes)
}
