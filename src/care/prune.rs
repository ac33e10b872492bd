//! Removing images without taking one that somebody needs, under whatever name.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::gc::{Changes, Collect, Collected, Sweep, is_live};
use super::image::Image;
use super::used::{DOCKER_TEMPORARY, MIN_SHORT_ID, Need, Needs, Uses};
use super::whole::Whole;
use super::{Error, Result};
use crate::bolt::Lock;
use crate::metadata::{Contents, ImageRow, K8S_NAMESPACE, Labels, MetaDb, Wait};
use crate::oci::{Digest, Reference, glob_matches};
use crate::root::Root;

/// Which images are to go.
#[derive(Debug, Clone)]
pub enum Which {
    /// These: names, digests, or the first digits of one.
    Named {
        /// Which.
        names: Vec<String>,
        /// Also names that a container knows, and pinned ones; what is in use stays, under its digest.
        force: bool,
    },
    /// Those nobody needs.
    Unused(Unused),
    /// All but these, in the namespaces that are named.
    AllBut(BTreeMap<String, Kept>),
}

/// Names of a namespace that stay; each with the digest that it will lead to, where that is known before.
pub type Kept = BTreeMap<String, Option<Digest>>;

/// Which of the images that nobody needs are to go.
#[derive(Debug, Clone, Default)]
pub struct Unused {
    /// Also those that have a name.
    pub all: bool,
    /// Only those whose records are all older.
    pub before: Option<DateTime<Utc>>,
    /// Only those that have these labels, on a record or in a config; with a value, or with any.
    pub labels: Vec<(String, Option<String>)>,
    /// None of those with a name that fits one of these patterns.
    pub keep: Vec<String>,
}

/// What is to be removed.
#[derive(Debug, Clone)]
pub struct Prune {
    /// Which images.
    pub which: Which,
    /// Of which namespace; [`Which::AllBut`] says that itself.
    pub namespace: String,
    /// How the collection behind it goes.
    pub collect: Collect,
}

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It goes.
    Removed,
    /// It gives its place to one that only says the digest, because the image is in use.
    Dangling,
    /// It stays.
    Kept,
}

/// What becomes of a record, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// containerd's namespace.
    pub namespace: String,
    /// The image name.
    pub name: String,
    /// Digest of its target.
    pub digest: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Why.
    pub why: String,
}

/// What a removal came to, or would.
#[derive(Debug, Serialize)]
pub struct Pruned {
    /// Each record that was asked for, by namespace and name.
    pub images: Vec<Decision>,
    /// What a collection removes then.
    #[serde(flatten)]
    pub collected: Collected,
}

/// Removes images, and what nothing keeps then.
///
/// # Errors
/// [`Error::NoImage`], [`Error::Ambiguous`] for names; [`Error::Unsound`] when something in the root is damaged: then nothing is
/// removed.
pub fn prune(root: &Root, request: &Prune, wait: &Wait<'_>) -> Result<Pruned> {
    let lock = if request.collect.dry_run { Lock::Shared } else { Lock::Exclusive };
    let mut meta = MetaDb::lock(root, lock, wait)?;
    let mut whole = Whole::read(root, &mut meta)?;
    let now = Utc::now();
    let uses = Uses::new(&whole, now);
    let mut pruner = Pruner { changes: Changes::default(), decisions: Vec::new() };
    match &request.which {
        Which::Named { names, force } => {
            if let Some(contents) = whole.namespace(&request.namespace) {
                let images = Image::all(&whole, contents);
                let selected = named(&images, names)?;
                for (image, names) in images.iter().zip(selected).filter(|(_, names)| !names.is_empty()) {
                    pruner.names(image, &uses.of(image), &names, *force, "it was asked for");
                }
            } else if let Some(name) = names.first() {
                return Err(Error::NoImage(name.clone()));
            }
        }
        Which::Unused(unused) => {
            if let Some(contents) = whole.namespace(&request.namespace) {
                pruner.end_temporary(contents, now);
                for image in Image::all(&whole, contents) {
                    pruner.whole(&image, unused.keeps(&image), &uses.of(&image));
                }
            }
        }
        Which::AllBut(kept) => {
            for (namespace, kept) in kept {
                pruner.forget(&whole, namespace, kept);
                let Some(contents) = whole.namespace(namespace) else { continue };
                for mut image in Image::all(&whole, contents) {
                    pruner.move_away(&mut image, kept);
                    let names = image.others(kept);
                    if !names.is_empty() {
                        pruner.names(&image, &uses.of(&image), &names, false, "it is not named");
                    }
                }
            }
        }
    }
    let Pruner { changes, mut decisions } = pruner;
    decisions.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut sweep = Sweep::new(root, &mut whole, changes, request.collect)?;
    if !request.collect.dry_run {
        sweep.execute(root, &whole, &mut meta)?;
    }
    Ok(Pruned { images: decisions, collected: sweep.collected })
}

/// Which names of each image are meant.
fn named<'i>(images: &'i [Image<'_>], wanted: &[String]) -> Result<Vec<BTreeSet<&'i str>>> {
    let mut selected: Vec<BTreeSet<&str>> = images.iter().map(|_| BTreeSet::new()).collect();
    for text in wanted {
        let normal = text.parse::<Reference>().map(|reference| reference.to_string()).ok();
        let is_name = |row: &&&ImageRow| row.name == *text || Some(&row.name) == normal.as_ref();
        let by_name = images.iter().enumerate().find_map(|(i, image)| Some((i, image.rows.iter().find(is_name)?)));
        // A config's digest is a name of CRI's, and means the image.
        if let Some((i, row)) = by_name.filter(|(_, row)| row.name.parse::<Digest>().is_err()) {
            selected[i].insert(row.name.as_str());
            continue;
        }
        let digits = text.split_once(':').map_or(text.as_str(), |(_, hex)| hex);
        let meant = |image: &Image<'_>| {
            digits.len() >= MIN_SHORT_ID && image.digests().any(|digest| digest.hex().starts_with(digits))
        };
        let mut found = images.iter().enumerate().filter(|(_, image)| meant(image));
        let (i, image) = found.next().ok_or_else(|| Error::NoImage(text.clone()))?;
        if found.next().is_some() {
            return Err(Error::Ambiguous(text.clone()));
        }
        selected[i].extend(image.rows.iter().map(|row| row.name.as_str()));
    }
    Ok(selected)
}

/// Whether a name says no more than a digest: CRI keeps two such records beside an image's name.
pub(super) fn is_by_digest(name: &str) -> bool {
    name.contains('@') || name.parse::<Digest>().is_ok()
}

/// The repository in a name.
fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

impl Image<'_> {
    /// Its names beside these; records that CRI keeps beside one of these are not among them.
    fn others(&self, kept: &Kept) -> BTreeSet<&str> {
        let names = || self.rows.iter().map(|row| row.name.as_str());
        let stay: Vec<&str> = names().filter(|name| kept.contains_key(*name)).collect();
        let beside = |name: &str| {
            is_by_digest(name)
                && stay.iter().any(|kept| name.parse::<Digest>().is_ok() || repository(kept) == repository(name))
        };
        names().filter(|name| !(kept.contains_key(*name) || self.namespace == K8S_NAMESPACE && beside(name))).collect()
    }

    /// With the records that CRI keeps beside names that go, when no other name stays that they belong to.
    fn with_companions<'s>(&'s self, gone: &BTreeSet<&'s str>) -> BTreeSet<&'s str> {
        let mut gone = gone.clone();
        if self.namespace != K8S_NAMESPACE || gone.iter().all(|name| is_by_digest(name)) {
            return gone;
        }
        let names = || self.rows.iter().map(|row| row.name.as_str());
        let stay: Vec<&str> = names().filter(|name| !gone.contains(name) && !is_by_digest(name)).collect();
        let removed: BTreeSet<&str> = gone.iter().map(|name| repository(name)).collect();
        for name in names().filter(|name| name.contains('@')) {
            let repository = repository(name);
            if removed.contains(repository) && stay.iter().all(|kept| self::repository(kept) != repository) {
                gone.insert(name);
            }
        }
        if names().all(|name| gone.contains(name) || name.parse::<Digest>().is_ok()) {
            gone.extend(names());
        }
        gone
    }

    /// A name for it that says only its digest.
    fn dangling_name(&self, name: &str) -> String {
        let digest = &self.target.digest;
        if self.namespace == "moby" || self.namespace.starts_with("moby-") {
            return format!("moby-dangling@{digest}");
        }
        format!("{}@{digest}", repository(name))
    }
}

impl Unused {
    /// Why an image is not among those that are to go; `None` when it is.
    fn keeps(&self, image: &Image<'_>) -> Option<String> {
        let is_dangling =
            |row: &&ImageRow| row.name.parse::<Digest>().is_ok() || row.name.starts_with("moby-dangling@");
        if !self.all && !image.rows.iter().all(is_dangling) {
            return Some("it has a name, and --all was not asked for".to_owned());
        }
        if let Some(before) = self.before {
            let young = image.rows.iter().find(|row| row.created.is_none_or(|created| created >= before));
            if young.is_some() {
                return Some(format!(
                    "it was made after {}",
                    before.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
                ));
            }
        }
        let fits = |glob: &&String| {
            let reference = |name: &str| name.parse::<Reference>().is_ok_and(|reference| reference.fits(glob));
            image.rows.iter().any(|row| glob_matches(glob, &row.name) || reference(&row.name))
        };
        if let Some(glob) = self.keep.iter().find(fits) {
            return Some(format!("--keep {glob}"));
        }
        let configs = image.anatomy.manifests.iter().filter_map(|body| Some(&body.config.as_ref()?.labels));
        let all: Vec<&Labels> = image.rows.iter().map(|row| &row.labels).chain(configs).collect();
        let has = |(key, value): &&(String, Option<String>)| {
            all.iter().any(|labels| labels.get(key).is_some_and(|own| value.as_ref().is_none_or(|value| own == value)))
        };
        let missing = self.labels.iter().find(|label| !has(label))?;
        Some(format!("it has no label {}", missing.0))
    }
}

struct Pruner {
    changes: Changes,
    decisions: Vec<Decision>,
}

impl Pruner {
    fn decide(&mut self, image: &Image<'_>, name: &str, fate: Fate, why: impl Into<String>) {
        let (namespace, name) = (image.namespace.to_owned(), name.to_owned());
        if fate != Fate::Kept {
            self.changes.remove.push((namespace.clone(), name.clone()));
        }
        let digest = image.target.digest.to_string();
        self.decisions.push(Decision { namespace, name, digest, fate, why: why.into() });
    }

    /// Ends the leases that Docker's own prune ends first.
    fn end_temporary(&mut self, contents: &Contents, now: DateTime<Utc>) {
        let temporary = contents.leases.iter().filter(|lease| lease.labels.contains_key(DOCKER_TEMPORARY));
        let ids = temporary.filter(|lease| is_live(lease, now)).map(|lease| lease.id.clone());
        self.changes.leases.extend(ids.map(|id| (contents.namespace.clone(), id)));
    }

    /// Removes what was fetched, is not named, and has no record.
    fn forget(&mut self, whole: &Whole, namespace: &str, kept: &Kept) {
        let here = whole.fetched.iter().filter(|(at, image)| at == namespace && !kept.contains_key(&image.name));
        for (namespace, image) in here {
            let (namespace, name) = (namespace.clone(), image.name.clone());
            self.changes.remove.push((namespace.clone(), name.clone()));
            let (digest, why) = (image.target.digest.to_string(), "it is not named".to_owned());
            self.decisions.push(Decision { namespace, name, digest, fate: Fate::Removed, why });
        }
    }

    /// Takes names away from an image that will lead to another one.
    fn move_away(&mut self, image: &mut Image<'_>, kept: &Kept) {
        let digest = &image.target.digest;
        let moves = |row: &&ImageRow| kept.get(&row.name).and_then(Option::as_ref).is_some_and(|new| new != digest);
        let (gone, stay): (Vec<&ImageRow>, Vec<&ImageRow>) = image.rows.iter().partition(|row| moves(row));
        self.changes.remove.extend(gone.into_iter().map(|row| (image.namespace.to_owned(), row.name.clone())));
        image.rows = stay;
    }

    /// Removes an image under all its names, or none of them.
    fn whole(&mut self, image: &Image<'_>, kept: Option<String>, needs: &Needs) {
        let kept = needs.any().map(ToString::to_string).or(kept);
        let (fate, why) = kept.map_or((Fate::Removed, "nobody needs it".to_owned()), |why| (Fate::Kept, why));
        for row in &image.rows {
            self.decide(image, &row.name, fate, why.as_str());
        }
    }

    /// Removes some names of an image.
    fn names(&mut self, image: &Image<'_>, needs: &Needs, names: &BTreeSet<&str>, force: bool, why: &str) {
        let mut gone = BTreeSet::new();
        for name in names {
            match needs.names.get(*name).filter(|_| !force) {
                Some(need) => self.decide(image, name, Fate::Kept, need.to_string()),
                None => drop(gone.insert(*name)),
            }
        }
        let gone = image.with_companions(&gone);
        // A companion may be what somebody knows it by.
        let held = |name: &&str| !names.contains(*name) && !force && needs.names.contains_key(*name);
        let gone: BTreeSet<&str> = gone.into_iter().filter(|name| !held(name)).collect();
        let named = image.rows.iter().any(|row| !gone.contains(row.name.as_str()) && !is_by_digest(&row.name));
        let users = needs.image.iter().chain(needs.names.values()).filter(|need| **need != Need::Pinned);
        let Some(need) = users.into_iter().next().filter(|_| !named) else {
            for name in gone {
                self.decide(image, name, Fate::Removed, why);
            }
            return;
        };
        // It is in use, and loses its last name: what says its digest stays.
        let (by_digest, by_name): (Vec<&str>, Vec<&str>) = gone.iter().partition(|name| is_by_digest(name));
        let row = image.rows.iter().find(|row| Some(row.name.as_str()) == by_name.first().copied());
        if let Some(row) = row.filter(|_| !image.rows.iter().any(|row| is_by_digest(&row.name))) {
            let (namespace, dangling) = (image.namespace.to_owned(), image.dangling_name(&row.name));
            self.changes.add.push((namespace, dangling, image.target.clone(), row.labels.clone()));
        }
        for name in by_digest.iter().filter(|name| names.contains(*name)) {
            self.decide(image, name, Fate::Kept, need.to_string());
        }
        for name in by_name {
            self.decide(image, name, Fate::Dangling, format!("{why}; its image stays: {need}"));
        }
    }
}
