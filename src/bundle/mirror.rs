//! A mirror: images of a `mirror.toml`, copied to where it says.

use std::collections::{BTreeMap, HashMap};
use std::pin::{Pin, pin};
use std::sync::Arc;

use super::copy::{Due, Images, Report, copy_all, each};
use super::push::{Job, Parts, Pusher, What};
use super::{Error, Result};
use crate::bake::{Listener, Outcome, notices};
use crate::oci::{Reference, glob_matches};
use crate::registry::{self, Client};
use crate::source::{self, Held, Local};
use crate::spec::{Lock, LockedImage, Mirror, MirrorImage, Named, Place, Share, Which};

/// A mirror to bring up to date, or to lock.
pub struct MirrorRequest {
    /// What goes where.
    pub mirror: Mirror,
    /// Uploads at a time.
    pub concurrency: usize,
    /// How to talk to registries.
    pub registry: registry::Options,
    /// Nothing is pushed; what would be is told.
    pub dry_run: bool,
    /// What was locked: no tag is asked for, and nothing else is copied.
    pub lock: Option<Lock>,
    /// Only this share of what was locked.
    pub share: Option<Share>,
}

/// Copies a mirror's images, until done or until `cancel`.
///
/// # Errors
/// [`Error`], when nothing can be begun; images fail in the report.
pub async fn mirror(
    request: MirrorRequest,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<Report> {
    let MirrorRequest { mirror, concurrency, registry, dry_run, lock, share } = request;
    let client = Arc::new(Client::new(registry, notices(listener.clone()))?);
    let mut cancel = pin!(cancel);
    let mut due = due(&mirror, dry_run, &client, lock.as_ref(), cancel.as_mut()).await?;
    if let Some(lock) = lock {
        pin_all(&mut due, &lock)?;
    }
    copy_all(due, share, client, concurrency, listener, cancel).await
}

/// Finds out what a mirror's images consist of, until done or until `cancel`: by their names, and the images that failed. Nothing is
/// written.
///
/// # Errors
/// [`Error`], when nothing can be begun.
pub async fn lock(
    request: MirrorRequest,
    listener: Arc<dyn Listener>,
    cancel: impl Future<Output = ()>,
) -> Result<(BTreeMap<String, LockedImage>, Vec<Outcome>)> {
    let MirrorRequest { mirror, concurrency, registry, .. } = request;
    let client = Arc::new(Client::new(registry, notices(listener.clone()))?);
    let mut cancel = pin!(cancel);
    let due = due(&mirror, true, &client, None, cancel.as_mut()).await?;
    let pusher = Pusher::new(client.clone(), listener.clone(), concurrency);
    let (names, images): (Vec<String>, Vec<Result<Images>>) = due.into_iter().unzip();
    let parts = images.into_iter().enumerate().map(async |(i, image)| {
        let found = match image {
            Ok(image) => {
                let (sources, Images { from, to, what, .. }) = (image.sources(&client), &image);
                pusher.parts(&Job { name: &names[i], sources: &sources, from, to, what }).await
            }
            Err(error) => Err(error),
        };
        (i, found.map(Parts::into_locked))
    });
    let (mut locked, mut failed) = (BTreeMap::<String, LockedImage>::new(), Vec::new());
    let done = |i: usize, image| match image {
        Ok(image) => match locked.get_mut(&names[i]) {
            // It goes to several places, perhaps for other machines.
            Some(known) => LockedImage::add(known, image),
            None => drop(locked.insert(names[i].clone(), image)),
        },
        Err(error) => {
            let failure = Some(super::copy::failed(&names[i], &error, &*listener));
            failed.push(Outcome { name: names[i].clone(), namespace: String::new(), failure });
        }
    };
    each(parts, concurrency.max(2), cancel, done).await;
    client.settle().await?;
    Ok((locked, failed))
}

/// A mirror's images, those of patterns by the tags there are, or by those that were locked.
async fn due(
    mirror: &Mirror,
    dry_run: bool,
    client: &Client,
    lock: Option<&Lock>,
    mut cancel: Pin<&mut impl Future<Output = ()>>,
) -> Result<Vec<Due>> {
    let mut due: Vec<Due> = Vec::new();
    let mut open = HashMap::new();
    for image in &mirror.images {
        let found = tokio::select! {
            found = images(client, &image.which, lock, &mut open) => found,
            () = &mut cancel => break,
        };
        match found {
            Ok(found) => due.extend(found.into_iter().map(|(name, from, place)| {
                let destination = mirror.destination(&from).map_err(Error::from);
                let what = what(mirror, image, dry_run);
                (name, destination.map(|to| Images { from, place, to, what }))
            })),
            Err(error) => due.push((shown(&image.which), Err(error))),
        }
    }
    Ok(due)
}

/// Makes of each image what it was when it was locked.
fn pin_all(due: &mut [Due], lock: &Lock) -> Result<()> {
    let mut missing = Vec::new();
    for (name, image) in due {
        let Ok(image) = image else { continue };
        match lock.images.get(name) {
            Some(locked) if !locked.documents.is_empty() => {
                image.what.locked = Some(locked.clone());
                if image.place.is_none() {
                    image.from = image.from.by_digest(&locked.target.digest);
                }
            }
            _ => missing.push(name.clone()),
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::NotLocked(missing)) }
}

fn what(mirror: &Mirror, image: &MirrorImage, dry_run: bool) -> What {
    let platforms = if image.platforms.is_empty() { &mirror.platforms } else { &image.platforms };
    What { platforms: platforms.clone(), referrers: mirror.referrers.types(), dry_run, locked: None }
}

fn shown(which: &Which) -> String {
    match which {
        Which::Named(named) => named.to_string(),
        Which::Tagged { repository, tags } => {
            format!("{}/{}:{}", repository.registry(), repository.repository(), tags.join("|"))
        }
    }
}

/// An image, what it is called in the report, and the place it is in.
type Found = (String, Reference, Option<(Arc<Local>, Held)>);

/// The images that an entry stands for.
async fn images(
    client: &Client,
    which: &Which,
    lock: Option<&Lock>,
    open: &mut HashMap<Place, Arc<Local>>,
) -> Result<Vec<Found>> {
    match which {
        Which::Named(Named::Registry(reference)) => Ok(vec![(reference.to_string(), reference.clone(), None)]),
        Which::Named(Named::As(reference, place)) => {
            let local = opened(place, open).await?;
            let held = local.image()?;
            Ok(vec![(reference.to_string(), reference.clone(), Some((local, held)))])
        }
        Which::Named(Named::Place(place)) => {
            let local = opened(place, open).await?;
            let named = |held: Held| {
                let tag = || held.name.clone().unwrap_or_else(|| held.target.digest.to_string());
                let nameless = || source::Error::Nameless { place: local.place().to_owned(), tag: tag() };
                let reference = held.reference().ok_or_else(nameless)?;
                Ok((reference.to_string(), reference, Some((local.clone(), held))))
            };
            local.chosen()?.into_iter().map(named).collect()
        }
        Which::Tagged { repository, tags: globs } => {
            let name = |tag: &str| format!("{}/{}:{tag}", repository.registry(), repository.repository());
            let tags = match lock {
                Some(lock) => {
                    let all = name("");
                    lock.images.keys().filter_map(|name| name.strip_prefix(&*all)).map(str::to_owned).collect()
                }
                None => client.tags(repository).await?,
            };
            let fit = |tag: &&String| globs.iter().any(|glob| glob_matches(glob, tag) && !stands_in(glob, tag));
            // What is no tag names no image.
            let fitting = tags.iter().filter(fit).filter_map(|tag| name(tag).parse::<Reference>().ok());
            let fitting: Vec<Found> = fitting.map(|reference| (reference.to_string(), reference, None)).collect();
            if fitting.is_empty() {
                let repository = format!("{}/{}", repository.registry(), repository.repository());
                return Err(Error::NoTags { repository, tags: globs.clone() });
            }
            Ok(fitting)
        }
    }
}

/// Whether a tag stands in for the referrers of a digest, or is cosign's, and was not asked for as such.
fn stands_in(glob: &str, tag: &str) -> bool {
    let is_hex = |rest: &str| rest.len() >= 64 && rest.bytes().take(64).all(|byte| byte.is_ascii_hexdigit());
    !glob.starts_with("sha256-") && tag.strip_prefix("sha256-").is_some_and(is_hex)
}

async fn opened(place: &Place, open: &mut HashMap<Place, Arc<Local>>) -> Result<Arc<Local>> {
    if let Some(local) = open.get(place) {
        return Ok(local.clone());
    }
    let wanted = place.clone();
    let local = tokio::task::spawn_blocking(move || Local::open(&wanted)).await.map_err(|_| source::Error::Task)??;
    let local = Arc::new(local);
    open.insert(place.clone(), local.clone());
    Ok(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_other_things_are_no_images() {
        let signature = format!("sha256-{}.sig", "0".repeat(64));
        assert!(stands_in("*", &signature));
        assert!(!stands_in("sha256-*", &signature));
        assert!(!stands_in("*", "sha256-abc"));
    }
}
