//! A bundle that was carried somewhere: opened, verified, and what is to be baked from it.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::contents::{BundledBlob, CONTENTS, Contents, SIGNATURE};
use super::output::sums_path;
use super::{Error, Result};
use crate::bake::{Part, Wanted};
use crate::content::Store;
use crate::oci::{Algorithm, Digest, Hasher, Reference};
use crate::parallel;
use crate::source::{Held, Local, parts};
use crate::trust::PublicKey;

/// Blobs that an error names.
const NAMED: usize = 3;
/// Bytes that are hashed at a time.
const BUFFER: usize = 1 << 18;

/// A bundle.
pub struct Bundle {
    path: PathBuf,
    local: Arc<Local>,
    /// What it says of itself.
    pub contents: Contents,
}

/// What is wrong with a file or a blob of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Which file, or which blob.
    pub what: String,
    /// What is wrong.
    pub why: String,
}

impl Bundle {
    /// Opens a bundle, or the one that this is a part of. Where keys are named, one of them must have signed it, which is asked
    /// before anything else of it is believed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(path: &Path, keys: &[PublicKey]) -> Result<Self> {
        let files = parts(path)?;
        let whole = whole(path, &files);
        missing(&whole)?;
        let local = Local::archive(format!("bundle:{}", path.display()), path)?;
        let bytes = local.file(CONTENTS)?.ok_or_else(|| Error::NoBundle(path.to_owned()))?;
        if !keys.is_empty() {
            let signature = local.file(SIGNATURE)?.ok_or_else(|| Error::Unsigned(path.to_owned()))?;
            let signature = String::from_utf8_lossy(&signature);
            if !keys.iter().any(|key| key.signed(&bytes, &signature)) {
                return Err(Error::WrongSignature(path.to_owned()));
            }
        }
        let wrong = |why: String| Error::Contents { path: path.to_owned(), why };
        let contents: Contents = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if let Some(why) = contents.wrong() {
            return Err(wrong(why));
        }
        Ok(Self { path: path.to_owned(), local: Arc::new(local), contents })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that all blobs it needs are in it or in a store.
    ///
    /// # Errors
    /// [`Error::Lacking`].
    pub fn check(&self, store: &Store) -> Result<()> {
        let mut lacking = Vec::new();
        for blob in &self.contents.blobs {
            let here = self.local.size(&blob.digest)? == Some(blob.size);
            if !here && store.stat(&blob.digest)?.is_none_or(|stat| stat.size != blob.size) {
                lacking.push(blob.digest.clone());
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let count = lacking.len();
        lacking.truncate(NAMED);
        Err(Error::Lacking { path: self.path.clone(), blobs: lacking, count, since: self.contents.since.clone() })
    }

    /// Which blobs are in it.
    pub fn part(&self) -> Part {
        let here = self.contents.blobs.iter().filter(|blob| blob.here);
        let here: HashSet<Digest> = here.map(|blob| blob.digest.clone()).collect();
        Arc::new(move |digest| here.contains(digest))
    }

    /// What is to be baked from it.
    ///
    /// # Errors
    /// [`Error::Contents`].
    pub fn wanted(&self) -> Result<Vec<Wanted>> {
        let name = |name: &String| {
            let why =
                |error: crate::oci::ReferenceError| Error::Contents { path: self.path.clone(), why: error.to_string() };
            name.parse::<Reference>().map_err(why)
        };
        let one = |image: &super::BundledImage| {
            let held = Held { name: Some(image.name.clone()), target: image.target.clone() };
            Ok(Wanted {
                reference: name(&image.name)?,
                namespace: image.namespace.clone(),
                platforms: image.platforms.clone(),
                policy: Some(image.policy),
                pin: Some(image.pin),
                names: image.names.iter().map(name).collect::<Result<_>>()?,
                labels: image.labels.clone(),
                keys: Vec::new(),
                locked: None,
                from: Some((self.local.clone(), held)),
            })
        };
        self.contents.images.iter().map(one).collect()
    }

    /// Hashes every blob in it; what is wrong.
    ///
    /// # Errors
    /// [`Error`] when it cannot be read.
    pub fn verify(&self) -> Result<Vec<Flaw>> {
        let here: Vec<&BundledBlob> = self.contents.blobs.iter().filter(|blob| blob.here).collect();
        let verified = parallel::map(here, |blob| {
            let flaw = |why: String| Some(Flaw { what: blob.digest.to_string(), why });
            match self.local.size(&blob.digest)? {
                None => return Ok(flaw("it is not in the bundle".to_owned())),
                Some(size) if size != blob.size => return Ok(flaw(format!("it has {size} bytes, not {}", blob.size))),
                Some(_) => {}
            }
            let got = self.hash(self.local.read(&blob.digest, 0)?, blob.digest.algorithm())?;
            Ok(if got == blob.digest { None } else { flaw(format!("its bytes are {got}")) })
        });
        Ok(verified.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn hash(&self, reader: impl Read, algorithm: Algorithm) -> Result<Digest> {
        hash(reader, algorithm).map_err(|source| Error::Io { action: "reading", path: self.path.clone(), source })
    }
}

fn hash(mut reader: impl Read, algorithm: Algorithm) -> std::io::Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::new(algorithm), vec![0; BUFFER]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// The path that an archive was written to.
fn whole(path: &Path, files: &[PathBuf]) -> PathBuf {
    match files {
        [one] if one == path => path.to_owned(),
        files => files[0].with_extension(""),
    }
}

/// The files of an archive with the sums that are written beside it; none where there are no sums.
fn sums(whole: &Path) -> Result<Vec<(PathBuf, Digest)>> {
    let path = sums_path(whole);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|source| Error::Io { action: "reading", path: path.clone(), source })?,
    };
    let wrong = || Error::Contents { path: path.clone(), why: "it is no list of sums".to_owned() };
    let line = |line: &str| {
        let (hex, name) = line.split_once("  ").filter(|(_, name)| !name.contains('/')).ok_or_else(wrong)?;
        Ok((path.with_file_name(name), format!("sha256:{hex}").parse().map_err(|_| wrong())?))
    };
    text.lines().map(line).collect()
}

/// Makes sure that all files of an archive are there.
fn missing(whole: &Path) -> Result<()> {
    match sums(whole)?.into_iter().find(|(file, _)| !file.exists()) {
        Some((file, _)) => Err(crate::source::Error::Part { path: file, of: whole.to_owned() }.into()),
        None => Ok(()),
    }
}

/// Holds the files of a bundle against the sums beside it, each by itself; those that are not there are not asked for. What is
/// wrong, and how many were looked at.
///
/// # Errors
/// [`Error`] when a file cannot be read.
pub fn verify_files(path: &Path) -> Result<(Vec<Flaw>, usize)> {
    let files = parts(path)?;
    let mut sums = sums(&whole(path, &files))?;
    let alone = sums.iter().any(|(file, _)| file.file_name() == path.file_name());
    sums.retain(|(file, _)| if alone { file.file_name() == path.file_name() } else { file.exists() });
    let count = sums.len();
    let verified = parallel::map(sums, |(file, sum)| {
        let read = std::fs::File::open(&file).and_then(|file| hash(file, Algorithm::Sha256));
        match read {
            Err(source) => Err(Error::Io { action: "reading", path: file, source }),
            Ok(got) if got == sum => Ok(None),
            Ok(got) => Ok(Some(Flaw { what: file.display().to_string(), why: format!("its sum is {}", got.hex()) })),
        }
    });
    let flaws = verified.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    Ok((flaws, count))
}

/// Bundles of these files, each once: parts of one are one.
///
/// # Errors
/// [`Error`].
pub fn open_all(paths: &[PathBuf], keys: &[PublicKey]) -> Result<Vec<Bundle>> {
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    // What a pattern of the shell takes along.
    for path in paths.iter().filter(|path| path.extension().is_none_or(|extension| extension != "sha256")) {
        let first = parts(path)?.into_iter().next();
        if seen.insert(first) {
            all.push(Bundle::open(path, keys)?);
        }
    }
    Ok(all)
}
