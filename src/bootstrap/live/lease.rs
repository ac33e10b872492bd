//! Leases: what a bootstrap makes belongs to one until images name it, so that no collection takes it.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{SecondsFormat, Utc};
use tonic::Code;

use super::Result;
use super::api::{AddResource, DeleteLease, Empty, Lease, Leases, Resource};
use super::client::{Client, Session, is, refused};

const SERVICE: &str = "leases.v1.Leases";
/// When the collector passes by a lease, as RFC 3339 (containerd `metadata.labelGCExpire`).
const EXPIRE: &str = "containerd.io/gc.expire";
/// Of a bootstrap that was ended: as long as a node may take to start again. containerd gives a write without a lease as long.
const LIFE: Duration = Duration::from_hours(24);
/// Whose lease it is.
const OWNER: &str = "prebake/root";

/// A name that no other lease has.
fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("prebake-{}-{}", std::process::id(), now.as_nanos())
}

/// Makes a lease; its id.
pub(super) async fn create(session: &Session, owner: &str) -> Result<String> {
    let id = unique();
    let expire = (Utc::now() + LIFE).to_rfc3339_opts(SecondsFormat::Secs, true);
    let labels = HashMap::from([(EXPIRE.to_owned(), expire), (OWNER.to_owned(), owner.to_owned())]);
    let created = session.call::<_, Empty>(&format!("{SERVICE}/Create"), Lease { id: id.clone(), labels }).await;
    created.map_err(refused("making the lease", &id))?;
    Ok(id)
}

/// Releases an owner's leases, also those that a kill left, and waits for the collection that follows.
pub(super) async fn release(session: &Session, owner: &str) -> Result<()> {
    let all: Leases = session.call(&format!("{SERVICE}/List"), Empty {}).await.map_err(refused("listing", "leases"))?;
    let mut own = all.leases.into_iter().filter(|lease| lease.labels.get(OWNER).is_some_and(|other| other == owner));
    let mut next = own.next();
    while let Some(lease) = next {
        next = own.next();
        delete(session, lease.id, next.is_none()).await?;
    }
    Ok(())
}

async fn delete(session: &Session, id: String, sync: bool) -> Result<()> {
    let deleted = session.call::<_, Empty>(&format!("{SERVICE}/Delete"), DeleteLease { id: id.clone(), sync }).await;
    if is(&deleted, Code::NotFound) {
        return Ok(());
    }
    deleted.map(drop).map_err(refused("releasing the lease", id))
}

/// Makes a snapshot belong to a lease, whether or not there is one.
pub(super) async fn add_snapshot(session: &Session, lease: &str, snapshotter: &str, key: &str) -> Result<()> {
    let resource = Resource { id: key.to_owned(), kind: format!("snapshots/{snapshotter}") };
    let add = AddResource { id: lease.to_owned(), resource: Some(resource) };
    let added = session.call::<_, Empty>(&format!("{SERVICE}/AddResource"), add).await;
    added.map(drop).map_err(refused("leasing snapshot", key))
}

/// Lets a running containerd collect its garbage, in all namespaces, and waits for the end of it: what the release of a
/// lease does (containerd `leases.SynchronousDelete`). The lease that is made for it, in `namespace`, names nothing.
///
/// # Errors
/// [`super::Error::Connect`] when no containerd answers at `address`; [`super::Error::Call`] when it refuses.
pub async fn collect_garbage(address: &Path, namespace: &str) -> Result<()> {
    let session = Client::connect(address).await?.session(namespace)?;
    let id = create(&session, "").await?;
    delete(&session, id, true).await
}
