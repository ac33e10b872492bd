//! Records of images and blobs.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use chrono::{DateTime, Utc};

use super::{Error, Labels, Result, codec};
use crate::bolt::{self, Entry, Item, Seen, Tx, View};
use crate::oci::{Descriptor, Digest};

pub(super) const V1: &[u8] = b"v1";
const VERSION: &[u8] = b"version";
/// What is written where there is none. containerd 2 migrates 3 to 4 by itself; writing 4 on a root that first runs 1.7
/// would make a later 2 skip that.
const OUR_VERSION: i64 = 3;
/// The version containerd 2 migrates to.
const MIGRATED: i64 = 4;
pub(super) const IMAGES: &[u8] = b"images";
pub(super) const CONTENT: &[u8] = b"content";
pub(super) const BLOB: &[u8] = b"blob";
pub(super) const SNAPSHOTS: &[u8] = b"snapshots";
pub(super) const LABELS: &[u8] = b"labels";
const ANNOTATIONS: &[u8] = b"annotations";
const TARGET: &[u8] = b"target";
const DIGEST: &[u8] = b"digest";
const MEDIA_TYPE: &[u8] = b"mediatype";
const SIZE: &[u8] = b"size";
const CREATED: &[u8] = b"createdat";
const UPDATED: &[u8] = b"updatedat";
pub(super) const NAME: &[u8] = b"name";
const SANDBOXES: &[u8] = b"sandboxes";
/// Longest name of a namespace, in bytes (containerd `identifiers.maxLength`).
const MAX_NAMESPACE: usize = 76;
pub(super) const PARENT: &[u8] = b"parent";
pub(super) const CHILDREN: &[u8] = b"children";

pub(super) type Path<'k> = [&'k [u8]];

/// An image to be written.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    /// Key of the record.
    pub name: &'a str,
    /// What it names.
    pub target: &'a Descriptor,
    /// Labels it must have; others stay.
    pub labels: &'a Labels,
}

/// A blob to be written.
#[derive(Debug, Clone)]
pub struct Blob<'a> {
    /// Key of the record.
    pub digest: &'a Digest,
    /// In bytes.
    pub size: u64,
    /// Labels it must have; others stay.
    pub labels: &'a Labels,
    /// Registry host and repository it came from, where that is known.
    pub source: Option<(&'a str, &'a str)>,
}

/// An image as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// Key of the record.
    pub name: String,
    /// What it names.
    pub target: Descriptor,
    /// Its labels.
    pub labels: Labels,
    /// When it was made; `None` where containerd reads the zero time.
    pub created: Option<DateTime<Utc>>,
}

/// A blob as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    /// Key of the record.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Its labels.
    pub labels: Labels,
}

/// A snapshot as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The namespace it is in.
    pub namespace: String,
    /// The snapshotter that owns it.
    pub snapshotter: String,
    /// Key of the record: a chainID, or a container's id.
    pub key: String,
    /// Key of its parent; empty at the bottom.
    pub parent: String,
    /// Its name in the snapshotter's own database.
    pub name: String,
}

/// Writes the version into a database that has nothing yet. Where only the version is missing, containerd migrates.
pub(super) fn init(tx: &mut Tx<'_>) -> Result<()> {
    if tx.sequence(&[V1]).map_err(bolt_error)?.is_none() {
        bolt_put(tx, &[V1], VERSION, &codec::varint(OUR_VERSION))?;
    }
    Ok(())
}

/// Writes an image. One that is there with this target and these labels is left alone.
///
/// # Errors
/// [`Error::Bolt`].
pub fn put_image(tx: &mut Tx<'_>, namespace: &str, image: &Image<'_>, now: DateTime<Utc>) -> Result<()> {
    let path = [V1, namespace.as_bytes(), IMAGES, image.name.as_bytes()];
    let target_path = [V1, namespace.as_bytes(), IMAGES, image.name.as_bytes(), TARGET];
    let size = codec::varint(i64::try_from(image.target.size).unwrap_or(i64::MAX));
    let target = [
        (DIGEST, image.target.digest.as_str().as_bytes()),
        (MEDIA_TYPE, image.target.media_type.as_bytes()),
        (SIZE, size.as_slice()),
    ];
    let stored = stored(tx, &path)?;
    let mut changed = put_values(tx, &target_path, &self::stored(tx, &target_path)?, &target)?;
    if changed {
        // They described the earlier target.
        tx.delete(&path, ANNOTATIONS).map_err(bolt_error)?;
    }
    changed |= add_labels(tx, &path, &stored, image.labels)?;
    touch(tx, &path, &stored, changed, now)
}

/// Writes a blob. One that is there with these labels and this source is left alone.
///
/// # Errors
/// [`Error::Bolt`].
pub fn put_blob(tx: &mut Tx<'_>, namespace: &str, blob: &Blob<'_>, now: DateTime<Utc>) -> Result<()> {
    let path = [V1, namespace.as_bytes(), CONTENT, BLOB, blob.digest.as_str().as_bytes()];
    let size = codec::varint(i64::try_from(blob.size).unwrap_or(i64::MAX));
    let stored = stored(tx, &path)?;
    let mut changed = put_values(tx, &path, &stored, &[(SIZE, &size)])?;
    let mut labels = blob.labels.clone();
    if let Some((host, repository)) = blob.source {
        let key = super::labels::distribution_source(host);
        let source = stored.labels.get(&key).map(String::as_str);
        labels.extend(super::labels::with_repository(&key, source, repository).map(|value| (key, value)));
    }
    changed |= add_labels(tx, &path, &stored, &labels)?;
    touch(tx, &path, &stored, changed, now)
}

/// What there is of a record: its plain values, and its labels.
#[derive(Default)]
struct Stored {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    labels: Labels,
}

fn stored(tx: &Tx<'_>, path: &Path<'_>) -> Result<Stored> {
    let read = tx.peek(path, &mut |view| {
        let Some(view) = view else { return Ok(Stored::default()) };
        let mut values = BTreeMap::new();
        view.each(&mut |key, seen| {
            if let Seen::Value(value) = seen {
                values.insert(key.to_vec(), value.to_vec());
            }
            Ok(())
        })?;
        Ok(Stored { values, labels: labels(&view)? })
    });
    read.map_err(bolt_error)
}

/// Writes those values that are not there so; whether there are any.
fn put_values(tx: &mut Tx<'_>, path: &Path<'_>, stored: &Stored, values: &[(&[u8], &[u8])]) -> Result<bool> {
    let mut changed = false;
    for (key, value) in values {
        if stored.values.get(*key).map(Vec::as_slice) != Some(*value) {
            bolt_put(tx, path, key, value)?;
            changed = true;
        }
    }
    Ok(changed)
}

fn add_labels(tx: &mut Tx<'_>, path: &Path<'_>, stored: &Stored, labels: &Labels) -> Result<bool> {
    if labels.iter().any(|label| super::labels::too_long(label).is_some()) {
        return Err(wrong(
            path,
            "a label of more than 4096 bytes, with which containerd refuses every update of the record",
        ));
    }
    let path = [path, &[LABELS]].concat();
    let mut changed = false;
    // containerd stores no label without a value.
    for (key, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
        if stored.labels.get(key) != Some(value) {
            bolt_put(tx, &path, key.as_bytes(), value.as_bytes())?;
            changed = true;
        }
    }
    Ok(changed)
}

fn touch(tx: &mut Tx<'_>, path: &Path<'_>, stored: &Stored, changed: bool, now: DateTime<Utc>) -> Result<()> {
    let now = codec::time(now);
    if !stored.values.contains_key(CREATED) {
        bolt_put(tx, path, CREATED, &now)?;
    }
    if changed {
        bolt_put(tx, path, UPDATED, &now)?;
    }
    Ok(())
}

/// The names of all namespaces.
///
/// # Errors
/// [`Error::Bolt`].
pub fn namespaces(tx: &Tx<'_>) -> Result<Vec<String>> {
    Ok(buckets(tx, &[V1])?.into_iter().map(|key| lossy(&key)).collect())
}

/// Whether containerd 2 has used the database.
///
/// # Errors
/// [`Error::Bolt`].
pub fn is_migrated(tx: &Tx<'_>) -> Result<bool> {
    let version = bolt_get(tx, &[V1], VERSION)?.and_then(|bytes| codec::parse_varint(&bytes));
    Ok(version.unwrap_or(0) >= MIGRATED)
}

/// Names of root buckets that are neither containerd's records nor the sandboxes that 1.7 keeps there, and that containerd 2
/// deletes when it migrates the database. None in a database it has migrated.
///
/// # Errors
/// [`Error::Bolt`].
pub fn foreign_buckets(tx: &Tx<'_>) -> Result<Vec<String>> {
    let mut foreign = Vec::new();
    if is_migrated(tx)? {
        return Ok(foreign);
    }
    for key in buckets(tx, &[])? {
        if key != V1 && buckets(tx, &[&key])?.iter().all(|inside| inside != SANDBOXES) {
            foreign.push(lossy(&key));
        }
    }
    Ok(foreign)
}

/// Whether containerd accepts a name for a namespace (`identifiers.Validate`).
///
/// # Errors
/// [`Error::Namespace`].
pub fn check_namespace(name: &str) -> Result<()> {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    // "version" is a key beside the namespaces.
    let valid = name.len() <= MAX_NAMESPACE && name.split(['-', '_', '.']).all(word) && name.as_bytes() != VERSION;
    if valid { Ok(()) } else { Err(Error::Namespace(name.to_owned())) }
}

/// The images of a namespace by name; what is wrong with one comes in its place.
///
/// # Errors
/// [`Error::Bolt`].
pub fn images(tx: &Tx<'_>, namespace: &str) -> Result<Vec<Result<ImageRow>>> {
    let path = [V1, namespace.as_bytes(), IMAGES];
    rows(tx, &path, "a plain key among the images, at which containerd panics", &mut |name, view| {
        let at = |what| wrong(&[&path[..], &[name]].concat(), what);
        let target = view.bucket(TARGET, &mut |target| {
            let Some(target) = target else {
                return Ok(Err(at("an image without a target, at which containerd exits")));
            };
            let digest = target.get(DIGEST)?.and_then(|bytes| lossy(&bytes).parse().ok());
            let media_type = target.get(MEDIA_TYPE)?.map(|bytes| lossy(&bytes)).unwrap_or_default();
            Ok(match (digest, size(&target)?) {
                (Some(digest), Some(size)) => Ok(Descriptor::new(media_type, digest, size)),
                _ => Err(at("a target without a valid digest and size")),
            })
        })?;
        Ok(match target {
            Err(error) => Err(error),
            Ok(target) => Ok(ImageRow {
                name: lossy(name),
                target,
                labels: labels(view)?,
                created: view.get(CREATED)?.and_then(|bytes| codec::parse_time(&bytes)),
            }),
        })
    })
}

/// The blobs of a namespace by digest; what is wrong with one comes in its place.
///
/// # Errors
/// [`Error::Bolt`].
pub fn blobs(tx: &Tx<'_>, namespace: &str) -> Result<Vec<Result<BlobRow>>> {
    let path = [V1, namespace.as_bytes(), CONTENT, BLOB];
    rows(tx, &path, "a plain key among the blobs", &mut |key, view| {
        let at = |what| wrong(&[&path[..], &[key]].concat(), what);
        let Ok(digest) = lossy(key).parse::<Digest>() else { return Ok(Err(at("a blob whose key is no digest"))) };
        let Some(size) = size(view)? else { return Ok(Err(at("a blob without a valid size"))) };
        Ok(Ok(BlobRow { digest, size, labels: labels(view)? }))
    })
}

/// Digests of what a namespace's labels keep because it refers to an image, each once; records that cannot be read are passed
/// over.
///
/// # Errors
/// [`Error::Bolt`].
pub fn referrers(tx: &Tx<'_>, namespace: &str) -> Result<Vec<Digest>> {
    let mut found = Vec::new();
    for blob in blobs(tx, namespace)?.into_iter().flatten() {
        let refs = blob.labels.iter().filter(|(key, _)| super::labels::is_referrer_ref(key));
        found.extend(refs.filter_map(|(_, digest)| digest.parse::<Digest>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The digests of a namespace's blobs; keys that are none are passed over.
///
/// # Errors
/// [`Error::Bolt`].
pub fn blob_digests(tx: &Tx<'_>, namespace: &str) -> Result<HashSet<Digest>> {
    let keys = bolt_list(tx, &[V1, namespace.as_bytes(), CONTENT, BLOB])?;
    Ok(keys.into_iter().filter_map(|(key, _)| lossy(&key).parse().ok()).collect())
}

/// A row, or what is wrong with it; or why it could not be read.
pub(super) type Row<R> = Result<Result<R>, bolt::Error>;

/// What `row` makes of each bucket in a bucket; a plain key among them is wrong.
pub(super) fn rows<R>(
    tx: &Tx<'_>,
    path: &Path<'_>,
    plain: &'static str,
    row: &mut dyn FnMut(&[u8], &View<'_>) -> Row<R>,
) -> Result<Vec<Result<R>>> {
    let mut found = Vec::new();
    let read = tx.view(path, &mut |view| {
        let Some(view) = view else { return Ok(()) };
        view.each(&mut |key, seen| {
            found.push(match seen {
                Seen::Value(_) => Err(wrong(&[path, &[key]].concat(), plain)),
                Seen::Bucket(view) => match row(key, &view) {
                    Err(bolt::Error::Invalid(what)) => Err(wrong(&[path, &[key]].concat(), what)),
                    row => row?,
                },
            });
            Ok(())
        })
    });
    match read {
        Err(bolt::Error::Invalid(what)) => found.push(Err(wrong(path, what))),
        read => read.map_err(bolt_error)?,
    }
    Ok(found)
}

fn size(view: &View<'_>) -> Result<Option<u64>, bolt::Error> {
    Ok(view.get(SIZE)?.and_then(|bytes| codec::parse_varint(&bytes)).and_then(|n| u64::try_from(n).ok()))
}

pub(super) fn labels(view: &View<'_>) -> Result<Labels, bolt::Error> {
    let mut all = Labels::new();
    view.bucket(LABELS, &mut |labels| match labels {
        None => Ok(()),
        Some(labels) => labels.each(&mut |key, seen| {
            if let Seen::Value(value) = seen {
                all.insert(lossy(key), lossy(value));
            }
            Ok(())
        }),
    })?;
    Ok(all)
}

/// The last number given to a snapshot of a snapshotter in a namespace; 0 before the first.
///
/// # Errors
/// [`Error::Bolt`].
pub fn snapshot_sequence(tx: &Tx<'_>, namespace: &str, snapshotter: &str) -> Result<u64> {
    let path = [V1, namespace.as_bytes(), SNAPSHOTS, snapshotter.as_bytes()];
    Ok(tx.sequence(&path).map_err(bolt_error)?.unwrap_or(0))
}

/// Writes a snapshot, with `labels`, and names it among its parent's children; `number` is that in its name, and the
/// sequence does not stay behind it. One that is there so is left alone.
///
/// # Errors
/// [`Error::Bolt`].
pub fn put_snapshot(
    tx: &mut Tx<'_>,
    snapshot: &Snapshot,
    number: u64,
    labels: &Labels,
    now: DateTime<Utc>,
) -> Result<()> {
    let owner = [V1, snapshot.namespace.as_bytes(), SNAPSHOTS, snapshot.snapshotter.as_bytes()];
    let path = [&owner[..], &[snapshot.key.as_bytes()]].concat();
    let stored = stored(tx, &path)?;
    let mut values = vec![(NAME, snapshot.name.as_bytes()), (PARENT, snapshot.parent.as_bytes())];
    // The lowest has no parent, not an empty one.
    values.retain(|(_, value)| !value.is_empty());
    let mut changed = put_values(tx, &path, &stored, &values)?;
    if !snapshot.parent.is_empty() {
        let siblings = [&owner[..], &[snapshot.parent.as_bytes(), CHILDREN]].concat();
        if bolt_get(tx, &siblings, snapshot.key.as_bytes())?.is_none() {
            bolt_put(tx, &siblings, snapshot.key.as_bytes(), b"")?;
        }
    }
    if tx.sequence(&owner).map_err(bolt_error)?.unwrap_or(0) < number {
        tx.set_sequence(&owner, number).map_err(bolt_error)?;
    }
    changed |= add_labels(tx, &path, &stored, labels)?;
    touch(tx, &path, &stored, changed, now)
}

/// The keys of a bucket and what they lead to; none where there is no bucket.
pub(super) fn entries(tx: &Tx<'_>, path: &Path<'_>) -> Result<Vec<Entry>> {
    bolt_list(tx, path)
}

pub(super) fn buckets(tx: &Tx<'_>, path: &Path<'_>) -> Result<Vec<Vec<u8>>> {
    Ok(bolt_list(tx, path)?.into_iter().filter(|(_, item)| *item == Item::Bucket).map(|(key, _)| key).collect())
}

pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn wrong(path: &Path<'_>, what: &'static str) -> Error {
    Error::Record { path: path.iter().map(|key| lossy(key)).collect::<Vec<_>>().join("/"), what }
}

fn bolt_get(tx: &Tx<'_>, path: &Path<'_>, key: &[u8]) -> Result<Option<Vec<u8>>> {
    tx.get(path, key).map_err(bolt_error)
}

pub(super) fn bolt_put(tx: &mut Tx<'_>, path: &Path<'_>, key: &[u8], value: &[u8]) -> Result<()> {
    tx.put(path, key, value).map_err(bolt_error)
}

fn bolt_list(tx: &Tx<'_>, path: &Path<'_>) -> Result<Vec<Entry>> {
    Ok(tx.list(path).map_err(bolt_error)?.unwrap_or_default())
}

pub(super) fn bolt_error(source: bolt::Error) -> Error {
    Error::Bolt { path: PathBuf::from(super::FILE), source }
}
