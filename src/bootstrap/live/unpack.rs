//! Layers become snapshots, by containerd's own services: its snapshotter and its diff service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;
use tonic::Code;

use super::api::{Applied, Apply, CommitSnapshot, Empty, Mount, OfSnapshot, Prepare, Prepared, Usage};
use super::blobs::label;
use super::client::{Session, is, refused};
use super::lease::add_snapshot;
use super::{Error, Layer, Notice, Notify, Result, Unpack};
use crate::metadata::labels;
use crate::oci::Digest;
use crate::snapshot::OVERLAYFS;

const SERVICE: &str = "snapshots.v1.Snapshots";
const APPLY: &str = "diff.v1.Diff/Apply";
/// How often a layer is tried that somebody else unpacks, or whose snapshot is collected, at the same time.
const TRIES: usize = 5;

/// What unpacks the layers of one namespace's images, each chain once.
pub(super) struct Unpacker<'u> {
    pub(super) session: &'u Session,
    pub(super) lease: &'u str,
    pub(super) notify: &'u Notify<'u>,
    chains: Mutex<HashMap<Digest, Arc<OnceCell<()>>>>,
}

impl<'u> Unpacker<'u> {
    pub(super) fn new(session: &'u Session, lease: &'u str, notify: &'u Notify<'u>) -> Self {
        Self { session, lease, notify, chains: Mutex::default() }
    }

    /// Makes sure that all layers of an image are unpacked, and that the image keeps them.
    pub(super) async fn image(&self, Unpack { config, layers }: &Unpack) -> Result<()> {
        let mut parent = String::new();
        for layer in layers {
            let cell = {
                let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
                chains.entry(layer.chain.clone()).or_default().clone()
            };
            cell.get_or_try_init(|| self.layer(layer, &parent)).await?;
            self.keep(&layer.descriptor.digest, labels::UNCOMPRESSED.to_owned(), &layer.diff_id).await?;
            parent = layer.chain.to_string();
        }
        match layers.last() {
            Some(top) => self.keep(config, format!("{}{OVERLAYFS}", labels::GC_REF_SNAPSHOT), &top.chain).await,
            None => Ok(()),
        }
    }

    async fn keep(&self, blob: &Digest, key: String, digest: &Digest) -> Result<()> {
        let value = digest.to_string();
        let missing = |there: &HashMap<String, String>| {
            let is_there = there.get(&key) == Some(&value);
            if is_there { HashMap::new() } else { HashMap::from([(key, value)]) }
        };
        label(self.session, blob, missing).await
    }

    async fn layer(&self, layer: &Layer, parent: &str) -> Result<()> {
        let chain = layer.chain.to_string();
        let key = format!("{} {chain}", self.lease);
        let mut snapshot_labels: HashMap<String, String> = layer.labels.clone().into_iter().collect();
        snapshot_labels.insert(labels::SNAPSHOT_REF.to_owned(), chain.clone());
        for _ in 0..TRIES {
            if self.is_there(&chain).await? {
                // A snapshot that was there before belongs to nobody, unless an image keeps it.
                add_snapshot(self.session, self.lease, OVERLAYFS, &chain).await?;
                if self.is_there(&chain).await? {
                    return Ok(());
                }
            }
            let prepare = Prepare {
                snapshotter: OVERLAYFS.to_owned(),
                key: key.clone(),
                parent: parent.to_owned(),
                labels: snapshot_labels.clone(),
            };
            let prepared = self.session.call::<_, Prepared>(&format!("{SERVICE}/Prepare"), prepare).await;
            if is(&prepared, Code::AlreadyExists) {
                // The chain came meanwhile; or an earlier try left its snapshot.
                self.remove(&key).await;
                continue;
            }
            let mounts = prepared.map_err(refused("preparing snapshot", &chain))?.mounts;
            (self.notify)(&Notice::Unpacking { layer: &layer.descriptor.digest, chain: &layer.chain });
            let made = self.make(layer, key.clone(), mounts, snapshot_labels.clone()).await;
            let bytes = made.as_ref().ok().copied().flatten();
            (self.notify)(&Notice::Unpacked { layer: &layer.descriptor.digest, chain: &layer.chain, bytes });
            if bytes.is_none() {
                self.remove(&key).await;
            }
            if made?.is_some() {
                return Ok(());
            }
        }
        Err(Error::Contended { chain: layer.chain.clone() })
    }

    /// Lets containerd apply a layer, whose archive then has to be what the image's config says. What it takes on disk; `None`
    /// when somebody else was faster.
    async fn make(
        &self,
        Layer { descriptor, diff_id, chain, .. }: &Layer,
        key: String,
        mounts: Vec<Mount>,
        labels: HashMap<String, String>,
    ) -> Result<Option<u64>> {
        let diff = Some(descriptor.into());
        let applied = self.session.call::<_, Applied>(APPLY, Apply { diff, mounts }).await;
        let got = applied.map_err(refused("unpacking", &descriptor.digest))?.applied.unwrap_or_default().digest;
        if got != diff_id.as_str() {
            return Err(Error::WrongDiffId { digest: descriptor.digest.clone(), expected: diff_id.clone(), got });
        }
        let commit = CommitSnapshot { snapshotter: OVERLAYFS.to_owned(), name: chain.to_string(), key, labels };
        let committed = self.session.call::<_, Empty>(&format!("{SERVICE}/Commit"), commit).await;
        if is(&committed, Code::AlreadyExists) {
            return Ok(None);
        }
        committed.map_err(refused("committing snapshot", chain))?;
        self.session.change();
        let of = OfSnapshot { snapshotter: OVERLAYFS.to_owned(), key: chain.to_string() };
        let usage = self.session.call::<_, Usage>(&format!("{SERVICE}/Usage"), of).await;
        Ok(Some(usage.map_err(refused("measuring snapshot", chain))?.size.unsigned_abs()))
    }

    async fn is_there(&self, chain: &str) -> Result<bool> {
        let of = OfSnapshot { snapshotter: OVERLAYFS.to_owned(), key: chain.to_owned() };
        let found = self.session.call::<_, Empty>(&format!("{SERVICE}/Stat"), of).await;
        if is(&found, Code::NotFound) {
            return Ok(false);
        }
        found.map(|_| true).map_err(refused("looking up snapshot", chain))
    }

    /// What cannot be removed, the end of the lease removes.
    async fn remove(&self, key: &str) {
        let of = OfSnapshot { snapshotter: OVERLAYFS.to_owned(), key: key.to_owned() };
        let _ = self.session.call::<_, Empty>(&format!("{SERVICE}/Remove"), of).await;
    }
}
