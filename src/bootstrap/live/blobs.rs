//! Blobs that are on disk become blobs that containerd knows.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Seek, SeekFrom};

use tonic::Code;

use super::api::{FieldMask, Info, InfoRequest, InfoResponse, UpdateInfo, Write, WriteAction, signed};
use super::client::{Session, Writing, is, refused};
use super::{Image, Result, blocking};
use crate::content::{self, Store};
use crate::metadata::Labels;
use crate::metadata::labels::{distribution_source, with_repository};
use crate::oci::Digest;

const SERVICE: &str = "content.v1.Content";
/// How often a blob is offered that collections take before it is announced: one collection takes it once.
const TRIES: usize = 16;
/// Bytes in a message; containerd refuses 16 MiB.
const CHUNK: usize = 1 << 20;

/// What containerd is to know of a blob.
#[derive(Default)]
pub(super) struct Known {
    size: u64,
    labels: Labels,
    /// Hosts and repositories that it came from.
    sources: Vec<(String, String)>,
}

impl Known {
    /// The labels that are to be there besides those that are.
    fn labels(&self, there: &HashMap<String, String>) -> HashMap<String, String> {
        let mut all: HashMap<String, String> = self.labels.clone().into_iter().collect();
        for (host, repository) in &self.sources {
            let key = distribution_source(host);
            let old = all.get(&key).or_else(|| there.get(&key));
            let value = with_repository(&key, old.map(String::as_str), repository);
            all.extend(value.map(|value| (key, value)));
        }
        all.retain(|key, value| there.get(key) != Some(value));
        all
    }
}

/// The blobs of images, each once.
pub(super) fn of(images: &[Image]) -> BTreeMap<Digest, Known> {
    let mut all: BTreeMap<Digest, Known> = BTreeMap::new();
    for Image { record, .. } in images {
        for blob in &record.blobs {
            let known = all.entry(blob.descriptor.digest.clone()).or_default();
            known.size = blob.descriptor.size;
            known.labels.extend(blob.children.iter().map(|(key, child)| (key.clone(), child.to_string())));
            known.sources.extend(record.source.clone());
        }
    }
    all
}

/// How containerd took the announcement of a blob.
pub(super) enum Announced {
    /// The namespace has it; by now, the lease does as well.
    Known,
    /// It is not collected any more, and can be committed.
    Writing { writing: Box<Writing>, message: Write },
    /// It is nowhere.
    Absent,
}

/// Tells containerd of a blob (STAT). Where it shares content between namespaces, it finds the blob on disk, answers that all of
/// it was written, and keeps it from collections; else the bytes are sent (`metadata/content.go`, `Writer`).
pub(super) async fn announce(session: &Session, store: &Store, digest: &Digest, known: &Known) -> Result<Announced> {
    for attempt in 0..TRIES {
        if !offer(store, digest, known.size).await? {
            return Ok(Announced::Absent);
        }
        let mut message = Write {
            action: WriteAction::Stat.into(),
            // An ingest that was begun for nothing belongs to the lease; the next one has another name.
            reference: format!("prebake-{attempt}-{digest}"),
            total: signed(known.size),
            expected: digest.to_string(),
            ..Write::default()
        };
        let answer = session.write(message.clone()).await;
        if is(&answer, Code::AlreadyExists) {
            return Ok(Announced::Known);
        }
        let (mut writing, answer) = answer.map_err(refused("announcing", digest))?;
        message.offset = answer.offset;
        if message.offset != message.total {
            let (own, blob) = (store.clone(), digest.clone());
            if blocking(move || own.offer(&blob)).await? {
                // It was collected on the way.
                continue;
            }
            send(&mut writing, &mut message, store, digest).await?;
        }
        return Ok(Announced::Writing { writing: Box::new(writing), message });
    }
    Ok(Announced::Absent)
}

/// Makes sure that containerd can find a blob; `false` when there is none of this size.
async fn offer(store: &Store, digest: &Digest, size: u64) -> Result<bool> {
    let (store, digest) = (store.clone(), digest.clone());
    blocking(move || {
        if store.stat(&digest)?.is_none_or(|stat| stat.size != size) {
            return Ok(false);
        }
        store.offer(&digest).map(|_| true)
    })
    .await
}

/// Sends what is missing of a blob, for a containerd whose namespaces do not share content.
async fn send(writing: &mut Writing, message: &mut Write, store: &Store, digest: &Digest) -> Result<()> {
    let (own, blob, from) = (store.clone(), digest.clone(), message.offset.unsigned_abs());
    let reading = |e| content::Error::Io { action: "reading", path: digest.hex().into(), source: e };
    let mut file = blocking(move || own.open_blob(&blob)).await?;
    file.seek(SeekFrom::Start(from)).map_err(reading)?;
    while message.offset < message.total {
        let chunk = blocking(move || Ok::<_, content::Error>((read(&mut file), file))).await?;
        file = chunk.1;
        let data = chunk.0.map_err(reading)?;
        if data.is_empty() {
            return Err(content::Error::TooShort {
                digest: digest.clone(),
                expected: message.total.unsigned_abs(),
                got: message.offset.unsigned_abs(),
            }
            .into());
        }
        let write = Write { action: WriteAction::Write.into(), data, ..message.clone() };
        message.offset = writing.ask(write).await.map_err(refused("writing", digest))?.offset;
    }
    Ok(())
}

fn read(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(CHUNK);
    file.take(CHUNK as u64).read_to_end(&mut data)?;
    Ok(data)
}

/// Gives an announced blob its record, with its labels (COMMIT, at the offset that was answered: at another one the server
/// begins anew). `false` when it is nowhere after all.
pub(super) async fn commit(
    session: &Session,
    store: &Store,
    (digest, known): (&Digest, &Known),
    mut announced: Announced,
) -> Result<bool> {
    loop {
        let (mut writing, message) = match announced {
            Announced::Absent => return Ok(false),
            Announced::Known => {
                label(session, digest, |there| known.labels(there)).await?;
                return Ok(true);
            }
            Announced::Writing { writing, message } => (writing, message),
        };
        let labels = known.labels(&HashMap::new());
        let committed = writing.ask(Write { action: WriteAction::Commit.into(), labels, ..message }).await;
        if !is(&committed, Code::AlreadyExists) {
            committed.map_err(refused("committing", digest))?;
            session.change();
            return Ok(true);
        }
        // Somebody else made the record meanwhile, and it does not belong to our lease yet.
        announced = announce(session, store, digest, known).await?;
    }
}

/// Adds labels to a blob's record, if `missing` says so of those that are there.
pub(super) async fn label(
    session: &Session,
    digest: &Digest,
    missing: impl FnOnce(&HashMap<String, String>) -> HashMap<String, String>,
) -> Result<()> {
    let of = InfoRequest { digest: digest.to_string() };
    let info = session.call::<_, InfoResponse>(&format!("{SERVICE}/Info"), of).await;
    let there = info.map_err(refused("looking up", digest))?.info.unwrap_or_default().labels;
    let labels = missing(&there);
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Some(Info { digest: digest.to_string(), labels });
    let update = UpdateInfo { info, mask: Some(FieldMask { paths }) };
    let updated = session.call::<_, InfoResponse>(&format!("{SERVICE}/Update"), update).await;
    updated.map_err(refused("labelling", digest))?;
    session.change();
    Ok(())
}
