//! What is served: repositories, and what the documents in them lead to. It is known from the start, by a walk over the
//! place's documents; whether a blob is there is looked up when it is asked for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::route::{self, is_name, is_tag};
use crate::oci::{Descriptor, Digest, Document, media_type};
use crate::source::{self, Held, Local};

/// Where images are served whose place does not say how they are named.
const NAMELESS: &str = "local";
/// How deep indexes may be in each other.
const MAX_DEPTH: usize = 8;

/// What a digest is in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// An index or a manifest of this media type.
    Document(String),
    /// A document whose bytes are not those of its digest.
    Damaged,
    /// A layer.
    Layer,
    /// A config, or an artifact's blob.
    Blob,
}

/// What a list of referrers says of one (distribution specification, "Listing Referrers").
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Referrer {
    media_type: String,
    digest: Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// The images of one name.
pub(super) struct Repository {
    /// The registry in the images' names; none where they have no full name.
    registry: Option<String>,
    path: String,
    /// In the order in which they are listed.
    tags: BTreeMap<(String, String), Digest>,
    parts: HashMap<Digest, Part>,
    referrers: HashMap<Digest, Vec<Arc<Referrer>>>,
}

impl Repository {
    fn new(registry: Option<&str>, path: &str) -> Self {
        Self {
            registry: registry.map(str::to_owned),
            path: path.to_owned(),
            tags: BTreeMap::new(),
            parts: HashMap::new(),
            referrers: HashMap::new(),
        }
    }

    /// What a tag names.
    pub(super) fn tag(&self, tag: &str) -> Option<&Digest> {
        self.tags.get(&listed(tag))
    }

    /// All tags, in the order in which they are listed.
    pub(super) fn tags(&self) -> impl Iterator<Item = &str> {
        self.tags.keys().map(|(_, tag)| tag.as_str())
    }

    /// What a digest is here; `None` for what no image of the repository leads to.
    pub(super) fn part(&self, digest: &Digest) -> Option<&Part> {
        self.parts.get(digest)
    }

    /// What refers to a digest.
    pub(super) fn referrers(&self, subject: &Digest) -> &[Arc<Referrer>] {
        self.referrers.get(subject).map(Vec::as_slice).unwrap_or_default()
    }

    /// The path behind the registry, with the registry in front as far as names of repositories can have it: no colon.
    fn full_name(&self) -> Option<String> {
        let registry = self.registry.as_ref()?.to_ascii_lowercase().replace(':', "_");
        Some(format!("{registry}/{}", self.path)).filter(|name| is_name(name))
    }
}

/// What a list is sorted by: letters of both cases together (distribution specification, "Listing Tags").
pub(super) fn listed(text: &str) -> (String, String) {
    (text.to_ascii_lowercase(), text.to_owned())
}

/// A document, looked into once.
struct Looked {
    part: Part,
    children: Vec<Descriptor>,
    subject: Option<Digest>,
    referrer: Option<Arc<Referrer>>,
}

/// What a document says besides what it consists of.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Besides {
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

/// All repositories.
pub(super) struct Holdings {
    repositories: Vec<Repository>,
    /// Repositories by each name they are served as.
    names: BTreeMap<String, Vec<usize>>,
    catalog: Vec<String>,
}

impl Holdings {
    /// Looks at the documents of a place.
    ///
    /// # Errors
    /// [`source::Error`], when a document that is there cannot be read.
    pub(super) fn of(local: &Local) -> Result<Self, source::Error> {
        let mut walk = Walk { local, looked: HashMap::new(), repositories: BTreeMap::new() };
        let mut loose = Vec::new();
        for held in local.chosen()? {
            let look = walk.look(&held.target)?;
            if held.name.is_none() && look.subject.is_some() {
                loose.push(held.target);
            } else {
                walk.add(&held)?;
            }
        }
        let attached: Vec<Descriptor> =
            local.attached().iter().map(|digest| Descriptor::new("", digest.clone(), 0)).collect();
        let homeless = walk.attach(&loose.iter().chain(&attached).collect::<Vec<_>>())?;
        for target in loose.into_iter().filter(|target| homeless.contains(&target.digest)) {
            walk.add(&Held { name: None, target })?;
        }
        Ok(walk.finish())
    }

    /// Repositories of a name, those of whose registry it is the name in full first; `ns` is the registry that is meant, as
    /// containerd tells mirrors (its `docs/hosts.md`).
    pub(super) fn named(&self, name: &str, ns: Option<&str>) -> Vec<&Repository> {
        let all = self.names.get(name).into_iter().flatten().map(|at| &self.repositories[*at]);
        let (full, short): (Vec<_>, Vec<_>) = all.partition(|repository| repository.path != name);
        let meant = |repository: &&Repository| ns.is_none_or(|ns| repository.registry.as_deref() == Some(ns));
        full.into_iter().chain(short.into_iter().filter(meant)).collect()
    }

    /// Whether any image is of this registry.
    pub(super) fn knows_registry(&self, ns: &str) -> bool {
        self.repositories.iter().any(|repository| repository.registry.as_deref() == Some(ns))
    }

    /// Each repository once, by the shortest name that is its alone.
    pub(super) fn catalog(&self) -> &[String] {
        &self.catalog
    }
}

struct Walk<'a> {
    local: &'a Local,
    looked: HashMap<Digest, Arc<Looked>>,
    /// By registry and path.
    repositories: BTreeMap<(Option<String>, String), Repository>,
}

impl Walk<'_> {
    fn add(&mut self, held: &Held) -> Result<(), source::Error> {
        let reference = held.reference();
        let (registry, path, tag) = match &reference {
            Some(reference) => {
                let tag = reference.digest().is_none().then(|| reference.target().to_owned());
                (Some(reference.registry()), reference.repository(), tag)
            }
            None => (None, NAMELESS, held.name.clone().filter(|tag| is_tag(tag))),
        };
        let key = (registry.map(str::to_owned), path.to_owned());
        let mut repository = self.repositories.remove(&key).unwrap_or_else(|| Repository::new(registry, path));
        if let Some(tag) = tag {
            repository.tags.entry(listed(&tag)).or_insert_with(|| held.target.digest.clone());
        }
        let walked = self.fill(&mut repository, &held.target);
        self.repositories.insert(key, repository);
        walked
    }

    /// Adds to a repository all that a document leads to.
    fn fill(&mut self, repository: &mut Repository, top: &Descriptor) -> Result<(), source::Error> {
        let mut todo = vec![(top.clone(), 0)];
        while let Some((descriptor, depth)) = todo.pop() {
            if repository.parts.contains_key(&descriptor.digest) {
                continue;
            }
            let kind = descriptor.media_type.as_str();
            let part = if depth == 0 || media_type::is_index(kind) || media_type::is_manifest(kind) {
                let look = self.look(&descriptor)?;
                if depth < MAX_DEPTH {
                    todo.extend(look.children.iter().map(|child| (child.clone(), depth + 1)));
                }
                look.part.clone()
            } else if media_type::is_layer(kind) {
                Part::Layer
            } else {
                Part::Blob
            };
            repository.parts.insert(descriptor.digest, part);
        }
        Ok(())
    }

    /// Adds documents that have a subject and no name to every repository that has the subject; gives those that have found none.
    fn attach(&mut self, loose: &[&Descriptor]) -> Result<HashSet<Digest>, source::Error> {
        let mut homeless: HashSet<Digest> = loose.iter().map(|one| one.digest.clone()).collect();
        let mut keys: Vec<_> = self.repositories.keys().cloned().collect();
        while let Some(key) = keys.pop() {
            let Some(mut repository) = self.repositories.remove(&key) else { continue };
            loop {
                let before = repository.parts.len();
                for one in loose {
                    let look = self.look(one)?;
                    let fits = look.subject.as_ref().is_some_and(|subject| repository.parts.contains_key(subject));
                    if fits {
                        homeless.remove(&one.digest);
                        self.fill(&mut repository, one)?;
                    }
                }
                if repository.parts.len() == before {
                    break;
                }
            }
            self.repositories.insert(key, repository);
        }
        Ok(homeless)
    }

    fn look(&mut self, descriptor: &Descriptor) -> Result<Arc<Looked>, source::Error> {
        if let Some(looked) = self.looked.get(&descriptor.digest) {
            return Ok(looked.clone());
        }
        let looked = Arc::new(match self.local.small(&descriptor.digest) {
            Ok(bytes) => look(descriptor, &bytes),
            Err(error) if error.is_not_found() => leaf(Part::Document(descriptor.media_type.clone())),
            Err(source::Error::TooLarge { .. }) => leaf(Part::Blob),
            Err(error) => return Err(error),
        });
        self.looked.insert(descriptor.digest.clone(), looked.clone());
        Ok(looked)
    }

    fn finish(self) -> Holdings {
        let mut repositories: Vec<Repository> = self.repositories.into_values().collect();
        let mut names: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, repository) in repositories.iter_mut().enumerate() {
            for digest in repository.parts.keys() {
                let Some(looked) = self.looked.get(digest) else { continue };
                if let (Some(subject), Some(referrer)) = (&looked.subject, &looked.referrer) {
                    repository.referrers.entry(subject.clone()).or_default().push(referrer.clone());
                }
            }
            for list in repository.referrers.values_mut() {
                list.sort_by(|a, b| a.digest.cmp(&b.digest));
            }
            for name in [Some(repository.path.clone()), repository.full_name()].into_iter().flatten() {
                names.entry(name).or_default().push(at);
            }
        }
        let alone = |name: &String| names.get(name).is_some_and(|all| all.len() == 1);
        let shown = |repository: &Repository| {
            let short = Some(repository.path.clone());
            short.clone().filter(alone).or_else(|| repository.full_name()).or(short)
        };
        let mut catalog: Vec<String> = repositories.iter().filter_map(shown).collect();
        catalog.sort_by_key(|name| listed(name));
        catalog.dedup();
        Holdings { repositories, names, catalog }
    }
}

fn leaf(part: Part) -> Looked {
    Looked { part, children: Vec::new(), subject: None, referrer: None }
}

fn look(descriptor: &Descriptor, bytes: &[u8]) -> Looked {
    if Digest::of_as(bytes, Some(&descriptor.digest)) != descriptor.digest {
        return leaf(Part::Damaged);
    }
    let Ok((document, kind)) = Document::parse(bytes, &descriptor.media_type) else {
        return leaf(Part::Document(descriptor.media_type.clone()));
    };
    let besides: Besides = serde_json::from_slice(bytes).unwrap_or_default();
    let (children, config) = match document {
        Document::Index(index) => (index.manifests, None),
        Document::Manifest(manifest) => {
            let config = manifest.config.media_type.clone();
            (std::iter::once(manifest.config).chain(manifest.layers).collect(), Some(config))
        }
    };
    let subject = besides.subject.map(|subject| subject.digest);
    let referrer = subject.is_some().then(|| {
        Arc::new(Referrer {
            media_type: kind.clone(),
            digest: descriptor.digest.clone(),
            size: bytes.len(),
            // Image specification, manifest.md: without one of its own, the config's type says what it is.
            artifact_type: besides.artifact_type.filter(|kind| !kind.is_empty()).or(config),
            annotations: besides.annotations.unwrap_or_default(),
        })
    });
    Looked { part: Part::Document(kind), children, subject, referrer }
}

/// A page of a list, and its last entry if others follow.
pub(super) fn page<'a>(all: impl Iterator<Item = &'a str>, wanted: &route::Page) -> (Vec<&'a str>, Option<&'a str>) {
    let after = wanted.last.as_deref().map(listed);
    let mut rest = all.filter(|entry| after.as_ref().is_none_or(|after| listed(entry) > *after));
    let page: Vec<&str> = rest.by_ref().take(wanted.n).collect();
    let more = rest.next().and(page.last().copied());
    (page, more)
}
