//! Whether everything in a root is as containerd needs it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::{Result, snapshots};
use crate::bolt::{Lock, Problem};
use crate::content::{self, Entry, Stat, Store};
use crate::content::{Walk, walk};
use crate::metadata::{self, BlobRow, Contents, ImageRow, Labels, MetaDb, Snapshot, Wait, labels};
use crate::oci::{Descriptor, Digest, media_type};
use crate::parallel;
use crate::root::Root;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// containerd would fail at it, or lose something.
    Error,
    /// containerd lives with it, or removes it.
    Warning,
}

impl Severity {
    pub(super) fn of(problem: &Problem) -> Self {
        if matches!(problem, Problem::Leaked { .. }) { Self::Warning } else { Self::Error }
    }
}

/// Something that is off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where: a blob, an image, a record, a file.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Finding {
    pub(super) fn new(severity: Severity, object: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { severity, object: object.into(), problem: problem.into() }
    }
}

/// What a check looked at, and what it found.
#[derive(Debug, Default, Serialize)]
pub struct CheckReport {
    /// Blobs hashed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Image records looked at.
    pub images: u64,
    /// Blobs no record names: the next garbage collection that removes anything removes them.
    pub unreferenced: u64,
    /// Everything that is off; empty when the root is sound.
    pub findings: Vec<Finding>,
}

/// Hashes every blob, verifies the structure of `meta.db` and follows every reference in it. `progress` hears of bytes done
/// and of all there are, from several threads.
///
/// # Errors
/// [`super::Error`] when the root cannot be looked at; what is wrong in it is in the report.
pub fn check(root: &Root, progress: &(dyn Fn(u64, u64) + Sync), wait: &Wait<'_>) -> Result<CheckReport> {
    let mut meta = MetaDb::lock(root, Lock::Shared, wait)?;
    let mut checker = Checker { store: Store::open(root)?, files: HashMap::new(), report: CheckReport::default() };
    checker.files(progress)?;
    let snapshots = checker.metadata(&mut meta)?;
    checker.report.findings.extend(snapshots::findings(&metadata::snapshotters(root)?, snapshots.as_deref()));
    checker.report.findings.sort_unstable();
    checker.report.findings.dedup();
    Ok(checker.report)
}

struct Checker {
    store: Store,
    files: HashMap<Digest, Stat>,
    report: CheckReport,
}

/// One namespace's records.
struct Records {
    all: Contents,
    /// Snapshotter and key of each snapshot.
    keys: HashSet<(String, String)>,
}

impl Records {
    fn new(all: Contents) -> Self {
        let key = |(snapshot, _): &(Snapshot, Labels)| (snapshot.snapshotter.clone(), snapshot.key.clone());
        let keys = all.snapshots.iter().map(key).collect();
        Self { all, keys }
    }

    /// Whether the snapshot is there that a label refers to; `None` for other labels.
    fn has_snapshot(&self, (key, value): (&String, &String)) -> Option<bool> {
        let snapshotter = key.strip_prefix(labels::GC_REF_SNAPSHOT)?;
        let snapshotter = snapshotter.split('/').next().unwrap_or_default();
        Some(self.keys.contains(&(snapshotter.to_owned(), value.clone())))
    }
}

impl Checker {
    fn note(&mut self, object: impl Into<String>, problem: impl Into<String>) {
        self.report.findings.push(Finding::new(Severity::Error, object, problem));
    }

    fn warn(&mut self, object: impl Into<String>, problem: impl Into<String>) {
        self.report.findings.push(Finding::new(Severity::Warning, object, problem));
    }

    fn files(&mut self, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<()> {
        for entry in self.store.entries()? {
            match entry {
                Entry::Blob(digest, stat) => {
                    self.files.insert(digest, stat);
                }
                Entry::Stranger(path) => {
                    self.note(path.display().to_string(), "is not a blob; containerd's garbage collection stops at it");
                }
            }
        }
        let blobs: Vec<(&Digest, &Stat)> = self.files.iter().collect();
        let total = blobs.iter().map(|(_, stat)| stat.size).sum();
        let done = AtomicU64::new(0);
        let (count, store) = (blobs.len() as u64, &self.store);
        let verify = |(digest, stat): (&Digest, &Stat)| {
            let result = store.verify(digest);
            progress(done.fetch_add(stat.size, Ordering::Relaxed) + stat.size, total);
            result.err().map(|error| (digest.clone(), error))
        };
        let bad: Vec<_> = parallel::map(blobs, verify).into_iter().flatten().collect();
        (self.report.blobs, self.report.bytes) = (count, total);
        for (digest, error) in bad {
            match error {
                content::Error::WrongDigest { .. } | content::Error::Io { .. } => {
                    self.note(digest.to_string(), crate::kind::chain(&error));
                }
                error => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Checks the records; gives the snapshots of all namespaces, unless they cannot be read.
    fn metadata(&mut self, meta: &mut MetaDb) -> Result<Option<Vec<Snapshot>>> {
        let Some(structure) = (match meta.check() {
            Ok(structure) => structure,
            Err(error @ metadata::Error::Bolt { .. }) => {
                self.note("meta.db", format!("{}; containerd does not start", crate::kind::chain(&error)));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }) else {
            return Ok(Some(Vec::new()));
        };
        for finding in &structure.findings {
            let severity = Severity::of(&finding.problem);
            self.report.findings.push(Finding::new(severity, "meta.db", snapshots::structure(finding)));
        }
        if structure.is_fatal() {
            return Ok(None);
        }
        let Some((namespaces, wrong, foreign)) = meta.read(|tx| {
            let mut all = Vec::new();
            let mut wrong = Vec::new();
            for namespace in metadata::namespaces(tx)? {
                let mut contents = metadata::contents(tx, &namespace)?;
                wrong.append(&mut contents.wrong);
                all.push(Records::new(contents));
            }
            Ok((all, wrong, metadata::foreign_buckets(tx)?))
        })?
        else {
            return Ok(Some(Vec::new()));
        };
        for bucket in foreign {
            let problem = "is not containerd's; containerd 2 deletes it when it migrates the database";
            self.warn(format!("meta.db: bucket {bucket}"), problem);
        }
        for error in wrong {
            match error {
                metadata::Error::Record { path, what } => self.note(path, what),
                error => return Err(error.into()),
            }
        }
        let mut named = HashSet::new();
        for records in &namespaces {
            let namespace = &records.all.namespace;
            if metadata::check_namespace(namespace).is_err() {
                let problem = "is no name containerd accepts for a namespace; it refuses every request for it";
                self.warn(namespace, problem);
            }
            self.records(namespace, records);
            for image in &records.all.images {
                self.report.images += 1;
                self.image(namespace, image, records);
            }
            named.extend(records.all.blobs.keys());
        }
        self.report.unreferenced = self.files.keys().filter(|digest| !named.contains(digest)).count() as u64;
        Ok(Some(
            namespaces.into_iter().flat_map(|records| records.all.snapshots).map(|(snapshot, _)| snapshot).collect(),
        ))
    }

    /// Each blob's file, and each snapshot's parent and each reference to one.
    fn records(&mut self, namespace: &str, records: &Records) {
        for blob in records.all.blobs.values() {
            let object = format!("{namespace}/content/{}", blob.digest);
            match self.files.get(&blob.digest).map(|stat| stat.size) {
                None => self.note(
                    object.as_str(),
                    "has a record and no file; containerd fails to read it, and counts it as there",
                ),
                Some(size) if size != blob.size => {
                    self.note(object.as_str(), format!("has {size} bytes; its record says {}", blob.size));
                }
                Some(_) => {}
            }
            self.labels(&object, &blob.labels);
            for (key, value) in blob.labels.iter().filter(|label| records.has_snapshot(*label) == Some(false)) {
                let problem = format!(
                    "refers to a snapshot that does not exist: {value} ({key}); containerd unpacks the image again when a \
                     container needs it"
                );
                self.warn(object.as_str(), problem);
            }
        }
        for (snapshot, _) in &records.all.snapshots {
            let parent = (snapshot.snapshotter.clone(), snapshot.parent.clone());
            if !snapshot.parent.is_empty() && !records.keys.contains(&parent) {
                let object = format!("{namespace}/snapshots/{}/{}", snapshot.snapshotter, snapshot.key);
                self.note(
                    object,
                    format!("has a parent that does not exist: {}; containers from it fail", snapshot.parent),
                );
            }
        }
    }

    fn labels(&mut self, object: &str, labels: &Labels) {
        for key in labels.iter().filter_map(labels::too_long) {
            self.note(
                object,
                format!("has a label {key:?} so long that containerd refuses every update of the record"),
            );
        }
    }

    fn image(&mut self, namespace: &str, image: &ImageRow, records: &Records) {
        let object = format!("{namespace}/images/{}", image.name);
        self.labels(&object, &image.labels);
        if image.name.is_empty() || image.target.media_type.is_empty() || image.target.size == 0 {
            self.note(&object, "has no name, media type or size; containerd refuses every update of the record");
        }
        match walk(&self.store, &image.target, &|digest| records.all.blobs.contains_key(digest)) {
            Err(error) => self.note(object.as_str(), crate::kind::chain(&error)),
            Ok(walk) => {
                for problem in self.tree(&image.target, &walk, records) {
                    self.note(object.as_str(), problem);
                }
            }
        }
    }

    /// What an image needs: every document recorded, every child of the manifest there, and each kept by a label.
    fn tree(&self, target: &Descriptor, walk: &Walk, records: &Records) -> Vec<String> {
        let mut problems = Vec::new();
        let recorded = |digest: &Digest| records.all.blobs.contains_key(digest);
        if !recorded(&target.digest) {
            problems.push(format!("its target {} has no record", target.digest));
        }
        let snapshots = |config: &BlobRow| config.labels.iter().any(|label| records.has_snapshot(label) == Some(true));
        let config = walk.manifest.as_ref().and_then(|manifest| records.all.blobs.get(&manifest.config.digest));
        let unpacked = config.is_some_and(snapshots);
        for (document, children) in &walk.documents {
            let held: HashSet<&str> = records
                .all
                .blobs
                .get(&document.digest)
                .into_iter()
                .flat_map(|blob| &blob.labels)
                .filter(|(key, _)| key.starts_with(labels::GC_REF_CONTENT))
                .map(|(_, value)| value.as_str())
                .collect();
            for child in children {
                let layer = media_type::is_layer(&child.media_type);
                if recorded(&child.digest) {
                    // Layers that are discarded after unpacking are not to be kept.
                    let discarded = layer && unpacked;
                    if !discarded && !held.contains(child.digest.as_str()) {
                        problems.push(format!(
                            "nothing keeps {} from garbage collection; containerd removes it when it starts",
                            child.digest
                        ));
                    }
                    continue;
                }
                let needed = !media_type::is_index(&document.media_type) && (!layer || !unpacked);
                if needed && self.files.contains_key(&child.digest) {
                    problems.push(format!("{} has no record", child.digest));
                } else if needed {
                    problems.push(format!("{} is missing", child.digest));
                }
            }
        }
        problems
    }
}
