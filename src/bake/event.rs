//! What happens during a bake, for whoever wants to show it.

use std::sync::Arc;

use serde::Serialize;

use super::Kind;
use crate::cache::Trouble;
use crate::kind::chain;
use crate::oci::{Digest, Platform};
use crate::registry::{Notice, Notify};

/// The version of events as JSON, which `docs/events.md` describes: it grows when one that reads them has to change.
pub const EVENTS_VERSION: u32 = 1;

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
    /// It is known which images it is about.
    Images {
        /// Their names, in the order asked for.
        images: &'a [String],
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
    /// It is known what all images take.
    Planned {
        /// Bytes that come over the network.
        fetch: u64,
        /// Bytes that the content store grows by.
        store: u64,
        /// Bytes that the snapshots grow by, as far as can be told.
        snapshots: u64,
    },
    /// A blob starts to come.
    BlobStarted {
        /// The blob.
        digest: &'a Digest,
        /// Its size.
        size: u64,
        /// The first image that asks for it.
        image: &'a str,
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
    /// The shared cache does not do all that it should.
    Cache {
        /// `off`, `wrong`, `read-only` or `unconditional`.
        trouble: &'a str,
        /// What happened.
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
    /// An image is left to other shards: some of its blobs are theirs, and not in place yet.
    ImageLeft {
        /// The image name.
        image: &'a str,
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
    /// An image is where it was to be copied.
    ImageCopied {
        /// The image name, or the place it is in.
        image: &'a str,
        /// Its name there.
        to: &'a str,
        /// Digest of its index or manifest there.
        digest: &'a Digest,
        /// `false`: all of it was there before.
        changed: bool,
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
pub fn notices(listener: Arc<dyn Listener>) -> Notify {
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
        Notice::Cache(trouble) => listener.on(&Event::Cache { trouble: trouble.name(), words: &words(trouble) }),
    })
}

/// What is wrong with a cache.
fn words(trouble: &Trouble<'_>) -> String {
    match trouble {
        Trouble::Off(error) => format!("going on without the cache: {}", chain(*error)),
        Trouble::Wrong(digest) => {
            format!("what the cache has as {digest} is something else; the registry is asked, and it is replaced")
        }
        Trouble::ReadOnly => "the cache takes nothing from us; what it has is used".to_owned(),
        Trouble::NotStored(error) => {
            format!("the cache did not take all; the registry is asked again for it: {}", chain(*error))
        }
        Trouble::Unconditional => {
            "the cache's store knows no conditional writes: bakers that run at once may each get a blob".to_owned()
        }
    }
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// What `docs/events.md` says of events: their fields by their names.
    fn documented() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
        let text = include_str!("../../docs/events.md");
        let (_, current) = text.split_once(&format!("## Version {EVENTS_VERSION}\n")).expect("the version");
        let events = current.split("\n### `").skip(1);
        let name = |line: &'static str| line.split('`').next().unwrap_or_default();
        let fields =
            |event: &'static str| event.lines().filter_map(|line| line.strip_prefix("| `")).map(name).collect();
        events.map(|event| (name(event), fields(event))).collect()
    }

    #[test]
    fn all_are_documented() {
        let digest = &Digest::of(b"");
        let (image, reason, error, host, holder, namespace) = ("", "", "", "", "", "");
        let all = [
            Event::Waiting { holder },
            Event::Images { images: &[] },
            Event::ImageResolved { image, digest, platforms: &[], blobs: 1, bytes: 1 },
            Event::Planned { fetch: 1, store: 1, snapshots: 1 },
            Event::BlobStarted { digest, size: 1, image },
            Event::BlobFrom { digest, host },
            Event::BlobProgress { digest, bytes: 1 },
            Event::BlobRetried { digest, lost: 1, reason },
            Event::Again { reason, tries: 1, of: 1, wait_seconds: 1.0 },
            Event::Limited { host, status: 429, wait_seconds: 1.0 },
            Event::Quota { host, limit: 1, remaining: 1, window_seconds: 1, words: "" },
            Event::BlobFailed { digest, lost: 1 },
            Event::BlobDone { digest, size: 1, fetched: true },
            Event::ImageFetched { image, digest },
            Event::LayerStarted { digest, chain: digest },
            Event::LayerEnded { digest, chain: digest, unpacked: None },
            Event::ImageLeft { image },
            Event::Cache { trouble: "", words: "" },
            Event::ImageFailed { image, kind: Kind::Io, error },
            Event::ImageCopied { image, to: "", digest, changed: true },
            Event::Bootstrapped { namespace, images: 1, changed: true },
        ];
        let documented = documented();
        let mut names = BTreeSet::new();
        for event in &all {
            // Whoever adds one adds it above as well.
            match event {
                Event::Waiting { .. } | Event::Images { .. } | Event::ImageResolved { .. } | Event::Planned { .. } => {}
                Event::BlobStarted { .. } | Event::BlobFrom { .. } | Event::BlobProgress { .. } => {}
                Event::BlobRetried { .. } | Event::BlobFailed { .. } | Event::BlobDone { .. } => {}
                Event::Again { .. } | Event::Limited { .. } | Event::Quota { .. } | Event::ImageFetched { .. } => {}
                Event::LayerStarted { .. }
                | Event::LayerEnded { .. }
                | Event::ImageLeft { .. }
                | Event::Cache { .. } => {}
                Event::ImageFailed { .. } | Event::ImageCopied { .. } | Event::Bootstrapped { .. } => {}
            }
            let json = serde_json::to_value(event).expect("an object");
            let name = json["event"].as_str().expect("a name").to_owned();
            let fields: BTreeSet<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
            let said = documented.get(name.as_str());
            // The command adds these up instead of telling each.
            if name != "blob_progress" {
                let said: BTreeSet<&str> = said.expect(&name).iter().copied().chain(["event"]).collect();
                assert_eq!(fields, said, "{name}");
            }
            names.insert(name);
        }
        // The command's own.
        let own =
            ["begin", "progress", "summary", "image", "unit", "synced", "error", "bundle", "verified", "exported"];
        names.extend(own.map(str::to_owned));
        assert!(documented.keys().all(|name| names.contains(*name)), "{names:?}");
    }
}
