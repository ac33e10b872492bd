//! Everything that is in a namespace: what containerd's collector goes by, and what a person may ask about.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::records::{
    BLOB, CHILDREN, CONTENT, IMAGES, LABELS, NAME, PARENT, Path, SNAPSHOTS, V1, blobs, bolt_error, images, labels,
    lossy, rows, wrong,
};
use super::{BlobRow, Error, ImageRow, Labels, Result, Snapshot, codec};
use crate::bolt::{self, Item, Seen, Tx, View};
use crate::oci::Digest;

pub(super) const CONTAINERS: &[u8] = b"containers";
pub(super) const LEASES: &[u8] = b"leases";
pub(super) const INGESTS: &[u8] = b"ingests";
pub(super) const SANDBOXES: &[u8] = b"sandboxes";

/// A container, as far as it keeps anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// What it was made from, as whoever made it wrote that; may be empty.
    pub image: String,
    /// The snapshotter its own snapshot is in; empty without one.
    pub snapshotter: String,
    /// Key of that snapshot.
    pub snapshot: String,
    /// Its labels.
    pub labels: Labels,
}

/// A lease, and what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: Labels,
    /// Blobs.
    pub blobs: Vec<String>,
    /// Snapshotter and key of snapshots.
    pub snapshots: Vec<(String, String)>,
    /// References of ingests.
    pub ingests: Vec<String>,
    /// Names of images; of containerd 2.0 and later.
    pub images: Vec<String>,
}

/// A write to the content store that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestRow {
    /// Key of the record.
    pub reference: String,
    /// What the content store calls it, its directory is named by that; empty where it has none.
    pub backend: String,
    /// Until when it is kept without a lease.
    pub expires: Option<DateTime<Utc>>,
    /// The blob that is to come of it, when that is there already.
    pub expected: Option<Digest>,
}

/// A namespace.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its name.
    pub namespace: String,
    /// Images by name.
    pub images: Vec<ImageRow>,
    /// Blobs.
    pub blobs: BTreeMap<Digest, BlobRow>,
    /// Snapshots of all snapshotters, with their labels.
    pub snapshots: Vec<(Snapshot, Labels)>,
    /// Writes that are not over.
    pub ingests: Vec<IngestRow>,
    /// Containers.
    pub containers: Vec<Container>,
    /// Leases.
    pub leases: Vec<Lease>,
    /// Sandboxes of containerd 2.0 and later: id and labels.
    pub sandboxes: Vec<(String, Labels)>,
    /// Records that cannot be read.
    pub wrong: Vec<Error>,
}

/// Everything in a namespace.
///
/// # Errors
/// [`Error::Bolt`].
pub fn contents(tx: &Tx<'_>, namespace: &str) -> Result<Contents> {
    let mut all = Contents { namespace: namespace.to_owned(), ..Contents::default() };
    let wrong = &mut all.wrong;
    all.images = sound(images(tx, namespace)?, wrong);
    all.blobs = sound(blobs(tx, namespace)?, wrong).into_iter().map(|blob| (blob.digest.clone(), blob)).collect();
    all.snapshots = sound(snapshots(tx, namespace)?, wrong);
    all.ingests = sound(of_ingests(tx, namespace)?, wrong);
    all.containers = sound(of_containers(tx, namespace)?, wrong);
    all.leases = sound(of_leases(tx, namespace)?, wrong);
    all.sandboxes = sound(of_sandboxes(tx, namespace)?, wrong);
    Ok(all)
}

pub(super) fn of_ingests(tx: &Tx<'_>, namespace: &str) -> Result<Vec<Result<IngestRow>>> {
    let path = [V1, namespace.as_bytes(), CONTENT, INGESTS];
    rows(tx, &path, "a plain key among the ingests", &mut ingest)
}

pub(super) fn of_containers(tx: &Tx<'_>, namespace: &str) -> Result<Vec<Result<Container>>> {
    rows(tx, &[V1, namespace.as_bytes(), CONTAINERS], "a plain key among the containers", &mut container)
}

pub(super) fn of_leases(tx: &Tx<'_>, namespace: &str) -> Result<Vec<Result<Lease>>> {
    rows(tx, &[V1, namespace.as_bytes(), LEASES], "a plain key among the leases", &mut lease)
}

pub(super) fn of_sandboxes(tx: &Tx<'_>, namespace: &str) -> Result<Vec<Result<(String, Labels)>>> {
    let path = [V1, namespace.as_bytes(), SANDBOXES];
    rows(tx, &path, "a plain key among the sandboxes", &mut |id, view| Ok(Ok((lossy(id), labels(view)?))))
}

/// Those that can be read; why the others cannot goes to `wrong`.
fn sound<R>(rows: Vec<Result<R>>, wrong: &mut Vec<Error>) -> Vec<R> {
    rows.into_iter().filter_map(|row| row.map_err(|error| wrong.push(error)).ok()).collect()
}

/// The snapshots of a namespace, of all snapshotters, with their labels; what is wrong with one comes in its place.
///
/// # Errors
/// [`Error::Bolt`].
pub fn snapshots(tx: &Tx<'_>, namespace: &str) -> Result<Vec<Result<(Snapshot, Labels)>>> {
    let parent = [V1, namespace.as_bytes(), SNAPSHOTS];
    let snapshotters = match tx.list(&parent) {
        Err(bolt::Error::Invalid(what)) => return Ok(vec![Err(wrong(&parent, what))]),
        found => found.map_err(bolt_error)?.unwrap_or_default(),
    };
    let mut found = Vec::new();
    for (snapshotter, _) in snapshotters.iter().filter(|(_, item)| *item == Item::Bucket) {
        found.extend(snapshots_of(tx, namespace, snapshotter)?);
    }
    Ok(found)
}

/// Those of one snapshotter.
pub(super) fn snapshots_of(
    tx: &Tx<'_>,
    namespace: &str,
    snapshotter: &[u8],
) -> Result<Vec<Result<(Snapshot, Labels)>>> {
    let path = [V1, namespace.as_bytes(), SNAPSHOTS, snapshotter];
    rows(tx, &path, "a plain key among the snapshots", &mut |key, view| {
        let snapshot = Snapshot {
            namespace: namespace.to_owned(),
            snapshotter: lossy(snapshotter),
            key: lossy(key),
            parent: text(view, PARENT)?,
            name: text(view, NAME)?,
        };
        Ok(Ok((snapshot, labels(view)?)))
    })
}

fn text(view: &View<'_>, key: &[u8]) -> Result<String, bolt::Error> {
    Ok(view.get(key)?.map(|bytes| lossy(&bytes)).unwrap_or_default())
}

fn ingest(reference: &[u8], view: &View<'_>) -> Result<Result<IngestRow>, bolt::Error> {
    Ok(Ok(IngestRow {
        reference: lossy(reference),
        backend: text(view, b"ref")?,
        expires: view.get(b"expireat")?.and_then(|bytes| codec::parse_time(&bytes)),
        expected: text(view, b"expected")?.parse().ok(),
    }))
}

fn container(id: &[u8], view: &View<'_>) -> Result<Result<Container>, bolt::Error> {
    Ok(Ok(Container {
        id: lossy(id),
        image: text(view, b"image")?,
        snapshotter: text(view, b"snapshotter")?,
        snapshot: text(view, b"snapshotKey")?,
        labels: labels(view)?,
    }))
}

fn lease(id: &[u8], view: &View<'_>) -> Result<Result<Lease>, bolt::Error> {
    let keys = |kind: &[u8]| view.bucket(kind, &mut |set| set.map_or(Ok(Vec::new()), |set| keys(&set)));
    let mut snapshots = Vec::new();
    view.bucket(SNAPSHOTS, &mut |all| match all {
        None => Ok(()),
        Some(all) => all.each(&mut |snapshotter, seen| {
            if let Seen::Bucket(set) = seen {
                snapshots.extend(self::keys(&set)?.into_iter().map(|key| (lossy(snapshotter), key)));
            }
            Ok(())
        }),
    })?;
    let (blobs, ingests, images) = (keys(CONTENT)?, keys(INGESTS)?, keys(IMAGES)?);
    Ok(Ok(Lease { id: lossy(id), labels: labels(view)?, blobs, snapshots, ingests, images }))
}

fn keys(set: &View<'_>) -> Result<Vec<String>, bolt::Error> {
    let mut keys = Vec::new();
    set.each(&mut |key, _| {
        keys.push(lossy(key));
        Ok(())
    })?;
    Ok(keys)
}

/// Removes an image; whether there was one.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_image(tx: &mut Tx<'_>, namespace: &str, name: &str) -> Result<bool> {
    remove(tx, &[V1, namespace.as_bytes(), IMAGES], name)
}

/// Removes a blob's record; whether there was one.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_blob(tx: &mut Tx<'_>, namespace: &str, digest: &Digest) -> Result<bool> {
    remove(tx, &[V1, namespace.as_bytes(), CONTENT, BLOB], digest.as_str())
}

/// Removes an ingest's record; whether there was one.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_ingest(tx: &mut Tx<'_>, namespace: &str, reference: &str) -> Result<bool> {
    remove(tx, &[V1, namespace.as_bytes(), CONTENT, INGESTS], reference)
}

/// Removes a lease; whether there was one.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_lease(tx: &mut Tx<'_>, namespace: &str, id: &str) -> Result<bool> {
    remove(tx, &[V1, namespace.as_bytes(), LEASES], id)
}

/// Removes a snapshot's record, also from among its parent's children, where containerd's collector leaves it; whether there
/// was one.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_snapshot(tx: &mut Tx<'_>, snapshot: &Snapshot) -> Result<bool> {
    let owner = [V1, snapshot.namespace.as_bytes(), SNAPSHOTS, snapshot.snapshotter.as_bytes()];
    let siblings = [&owner[..], &[snapshot.parent.as_bytes(), CHILDREN]].concat();
    if !snapshot.parent.is_empty() {
        remove(tx, &siblings, &snapshot.key)?;
    }
    remove(tx, &owner, &snapshot.key)
}

/// Removes a blob's label; whether there was one.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_blob_label(tx: &mut Tx<'_>, namespace: &str, digest: &Digest, key: &str) -> Result<bool> {
    remove(tx, &[V1, namespace.as_bytes(), CONTENT, BLOB, digest.as_str().as_bytes(), LABELS], key)
}

fn remove(tx: &mut Tx<'_>, path: &Path<'_>, key: &str) -> Result<bool> {
    tx.delete(path, key.as_bytes()).map_err(bolt_error)
}
