//! All of a root's containerd state as text that can be compared line by line: files, documents, databases, snapshots.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Error, Result};
use crate::bolt::{self, Db, FileStorage, Lock, Seen, View};
use crate::content::Store;
use crate::layer::{self, Entry, EntryKind, Reader};
use crate::metadata::{self, MetaDb, Shown, Wait, show, show_key};
use crate::oci::{Algorithm, Config, Descriptor, Digest, Document, Hasher, MAX_DOCUMENT, chain_ids};
use crate::root::Root;

/// Bytes of a blob, and of what it unpacks to, that are looked into; of what is larger, only the size is told.
const LOOKED_INTO: u64 = 64 << 20;
/// Indexes inside an index.
const MAX_DEPTH: usize = 4;
/// Bytes of a value that is no text, before only its digest is told.
const SHOWN_BYTES: usize = 64;

/// Everything in the directory in which containerd keeps its state. First the images, each document laid out, each layer file by
/// file; then all files with their modes and sizes, those of snapshots with owners, times and contents' digests; databases
/// record by record. Digests that images lead to go by names such as `[app:1 linux/amd64 layer 2]`, so that a change shows where it
/// was made, and not wherever a digest of it is.
///
/// # Errors
/// [`Error`]; also when a containerd runs on the root.
pub fn dump(root: &Root, wait: &Wait<'_>) -> Result<String> {
    let mut meta = MetaDb::lock(root, Lock::Shared, wait)?;
    let rows = meta.read(|tx| {
        let mut rows = Vec::new();
        for namespace in metadata::namespaces(tx)? {
            rows.extend(metadata::images(tx, &namespace)?.into_iter().collect::<Result<Vec<_>, _>>()?);
        }
        Ok(rows)
    })?;
    let mut images: Vec<(String, Descriptor)> = rows.into_iter().flatten().map(|row| (row.name, row.target)).collect();
    // Names that are digests say nothing.
    images.sort_by_key(|(name, _)| (name.contains("sha256:"), name.clone()));
    let store = Store::open(root)?;
    let mut names = Names { store: &store, of: HashMap::new(), all: Vec::new() };
    for (name, target) in &images {
        names.document(name, target, 0)?;
    }
    let mut out = String::new();
    for (digest, name, is_blob) in &names.all {
        let _ = writeln!(out, "[{name}] {digest}");
        if *is_blob && let Some(bytes) = names.read(digest, LOOKED_INTO)? {
            out.push_str(&names.replaced(&blob(&bytes)));
        }
    }
    let [ways, _] = root.ways()?;
    if let Some(dir) = ways.last() {
        out.push('\n');
        names.directory(dir, Path::new(""), &mut out)?;
    }
    Ok(out)
}

/// What digests are called.
struct Names<'s> {
    store: &'s Store,
    /// By hexadecimal digits.
    of: HashMap<String, String>,
    /// In the order of their giving; whether it is a blob.
    all: Vec<(Digest, String, bool)>,
}

impl Names<'_> {
    fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(stat) = self.store.stat(digest)?.filter(|stat| stat.size <= limit) else { return Ok(None) };
        let mut bytes = Vec::with_capacity(usize::try_from(stat.size).unwrap_or(0));
        let read = self.store.open_blob(digest)?.read_to_end(&mut bytes);
        read.map_err(|source| Error::Read { path: digest.path().into(), source })?;
        Ok(Some(bytes))
    }

    /// Whether it had no name.
    fn give(&mut self, digest: &Digest, name: String, is_blob: bool) -> bool {
        let is_new = !self.of.contains_key(digest.hex());
        if is_new {
            self.of.insert(digest.hex().to_owned(), format!("[{name}]"));
            self.all.push((digest.clone(), name, is_blob));
        }
        is_new
    }

    fn document(&mut self, name: &str, target: &Descriptor, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH || !self.give(&target.digest, name.to_owned(), true) {
            return Ok(());
        }
        let Some(bytes) = self.read(&target.digest, MAX_DOCUMENT)? else { return Ok(()) };
        match Document::parse(&bytes, &target.media_type) {
            Err(_) => {}
            Ok((Document::Index(index), _)) => {
                for (n, entry) in index.manifests.iter().enumerate() {
                    let known = entry.platform().filter(|platform| !platform.is_unknown());
                    let own = known.map_or_else(|| format!("entry {}", n + 1), |platform| platform.to_string());
                    self.document(&format!("{name} {own}"), entry, depth + 1)?;
                }
            }
            Ok((Document::Manifest(manifest), _)) => {
                self.give(&manifest.config.digest, format!("{name} config"), true);
                for (n, layer) in manifest.layers.iter().enumerate() {
                    self.give(&layer.digest, format!("{name} layer {}", n + 1), true);
                }
                let config =
                    self.read(&manifest.config.digest, MAX_DOCUMENT)?.and_then(|bytes| Config::parse(&bytes).ok());
                let diff_ids = config.and_then(|config| config.diff_ids).unwrap_or_default();
                let chain_ids = chain_ids(&diff_ids);
                for (n, (diff_id, chain_id)) in diff_ids.iter().zip(&chain_ids).enumerate() {
                    self.give(diff_id, format!("{name} diff {}", n + 1), false);
                    self.give(chain_id, format!("{name} chain {}", n + 1), false);
                }
            }
        }
        Ok(())
    }

    /// A text with names for digests.
    fn replaced(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut word = String::new();
        for c in text.chars().chain(['\n']) {
            if c.is_ascii_hexdigit() {
                word.push(c);
                continue;
            }
            match self.of.get(&word) {
                Some(name) => {
                    if out.ends_with("sha256:") {
                        out.truncate(out.len() - "sha256:".len());
                    }
                    out.push_str(name);
                }
                None => out.push_str(&word),
            }
            word.clear();
            out.push(c);
        }
        out.pop();
        out
    }

    fn directory(&self, dir: &Path, inside: &Path, out: &mut String) -> Result<()> {
        let failed = failed(dir);
        let found = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(&failed)?;
        let name = |entry: &fs::DirEntry| self.replaced(&inside.join(entry.file_name()).display().to_string());
        let mut found: Vec<(String, fs::DirEntry)> = found.into_iter().map(|entry| (name(&entry), entry)).collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, entry) in found {
            let (path, inside) = (entry.path(), inside.join(entry.file_name()));
            let meta = fs::symlink_metadata(&path).map_err(&failed)?;
            let mode = meta.mode() & 0o7777;
            // Owners and times of containerd's own files are those of the process; of what a layer made they are the layer's.
            if inside.components().any(|part| part.as_os_str() == "fs") {
                let _ = writeln!(out, "{name} {}", of_layer(&path, &meta).map_err(&failed)?);
            } else if meta.is_dir() {
                let _ = writeln!(out, "{name}/ {mode:04o}");
            } else if path.extension().is_some_and(|end| end == "db") {
                let _ = writeln!(out, "{name} {mode:04o}");
                out.push_str(&self.database(&path)?);
            } else {
                let _ = writeln!(out, "{name} {mode:04o} {}", meta.len());
            }
            if meta.is_dir() {
                self.directory(&path, &inside, out)?;
            }
        }
        Ok(())
    }

    fn database(&self, path: &Path) -> Result<String> {
        let failed = |source: bolt::Error| metadata::Error::Bolt { path: path.to_owned(), source };
        let mut db = FileStorage::open(path, Lock::Shared).and_then(|file| Db::open(Box::new(file))).map_err(failed)?;
        let tx = db.begin().map_err(failed)?;
        let text = tx.view(&[], &mut |view| view.map_or(Ok(String::new()), |view| self.bucket(&view, b"", 1)));
        Ok(text.map_err(failed)?)
    }

    fn bucket(&self, view: &View<'_>, name: &[u8], depth: usize) -> Result<String, bolt::Error> {
        let mut found: Vec<(String, String)> = Vec::new();
        view.each(&mut |key, seen| {
            let own = self.replaced(&show_key(name, key));
            let more = match seen {
                Seen::Value(value) => match show(name, key, value) {
                    Shown::Bytes(bytes) if bytes.len() > SHOWN_BYTES => {
                        format!(" = {} bytes, {}\n", bytes.len(), Digest::of(bytes))
                    }
                    shown => format!(" = {}\n", self.replaced(&shown.to_string())),
                },
                Seen::Bucket(view) => {
                    let sequence = view.sequence();
                    let head = if sequence == 0 { "/\n".to_owned() } else { format!("/ (sequence {sequence})\n") };
                    head + &self.bucket(&view, key, depth + 1)?
                }
            };
            found.push((own, more));
            Ok(())
        })?;
        found.sort();
        let mut out = String::new();
        for (own, more) in found {
            let _ = write!(out, "{:1$}{own}{more}", "", depth * 4);
        }
        Ok(out)
    }
}

/// What of a file a layer says.
fn of_layer(path: &Path, meta: &fs::Metadata) -> io::Result<String> {
    let kind = meta.file_type();
    let what = if kind.is_symlink() {
        format!("-> {}", fs::read_link(path)?.display())
    } else if kind.is_file() {
        format!("{} {}", meta.len(), digest(path)?)
    } else if kind.is_dir() {
        "/".to_owned()
    } else {
        let device = meta.rdev();
        let kind = if kind.is_char_device() {
            "char"
        } else if kind.is_fifo() {
            "fifo"
        } else {
            "block"
        };
        format!("{kind} {}:{}", rustix::fs::major(device), rustix::fs::minor(device))
    };
    let attributes = layer::attributes(path)?;
    let attributes = attributes.iter().map(|(key, value)| format!(" {}={}", key.escape_ascii(), value.escape_ascii()));
    let attributes: String = attributes.collect();
    Ok(format!("{:04o} {}:{} {} {what}{attributes}", meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Read { path: path.clone(), source }
}

fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Hasher::new(Algorithm::Sha256), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// What is in a document or a layer.
fn blob(bytes: &[u8]) -> String {
    if let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) {
        let text = serde_json::to_string_pretty(&document).unwrap_or_default();
        return format!("    {}\n", text.replace('\n', "\n    "));
    }
    let mut archive = Vec::new();
    let plain = if layer::is_compressed(bytes) {
        if layer::decompress(bytes, &mut archive, LOOKED_INTO).is_err() {
            return String::new();
        }
        &archive[..]
    } else {
        bytes
    };
    let (mut reader, mut out) = (Reader::new(BufReader::new(plain)), String::new());
    // What is no archive has no entries.
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        while let Ok(chunk) = reader.chunk() {
            let len = chunk.len();
            if len == 0 {
                break;
            }
            hasher.update(chunk);
            reader.advance(len);
        }
        let _ = writeln!(out, "    {}", line(&entry, hasher));
    }
    out
}

fn line(entry: &Entry, hasher: Hasher) -> String {
    let Entry { path, kind, link, mode, uid, gid, mtime, size, device, xattrs, .. } = entry;
    let what = match kind {
        EntryKind::Regular => format!("{size} {}", hasher.finish()),
        EntryKind::Directory => "/".to_owned(),
        EntryKind::Symlink => format!("-> {}", link.escape_ascii()),
        EntryKind::HardLink => format!("= {}", link.escape_ascii()),
        EntryKind::Char => format!("char {}:{}", device.0, device.1),
        EntryKind::Block => format!("block {}:{}", device.0, device.1),
        EntryKind::Fifo => "fifo 0:0".to_owned(),
        EntryKind::Global | EntryKind::Other(_) => "?".to_owned(),
    };
    let attributes = xattrs.iter().map(|(key, value)| format!(" {}={}", key.escape_ascii(), value.escape_ascii()));
    let attributes: String = attributes.collect();
    format!("{} {mode:04o} {uid}:{gid} {} {what}{attributes}", path.escape_ascii(), mtime.seconds)
}
