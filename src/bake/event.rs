//! What happens during a bake, for whoever wants to show it.

use std::sync::Arc;

use serde::Serialize;

use super::Kind;
use crate::kind::chain;
use crate::oci::{Digest, Platform};
use crate::registry::{Notice, Notify};

/// Something that happened. As JSON, each is one object with `event` naming it; sizes are bytes.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another prebake uses the root, and is waited for.
    Waiting {
        /// Which process.
        holder: &'a str,
    },
    /// It is known what an image consists of.
    ImageResolved {
        /// The image name.
        image: &'a str,
        /// Digest of its index or manifest.
        digest: &'a Digest,
        /// The platforms asked for.
        platforms: &'a [Platform],
        /// How many blobs it has.
        blobs: usize,
        /// All of them together.
        bytes: u64,
    },
    /// A blob no earlier image of this bake has is known of.
    BlobAdded {
        /// The blob.
        digest: &'a Digest,
        /// Its size.
        size: u64,
    },
    /// A blob starts to come.
    BlobStarted {
        /// The blob.
        digest: &'a Digest,
        /// Its size.
        size: u64,
    },
    /// A blob comes from this host.
    BlobFrom {
        /// The blob.
        digest: &'a Digest,
        /// The host that was asked, whatever it redirects to.
        host: &'a str,
    },
    /// More of a blob came.
    BlobProgress {
        /// The blob.
        digest: &'a Digest,
        /// How much more.
        bytes: u64,
    },
    /// What came of a blob was not right, and it is asked for once more.
    BlobRetried {
        /// The blob.
        digest: &'a Digest,
        /// How much of it came in vain.
        lost: u64,
        /// What was wrong.
        reason: &'a str,
    },
    /// Something is asked for again: a server failed, or a connection broke.
    Again {
        /// What went wrong.
        reason: &'a str,
        /// Tries so far.
        tries: u32,
        /// Tries at most.
        of: u32,
        /// Seconds until then.
        wait_seconds: f64,
    },
    /// A host asked for patience: nobody asks it anything for a while.
    Limited {
        /// The host.
        host: &'a str,
        /// HTTP status.
        status: u16,
        /// For how many seconds.
        wait_seconds: f64,
    },
    /// A host said how many pulls are left.
    Quota {
        /// The host.
        host: &'a str,
        /// Pulls in the window.
        limit: u64,
        /// Pulls that are left.
        remaining: u64,
        /// The window, in seconds.
        window_seconds: u64,
        /// The same in words.
        words: &'a str,
    },
    /// A blob will not come, or not for this image.
    BlobFailed {
        /// The blob.
        digest: &'a Digest,
        /// How much of it came in vain.
        lost: u64,
    },
    /// A blob is in place.
    BlobDone {
        /// The blob.
        digest: &'a Digest,
        /// Its size.
        size: u64,
        /// `false`: it was there before.
        fetched: bool,
    },
    /// All blobs of an image are in place, and its layers in snapshots where that was asked for.
    ImageFetched {
        /// The image name.
        image: &'a str,
        /// Digest of its index or manifest.
        digest: &'a Digest,
    },
    /// A layer is being unpacked.
    LayerStarted {
        /// Its blob.
        digest: &'a Digest,
        /// Its chainID: it, and all layers below it.
        chain: &'a Digest,
    },
    /// A layer is unpacked, or failed to be.
    LayerEnded {
        /// Its blob.
        digest: &'a Digest,
        /// Its chainID.
        chain: &'a Digest,
        /// Bytes on disk; `None`: it failed, or its image did.
        unpacked: Option<u64>,
    },
    /// An image failed; the others go on.
    ImageFailed {
        /// The image name.
        image: &'a str,
        /// What kind of failure.
        kind: Kind,
        /// Why.
        error: &'a str,
    },
    /// containerd's metadata names the images.
    Bootstrapped {
        /// In which namespace.
        namespace: &'a str,
        /// How many.
        images: usize,
        /// `false`: it named them all before.
        changed: bool,
    },
}

/// Hears of events, from any thread.
pub trait Listener: Send + Sync {
    /// Something happened.
    fn on(&self, event: &Event<'_>);
}

/// Lets a listener hear what the registry client has to say.
pub(super) fn notices(listener: Arc<dyn Listener>) -> Notify {
    Arc::new(move |notice| match notice {
        Notice::Again { error, tries, of, wait } => {
            let (reason, wait_seconds) = (&chain(*error), wait.as_secs_f64());
            listener.on(&Event::Again { reason, tries: *tries, of: *of, wait_seconds });
        }
        Notice::Limited { host, status, wait } => {
            listener.on(&Event::Limited { host, status: *status, wait_seconds: wait.as_secs_f64() });
        }
        Notice::Quota { host, quota } => listener.on(&Event::Quota {
            host,
            limit: quota.limit,
            remaining: quota.remaining,
            window_seconds: quota.window,
            words: &quota.to_string(),
        }),
    })
}

/// Both hear it.
impl Listener for (Arc<dyn Listener>, Arc<dyn Listener>) {
    fn on(&self, event: &Event<'_>) {
        self.0.on(event);
        self.1.on(event);
    }
}

/// Hears nothing.
impl Listener for () {
    fn on(&self, _: &Event<'_>) {}
}
