//! Verification of a whole file: what bbolt's `Tx.Check` finds, and what it misses and later panics on.

use std::cell::RefCell;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::alloc::{FreeRuns, Page, Pages, Windows};
use super::bucket::{BUCKET_HEADER, Bucket};
use super::node::{Element, elements, inline_elements};
use super::page::{Header, Kind, Meta, decode_freelist};
use super::{Error, MAX_DEPTH, MAX_PAGE, Result, key_text};

/// Something wrong in a database. Ids are page ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A page that cannot be what it is used as.
    #[error("page {id}: {what}")]
    BadPage {
        /// The page.
        id: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Two places refer to one page.
    #[error("page {0} is used twice")]
    UsedTwice(u64),
    /// Keys do not ascend, within the page or against its neighbours.
    #[error("page {0} has keys out of order")]
    KeyOrder(u64),
    /// Leaves of one bucket lie at different depths.
    #[error("page {0} lies at another depth than its siblings")]
    Unbalanced(u64),
    /// Pages or buckets nest deeper than [`MAX_DEPTH`].
    #[error("page {0} nests too deep")]
    TooDeep(u64),
    /// A branch with one child: bbolt panics on the first delete below it.
    #[error("branch page {0} has one child, at which bbolt panics when it deletes")]
    LoneChild(u64),
    /// A leaf that is not a root and has no elements.
    #[error("leaf page {0} is empty")]
    EmptyLeaf(u64),
    /// The freelist names a page that is in use.
    #[error("page {0} is both in use and on the freelist")]
    FreeInUse(u64),
    /// The freelist names a page twice, or one outside the file.
    #[error("the freelist names page {0} wrongly")]
    BadFree(u64),
    /// Pages that are neither in use nor on the persisted freelist: lost space, no danger.
    #[error("{count} pages, the first of them page {first}, are neither in use nor on the freelist")]
    Leaked {
        /// The lowest.
        first: u64,
        /// How many.
        count: u64,
    },
    /// The file ends before its high-water mark; bbolt would crash with SIGBUS.
    #[error("the file has {has} bytes and needs {needs}; bbolt crashes (SIGBUS)")]
    Truncated {
        /// Its length, in bytes.
        has: u64,
        /// What its meta page says, in bytes.
        needs: u64,
    },
}

impl Problem {
    /// Whether nothing may be written to a file that has this.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::LoneChild(_) | Self::EmptyLeaf(_) | Self::Leaked { .. })
    }
}

/// A problem, and in which bucket it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub problem: Problem,
    /// The keys of the buckets from the root to it, each cut off at [`SHOWN_KEY`]; empty for the root bucket, and for what is
    /// in none.
    pub bucket: Vec<Vec<u8>>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.problem)?;
        for (i, key) in self.bucket.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { " (bucket " } else { "/" }, key_text(key))?;
        }
        f.write_str(if self.bucket.is_empty() { "" } else { ")" })
    }
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong, in the order it was met, at most [`MAX_FINDINGS`]; empty when the file is sound.
    pub findings: Vec<Finding>,
    /// How much more is wrong.
    pub more: u64,
    /// Whether only one of the two meta pages is valid: what a power cut leaves of a commit that did not end, or a loss of the
    /// last one that did.
    pub one_meta: bool,
}

impl Report {
    /// Whether nothing may be written to the file.
    pub fn is_fatal(&self) -> bool {
        self.findings.iter().any(|finding| finding.problem.is_fatal())
    }

    /// Keeps a finding as long as there is room, and one that is fatal in any case.
    fn add(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS || (finding.problem.is_fatal() && !self.is_fatal()) {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }
}

/// Findings that are told one by one: a hostile file has one for each of its bytes.
pub const MAX_FINDINGS: usize = 1000;
/// How much of a key is told with a finding, in bytes.
pub const SHOWN_KEY: usize = 256;

/// From this many pages on, a file is walked by several threads.
const LARGE: u64 = 4096;
/// Children of a branch from which on it is worth it to walk a half of them beside the other.
const MANY: usize = 16;

/// Walks the state `meta` describes. Also gives the pages it does not use.
pub(super) fn check(pages: Pages<'_>, meta: &Meta) -> Result<(Report, FreeRuns)> {
    let used = Used::new(meta.high_water);
    used.claim(0);
    used.claim(1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let spare = AtomicUsize::new(if meta.high_water < LARGE { 0 } else { threads - 1 });
    let windows = RefCell::default();
    let pages = Pages { windows: Some(&windows), ..pages };
    let mut walk = Walk { pages, used: &used, spare: &spare, bucket: Vec::new(), held: 0, report: Report::default() };
    let listed = match meta.freelist {
        Some(id) => walk.freelist(id)?,
        None => None,
    };
    walk.page(meta.root, Bounds::default(), 0)?;
    let (free, unused) = used.others(meta.high_water);
    if let Some(mut listed) = listed {
        listed.sort_unstable();
        let mut sound = Vec::with_capacity(listed.len());
        for (i, &id) in listed.iter().enumerate() {
            if id < 2 || id >= meta.high_water || (i > 0 && listed[i - 1] == id) {
                walk.found(Problem::BadFree(id));
            } else if used.contains(id) {
                walk.found(Problem::FreeInUse(id));
            } else {
                sound.push(id);
            }
        }
        let count = unused - sound.len() as u64;
        if let Some(first) = free.ids().find(|id| sound.binary_search(id).is_err()) {
            walk.found(Problem::Leaked { first, count });
        }
    }
    Ok((walk.report, free))
}

/// Which pages are in use, in parts that are made when one of their pages is: most of a hostile file may be a hole.
struct Used(Vec<OnceLock<Box<[AtomicU64]>>>);

/// Words of 64 pages in a part.
const PART: u64 = 512;

impl Used {
    fn new(high_water: u64) -> Self {
        Self((0..=high_water / 64 / PART).map(|_| OnceLock::new()).collect())
    }

    fn part(&self, id: u64) -> Option<&OnceLock<Box<[AtomicU64]>>> {
        self.0.get(usize::try_from(id / 64 / PART).ok()?)
    }

    /// Whether it was claimed before.
    fn contains(&self, id: u64) -> bool {
        self.word(id) & (1 << (id % 64)) != 0
    }

    /// The word in which a page is.
    fn word(&self, id: u64) -> u64 {
        let part = self.part(id).and_then(OnceLock::get);
        part.map_or(0, |part| part[(id / 64 % PART) as usize].load(Ordering::Relaxed))
    }

    /// Marks a page as used; `false` when it was before.
    fn claim(&self, id: u64) -> bool {
        let Some(part) = self.part(id) else { return false };
        let part = part.get_or_init(|| (0..PART).map(|_| AtomicU64::new(0)).collect());
        let bit = 1 << (id % 64);
        part[(id / 64 % PART) as usize].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Runs of pages below the high-water mark that are not used, and how many pages they are.
    fn others(&self, high_water: u64) -> (FreeRuns, u64) {
        let (mut free, mut count) = (FreeRuns::default(), 0);
        let mut id = 2;
        while id < high_water {
            let start = id;
            while id < high_water && !self.contains(id) {
                let untouched = self.part(id).is_none_or(|part| part.get().is_none());
                let step = match id {
                    _ if untouched && id % (64 * PART) == 0 => 64 * PART,
                    _ if id % 64 == 0 && self.word(id) == 0 => 64,
                    _ => 1,
                };
                id = high_water.min(id + step);
            }
            if id > start {
                free.add(start, id - start);
                count += id - start;
            } else {
                id += 1;
            }
        }
        (free, count)
    }
}

/// Where the keys of a page must lie; a root page has no bounds.
#[derive(Default, Clone, Copy)]
struct Bounds<'b> {
    from: Option<&'b [u8]>,
    below: Option<&'b [u8]>,
}

struct Walk<'s> {
    pages: Pages<'s>,
    used: &'s Used,
    /// Threads that may still be started.
    spare: &'s AtomicUsize,
    /// Keys from the root to the bucket that is being walked.
    bucket: Vec<Vec<u8>>,
    /// Bytes of pages with overflow that are held on the way to it.
    held: usize,
    report: Report,
}

impl Walk<'_> {
    fn found(&mut self, problem: Problem) {
        let shown = |key: &Vec<u8>| key[..key.len().min(SHOWN_KEY)].to_vec();
        self.report.add(Finding { problem, bucket: self.bucket.iter().map(shown).collect() });
    }

    /// Reads a page and marks it and its overflow; `None` after noting what is wrong.
    fn claim(&mut self, id: u64) -> Result<Option<(Header, Page)>> {
        let (header, bytes) = match self.pages.read(id) {
            Ok(read) => read,
            Err(error) => return self.note(error).map(|()| None),
        };
        for id in id..=id + u64::from(header.overflow) {
            if !self.used.claim(id) {
                self.found(Problem::UsedTwice(id));
                return Ok(None);
            }
        }
        Ok(Some((header, bytes)))
    }

    /// Damage is noted and the walk goes on; anything else ends it.
    fn note(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Damaged(problem) => {
                self.found(problem);
                Ok(())
            }
            other => Err(other),
        }
    }

    fn freelist(&mut self, id: u64) -> Result<Option<Vec<u64>>> {
        let Some((header, bytes)) = self.claim(id)? else { return Ok(None) };
        if header.kind != Some(Kind::Freelist) {
            self.found(Problem::BadPage { id, what: "not the freelist it should be" });
            return Ok(None);
        }
        match decode_freelist(&bytes) {
            Ok(ids) => Ok(Some(ids)),
            Err(error) => self.note(error).map(|()| None),
        }
    }

    /// Walks a page; the height of the tree below it, where that is sound.
    fn page(&mut self, id: u64, bounds: Bounds<'_>, depth: usize) -> Result<Option<usize>> {
        if depth > MAX_DEPTH {
            self.found(Problem::TooDeep(id));
            return Ok(None);
        }
        let Some((header, bytes)) = self.claim(id)? else { return Ok(None) };
        let held = if header.overflow == 0 { 0 } else { bytes.len() };
        if self.held + held > MAX_PAGE {
            self.found(Problem::BadPage { id, what: "a page behind more overflow pages than prebake reads" });
            return Ok(None);
        }
        self.held += held;
        let height = self.node(&bytes, id, bounds, depth);
        self.held -= held;
        height
    }

    fn node(&mut self, bytes: &[u8], id: u64, bounds: Bounds<'_>, depth: usize) -> Result<Option<usize>> {
        let parsed = elements(bytes, id).and_then(|(branch, list)| Ok((branch, list.collect::<Result<Vec<_>>>()?)));
        let (branch, list) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return self.note(error).map(|()| None),
        };
        let sorted = list.is_sorted_by(|a, b| a.key() < b.key())
            && bounds.from.is_none_or(|from| list.first().is_none_or(|first| first.key() >= from))
            && bounds.below.is_none_or(|below| list.last().is_none_or(|last| last.key() < below));
        if !sorted {
            self.found(Problem::KeyOrder(id));
        }
        match (branch, list.len()) {
            (true, 0) => self.found(Problem::BadPage { id, what: "a branch without children" }),
            (true, 1) => self.found(Problem::LoneChild(id)),
            (false, 0) if bounds.from.is_some() => self.found(Problem::EmptyLeaf(id)),
            _ => {}
        }
        let height = self.below(&list, id, bounds, depth)?;
        Ok(if branch { height.map(|height| height + 1) } else { Some(0) })
    }

    /// Walks what the elements of a page lead to; the height of the first sound child of a branch.
    fn below(&mut self, list: &[Element<'_>], id: u64, bounds: Bounds<'_>, depth: usize) -> Result<Option<usize>> {
        let many = list.len() >= MANY && matches!(list[0], Element::Branch { .. });
        if many && self.spare.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            let (left, right) = list.split_at(list.len() / 2);
            let middle = right.first().map(Element::key).or(bounds.below);
            let (left, right) = std::thread::scope(|scope| {
                let (pages, used, spare) = (Pages { windows: None, ..self.pages }, self.used, self.spare);
                let (storage, page_size, high_water) = (pages.storage, pages.page_size, pages.high_water);
                let (bucket, held) = (self.bucket.clone(), self.held);
                let beside = scope.spawn(move || {
                    let windows: RefCell<Windows> = RefCell::default();
                    let pages = Pages { storage, page_size, high_water, windows: Some(&windows) };
                    let mut walk = Walk { pages, used, spare, bucket, held, report: Report::default() };
                    let height = walk.below(right, id, bounds, depth);
                    spare.fetch_add(1, Ordering::Relaxed);
                    height.map(|height| (height, walk.report))
                });
                let left = self.below(left, id, Bounds { below: middle, ..bounds }, depth);
                (left, beside.join())
            });
            let (right, report) = right.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let left = left?;
            report.findings.into_iter().for_each(|finding| self.report.add(finding));
            self.report.more += report.more;
            if let (Some(left), Some(right), Some(Element::Branch { child, .. })) =
                (left, right, list.get(list.len() / 2))
                && left != right
            {
                self.found(Problem::Unbalanced(*child));
            }
            return Ok(left.or(right));
        }
        let mut height = None;
        for (i, element) in list.iter().enumerate() {
            match element {
                Element::Value { .. } => {}
                Element::Bucket { key, value } => {
                    self.bucket.push(key.to_vec());
                    self.bucket(value, id, depth)?;
                    self.bucket.pop();
                }
                Element::Branch { key, child } => {
                    let below = list.get(i + 1).map(Element::key).or(bounds.below);
                    let under = self.page(*child, Bounds { from: Some(key), below }, depth + 1)?;
                    if height.is_some() && under.is_some() && under != height {
                        self.found(Problem::Unbalanced(*child));
                    }
                    height = height.or(under);
                }
            }
        }
        Ok(height)
    }

    fn bucket(&mut self, value: &[u8], id: u64, depth: usize) -> Result<()> {
        match Bucket::header(value, id) {
            Err(error) => self.note(error),
            Ok((0, _)) => {
                let inline = inline_elements(&value[BUCKET_HEADER..], id);
                match inline.and_then(Iterator::collect::<Result<Vec<_>>>) {
                    Ok(list) if list.is_sorted_by(|a, b| a.key() < b.key()) => Ok(()),
                    Ok(_) => self.note(Error::Damaged(Problem::KeyOrder(id))),
                    Err(error) => self.note(error),
                }
            }
            Ok((root, _)) => self.page(root, Bounds::default(), depth + 1).map(drop),
        }
    }
}
