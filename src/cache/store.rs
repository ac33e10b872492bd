//! An object store with one prefix of its keys: what of the crate's API is used, with limits, and counted.

use std::io::{self, ErrorKind, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, GetResultPayload, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutPayload, RetryConfig,
};
use tokio::time::timeout;

use super::http::Connector;
pub use super::http::{BoxError, ClientFor};
use super::url::{CacheUrl, Scheme};
use super::{Error, Object, Result, Stream, Why};

/// A request is made again so often, and not any more when that much time has passed: whoever waits for a cache could have
/// asked the registry meanwhile.
const RETRIES: usize = 3;
const RETRY_TIME: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How long a request may take, its retries among them; for reading a body, how long its next bytes may.
const PATIENCE: Duration = Duration::from_mins(1);
/// Bytes that are read from a file at a time.
const CHUNK: usize = 1 << 20;

/// Requests that were made, without retries: what stores ask money for.
#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
}

pub(super) struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Where a directory is the store.
    dir: Option<PathBuf>,
    place: String,
    counts: Counts,
}

impl Store {
    /// Talks to nobody yet. Who we are is in the environment, by the names that the clouds' own tools use.
    pub(super) fn open(url: &CacheUrl, client_for: ClientFor, make: bool) -> Result<Self> {
        let (place, connector) = (url.to_string(), Connector::new(client_for));
        let error = |source| of_store("opening", "the store", &place, source);
        let backoff = BackoffConfig { init_backoff: FIRST_WAIT, max_backoff: LONGEST_WAIT, ..BackoffConfig::default() };
        let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_TIME };
        let mut dir = None;
        let objects: Arc<dyn ObjectStore> = match url.scheme {
            Scheme::S3 => {
                // What is sent by TLS, and verified when it is read, needs no sum in its signature. To remove many objects by one
                // request is what not all stores know, and saves nothing here.
                let builder = AmazonS3Builder::from_env().with_bucket_name(&url.bucket).with_unsigned_payload(true);
                let builder = builder.with_disable_bulk_delete(true);
                Arc::new(builder.with_retry(retry).with_http_connector(connector).build().map_err(error)?)
            }
            Scheme::Azure => {
                let builder = MicrosoftAzureBuilder::from_env().with_container_name(&url.bucket);
                Arc::new(builder.with_retry(retry).with_http_connector(connector).build().map_err(error)?)
            }
            Scheme::Google => {
                let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&url.bucket);
                Arc::new(builder.with_retry(retry).with_http_connector(connector).build().map_err(error)?)
            }
            Scheme::File => {
                let path = PathBuf::from(format!("/{}", url.prefix));
                if make {
                    std::fs::create_dir_all(&path).map_err(of_directory).map_err(error)?;
                } else if !path.exists() {
                    return Err(Error::NoCache { place });
                }
                let files = LocalFileSystem::new_with_prefix(&path).map_err(error)?;
                dir = Some(path);
                // Each claim has a directory of its own.
                Arc::new(files.with_automatic_cleanup(true))
            }
        };
        let prefix = if url.scheme == Scheme::File { Path::default() } else { Path::from(&*url.prefix) };
        Ok(Self { objects, prefix, dir, place, counts: Counts::default() })
    }

    /// The URL.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Requests so far that read something, and that wrote or listed something.
    pub(super) fn requests(&self) -> (u64, u64) {
        (self.counts.reads.load(Ordering::Relaxed), self.counts.writes.load(Ordering::Relaxed))
    }

    fn path(&self, key: &str) -> Path {
        self.prefix.parts().chain(Path::from(key).parts()).collect()
    }

    fn error(&self, doing: &'static str, key: &str) -> impl FnOnce(object_store::Error) -> Error {
        let (what, place) = (key.to_owned(), self.place.clone());
        move |source| of_store(doing, &what, &place, source)
    }

    async fn within<T>(
        &self,
        doing: &'static str,
        key: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        match timeout(PATIENCE, call).await {
            Ok(answer) => answer.map_err(self.error(doing, key)),
            Err(_) => Err(Error::Silent { doing, what: key.to_owned(), place: self.place.clone() }),
        }
    }

    async fn read<T>(&self, key: &str, call: impl Future<Output = object_store::Result<T>>) -> Result<Option<T>> {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        match self.within("reading", key, call).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::Store { why: Why::Absent, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn written<T>(&self, key: &str, call: impl Future<Output = object_store::Result<T>>) -> Result<T> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        self.within("writing", key, call).await
    }

    fn object(&self, meta: &ObjectMeta) -> Object {
        let below = meta.location.prefix_match(&self.prefix);
        let key = below.map(|parts| parts.collect::<Path>().to_string()).unwrap_or_default();
        Object { key, size: meta.size, modified: meta.last_modified }
    }

    /// What is stored under a key.
    pub(super) async fn head(&self, key: &str) -> Result<Option<Object>> {
        Ok(self.read(key, self.objects.head(&self.path(key))).await?.map(|meta| self.object(&meta)))
    }

    /// Its bytes, from one on.
    pub(super) async fn get(&self, key: &str, from: u64) -> Result<Option<(Object, Stream)>> {
        let range = (from > 0).then_some(GetRange::Offset(from));
        let options = GetOptions { range, ..GetOptions::default() };
        let path = self.path(key);
        let Some(found) = self.read(key, self.objects.get_opts(&path, options)).await? else { return Ok(None) };
        let object = self.object(&found.meta);
        let (what, place) = (key.to_owned(), self.place.clone());
        let bytes = match found.payload {
            GetResultPayload::File(file, _) => in_chunks(file, found.range.start),
            GetResultPayload::Stream(stream) => stream,
        };
        let stream = futures_util::stream::unfold(Some(bytes), move |bytes| {
            let (what, place) = (what.clone(), place.clone());
            async move {
                let mut bytes = bytes?;
                match timeout(PATIENCE, bytes.next()).await {
                    Ok(next) => match next? {
                        Ok(chunk) => Some((Ok(chunk), Some(bytes))),
                        Err(source) => Some((Err(of_store("reading", &what, &place, source)), None)),
                    },
                    Err(_) => Some((Err(Error::Silent { doing: "reading", what, place }), None)),
                }
            }
        });
        Ok(Some((object, stream.boxed())))
    }

    /// Something small; without its bytes, where it has more than `limit`.
    pub(super) async fn get_small(&self, key: &str, limit: u64) -> Result<Option<(Object, Option<Bytes>)>> {
        let Some((object, mut stream)) = self.get(key, 0).await? else { return Ok(None) };
        if object.size > limit {
            return Ok(Some((object, None)));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(Some((object, Some(bytes.into()))))
    }

    /// Stores something whole, over what is there.
    pub(super) async fn put(&self, key: &str, bytes: Vec<Bytes>) -> Result<()> {
        self.written(key, self.objects.put(&self.path(key), PutPayload::from_iter(bytes))).await.map(drop)
    }

    /// Stores something under a key that has nothing. Whether it was so; a store that knows no such condition says yes always, and one
    /// that looks first and then writes may say yes to two.
    pub(super) async fn put_new(&self, key: &str, text: String) -> Result<bool> {
        let path = self.path(key);
        match self.written(key, self.objects.put_opts(&path, text.into(), PutMode::Create.into())).await {
            Ok(_) => Ok(true),
            Err(Error::Store { why: Why::Exists, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Begins to store something in parts. Nothing is under the key before it is completed.
    pub(super) async fn begin(&self, key: &str) -> Result<Parts<'_>> {
        let upload = self.written(key, self.objects.put_multipart(&self.path(key))).await?;
        Ok(Parts { store: self, key: key.to_owned(), upload })
    }

    /// Removes what is under a key, if there is something.
    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        match self.within("removing", key, self.objects.delete(&self.path(key))).await {
            Err(Error::Store { why: Why::Absent, .. }) => Ok(()),
            other => other,
        }
    }

    /// All that is below a key.
    pub(super) fn list(&self, below: &str) -> BoxStream<'_, Result<Object>> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        let key = if below.is_empty() { "everything" } else { below }.to_owned();
        let path = self.path(below);
        let all = self.objects.list(Some(&path));
        all.map(move |meta| meta.map(|meta| self.object(&meta)).map_err(self.error("listing", &key))).boxed()
    }

    /// Removes what writers to a directory left below these keys that were killed before then, before it had its name; how many files.
    /// What they leave in clouds, no listing shows.
    pub(super) async fn remove_unnamed(&self, below: &[&str], before: SystemTime, dry_run: bool) -> Result<u64> {
        let Some(dir) = &self.dir else { return Ok(0) };
        let dirs: Vec<PathBuf> = below.iter().map(|key| dir.join(key)).collect();
        let removed = tokio::task::spawn_blocking(move || remove_unnamed(dirs, before, dry_run)).await;
        let removed = removed.map_err(object_store::Error::from).and_then(|removed| removed.map_err(of_directory));
        removed.map_err(self.error("removing", "unfinished files"))
    }
}

fn of_directory(source: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "directory", source: Box::new(source) }
}

/// The crate writes what is to be `KEY` as `KEY#NUMBER` first.
fn remove_unnamed(mut dirs: Vec<PathBuf>, before: SystemTime, dry_run: bool) -> io::Result<u64> {
    let mut removed = 0;
    while let Some(dir) = dirs.pop() {
        // What others remove meanwhile is gone.
        let Some(entries) = unless_gone(std::fs::read_dir(&dir))? else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(meta) = unless_gone(entry.metadata())? else { continue };
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.rsplit_once('#')).map(|(_, number)| number);
            let is_unnamed = number.is_some_and(|number| number.parse::<u64>().is_ok());
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if is_unnamed && meta.modified()? < before {
                if !dry_run {
                    unless_gone(std::fs::remove_file(entry.path()))?;
                }
                removed += 1;
            }
        }
    }
    Ok(removed)
}

fn unless_gone<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

fn of_store(doing: &'static str, what: &str, place: &str, source: object_store::Error) -> Error {
    use object_store::Error as Said;
    // S3 has codes for it, of which each store has its own, and WebDAV's status.
    const FULL: &[&str] = &["QuotaExceeded", "StorageFull", "507 Insufficient Storage"];
    let (mut system, mut is_full) = (None, false);
    let mut cause = std::error::Error::source(&source);
    while let Some(error) = cause {
        system = system.or(error.downcast_ref::<std::io::Error>().map(std::io::Error::kind));
        let said = error.to_string();
        is_full |= FULL.iter().any(|full| said.contains(full));
        cause = error.source();
    }
    let why = match (&source, system) {
        _ if is_full => Why::Full,
        (Said::NotFound { .. }, _) => Why::Absent,
        // Stores that others wrote say it in either way.
        (Said::AlreadyExists { .. } | Said::Precondition { .. }, _) => Why::Exists,
        (Said::PermissionDenied { .. } | Said::Unauthenticated { .. }, _) => Why::Refused,
        (_, Some(ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)) => Why::Refused,
        (_, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) => Why::Full,
        _ => Why::Failing,
    };
    Error::Store { why, doing, what: what.to_owned(), place: place.to_owned(), source: Box::new(source) }
}

/// Something that is stored part by part.
pub(super) struct Parts<'s> {
    store: &'s Store,
    key: String,
    upload: Box<dyn MultipartUpload>,
}

impl Parts<'_> {
    /// Stores the next part.
    pub(super) async fn part(&mut self, bytes: Vec<Bytes>) -> Result<()> {
        let part = self.upload.put_part(PutPayload::from_iter(bytes));
        self.store.written(&self.key, part).await
    }

    /// Makes all of it one object.
    pub(super) async fn complete(&mut self) -> Result<()> {
        self.store.written(&self.key, self.upload.complete()).await.map(drop)
    }

    /// Removes the parts.
    pub(super) async fn abort(&mut self) -> Result<()> {
        self.store.written(&self.key, self.upload.abort()).await
    }
}

/// The crate reads files in pieces that are too small for blobs.
fn in_chunks(file: std::fs::File, from: u64) -> BoxStream<'static, object_store::Result<Bytes>> {
    let next = move |(mut file, at): (std::fs::File, Option<u64>)| async move {
        let read = tokio::task::spawn_blocking(move || {
            if let Some(at) = at {
                std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(at))?;
            }
            let mut bytes = Vec::with_capacity(CHUNK);
            (&mut file).take(CHUNK as u64).read_to_end(&mut bytes)?;
            Ok((file, bytes))
        });
        let (file, bytes) = read.await.map_err(Into::into).and_then(|read| read.map_err(of_directory))?;
        Ok((!bytes.is_empty()).then(|| (Bytes::from(bytes), (file, None))))
    };
    futures_util::stream::try_unfold((file, (from > 0).then_some(from)), next).boxed()
}
