//! A database and its transactions.

use std::cell::RefCell;
use std::fmt::Write as _;

use super::alloc::{FreeRuns, Pager, Pages, Windows};
use super::bucket::{Bucket, position};
use super::check::{Finding, Report, check};
use super::node::{Child, Leaf, Value};
use super::page::{Header, Kind, Meta, PAGE_SIZES, encode_freelist};
use super::stats::{Stats, stats};
use super::storage::Storage;
use super::view::View;
use super::{Error, MAX_DEPTH, MAX_KEY, MAX_VALUE, PAGE_SIZE, Problem, Result};

/// Whether a file carries its list of free pages; kept as found. Both forms open in every containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreelistForm {
    /// bbolt's default, and the form of every snapshotter's metadata.db.
    Persisted,
    /// `NoFreelistSync`: the form of meta.db since containerd 1.7.
    Rebuilt,
}

/// A file as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Bytes of a page.
    pub page_size: usize,
    /// Pages up to the highest that was ever used, meta pages included.
    pub pages: u64,
    /// Those of them that nobody uses.
    pub free_pages: u64,
    /// How many transactions were committed, as the file counts.
    pub txid: u64,
    /// Whether it carries its freelist.
    pub freelist: FreelistForm,
    /// Bytes of the file.
    pub len: u64,
}

/// An entry of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A plain value.
    Value(Vec<u8>),
    /// A nested bucket.
    Bucket,
}

/// A key of a bucket, and what is there.
pub type Entry = (Vec<u8>, Item);

/// An open database. One process, one transaction at a time.
pub struct Db {
    storage: Box<dyn Storage>,
    state: State,
}

/// The last committed state.
struct State {
    meta: Meta,
    free: FreeRuns,
    poisoned: bool,
}

impl Db {
    /// Opens and verifies a database.
    ///
    /// # Errors
    /// [`Error::NotBolt`] without a valid meta page, [`Error::Damaged`] when the structure is not safe to write to.
    pub fn open(storage: Box<dyn Storage>) -> Result<Self> {
        let (meta, report, free) = verify(&*storage)?;
        match report.findings.into_iter().map(|finding| finding.problem).find(Problem::is_fatal) {
            Some(problem) => Err(Error::Damaged(problem)),
            None => Ok(Self { storage, state: State { meta, free, poisoned: false } }),
        }
    }

    /// Verifies a database and tells everything that is wrong with it.
    ///
    /// # Errors
    /// Only when nothing can be told: no valid meta page, or reading fails.
    pub fn check(storage: &dyn Storage) -> Result<Report> {
        match verify(storage) {
            Ok((meta, report, _)) => Ok(Report { one_meta: !has_both(storage, &meta)?, ..report }),
            Err(Error::Damaged(problem)) => {
                Ok(Report { findings: vec![Finding { problem, bucket: Vec::new() }], ..Report::default() })
            }
            Err(error) => Err(error),
        }
    }

    /// A database in some state of its file.
    pub(super) fn with(storage: Box<dyn Storage>, meta: Meta, free: FreeRuns) -> Self {
        Self { storage, state: State { meta, free, poisoned: false } }
    }

    /// Takes over a file, however damaged: everything in it that can be read, written anew behind all else and in one commit,
    /// so that a kill leaves what was there. Gives how many pages and elements could not be read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn rebuild(storage: Box<dyn Storage>) -> Result<(Self, u64)> {
        super::salvage::rebuild(storage)
    }

    /// What it lies on.
    pub fn into_storage(self) -> Box<dyn Storage> {
        self.storage
    }

    /// Verifies the database as it is now on its storage.
    ///
    /// # Errors
    /// As [`Db::check`].
    pub fn verify(&self) -> Result<Report> {
        Self::check(&*self.storage)
    }

    /// What the file is like.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn info(&self) -> Result<Info> {
        let Meta { page_size, high_water, txid, freelist, .. } = self.state.meta;
        let freelist = if freelist.is_some() { FreelistForm::Persisted } else { FreelistForm::Rebuilt };
        let free_pages = self.state.free.ids().count() as u64;
        let len = self.storage.len().map_err(Error::io("measuring"))?;
        Ok(Info { page_size, pages: high_water, free_pages, txid, freelist, len })
    }

    /// Writes an empty database onto empty storage, durably.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(mut storage: Box<dyn Storage>, form: FreelistForm) -> Result<Self> {
        let (freelist, root) = match form {
            FreelistForm::Persisted => (Some(2), 3),
            FreelistForm::Rebuilt => (None, 2),
        };
        let meta = Meta { page_size: PAGE_SIZE, root, sequence: 0, freelist, high_water: root + 1, txid: 2 };
        let mut file = meta.encode(0);
        file.extend(Meta { txid: 1, ..meta }.encode(1));
        if freelist.is_some() {
            file.extend(encode_freelist(2, &[], 1, PAGE_SIZE));
        }
        file.extend(Header::encode(root, Kind::Leaf, 0, 0));
        file.resize(file.len().next_multiple_of(PAGE_SIZE), 0);
        storage.set_len(file.len() as u64).map_err(Error::io("growing"))?;
        storage.write_at(&file, 0).map_err(Error::io("writing"))?;
        storage.sync().map_err(Error::io("syncing"))?;
        Ok(Self { storage, state: State { meta, free: FreeRuns::default(), poisoned: false } })
    }

    /// Starts a transaction. Dropped without a commit, it changes nothing.
    ///
    /// # Errors
    /// [`Error::Poisoned`] after a commit that failed.
    pub fn begin(&mut self) -> Result<Tx<'_>> {
        if self.state.poisoned {
            return Err(Error::Poisoned);
        }
        let meta = self.state.meta;
        let pager = Pager {
            storage: &mut *self.storage,
            page_size: meta.page_size,
            high_water: meta.high_water,
            free: self.state.free.clone(),
            freed: FreeRuns::default(),
            len: None,
            unwritten: (0, Vec::new()),
            read: RefCell::new(Windows::of_lookups()),
        };
        let root = Bucket { sequence: meta.sequence, root: Child::Stored(meta.root) };
        Ok(Tx { state: &mut self.state, pager, root, dirty: false })
    }
}

/// Whether both meta pages are valid.
fn has_both(storage: &dyn Storage, meta: &Meta) -> Result<bool> {
    for at in [0, meta.page_size as u64] {
        let mut head = [0; 80];
        storage.read_at(&mut head, at).map_err(Error::io("reading"))?;
        if Meta::decode(&head).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn verify(storage: &dyn Storage) -> Result<(Meta, Report, FreeRuns)> {
    let meta = newest_meta(storage)?;
    let has = storage.len().map_err(Error::io("measuring"))?;
    let needs = meta.high_water.saturating_mul(meta.page_size as u64);
    if has < needs || meta.high_water < 3 {
        return Err(Error::Damaged(Problem::Truncated { has, needs }));
    }
    let pages = Pages { storage, page_size: meta.page_size, high_water: meta.high_water, windows: None };
    let (report, free) = check(pages, &meta)?;
    Ok((meta, report, free))
}

/// The valid meta page with the higher transaction id. When page 0 is not valid, page 1 is sought at every page size.
fn newest_meta(storage: &dyn Storage) -> Result<Meta> {
    let len = storage.len().map_err(Error::io("measuring"))?;
    let read = |offset: u64| {
        let mut head = [0; 80];
        if len < offset + head.len() as u64 {
            return Ok(Err("the file is too short"));
        }
        storage.read_at(&mut head, offset).map_err(Error::io("reading")).map(|()| Meta::decode(&head))
    };
    let first = read(0)?;
    let mut best = first.ok();
    let sizes = (10..=16).map(|bits| 1 << bits).filter(|size| PAGE_SIZES.contains(size));
    for size in sizes.filter(|size| first.map_or(true, |meta| meta.page_size == *size)) {
        if let Ok(second) = read(size as u64)?
            && second.page_size == size
            && best.is_none_or(|best| second.txid > best.txid)
        {
            best = Some(second);
        }
    }
    best.ok_or_else(|| Error::NotBolt(first.err().unwrap_or("no valid meta page")))
}

/// A transaction: reads see its own writes; [`Tx::commit`] makes them durable all at once.
///
/// Buckets are named by their path from the root, a slice of keys.
pub struct Tx<'db> {
    state: &'db mut State,
    pager: Pager<'db>,
    root: Bucket,
    dirty: bool,
}

impl Tx<'_> {
    /// The value at `key`, if the bucket and the key exist.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `path` leads through a plain value or `key` is a bucket.
    pub fn get(&self, path: &[&[u8]], key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.at(path, &self.pager.pages(), &mut |view| view.map_or(Ok(None), |view| view.get(key)))
    }

    /// The entries of a bucket in the order of their keys; `None` when there is no such bucket.
    ///
    /// # Errors
    /// As [`Tx::get`].
    pub fn list(&self, path: &[&[u8]]) -> Result<Option<Vec<Entry>>> {
        let pages = self.pager.pages();
        self.read(path, &mut |bucket| {
            let Some(bucket) = bucket else { return Ok(None) };
            let mut items = Vec::new();
            // Not through a view, which would read a page of every bucket in it.
            bucket.each(&pages, &mut |key, value| {
                let item = match value {
                    Value::Bytes(bytes) => Item::Value(bytes.clone()),
                    Value::Bucket(_) => Item::Bucket,
                };
                items.push((key.to_vec(), item));
                Ok(())
            })?;
            Ok(Some(items))
        })
    }

    /// Gives `f` a bucket to read; `None` when there is no such bucket.
    ///
    /// # Errors
    /// As [`Tx::get`]; those of `f`.
    pub fn view<R>(&self, path: &[&[u8]], f: &mut dyn FnMut(Option<View<'_>>) -> Result<R>) -> Result<R> {
        let windows = RefCell::default();
        self.at(path, &Pages { windows: Some(&windows), ..self.pager.pages() }, f)
    }

    /// As [`Tx::view`], for a look at one small bucket of many.
    ///
    /// # Errors
    /// As [`Tx::get`].
    pub fn peek<R>(&self, path: &[&[u8]], f: &mut dyn FnMut(Option<View<'_>>) -> Result<R>) -> Result<R> {
        self.at(path, &self.pager.pages(), f)
    }

    /// The sequence of a bucket; `None` when there is no such bucket.
    ///
    /// # Errors
    /// As [`Tx::get`].
    pub fn sequence(&self, path: &[&[u8]]) -> Result<Option<u64>> {
        self.peek(path, &mut |view| Ok(view.map(|view| view.sequence())))
    }

    /// How much a bucket holds; `None` when there is no such bucket.
    ///
    /// # Errors
    /// As [`Tx::get`].
    pub fn stats(&self, path: &[&[u8]]) -> Result<Option<Stats>> {
        let windows = RefCell::default();
        let pages = Pages { windows: Some(&windows), ..self.pager.pages() };
        self.read(path, &mut |bucket| bucket.map(|bucket| stats(bucket, &pages)).transpose())
    }

    /// Everything, as text: `b PATH SEQUENCE` for a bucket and `k PATH KEY VALUE` for a value, depth first in the order
    /// of keys; paths are hexadecimal keys joined by `/`, an empty value is `-`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn dump(&self) -> Result<String> {
        let mut out = String::new();
        dump(&self.root, "", &self.pager.pages(), &mut out)?;
        Ok(out)
    }

    /// Sets a value, making the buckets on the way. Nothing is written when it is there already.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty or too long key, a too long value, a path through a plain value, a bucket at `key`,
    /// or an empty path: containerd keeps no plain values at the root.
    pub fn put(&mut self, path: &[&[u8]], key: &[u8], value: &[u8]) -> Result<()> {
        check_key(key)?;
        if value.len() > MAX_VALUE {
            return Err(Error::Invalid("a value longer than prebake writes"));
        }
        if path.is_empty() {
            return Err(Error::Invalid("a plain value at the root"));
        }
        if self.get(path, key)?.as_deref() == Some(value) {
            return Ok(());
        }
        let (bucket, pager) = self.bucket_mut(path)?;
        let entries = bucket.leaf_mut(key, pager)?;
        let value = Value::Bytes(value.to_vec());
        match position(entries, key) {
            Ok(i) => entries[i].value = value,
            Err(i) => entries.insert(i, Leaf { key: key.to_vec(), value }),
        }
        Ok(())
    }

    /// Makes a bucket and those on the way to it, where they are missing.
    ///
    /// # Errors
    /// As [`Tx::put`].
    pub fn create_bucket(&mut self, path: &[&[u8]]) -> Result<()> {
        if self.sequence(path)?.is_none() {
            self.bucket_mut(path)?;
        }
        Ok(())
    }

    /// Sets the sequence of a bucket, which is made where it is missing.
    ///
    /// # Errors
    /// As [`Tx::put`].
    pub fn set_sequence(&mut self, path: &[&[u8]], sequence: u64) -> Result<()> {
        if self.sequence(path)? != Some(sequence) {
            self.bucket_mut(path)?.0.sequence = sequence;
        }
        Ok(())
    }

    /// Deletes a value, or a bucket with all that is in it; whether there was one.
    ///
    /// # Errors
    /// As [`Tx::get`].
    pub fn delete(&mut self, path: &[&[u8]], key: &[u8]) -> Result<bool> {
        let pages = self.pager.pages();
        let exists = self.read(path, &mut |bucket| match bucket {
            None => Ok(false),
            Some(bucket) => bucket.find(key, &pages, &mut |value| Ok(value.is_some())),
        })?;
        if !exists {
            return Ok(false);
        }
        let (bucket, pager) = self.bucket_mut(path)?;
        let leaf = bucket.leaf_mut(key, pager)?;
        if let Ok(i) = position(leaf, key)
            && let Value::Bucket(removed) = leaf.remove(i).value
        {
            removed.free(pager)?;
        }
        Ok(true)
    }

    /// Makes the transaction durable; `false` when there was nothing to write.
    ///
    /// # Errors
    /// [`Error::Io`]: the file holds the old state, and must be opened again.
    pub fn commit(mut self) -> Result<bool> {
        if !self.dirty {
            return Ok(false);
        }
        self.state.poisoned = true;
        self.root.settle(false, &mut self.pager)?;
        let Child::Stored(root) = self.root.root else { unreachable!("a root that may not go inline is stored") };
        let old = self.state.meta;
        let freelist = match old.freelist {
            None => None,
            Some(id) => {
                self.pager.free_freelist(id)?;
                Some(self.pager.store_freelist()?)
            }
        };
        let meta = Meta {
            root,
            sequence: self.root.sequence,
            freelist,
            high_water: self.pager.high_water,
            txid: old.txid + 1,
            ..old
        };
        self.pager.flush()?;
        let Pager { storage, mut free, freed, .. } = self.pager;
        storage.sync().map_err(Error::io("syncing"))?;
        write_meta(storage, &meta)?;
        for id in freed.ids() {
            free.add(id, 1);
        }
        *self.state = State { meta, free, poisoned: false };
        Ok(true)
    }

    /// Gives `f` the bucket at `path`, read through `pages`.
    fn at<R>(&self, path: &[&[u8]], pages: &Pages<'_>, f: &mut dyn FnMut(Option<View<'_>>) -> Result<R>) -> Result<R> {
        View::new(&self.root, pages)?.at(path, f)
    }

    fn read<R>(&self, path: &[&[u8]], f: &mut dyn FnMut(Option<&Bucket>) -> Result<R>) -> Result<R> {
        descend(&self.root, path, &self.pager.pages(), f)
    }
}

impl<'db> Tx<'db> {
    /// The bucket at `path`, loaded to be changed; made where it is missing.
    fn bucket_mut(&mut self, path: &[&[u8]]) -> Result<(&mut Bucket, &mut Pager<'db>)> {
        if path.len() > MAX_DEPTH / 2 {
            return Err(Error::Invalid("buckets nested too deep"));
        }
        self.dirty = true;
        let mut bucket = &mut self.root;
        for key in path {
            check_key(key)?;
            let entries = bucket.leaf_mut(key, &mut self.pager)?;
            let i = match position(entries, key) {
                Ok(i) => i,
                Err(i) => {
                    entries.insert(i, Leaf { key: key.to_vec(), value: Value::Bucket(Bucket::empty()) });
                    i
                }
            };
            bucket = match &mut entries[i].value {
                Value::Bucket(bucket) => bucket,
                Value::Bytes(_) => return Err(Error::Invalid("a value where a bucket is expected")),
            };
        }
        Ok((bucket, &mut self.pager))
    }
}

/// Makes a new state the one that counts. When that fails, the page it was to take gets back what it had, so that an
/// error leaves the old state; only a failure of that too leaves it open which of the two counts.
fn write_meta(storage: &mut dyn Storage, meta: &Meta) -> Result<()> {
    let offset = meta.slot() * meta.page_size as u64;
    let mut before = vec![0; meta.page_size];
    storage.read_at(&mut before, offset).map_err(Error::io("reading"))?;
    let written = storage.write_at(&meta.encode(meta.slot()), offset).map_err(Error::io("writing"));
    written.and_then(|()| storage.sync().map_err(Error::io("syncing"))).inspect_err(|_| {
        let _ = storage.write_at(&before, offset).and_then(|()| storage.sync());
    })
}

fn check_key(key: &[u8]) -> Result<()> {
    match key.len() {
        0 => Err(Error::Invalid("an empty key")),
        len if len > MAX_KEY => Err(Error::Invalid("a key longer than bbolt accepts")),
        _ => Ok(()),
    }
}

fn descend<R>(
    bucket: &Bucket,
    path: &[&[u8]],
    pages: &Pages<'_>,
    f: &mut dyn FnMut(Option<&Bucket>) -> Result<R>,
) -> Result<R> {
    let Some((key, rest)) = path.split_first() else { return f(Some(bucket)) };
    bucket.find(key, pages, &mut |value| match value {
        None => f(None),
        Some(Value::Bucket(bucket)) => descend(bucket, rest, pages, f),
        Some(Value::Bytes(_)) => Err(Error::Invalid("a value where a bucket is expected")),
    })
}

fn dump(bucket: &Bucket, path: &str, pages: &Pages<'_>, out: &mut String) -> Result<()> {
    bucket.each(pages, &mut |key, value| {
        let key = hex::encode(key);
        match value {
            Value::Bytes(bytes) => {
                let value = if bytes.is_empty() { "-".to_owned() } else { hex::encode(bytes) };
                let _ = writeln!(out, "k {} {key} {value}", if path.is_empty() { "-" } else { path });
                Ok(())
            }
            Value::Bucket(bucket) => {
                let path = if path.is_empty() { key } else { format!("{path}/{key}") };
                let _ = writeln!(out, "b {path} {}", bucket.sequence);
                dump(bucket, &path, pages, out)
            }
        }
    })
}
