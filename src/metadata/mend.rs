//! What a repair looks at and changes of records, beyond what a bake writes.

use std::collections::BTreeSet;

use super::contents::{
    CONTAINERS, INGESTS, LEASES, SANDBOXES, of_containers, of_ingests, of_leases, of_sandboxes, snapshots_of,
};
use super::records::{
    BLOB, CHILDREN, CONTENT, IMAGES, LABELS, Path, SNAPSHOTS, V1, blobs, bolt_error, bolt_put, buckets, entries,
    images, lossy,
};
use super::{Error, Result, namespaces};
use crate::bolt::{Item, Tx};

/// A snapshot among the children of another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Child {
    /// The snapshotter of both.
    pub snapshotter: String,
    /// Key of the parent.
    pub parent: String,
    /// Key of the child.
    pub key: String,
}

/// The children that the snapshots of a namespace name; those containerd keeps a parent for.
///
/// # Errors
/// [`Error::Bolt`].
pub fn children(tx: &Tx<'_>, namespace: &str) -> Result<BTreeSet<Child>> {
    let owner = [V1, namespace.as_bytes(), SNAPSHOTS];
    let mut found = BTreeSet::new();
    // What is no bucket where one belongs is told with the snapshots.
    let listed = |path: &Path<'_>| buckets(tx, path).unwrap_or_default();
    for snapshotter in listed(&owner) {
        for parent in listed(&[&owner[..], &[&snapshotter]].concat()) {
            let path = [&owner[..], &[&snapshotter, &parent, CHILDREN]].concat();
            for (key, _) in entries(tx, &path).unwrap_or_default() {
                found.insert(Child { snapshotter: lossy(&snapshotter), parent: lossy(&parent), key: lossy(&key) });
            }
        }
    }
    Ok(found)
}

fn siblings<'k>(namespace: &'k str, child: &'k Child) -> [&'k [u8]; 6] {
    let Child { snapshotter, parent, .. } = child;
    [V1, namespace.as_bytes(), SNAPSHOTS, snapshotter.as_bytes(), parent.as_bytes(), CHILDREN]
}

/// Names a child at its parent.
///
/// # Errors
/// [`Error::Bolt`].
pub fn put_child(tx: &mut Tx<'_>, namespace: &str, child: &Child) -> Result<()> {
    bolt_put(tx, &siblings(namespace, child), child.key.as_bytes(), b"")
}

/// Takes a child from among its parent's.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_child(tx: &mut Tx<'_>, namespace: &str, child: &Child) -> Result<()> {
    tx.delete(&siblings(namespace, child), child.key.as_bytes()).map(drop).map_err(bolt_error)
}

/// Makes sure that a snapshotter's next snapshot in a namespace gets a number above this one.
///
/// # Errors
/// [`Error::Bolt`].
pub fn raise_sequence(tx: &mut Tx<'_>, namespace: &str, snapshotter: &str, number: u64) -> Result<()> {
    let path = [V1, namespace.as_bytes(), SNAPSHOTS, snapshotter.as_bytes()];
    if tx.sequence(&path).map_err(bolt_error)?.is_some_and(|sequence| sequence < number) {
        tx.set_sequence(&path, number).map_err(bolt_error)?;
    }
    Ok(())
}

/// Removes a label of an image (`images`, its name), or of a blob (`content`, its digest).
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_label(tx: &mut Tx<'_>, namespace: &str, of_image: bool, name: &str, key: &str) -> Result<()> {
    let kind: &[&[u8]] = if of_image { &[IMAGES] } else { &[CONTENT, BLOB] };
    let path = [&[V1, namespace.as_bytes()], kind, &[name.as_bytes(), LABELS]].concat();
    tx.delete(&path, key.as_bytes()).map(drop).map_err(bolt_error)
}

/// Removes what a lease names: `kind` is containerd's word, such as `content` or `snapshots/overlayfs`.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_lease_entry(tx: &mut Tx<'_>, namespace: &str, lease: &str, kind: &str, key: &str) -> Result<()> {
    let kind: Vec<&[u8]> = kind.split('/').map(str::as_bytes).collect();
    let path = [&[V1, namespace.as_bytes(), LEASES, lease.as_bytes()], &kind[..]].concat();
    tx.delete(&path, key.as_bytes()).map(drop).map_err(bolt_error)
}

/// A record that nobody can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Its place, keys joined by `/`.
    pub path: String,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Removes the records that cannot be read.
///
/// # Errors
/// [`Error::Bolt`].
pub fn drop_malformed(tx: &mut Tx<'_>) -> Result<Vec<Malformed>> {
    let mut dropped = Vec::new();
    for namespace in namespaces(tx)? {
        let ns = namespace.as_bytes();
        let kinds: [Rows<'_>; 6] = [
            (&[IMAGES], unit(images(tx, &namespace)?)),
            (&[CONTENT, BLOB], unit(blobs(tx, &namespace)?)),
            (&[CONTENT, INGESTS], unit(of_ingests(tx, &namespace)?)),
            (&[CONTAINERS], unit(of_containers(tx, &namespace)?)),
            (&[LEASES], unit(of_leases(tx, &namespace)?)),
            (&[SANDBOXES], unit(of_sandboxes(tx, &namespace)?)),
        ];
        for (kind, rows) in kinds {
            drop_from(tx, &[&[V1, ns], kind].concat(), rows, &mut dropped)?;
        }
        let owner = [V1, ns, SNAPSHOTS];
        if let Ok(snapshotters) = tx.list(&owner) {
            for (snapshotter, item) in snapshotters.unwrap_or_default() {
                let path = [&owner[..], &[&snapshotter]].concat();
                if item == Item::Bucket {
                    let rows = unit(snapshots_of(tx, &namespace, &snapshotter)?);
                    drop_from(tx, &path, rows, &mut dropped)?;
                }
            }
        } else {
            drop_from(tx, &owner, vec![Err(Error::Record { path: String::new(), what: "no bucket" })], &mut dropped)?;
        }
    }
    Ok(dropped)
}

/// Where records are, and which of them, in the order of their keys, can be read.
type Rows<'k> = (&'k [&'k [u8]], Vec<Result<()>>);

fn unit<R>(rows: Vec<Result<R>>) -> Vec<Result<()>> {
    rows.into_iter().map(|row| row.map(drop)).collect()
}

/// Removes those keys of a bucket whose rows, in the same order, are wrong; or the bucket, when it is none.
fn drop_from(tx: &mut Tx<'_>, path: &Path<'_>, rows: Vec<Result<()>>, dropped: &mut Vec<Malformed>) -> Result<()> {
    let mut drop = |tx: &mut Tx<'_>, path: &Path<'_>, key: &[u8], what| {
        let shown = [path, &[key]].concat().into_iter().map(lossy).collect::<Vec<_>>().join("/");
        dropped.push(Malformed { path: shown, what });
        tx.delete(path, key).map(std::mem::drop).map_err(bolt_error)
    };
    let Ok(keys) = tx.list(path) else {
        // Something on the way is no bucket.
        for end in 3..=path.len() {
            let (key, parent) = path[..end].split_last().map_or((&b""[..], &path[..0]), |(key, parent)| (*key, parent));
            if tx.list(&path[..end]).is_err() {
                return drop(tx, parent, key, "a value where a bucket is expected");
            }
        }
        return Ok(());
    };
    for ((key, _), row) in keys.unwrap_or_default().into_iter().zip(rows) {
        match row {
            Err(Error::Record { what, .. }) => drop(tx, path, &key, what)?,
            other => other?,
        }
    }
    Ok(())
}

/// Makes a snapshot the lowest of its chain.
///
/// # Errors
/// [`Error::Bolt`].
pub fn remove_parent(tx: &mut Tx<'_>, snapshot: &super::Snapshot) -> Result<()> {
    let super::Snapshot { namespace, snapshotter, key, .. } = snapshot;
    let path = [V1, namespace.as_bytes(), SNAPSHOTS, snapshotter.as_bytes(), key.as_bytes()];
    tx.delete(&path, super::records::PARENT).map(drop).map_err(bolt_error)
}
