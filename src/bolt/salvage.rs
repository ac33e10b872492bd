//! What can still be read of a damaged file, written anew into the same file: new pages behind all others first, then the meta
//! page, so that a kill leaves what was there before.

use std::collections::HashSet;

use super::alloc::{FreeRuns, Pages};
use super::bucket::{BUCKET_HEADER, Bucket};
use super::check::check;
use super::node::{Element, elements, inline_elements};
use super::page::{Header, Kind, Meta, PAGE_SIZES};
use super::storage::Storage;
use super::{Db, Error, MAX_DEPTH, PAGE_SIZE, Result};

/// A bucket's keys from the root.
type Place = Vec<Vec<u8>>;

/// What was read.
#[derive(Debug, Default)]
struct Saved {
    buckets: Vec<(Place, u64)>,
    values: Vec<(Place, Vec<u8>, Vec<u8>)>,
    /// Pages and elements that could not be read.
    lost: u64,
}

/// Rebuilds a file with everything in it that can be read; gives how many of its pages and elements could not.
///
/// # Errors
/// [`Error::Io`]; the file then holds what it held.
pub(super) fn rebuild(mut storage: Box<dyn Storage>) -> Result<(Db, u64)> {
    let best = best_meta(&*storage)?;
    let saved = match &best {
        Some(meta) => read(&*storage, meta),
        None => Saved { lost: 1, ..Saved::default() },
    };
    let page_size = best.map_or(PAGE_SIZE, |meta| meta.page_size);
    let len = storage.len().map_err(Error::io("measuring"))?;
    // Behind all that either meta page may lead to.
    let root = len.div_ceil(page_size as u64).max(2);
    let mut page = Header::encode(root, Kind::Leaf, 0, 0).to_vec();
    page.resize(page_size, 0);
    storage.set_len((root + 1) * page_size as u64).map_err(Error::io("growing"))?;
    storage.write_at(&page, root * page_size as u64).map_err(Error::io("writing"))?;
    let txid = txids(&*storage)?.max(2);
    let meta = Meta { page_size, root, sequence: 0, freelist: None, high_water: root + 1, txid };
    let mut db = Db::with(storage, meta, FreeRuns::default());
    let mut tx = db.begin()?;
    for (place, sequence) in &saved.buckets {
        let place: Vec<&[u8]> = place.iter().map(Vec::as_slice).collect();
        tx.create_bucket(&place)?;
        tx.set_sequence(&place, *sequence)?;
    }
    for (place, key, value) in &saved.values {
        let place: Vec<&[u8]> = place.iter().map(Vec::as_slice).collect();
        // What bbolt would not have written is no loss.
        let _ = tx.put(&place, key, value);
    }
    touch(&mut tx)?;
    tx.commit()?;
    // The other meta page may be the one that is broken.
    let mut tx = db.begin()?;
    touch(&mut tx)?;
    tx.commit()?;
    Ok((db, saved.lost))
}

/// Makes a commit of what would be none.
fn touch(tx: &mut super::Tx<'_>) -> Result<()> {
    const KEY: &[u8] = b"prebake";
    tx.create_bucket(&[KEY])?;
    tx.delete(&[], KEY).map(drop)
}

/// The places where a meta page may begin.
fn heads(storage: &dyn Storage) -> Result<Vec<(u64, [u8; 80])>> {
    let len = storage.len().map_err(Error::io("measuring"))?;
    let sizes = (10..=16).map(|bits| 1_usize << bits).filter(|size| PAGE_SIZES.contains(size));
    let mut found = Vec::new();
    for at in std::iter::once(0).chain(sizes.map(|size| size as u64)) {
        let mut head = [0; 80];
        if at + head.len() as u64 <= len {
            storage.read_at(&mut head, at).map_err(Error::io("reading"))?;
            found.push((at, head));
        }
    }
    Ok(found)
}

/// The highest transaction id that a meta page may name and containerd may believe.
fn txids(storage: &dyn Storage) -> Result<u64> {
    let valid = heads(storage)?.into_iter().filter_map(|(_, head)| Meta::decode(&head).ok());
    Ok(valid.map(|meta| meta.txid).max().unwrap_or(0))
}

/// The newest state that is whole; one whose meta page has a wrong checksum, when what it leads to is whole; else the newest
/// with a valid meta page.
fn best_meta(storage: &dyn Storage) -> Result<Option<Meta>> {
    let len = storage.len().map_err(Error::io("measuring"))?;
    let mut all = Vec::new();
    for (at, head) in heads(storage)? {
        let fits = |meta: &Meta| at == 0 || at == meta.page_size as u64;
        let valid = Meta::decode(&head).ok().filter(fits);
        let guessed = valid.is_none();
        let meta = valid.or_else(|| Meta::guess(&head).filter(fits));
        all.extend(meta.map(|meta| (meta, guessed)));
    }
    all.sort_by_key(|(meta, guessed)| (std::cmp::Reverse(meta.txid), *guessed));
    let whole = |meta: &Meta| {
        let fits = meta.high_water >= 3 && meta.high_water.saturating_mul(meta.page_size as u64) <= len;
        fits && check(pages(storage, meta), meta).is_ok_and(|(report, _)| !report.is_fatal())
    };
    let best = all.iter().find(|(meta, _)| whole(meta));
    Ok(best.or_else(|| all.iter().find(|(_, guessed)| !guessed)).map(|(meta, _)| *meta))
}

fn pages<'s>(storage: &'s dyn Storage, meta: &Meta) -> Pages<'s> {
    Pages { storage, page_size: meta.page_size, high_water: meta.high_water, windows: None }
}

fn read(storage: &dyn Storage, meta: &Meta) -> Saved {
    let mut reader = Reader { pages: pages(storage, meta), seen: HashSet::new(), saved: Saved::default() };
    reader.page(meta.root, &Vec::new(), 0);
    reader.saved
}

struct Reader<'s> {
    pages: Pages<'s>,
    seen: HashSet<u64>,
    saved: Saved,
}

impl Reader<'_> {
    fn page(&mut self, id: u64, place: &Place, depth: usize) {
        if depth > MAX_DEPTH || !self.seen.insert(id) {
            self.saved.lost += 1;
            return;
        }
        match self.pages.read(id) {
            Ok((_, bytes)) => self.elements(&bytes, id, place, depth),
            Err(_) => self.saved.lost += 1,
        }
    }

    fn elements(&mut self, bytes: &[u8], id: u64, place: &Place, depth: usize) {
        let Ok((_, list)) = elements(bytes, id) else {
            self.saved.lost += 1;
            return;
        };
        for element in list {
            match element {
                Ok(Element::Branch { child, .. }) => self.page(child, place, depth + 1),
                Ok(Element::Value { key, value }) => self.value(place, key, value),
                Ok(Element::Bucket { key, value }) => self.bucket(key, value, id, place, depth),
                Err(_) => self.saved.lost += 1,
            }
        }
    }

    fn value(&mut self, place: &Place, key: &[u8], value: &[u8]) {
        if key.is_empty() || place.is_empty() {
            self.saved.lost += 1;
        } else {
            self.saved.values.push((place.clone(), key.to_vec(), value.to_vec()));
        }
    }

    fn bucket(&mut self, key: &[u8], value: &[u8], id: u64, place: &Place, depth: usize) {
        let Ok((root, sequence)) = Bucket::header(value, id) else {
            self.saved.lost += 1;
            return;
        };
        if key.is_empty() {
            self.saved.lost += 1;
            return;
        }
        let inside = [place.as_slice(), &[key.to_vec()]].concat();
        self.saved.buckets.push((inside.clone(), sequence));
        if root != 0 {
            return self.page(root, &inside, depth + 1);
        }
        let Ok(list) = inline_elements(&value[BUCKET_HEADER..], id) else {
            self.saved.lost += 1;
            return;
        };
        for element in list {
            match element {
                Ok(Element::Value { key, value }) => self.value(&inside, key, value),
                _ => self.saved.lost += 1,
            }
        }
    }
}
