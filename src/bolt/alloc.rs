//! Pages of one transaction: which may be read, which are free, which it freed, where new ones go.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::node::Node;
use super::page::{HEADER, Header, Kind, encode_freelist, freelist_len};
use super::storage::Storage;
use super::{Error, MAX_PAGE, Problem, Result};

/// Reads pages below the high-water mark.
#[derive(Clone, Copy)]
pub(super) struct Pages<'s> {
    pub(super) storage: &'s dyn Storage,
    pub(super) page_size: usize,
    pub(super) high_water: u64,
    /// What was read before.
    pub(super) windows: Option<&'s RefCell<Windows>>,
}

/// A page with its overflow pages; derefs to their bytes.
pub(super) struct Page {
    bytes: Arc<Vec<u8>>,
    start: usize,
    len: usize,
}

impl std::ops::Deref for Page {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// Runs of pages that were read at once, the one used last in front. A page that follows one of them begins a longer run than
/// any other: a file that was changed often has its pages all over it.
pub(super) struct Windows {
    runs: Vec<(u64, Arc<Vec<u8>>)>,
    /// Runs held at most, and the bytes of each at most, though it has a page.
    most: usize,
    bytes: usize,
}

impl Default for Windows {
    /// For a walk over many pages: a bucket's leaves lie in one run, the buckets in them in another, and it goes to and fro
    /// between a few.
    fn default() -> Self {
        Self { runs: Vec::new(), most: WINDOWS, bytes: WINDOW }
    }
}

impl Windows {
    /// For many lookups: those that follow each other read the same pages on their way down.
    pub(super) fn of_lookups() -> Self {
        Self { runs: Vec::new(), most: LOOKUP_PAGES, bytes: 0 }
    }
}

/// How much a file may grow beyond what is written, in bytes; bbolt grows it by 16 MiB.
const MAX_GROWTH: u64 = 16 << 20;
/// Runs that a walk holds, and the bytes of each.
const WINDOWS: usize = 16;
const WINDOW: usize = 1 << 17;
/// The bytes of the first run of those that follow each other, and how many times as long the next one is.
const FIRST: usize = 1 << 14;
const LONGER: usize = 4;
/// Pages that lookups hold.
const LOOKUP_PAGES: usize = 64;
/// Pages are written in runs of at most this many bytes.
const WRITE_BUFFER: usize = 1 << 18;

impl Pages<'_> {
    /// A page with its overflow pages.
    pub(super) fn read(&self, id: u64) -> Result<(Header, Page)> {
        let bad = |what| Error::Damaged(Problem::BadPage { id, what });
        if id < 2 || id >= self.high_water {
            return Err(bad("referred to, but outside the pages in use"));
        }
        let page = self.first_page(id)?;
        let header = Header::decode(&page);
        if header.id != id {
            return Err(bad("a page that carries another page's id"));
        }
        if u64::from(header.overflow) >= self.high_water - id {
            return Err(bad("overflow pages past the pages in use"));
        }
        if header.overflow == 0 {
            return Ok((header, page));
        }
        let len = (u64::from(header.overflow) + 1) * self.page_size as u64;
        let len = usize::try_from(len).ok().filter(|len| *len <= MAX_PAGE);
        let len = len.ok_or_else(|| bad("a page with more overflow pages than prebake reads"))?;
        let mut bytes = vec![0; len];
        self.storage.read_at(&mut bytes, id * self.page_size as u64).map_err(Error::io("reading"))?;
        Ok((header, Page { bytes: Arc::new(bytes), start: 0, len }))
    }

    fn first_page(&self, id: u64) -> Result<Page> {
        let len = self.page_size;
        let read = |mut bytes: Vec<u8>| {
            let read = self.storage.read_at(&mut bytes, id * self.page_size as u64);
            read.map_err(Error::io("reading")).map(|()| Arc::new(bytes))
        };
        let Some(windows) = self.windows else { return Ok(Page { bytes: read(vec![0; len])?, start: 0, len }) };
        let Windows { runs, most, bytes: many } = &mut *windows.borrow_mut();
        let end = |first: u64, bytes: &Arc<Vec<u8>>| first + (bytes.len() / len) as u64;
        if let Some(i) = runs.iter().position(|(first, bytes)| (*first..end(*first, bytes)).contains(&id)) {
            runs[..=i].rotate_right(1);
        } else {
            let before = runs.iter().position(|(first, bytes)| *many > len && end(*first, bytes) == id);
            let (held, wanted) = match before.map(|i| runs.remove(i)) {
                Some((first, bytes)) => {
                    let wanted = LONGER * bytes.len();
                    (Some((first, bytes)), wanted)
                }
                None => (if runs.len() < *most { None } else { runs.pop() }, FIRST),
            };
            let wanted = wanted.min(*many) / len;
            let mut bytes = held.and_then(|(_, bytes)| Arc::try_unwrap(bytes).ok()).unwrap_or_default();
            let ahead = usize::try_from(self.high_water - id).unwrap_or(usize::MAX);
            bytes.resize(wanted.max(1).min(ahead) * len, 0);
            runs.insert(0, (id, read(bytes)?));
        }
        let (first, bytes) = &runs[0];
        Ok(Page { bytes: bytes.clone(), start: usize::try_from(id - first).unwrap_or(0) * len, len })
    }

    pub(super) fn node(&self, id: u64) -> Result<Node> {
        Node::decode(&self.read(id)?.1, id)
    }
}

/// Runs of free pages: first id → length. Runs never touch each other.
#[derive(Debug, Clone, Default)]
pub(super) struct FreeRuns(BTreeMap<u64, u64>);

impl FreeRuns {
    pub(super) fn add(&mut self, mut start: u64, mut len: u64) {
        if let Some((&before, &n)) = self.0.range(..start).next_back()
            && before + n == start
        {
            self.0.remove(&before);
            (start, len) = (before, n + len);
        }
        if let Some(n) = self.0.remove(&(start + len)) {
            len += n;
        }
        self.0.insert(start, len);
    }

    /// The first run of `len` pages, if there is one.
    fn take(&mut self, len: u64) -> Option<u64> {
        let (&start, &n) = self.0.iter().find(|(_, n)| **n >= len)?;
        self.0.remove(&start);
        if n > len {
            self.0.insert(start + len, n - len);
        }
        Some(start)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|(start, len)| *start..start + len)
    }
}

/// The pages of a transaction that writes.
pub(super) struct Pager<'s> {
    pub(super) storage: &'s mut dyn Storage,
    pub(super) page_size: usize,
    pub(super) high_water: u64,
    /// Free in the state on disk: these may be overwritten now.
    pub(super) free: FreeRuns,
    /// Freed by this transaction: the state on disk still needs them.
    pub(super) freed: FreeRuns,
    /// Length of the storage, once it was asked for, in bytes.
    pub(super) len: Option<u64>,
    /// Pages that are still to be written, in a row, and where.
    pub(super) unwritten: (u64, Vec<u8>),
    /// What was read of the state on disk, which stays as it is.
    pub(super) read: RefCell<Windows>,
}

impl Pager<'_> {
    pub(super) fn pages(&self) -> Pages<'_> {
        let windows = Some(&self.read);
        Pages { storage: self.storage, page_size: self.page_size, high_water: self.high_water, windows }
    }

    /// Reads a node in order to change it: its pages are free once this transaction is committed.
    pub(super) fn load(&mut self, id: u64) -> Result<Node> {
        let (header, bytes) = self.pages().read(id)?;
        let node = Node::decode(&bytes, id)?;
        self.freed.add(id, u64::from(header.overflow) + 1);
        Ok(node)
    }

    /// Writes a node to pages nobody uses.
    pub(super) fn store(&mut self, node: &Node) -> Result<u64> {
        let pages = self.pages_for(node.size());
        let id = self.allocate(pages);
        let bytes = node.encode(id, pages - 1);
        self.write(id, bytes, pages)?;
        Ok(id)
    }

    /// Writes the list of all pages that are free after this transaction.
    pub(super) fn store_freelist(&mut self) -> Result<u64> {
        // Taking pages for the list itself can only shorten it.
        let count = self.free.ids().count() + self.freed.ids().count();
        let pages = self.pages_for(freelist_len(count));
        let id = self.allocate(pages);
        let mut ids: Vec<u64> = self.free.ids().chain(self.freed.ids()).collect();
        ids.sort_unstable();
        let bytes = encode_freelist(id, &ids, pages, self.page_size);
        self.write(id, bytes, pages)?;
        Ok(id)
    }

    /// Frees the pages of an earlier freelist.
    pub(super) fn free_freelist(&mut self, id: u64) -> Result<()> {
        let (header, _) = self.pages().read(id)?;
        if header.kind != Some(Kind::Freelist) {
            return Err(Error::Damaged(Problem::BadPage { id, what: "not the freelist it should be" }));
        }
        self.freed.add(id, u64::from(header.overflow) + 1);
        Ok(())
    }

    fn pages_for(&self, bytes: usize) -> u32 {
        // A node is bounded by MAX_VALUE per element and a freelist by the file: both far below 2^32 pages.
        u32::try_from(bytes.max(HEADER).div_ceil(self.page_size)).unwrap_or(u32::MAX)
    }

    fn allocate(&mut self, pages: u32) -> u64 {
        self.free.take(u64::from(pages)).unwrap_or_else(|| {
            let id = self.high_water;
            self.high_water += u64::from(pages);
            id
        })
    }

    fn write(&mut self, id: u64, mut bytes: Vec<u8>, pages: u32) -> Result<()> {
        bytes.resize(pages as usize * self.page_size, 0);
        let offset = id * self.page_size as u64;
        let (start, unwritten) = &mut self.unwritten;
        if *start + unwritten.len() as u64 == offset && unwritten.len() + bytes.len() <= WRITE_BUFFER {
            unwritten.extend(bytes);
            return Ok(());
        }
        self.flush()?;
        self.unwritten = (offset, bytes);
        Ok(())
    }

    /// Writes what is still to be written.
    pub(super) fn flush(&mut self) -> Result<()> {
        let (offset, bytes) = std::mem::take(&mut self.unwritten);
        if bytes.is_empty() {
            return Ok(());
        }
        let end = offset + bytes.len() as u64;
        let len = match self.len {
            Some(len) => len,
            None => self.storage.len().map_err(Error::io("measuring"))?,
        };
        self.len = Some(len);
        if len < end {
            // A file that grows a lot grows in steps.
            let grown = end.max(len + (len / 8).next_multiple_of(self.page_size as u64).min(MAX_GROWTH));
            self.storage.set_len(grown).map_err(Error::io("growing"))?;
            self.len = Some(grown);
        }
        self.storage.write_at(&bytes, offset).map_err(Error::io("writing"))
    }
}
