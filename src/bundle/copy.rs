//! Many images to registries, several at a time; one that fails does not keep others from theirs.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt, iter};

use super::push::{Job, Pushed, Pusher, What};
use super::{Error, Result};
use crate::bake::{Event, Failure, Listener, notices};
use crate::kind::{Kind, chain};
use crate::oci::Reference;
use crate::registry::{self, Client};
use crate::source::{self, Held, Local, Sources};
use crate::spec::Share;

/// Images to copy.
pub struct CopyRequest {
    /// Which, and where to.
    pub images: Vec<Images>,
    /// Uploads at a time.
    pub concurrency: usize,
    /// How to talk to registries.
    pub registry: registry::Options,
    /// Nothing is pushed; what would be is told.
    pub dry_run: bool,
}

/// An image, and where it goes.
#[derive(Clone)]
pub struct Images {
    /// Its name; of an image in a place, the one it is asked for by.
    pub from: Reference,
    /// The place it is in, and what it is there; else its registry has it.
    pub place: Option<(Arc<Local>, Held)>,
    /// Its name there.
    pub to: Reference,
    /// What of it.
    pub what: What,
}

/// What came of a copy.
#[derive(Debug)]
pub struct Report {
    /// Each image, in the order asked for.
    pub images: Vec<Copied>,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether it was stopped.
    pub cancelled: bool,
    /// The share of the work that this was, where it is shared.
    pub share: Option<Share>,
}

/// What became of an image.
#[derive(Debug)]
pub struct Copied {
    /// What was asked for.
    pub name: String,
    /// Its name at the destination, where it came to have one.
    pub to: Option<String>,
    /// What was pushed, or why it failed.
    pub result: Result<Pushed, Failure>,
}

/// What is to be copied, or why it cannot be told.
pub(super) type Due = (String, Result<Images>);

/// Copies images to registries, until done or until `cancel`.
///
/// # Errors
/// [`Error`], when nothing can be begun; images fail in the report.
pub async fn copy(
    request: CopyRequest,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Report> {
    let CopyRequest { images, concurrency, registry, dry_run } = request;
    let client = Arc::new(Client::new(registry, notices(listener.clone()))?);
    let due = images.into_iter().map(|mut image| {
        image.what.dry_run |= dry_run;
        let name = image.place.as_ref().map_or_else(|| image.from.to_string(), |(local, _)| local.place().to_owned());
        (name, Ok(image))
    });
    copy_all(due.collect(), None, client, concurrency, listener, cancel).await
}

/// As [`copy`]; a shard's share of it alone.
pub(super) async fn copy_all(
    due: Vec<Due>,
    share: Option<Share>,
    client: Arc<Client>,
    concurrency: usize,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Report> {
    let started = Instant::now();
    let names: Vec<String> = due.iter().map(|(name, _)| name.clone()).collect();
    listener.on(&Event::Images { images: &names });
    let pusher = Pusher::new(client.clone(), listener.clone(), concurrency);
    let stopped = || Failure { kind: Kind::Unavailable, message: chain(&Error::Stopped) };
    let mut images: Vec<Copied> =
        names.iter().map(|name| Copied { name: name.clone(), to: None, result: Err(stopped()) }).collect();
    let mut todo = Vec::new();
    for (i, (_, image)) in due.into_iter().enumerate() {
        match image {
            Ok(image) => {
                images[i].to = Some(image.to.to_string());
                todo.push((i, image));
            }
            Err(error) => images[i].result = Err(failed(&images[i].name, &error, &*listener)),
        }
    }
    let push = todo.into_iter().map(async |(i, image)| {
        let (sources, Images { from, to, what, .. }) = (image.sources(&client), &image);
        (i, pusher.push(&Job { name: &names[i], sources: &sources, from, to, what }, share.as_ref()).await)
    });
    let cancelled = each(push, concurrency.max(2), cancel, |i, pushed| set(&mut images[i], pushed, &*listener)).await;
    client.settle().await?;
    Ok(Report { images, elapsed: started.elapsed(), cancelled, share })
}

fn set(Copied { name, to, result }: &mut Copied, pushed: Result<Pushed>, listener: &dyn Listener) {
    match &pushed {
        Ok(pushed) if pushed.left => listener.on(&Event::ImageLeft { image: name }),
        Ok(pushed) if !pushed.dry_run => {
            let (image, to) = (&**name, to.as_deref().unwrap_or_default());
            let (digest, changed) = (&pushed.target.digest, !pushed.is_up_to_date());
            listener.on(&Event::ImageCopied { image, to, digest, changed });
        }
        _ => {}
    }
    *result = pushed.map_err(|error| failed(name, &error, listener));
}

/// Several at a time, until done or until `cancel`; whether it was that.
pub(super) async fn each<T>(
    work: impl Iterator<Item = impl Future<Output = (usize, Result<T>)>>,
    at_once: usize,
    cancel: impl Future<Output = ()>,
    mut done: impl FnMut(usize, Result<T>),
) -> bool {
    let mut cancel = pin!(cancel);
    let mut running = pin!(iter(work).buffer_unordered(at_once));
    loop {
        tokio::select! {
            // First, for it may have come before there was any work.
            biased;
            () = &mut cancel => return true,
            next = running.next() => match next {
                Some((i, result)) => done(i, result),
                None => return false,
            },
        }
    }
}

pub(super) fn failed(name: &str, error: &Error, listener: &dyn Listener) -> Failure {
    let failure = Failure { kind: error.into(), message: chain(error) };
    listener.on(&Event::ImageFailed { image: name, kind: failure.kind, error: &failure.message });
    failure
}

impl Images {
    pub(super) fn sources(&self, client: &Arc<Client>) -> Sources {
        let mut sources = Sources::through(client.clone());
        if let Some((local, held)) = &self.place {
            sources.put(self.from.clone(), local.clone(), held.clone());
        }
        sources
    }

    /// One image from a registry.
    pub fn new(from: Reference, to: Reference, what: What) -> Self {
        Self { from, place: None, to, what }
    }

    /// The only image of a place, or the one behind its colon.
    ///
    /// # Errors
    /// [`source::Error`].
    pub fn of_place(local: Arc<Local>, to: Reference, what: What) -> source::Result<Self> {
        let held = local.image()?;
        // The name it goes by here needs to be none of its own.
        let from = held.reference().unwrap_or_else(|| to.clone());
        Ok(Self { from, place: Some((local, held)), to, what })
    }
}
