//! A place on this machine, opened: images by name, blobs by digest.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::archive::{Archive, part_path};
use super::{Error, Result, docker};
use crate::bolt::Lock;
use crate::content::Store;
use crate::metadata::{self, ImageRow, K8S_NAMESPACE, MetaDb, Wait};
use crate::oci::{Descriptor, Digest, Document, MAX_DOCUMENT, Reference, media_type};
use crate::root::{CONTAINERD_ROOT, Root};
use crate::spec::{Place, Scheme};

/// The name of an image as containerd and others write it into an index (`images.AnnotationImageName`).
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// The name of an image, or only its tag (image specification, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What of a root is looked for to tell that it is containerd's own directory.
const META: &str = "io.containerd.metadata.v1.bolt";

/// An image that a place holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// How it is named there: fully, or only by a tag, or not at all.
    pub name: Option<String>,
    /// What the name leads to.
    pub target: Descriptor,
}

impl Held {
    /// Its name, where that says more than a tag.
    pub fn reference(&self) -> Option<Reference> {
        let name = self.name.as_deref()?;
        if name.contains(['/', ':']) { name.parse().ok() } else { None }
    }

    /// Whether its name is a tag that stands in for an API: what refers to an image, and no image itself (distribution
    /// specification, "Referrers Tag Schema"; cosign's signatures have more behind it).
    fn is_referrer(&self) -> bool {
        let digest = self.name.as_deref().and_then(|name| name.strip_prefix("sha256-"));
        digest.is_some_and(|hex| hex.len() >= 64 && hex.chars().take(64).all(|c| c.is_ascii_hexdigit()))
    }

    fn is_named(&self, name: &str) -> bool {
        let same = |own: &String| own == name || self.reference().is_some_and(|own| name.parse() == Ok(own));
        self.name.as_ref().is_some_and(same) || self.target.digest.as_str() == name
    }

    /// What a person may call it by.
    fn shown(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.target.digest.to_string())
    }
}

/// A place on this machine that holds images.
pub struct Local {
    place: String,
    path: PathBuf,
    /// The name behind the place's colon.
    name: Option<String>,
    images: Vec<Held>,
    /// The index itself, which may be an image's.
    index: Option<Descriptor>,
    blobs: Blobs,
    /// Documents that are in no file.
    made: HashMap<Digest, Bytes>,
    /// What containerd's labels keep beside the images, because it refers to them.
    attached: Vec<Digest>,
}

enum Blobs {
    Dir(PathBuf),
    Store(Store),
    Archive(Archive, HashMap<Digest, (u64, u64)>),
    /// Nothing but what was made.
    None,
}

/// What a docker archive has.
#[derive(Default)]
pub(super) struct Found {
    pub(super) images: Vec<Held>,
    pub(super) members: HashMap<Digest, (u64, u64)>,
    pub(super) made: HashMap<Digest, Bytes>,
}

impl Found {
    pub(super) fn add(&mut self, name: Option<String>, target: Descriptor) {
        self.images.push(Held { name, target });
    }
}

#[derive(Deserialize)]
struct LayoutFile {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl Local {
    /// Opens a place; of blobs nothing is read but what names images.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(place: &Place) -> Result<Self> {
        let (path, name) = split(place);
        let shown = place.to_string();
        let mut local = match place.scheme {
            Scheme::Oci => Self::layout(shown, path)?,
            Scheme::OciArchive | Scheme::Bundle => Self::archive(shown, &path)?,
            Scheme::DockerArchive => {
                let archive = Archive::open(&path)?;
                let Found { images, members, made } = docker::images(&archive, &shown)?;
                Self {
                    place: shown,
                    path,
                    name: None,
                    images,
                    index: None,
                    blobs: Blobs::Archive(archive, members),
                    made,
                    attached: Vec::new(),
                }
            }
            Scheme::Containerd => return Self::containerd(shown, &path, name),
        };
        local.name = name.map(str::to_owned);
        Ok(local)
    }

    /// Images in memory.
    pub fn made(place: impl Into<String>, images: Vec<Held>, blobs: HashMap<Digest, Bytes>) -> Self {
        let (place, path) = (place.into(), PathBuf::new());
        Self { place, path, name: None, images, index: None, blobs: Blobs::None, made: blobs, attached: Vec::new() }
    }

    /// An OCI layout archive, which may be split or compressed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn archive(place: String, path: &Path) -> Result<Self> {
        let archive = Archive::open(path)?;
        let (layout, index) = (archive.read("oci-layout")?, archive.read("index.json")?);
        let blobs = Blobs::Archive(archive, HashMap::new());
        Self::of_index(place, path.to_owned(), layout.as_deref(), index, blobs)
    }

    /// An OCI layout.
    fn layout(place: String, path: PathBuf) -> Result<Self> {
        let (layout, index) = (read(&path.join("oci-layout"))?, read(&path.join("index.json"))?);
        let blobs = Blobs::Dir(path.join("blobs"));
        Self::of_index(place, path, layout.as_deref(), index, blobs)
    }

    fn of_index(
        place: String,
        path: PathBuf,
        layout: Option<&[u8]>,
        index: Option<Vec<u8>>,
        blobs: Blobs,
    ) -> Result<Self> {
        let unusable = |what: &str, why: String| Error::Unusable { place: place.clone(), what: what.to_owned(), why };
        let layout = layout.ok_or_else(|| Error::Lacks { place: place.clone(), what: "oci-layout" })?;
        let layout: LayoutFile =
            serde_json::from_slice(layout).map_err(|error| unusable("oci-layout", error.to_string()))?;
        if !layout.version.starts_with("1.") {
            return Err(unusable("oci-layout", format!("its version is {:?}; prebake knows 1", layout.version)));
        }
        let index = index.ok_or_else(|| Error::Lacks { place: place.clone(), what: "index.json" })?;
        let wrong = |source| Error::Document { place: place.clone(), what: "index.json".to_owned(), source };
        let (document, _) = Document::parse(&index, media_type::OCI_INDEX).map_err(wrong)?;
        let Document::Index(entries) = document else { unreachable!("an index was asked for") };
        let mut images = Vec::new();
        for entry in entries.manifests {
            let annotation = |key| entry.annotations().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
            let name = annotation(IMAGE_NAME).or_else(|| annotation(REF_NAME)).filter(|name| !name.is_empty());
            images.push(Held { name, target: entry });
        }
        let own = Descriptor::new(media_type::OCI_INDEX, Digest::of(&index), index.len() as u64);
        let made = HashMap::from([(own.digest.clone(), index.into())]);
        Ok(Self { place, path, name: None, images, index: Some(own), blobs, made, attached: Vec::new() })
    }

    /// The images of a namespace of containerd's state, which may be named by the root it is in; without a namespace, of k8s.io.
    ///
    /// # Errors
    /// [`Error`]; also when a containerd runs on it.
    pub fn containerd(place: String, path: &Path, namespace: Option<&str>) -> Result<Self> {
        let inside = if path.join(META).is_dir() { "" } else { CONTAINERD_ROOT };
        let root = Root::new(path, inside);
        let wait = Wait { timeout: Duration::ZERO, tell: &|_| (), stop: &AtomicBool::new(false) };
        let namespace = namespace.unwrap_or(K8S_NAMESPACE);
        let mut meta = MetaDb::lock(&root, Lock::Shared, &wait)?;
        let rows = meta.read(|tx| Ok((metadata::images(tx, namespace)?, metadata::referrers(tx, namespace)?)))?;
        let (rows, attached) =
            rows.ok_or_else(|| Error::Lacks { place: place.clone(), what: "containerd's meta.db" })?;
        let rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?;
        let tags: HashSet<_> =
            rows.iter().filter_map(|row| Some((row.name.rsplit_once(':')?.0, &row.target.digest))).collect();
        // A name that is but a digest is CRI's, for an image that has another; so is one by digest beside one by tag.
        let is_extra = |row: &ImageRow| match row.name.split_once('@') {
            Some((repository, _)) => tags.contains(&(repository, &row.target.digest)),
            None => row.name.parse::<Digest>().is_ok(),
        };
        let chosen = rows.iter().filter(|row| !is_extra(row));
        let images = chosen.map(|row| Held { name: Some(row.name.clone()), target: row.target.clone() }).collect();
        let blobs = Blobs::Store(Store::open(&root)?);
        let path = path.to_owned();
        Ok(Self { place, path, name: None, images, index: None, blobs, made: HashMap::new(), attached })
    }

    /// How the place was named.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// All images it holds.
    pub fn images(&self) -> &[Held] {
        &self.images
    }

    /// Documents that refer to its images (signatures, SBOMs), where no image is named for them: in containerd's state, labels keep
    /// them.
    pub fn attached(&self) -> &[Digest] {
        &self.attached
    }

    /// The image behind the place's colon, or else the only one it holds; without names, an index of several entries is one
    /// image.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Which`].
    pub fn image(&self) -> Result<Held> {
        if let Some(name) = &self.name {
            return self.find(name).cloned();
        }
        match (&self.own().collect::<Vec<_>>()[..], &self.index) {
            ([one], _) => Ok((*one).clone()),
            ([_, _, ..], Some(index)) if self.images.iter().all(|image| image.name.is_none()) => {
                Ok(Held { name: None, target: index.clone() })
            }
            _ => Err(Error::Which { place: self.place.clone(), has: self.names() }),
        }
    }

    /// The images that the place's name stands for: the one behind its colon, or all.
    ///
    /// # Errors
    /// [`Error::NoImage`].
    pub fn chosen(&self) -> Result<Vec<Held>> {
        match &self.name {
            Some(name) => Ok(vec![self.find(name)?.clone()]),
            None => Ok(self.own().cloned().collect()),
        }
    }

    /// The images, without what refers to them.
    fn own(&self) -> impl Iterator<Item = &Held> {
        self.images.iter().filter(|held| !held.is_referrer())
    }

    /// An image by its name, its tag, or its digest.
    ///
    /// # Errors
    /// [`Error::NoImage`].
    pub fn find(&self, name: &str) -> Result<&Held> {
        let found = self.images.iter().find(|image| image.is_named(name));
        found.ok_or_else(|| Error::NoImage { place: self.place.clone(), name: name.to_owned(), has: self.names() })
    }

    fn names(&self) -> Vec<String> {
        self.images.iter().map(Held::shown).collect()
    }

    /// A small file of an archive that is no blob; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`].
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.blobs {
            Blobs::Archive(archive, _) => archive.read(name),
            Blobs::Dir(_) => read(&self.path.join(name)),
            Blobs::Store(_) | Blobs::None => Ok(None),
        }
    }

    /// Bytes of a blob, if it is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        if let Some(bytes) = self.made.get(digest) {
            return Ok(Some(bytes.len() as u64));
        }
        match &self.blobs {
            Blobs::None => Ok(None),
            Blobs::Store(store) => Ok(store.stat(digest)?.map(|stat| stat.size)),
            Blobs::Archive(archive, members) => Ok(member(archive, members, digest).map(|(_, size)| size)),
            Blobs::Dir(dir) => match std::fs::metadata(dir.join(digest.path())) {
                Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
                Ok(_) => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(Error::Io { path: dir.join(digest.path()), source }),
            },
        }
    }

    /// A blob's bytes from a place on; whoever reads them verifies them.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Io`].
    pub fn read(&self, digest: &Digest, from: u64) -> Result<Box<dyn Read + Send>> {
        let absent = || Error::Absent { place: self.place.clone(), digest: digest.clone() };
        if let Some(bytes) = self.made.get(digest) {
            let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
            return Ok(Box::new(io::Cursor::new(bytes.slice(from..))));
        }
        let (file, path) = match &self.blobs {
            Blobs::None => return Err(absent()),
            Blobs::Archive(archive, members) => {
                let found = member(archive, members, digest).ok_or_else(absent)?;
                return Ok(Box::new(archive.section(found, from)));
            }
            Blobs::Store(store) => {
                store.stat(digest)?.ok_or_else(absent)?;
                (store.open_blob(digest)?, self.path.clone())
            }
            Blobs::Dir(dir) => {
                let path = dir.join(digest.path());
                match File::open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
                    file => (file.map_err(|source| Error::Io { path: path.clone(), source })?, path),
                }
            }
        };
        let mut file = file;
        file.seek(SeekFrom::Start(from)).map_err(|source| Error::Io { path, source })?;
        Ok(Box::new(file))
    }

    /// The bytes of a blob that is small; not verified.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::TooLarge`], [`Error::Io`].
    pub fn small(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.read(digest, 0)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
        read.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::TooLarge { place: self.place.clone(), what: digest.to_string() });
        }
        Ok(bytes)
    }
}

/// The path of a place, and the name behind it: of all ways to cut at a colon the first of which the path exists; where none
/// does, at the first colon.
fn split(place: &Place) -> (PathBuf, Option<&str>) {
    let Place { rest, dir, .. } = place;
    let whole = dir.join(rest);
    let cuts = || rest.match_indices(':').map(|(at, _)| (dir.join(&rest[..at]), &rest[at + 1..]));
    let exists = |path: &Path| path.exists() || part_path(path, 1).exists();
    if exists(&whole) {
        return (whole, None);
    }
    match cuts().find(|(path, _)| exists(path)).or_else(|| cuts().next()) {
        Some((path, name)) => (path, Some(name).filter(|name| !name.is_empty())),
        None => (whole, None),
    }
}

fn member(archive: &Archive, members: &HashMap<Digest, (u64, u64)>, digest: &Digest) -> Option<(u64, u64)> {
    members.get(digest).copied().or_else(|| archive.find(&format!("blobs/{}", digest.path())))
}

/// A small file, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file.map_err(io)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::TooLarge { place: path.display().to_string(), what: "the file".to_owned() });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_where_one_exists() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(dir.path().join("a:b")).expect("made");
        let split = |text: &str| {
            let place = Place::parse(text).expect("a place").expect("a scheme");
            let place = Place { dir: dir.path().to_owned(), ..place };
            let (path, name) = super::split(&place);
            (path.strip_prefix(dir.path()).expect("below").to_str().expect("text").to_owned(), name.map(str::to_owned))
        };
        assert_eq!(split("oci:a:b"), ("a:b".to_owned(), None));
        assert_eq!(split("oci:a:b:c:1"), ("a:b".to_owned(), Some("c:1".to_owned())));
        assert_eq!(split("oci:no:c:1"), ("no".to_owned(), Some("c:1".to_owned())));
        assert_eq!(split("oci:no"), ("no".to_owned(), None));
    }
}
