//! Many images to registries, several at a time; one that fails does not keep others from theirs.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt, iter};

use super::push::{Pushed, Pusher, What};
use super::{Error, Result};
use crate::bake::{Event, Failure, Listener, notices};
use crate::kind::{Kind, chain};
use crate::oci::Reference;
use crate::registry::{self, Client};
use crate::source::{self, Held, Local, Sources};

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
    Ok(copy_all(due.collect(), client, concurrency, listener, cancel).await)
}

/// As [`copy`].
pub(super) async fn copy_all(
    due: Vec<Due>,
    client: Arc<Client>,
    concurrency: usize,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Report {
    let started = Instant::now();
    let names: Vec<String> = due.iter().map(|(name, _)| name.clone()).collect();
    listener.on(&Event::Images { images: &names });
    let pusher = Pusher::new(client.clone(), listener.clone(), concurrency);
    let stopped = || Failure { kind: Kind::Unavailable, message: "stopped before it was complete".to_owned() };
    let mut images: Vec<Copied> =
        names.into_iter().map(|name| Copied { name, to: None, result: Err(stopped()) }).collect();
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
    let one = |(i, image): (usize, Images)| {
        let (client, pusher) = (&client, &pusher);
        async move {
            let Images { from, place, to, what } = image;
            let mut sources = Sources::through(client.clone());
            if let Some((local, held)) = place {
                sources.put(from.clone(), local, held);
            }
            (i, pusher.push(&sources, &from, &to, &what).await)
        }
    };
    let mut running = iter(todo.into_iter().map(one)).buffer_unordered(concurrency.max(2));
    let mut cancel = pin!(cancel);
    let mut cancelled = false;
    while !cancelled {
        tokio::select! {
            next = running.next() => match next {
                Some((i, Ok(pushed))) => {
                    if !pushed.dry_run {
                        let (image, to) = (&*images[i].name, images[i].to.as_deref().unwrap_or_default());
                        let (digest, changed) = (&pushed.target.digest, !pushed.is_up_to_date());
                        listener.on(&Event::ImageCopied { image, to, digest, changed });
                    }
                    images[i].result = Ok(pushed);
                }
                Some((i, Err(error))) => images[i].result = Err(failed(&images[i].name, &error, &*listener)),
                None => break,
            },
            () = &mut cancel => cancelled = true,
        }
    }
    drop(running);
    // What the cache lacks now, the next run puts there.
    let _ = client.settle().await;
    Report { images, elapsed: started.elapsed(), cancelled }
}

fn failed(name: &str, error: &Error, listener: &dyn Listener) -> Failure {
    let failure = Failure { kind: error.into(), message: chain(error) };
    listener.on(&Event::ImageFailed { image: name, kind: failure.kind, error: &failure.message });
    failure
}

impl Images {
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
