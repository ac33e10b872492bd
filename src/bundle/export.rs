//! Images out of where they are, into a layout, an archive of one, or what `docker load` takes: the same bytes every time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::create::{LAYOUT, index};
use super::output::{Form, Output, Written, coming};
use super::pack::{Archive, Item, Sink, blob_path, pack};
use super::{Error, Result};
use crate::bake::{Event, Listener};
use crate::oci::{Descriptor, Digest, Document, Platform, Reference, media_type};
use crate::registry;
use crate::source::{Held, IMAGE_NAME, Local, REF_NAME, Sources};

/// Indexes inside an index.
const MAX_DEPTH: usize = 4;

/// Where images go.
#[derive(Debug, Clone)]
pub enum Destination {
    /// An OCI layout; images of other names that it has stay.
    Oci(PathBuf),
    /// An archive of one.
    OciArchive(PathBuf, Form),
    /// As `docker save` of Docker 25 and later writes it: the same, and `manifest.json`.
    DockerArchive(PathBuf, Form),
}

/// Images that are to be exported.
pub struct Export {
    /// By name, and where they are.
    pub images: Vec<(Reference, Arc<Local>, Held)>,
    /// Where to.
    pub destination: Destination,
    /// For which machine: its manifest gets the name. Without one, what there is for any.
    pub platform: Option<Platform>,
}

/// What was exported.
#[derive(Debug)]
pub struct Exported {
    /// Blobs.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The files of an archive; none of a layout.
    pub files: Vec<Written>,
}

/// A manifest that is there with everything in it.
struct Complete {
    /// For whom, as an index says.
    said: Option<Platform>,
    manifest: Descriptor,
    /// Config and layers.
    parts: Vec<Descriptor>,
}

/// What there is of an image.
#[derive(Default)]
struct Closure {
    /// From the target down; what is read before what it leads to.
    blobs: Vec<Descriptor>,
    documents: HashMap<Digest, Bytes>,
    complete: Vec<Complete>,
    /// The first blob that a manifest lacks.
    lacks: Option<Digest>,
    seen: HashSet<Digest>,
}

/// Exports images.
///
/// # Errors
/// [`Error`]; nothing of an archive is left behind then.
pub async fn export(export: Export, listener: Arc<dyn Listener>) -> Result<Exported> {
    let mut sources = Sources::new(registry::Options::default(), Arc::new(|_| ()))?;
    let (mut items, mut documents, mut seen) = (Vec::new(), HashMap::new(), HashSet::new());
    let (mut named, mut docker) = (BTreeMap::new(), Vec::new());
    for (reference, local, held) in &export.images {
        let mut closure = Closure::of(reference, local, held, export.platform.as_ref())?;
        if let Destination::DockerArchive(..) = export.destination {
            docker.push(closure.docker(reference)?);
        }
        let target = closure.narrow(export.platform.as_ref()).unwrap_or_else(|| held.target.clone());
        let new = closure.blobs.into_iter().filter(|blob| seen.insert(blob.digest.clone()));
        items.extend(new.map(|descriptor| Item { reference: reference.clone(), descriptor }));
        documents.extend(closure.documents);
        named.insert(reference.to_string(), target);
        sources.put(reference.clone(), local.clone(), held.clone());
    }
    let bytes = items.iter().map(|item| item.descriptor.size).sum();
    listener.on(&Event::Planned { fetch: bytes, store: bytes, snapshots: 0 });
    let index = match &export.destination {
        Destination::Oci(dir) => merged(dir, &named)?,
        _ => index(&named),
    };
    let mut head: Vec<(String, Bytes)> =
        vec![("oci-layout".to_owned(), LAYOUT.into()), ("index.json".to_owned(), index.to_string().into())];
    if let Destination::DockerArchive(..) = export.destination {
        head.push(("manifest.json".to_owned(), Value::from(docker).to_string().into()));
    }
    let files = match export.destination {
        Destination::Oci(dir) => pack(head, &items, &sources, &documents, Dir::new(&dir)?, &listener).await?,
        Destination::OciArchive(path, form) | Destination::DockerArchive(path, form) => {
            pack(head, &items, &sources, &documents, Archive::new(Output::new(&path, form)), &listener).await?
        }
    };
    Ok(Exported { blobs: items.len(), bytes, files })
}

impl Closure {
    fn of(reference: &Reference, local: &Local, held: &Held, platform: Option<&Platform>) -> Result<Self> {
        let mut closure = Self::default();
        let refused = |why: String| Error::Export { image: reference.to_string(), why };
        let why = closure.descend(local, &held.target, None, platform, 0)?;
        if let Some(why) = why {
            return Err(refused(why));
        }
        if closure.complete.is_empty() {
            return Err(refused(match (&closure.lacks, platform) {
                (Some(lacks), _) => format!(
                    "{lacks} is not there: layers of images that were unpacked may have been discarded; `prebake repair \
                     --restore-layers` fetches them again"
                ),
                (None, Some(platform)) => format!("there is nothing of it for {platform}"),
                (None, None) => "there is nothing of it".to_owned(),
            }));
        }
        Ok(closure)
    }

    /// Adds a document and what is there of what it leads to; why not, where it cannot be used.
    fn descend(
        &mut self,
        local: &Local,
        descriptor: &Descriptor,
        said: Option<Platform>,
        platform: Option<&Platform>,
        depth: usize,
    ) -> Result<Option<String>> {
        if depth > MAX_DEPTH {
            return Ok(Some("its indexes nest too deep".to_owned()));
        }
        if !self.seen.insert(descriptor.digest.clone()) {
            return Ok(None);
        }
        let bytes = local.small(&descriptor.digest)?;
        let got = Digest::of_as(&bytes, Some(&descriptor.digest));
        if got != descriptor.digest {
            return Err(Error::WrongDigest { expected: descriptor.digest.clone(), got });
        }
        let (document, kind) = match Document::parse(&bytes, &descriptor.media_type) {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Some(format!("{}: {error}", descriptor.digest))),
        };
        let own = Descriptor::new(kind, descriptor.digest.clone(), bytes.len() as u64);
        match document {
            Document::Index(index) => {
                self.keep(own, bytes);
                for entry in &index.manifests {
                    let said = entry.platform();
                    let other = platform.is_some_and(|wanted| said.as_ref().is_some_and(|said| said != wanted));
                    if other || local.size(&entry.digest)?.is_none() {
                        continue;
                    }
                    if let Some(why) = self.descend(local, entry, said, platform, depth + 1)? {
                        return Ok(Some(why));
                    }
                }
            }
            Document::Manifest(manifest) => {
                let parts: Vec<Descriptor> = std::iter::once(manifest.config).chain(manifest.layers).collect();
                for part in &parts {
                    if local.size(&part.digest)? != Some(part.size) {
                        self.lacks.get_or_insert_with(|| part.digest.clone());
                        return Ok(None);
                    }
                }
                self.keep(own.clone(), bytes);
                let new: Vec<_> = parts.iter().filter(|part| self.seen.insert(part.digest.clone())).cloned().collect();
                self.blobs.extend(new);
                self.complete.push(Complete { said, manifest: own, parts });
            }
        }
        Ok(None)
    }

    /// Leaves out what leads to the manifest of one machine, which then stands for the image.
    fn narrow(&mut self, platform: Option<&Platform>) -> Option<Descriptor> {
        let [one] = &self.complete[..] else { return None };
        let manifest = platform.is_some().then(|| one.manifest.clone())?;
        self.blobs.retain(|blob| !media_type::is_index(&blob.media_type));
        Some(manifest)
    }

    fn keep(&mut self, descriptor: Descriptor, bytes: Vec<u8>) {
        self.documents.insert(descriptor.digest.clone(), bytes.into());
        self.blobs.push(descriptor);
    }

    /// An image of `manifest.json`, which is for one machine.
    fn docker(&self, reference: &Reference) -> Result<Value> {
        let host = Platform::host();
        let images = || self.complete.iter().filter(|one| media_type::is_image_config(&one.parts[0].media_type));
        let chosen = match images().count() {
            1 => images().next(),
            _ => images().find(|one| one.said.as_ref() == Some(&host)),
        };
        let Complete { parts, .. } = chosen.ok_or_else(|| Error::Export {
            image: reference.to_string(),
            why: "a docker archive holds one machine's image, and it is there for several; choose with --platform"
                .to_owned(),
        })?;
        let paths: Vec<String> = parts.iter().map(|part| blob_path(&part.digest)).collect();
        let tags: Vec<String> = reference.digest().is_none().then(|| reference.to_string()).into_iter().collect();
        Ok(json!({"Config": paths[0], "RepoTags": tags, "Layers": paths[1..]}))
    }
}

/// The index of a layout, with these images besides those it has.
fn merged(dir: &Path, named: &BTreeMap<String, Descriptor>) -> Result<Value> {
    let mut all = index(named);
    let path = dir.join("index.json");
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
        bytes => bytes.map_err(|source| Error::Io { action: "reading", path: path.clone(), source })?,
    };
    let old: Value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Contents { path: path.clone(), why: error.to_string() })?;
    let is_new = |entry: &Value| {
        let name = |key: &str| entry["annotations"][key].as_str().is_some_and(|name| named.contains_key(name));
        name(IMAGE_NAME) || name(REF_NAME)
    };
    let kept = old["manifests"].as_array().into_iter().flatten().filter(|entry| !is_new(entry)).cloned();
    let kept: Vec<Value> = kept.collect();
    if let Some(manifests) = all["manifests"].as_array_mut() {
        manifests.splice(0..0, kept);
    }
    Ok(all)
}

/// A layout that is being written: each file comes to its name when it is all there, and the index last.
struct Dir {
    path: PathBuf,
    file: Option<(PathBuf, File)>,
    /// What is no blob comes last.
    last: Vec<(PathBuf, Vec<u8>)>,
}

impl Dir {
    fn new(path: &Path) -> Result<Self> {
        let create = |dir: &Path| {
            fs::create_dir_all(dir).map_err(|source| Error::Io { action: "making", path: dir.to_owned(), source })
        };
        create(&path.join("blobs/sha256"))?;
        Ok(Self { path: path.to_owned(), file: None, last: Vec::new() })
    }

    fn error(&self) -> impl Fn(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::Io { action: "writing", path: path.clone(), source }
    }
}

impl Sink for Dir {
    fn begin(&mut self, path: &str, _: u64) -> Result<()> {
        let to = self.path.join(path);
        if !path.starts_with("blobs/") {
            self.last.push((to, Vec::new()));
            return Ok(());
        }
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).map_err(self.error())?;
        }
        let file = File::create(coming(&to)).map_err(self.error())?;
        self.file = Some((to, file));
        Ok(())
    }

    fn put(&mut self, bytes: Bytes) -> Result<()> {
        let error = self.error();
        match (&mut self.file, self.last.last_mut()) {
            (Some((_, file)), _) => file.write_all(&bytes).map_err(error),
            (None, Some((_, last))) => {
                last.extend_from_slice(&bytes);
                Ok(())
            }
            (None, None) => Err(Error::Stopped),
        }
    }

    fn end(&mut self) -> Result<()> {
        match self.file.take() {
            Some((to, _)) => fs::rename(coming(&to), &to).map_err(self.error()),
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<Vec<Written>> {
        let dir = File::open(&self.path).map_err(self.error())?;
        let sync = || rustix::fs::syncfs(&dir).map_err(io::Error::from).map_err(self.error());
        sync()?;
        for (to, bytes) in &self.last {
            fs::write(coming(to), bytes).map_err(self.error())?;
        }
        sync()?;
        for (to, _) in &self.last {
            fs::rename(coming(to), to).map_err(self.error())?;
        }
        sync()?;
        Ok(Vec::new())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Some((to, _)) = &self.file {
            let _ = fs::remove_file(coming(to));
        }
    }
}
