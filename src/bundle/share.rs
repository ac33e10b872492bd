//! A shard's share of a mirror. Nobody waits for another shard: whoever is the last to have brought something of an image names it.

use std::future::Future;
use std::pin::Pin;

use super::Result;
use super::copy::{Results, Todo, each};
use super::push::{Parts, Pushed, Pusher};
use crate::spec::{Shard, Share};

/// An image, and what it consists of.
type Found<'t> = (&'t Todo, Parts);

/// Brings a shard's share of the blobs. Every shard finds out what all images consist of, so that all split the same. When all that
/// is its own is there, it names the images of which something is its own and nothing is missing. Whether it was stopped.
pub(super) async fn share(
    pusher: &Pusher,
    shard: Shard,
    todo: &[Todo],
    at_once: usize,
    results: &mut Results<'_>,
    mut cancel: Pin<&mut impl Future<Output = ()>>,
) -> (bool, Option<Share>) {
    let mut found = Vec::new();
    let cancelled =
        each(todo.iter().map(|todo| find(pusher, todo)), at_once, cancel.as_mut(), |i, image| match image {
            Ok(image) => found.push(image),
            Err(error) => results.set(i, Err(error)),
        });
    if cancelled.await {
        return (true, None);
    }
    let blobs = found.iter().flat_map(|(_, parts)| parts.blobs());
    let share = Share::new(shard, blobs.map(|blob| (&blob.digest, blob.size)));
    let mut brought = Vec::new();
    let bring = found.iter().map(|image| bring(pusher, &share, image));
    let cancelled = each(bring, at_once, cancel.as_mut(), |i, image| match image {
        Ok(image) => brought.push(image),
        Err(error) => results.set(i, Err(error)),
    });
    if cancelled.await {
        return (true, Some(share));
    }
    let name = brought.into_iter().map(|(image, pushed)| name(pusher, &share, image, pushed));
    let cancelled = each(name, at_once, cancel, |i, pushed| results.set(i, pushed)).await;
    (cancelled, Some(share))
}

async fn find<'t>(pusher: &Pusher, todo: &'t Todo) -> (usize, Result<Found<'t>>) {
    (todo.at, pusher.parts(&todo.job()).await.map(|parts| (todo, parts)))
}

async fn bring<'f>(pusher: &Pusher, share: &Share, image: &'f Found<'_>) -> (usize, Result<(&'f Found<'f>, Pushed)>) {
    let (todo, parts) = image;
    let brought = pusher.blobs(&todo.job(), parts, |digest| share.has(digest)).await;
    (todo.at, brought.map(|pushed| (image, pushed)))
}

async fn name(pusher: &Pusher, share: &Share, (todo, parts): &Found<'_>, pushed: Pushed) -> (usize, Result<Pushed>) {
    (todo.at, named(pusher, share, todo, parts, pushed).await)
}

async fn named(pusher: &Pusher, share: &Share, todo: &Todo, parts: &Parts, mut pushed: Pushed) -> Result<Pushed> {
    let job = todo.job();
    let is_own = parts.blobs().iter().any(|blob| share.has(&blob.digest));
    pushed.left = !is_own || !pusher.is_whole(&job, parts).await?;
    if !pushed.left {
        pusher.name(&job, parts, &mut pushed).await?;
    }
    Ok(pushed)
}
