//! A part of the blobs, where several runs share the work.

use std::sync::{Arc, PoisonError};

use super::Result;
use super::event::Event;
use super::fetch::Fetcher;
use crate::catalog::ImageBlob;
use crate::oci::{Descriptor, Digest, Reference, media_type};

/// Which blobs a run brings. Documents and image configs come in any case: nobody understands an image without them.
pub type Part = Arc<dyn Fn(&Digest) -> bool + Send + Sync>;

/// Whether a run brings a blob.
pub(super) fn brings(part: Option<&Part>, blob: &Descriptor) -> bool {
    let kind = &blob.media_type;
    let is_everyones = media_type::is_index(kind) || media_type::is_manifest(kind) || media_type::is_image_config(kind);
    part.is_none_or(|part| is_everyones || part(&blob.digest))
}

impl Fetcher {
    /// Those that this run brings.
    pub(super) fn own(&self, blobs: &[ImageBlob]) -> Vec<ImageBlob> {
        blobs.iter().filter(|blob| brings(self.part.as_ref(), &blob.descriptor)).cloned().collect()
    }

    /// Whether an image is left to other runs, because something that they bring is not in place.
    pub(super) async fn is_left(&self, namespace: &str, reference: &Reference, blobs: &[ImageBlob]) -> Result<bool> {
        for ImageBlob { descriptor, .. } in blobs {
            if !brings(self.part.as_ref(), descriptor) && !self.blobs.is_whole(descriptor).await? {
                let name = reference.to_string();
                self.blobs.listener.on(&Event::ImageLeft { image: &name });
                self.left.lock().unwrap_or_else(PoisonError::into_inner).insert((namespace.to_owned(), name));
                return Ok(true);
            }
        }
        Ok(false)
    }
}
