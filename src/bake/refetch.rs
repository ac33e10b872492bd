//! Blobs that a root has lost, fetched again by their digests.

use std::sync::Arc;

use super::blobs::{Blobs, Place};
use super::{DEFAULT_CONCURRENCY, Listener, Result};
use crate::catalog::Catalog;
use crate::content::Store;
use crate::kind::chain;
use crate::metadata::K8S_NAMESPACE;
use crate::oci::{Descriptor, Reference, media_type};
use crate::registry;
use crate::root::Root;

/// A blob that is missing, or wrong.
#[derive(Debug, Clone)]
pub struct Lost {
    /// Which.
    pub descriptor: Descriptor,
    /// Images that have it: their registries and repositories are asked, in this order.
    pub references: Vec<Reference>,
}

/// Fetches blobs into the store of a root whose lock the caller holds, in the place of whatever is there; of each, why it did
/// not come, if it did not.
///
/// # Errors
/// [`super::Error`] when nothing can be begun.
pub async fn refetch(
    root: &Root,
    lost: &[Lost],
    registry: registry::Options,
    listener: Arc<dyn Listener>,
) -> Result<Vec<Option<String>>> {
    let place = Place::Root(Arc::new(Catalog::open(&root.make_state_dir()?)?));
    let store = Store::create(root)?;
    let blobs = Blobs::with(registry, DEFAULT_CONCURRENCY.into(), K8S_NAMESPACE, store, place, listener)?;
    let blobs = Arc::new(blobs);
    let one = async |lost: &Lost| {
        let mut why = "nothing says from which registry it came".to_owned();
        for reference in &lost.references {
            // What a record alone names may be a document or not.
            let unknown = lost.descriptor.media_type.is_empty();
            let kinds =
                if unknown { &["", media_type::OCI_MANIFEST][..] } else { &[lost.descriptor.media_type.as_str()] };
            for kind in kinds {
                let Descriptor { digest, size, .. } = &lost.descriptor;
                match blobs.again(reference, &Descriptor::new(*kind, digest.clone(), *size)).await {
                    Ok(()) => return None,
                    Err(error) => why = chain(&error),
                }
            }
        }
        Some(why)
    };
    let failed = futures_util::future::join_all(lost.iter().map(one)).await;
    blobs.sources.settle().await?;
    Ok(failed)
}
