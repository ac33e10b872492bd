//! Verification of a whole file: what bbolt's `Tx.Check` finds, and what it misses and later panics on.

use super::alloc::{FreeRuns, Pages};
use super::bucket::{BUCKET_HEADER, Bucket};
use super::node::{Element, elements, inline_elements};
use super::page::{Header, Kind, Meta, decode_freelist};
use super::{Error, MAX_DEPTH, Result};

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
    #[error("{0} pages are neither in use nor on the freelist")]
    Leaked(u64),
    /// The file ends before its high-water mark; bbolt would crash with SIGBUS.
    #[error("the file has {has} bytes and needs {needs}")]
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
        !matches!(self, Self::LoneChild(_) | Self::EmptyLeaf(_) | Self::Leaked(_))
    }
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Report {
    /// Everything wrong, in the order it was met; empty when the file is sound.
    pub problems: Vec<Problem>,
}

/// Walks the state `meta` describes. Also gives the pages it does not use.
pub(super) fn check(pages: Pages<'_>, meta: &Meta) -> Result<(Report, FreeRuns)> {
    let mut walk = Walk {
        pages,
        used: vec![0; usize::try_from(meta.high_water / 64 + 1).unwrap_or(0)],
        report: Report::default(),
    };
    walk.used[0] |= 0b11;
    let listed = match meta.freelist {
        Some(id) => walk.freelist(id)?,
        None => None,
    };
    walk.page(meta.root, Bounds::default(), 0)?;
    let mut free = FreeRuns::default();
    let mut unused = 0;
    for id in (2..meta.high_water).filter(|id| !walk.is_used(*id)) {
        free.add(id, 1);
        unused += 1;
    }
    if let Some(mut listed) = listed {
        listed.sort_unstable();
        let mut sound = 0;
        for (i, &id) in listed.iter().enumerate() {
            if id < 2 || id >= meta.high_water || (i > 0 && listed[i - 1] == id) {
                walk.report.problems.push(Problem::BadFree(id));
            } else if walk.is_used(id) {
                walk.report.problems.push(Problem::FreeInUse(id));
            } else {
                sound += 1;
            }
        }
        if unused > sound {
            walk.report.problems.push(Problem::Leaked(unused - sound));
        }
    }
    Ok((walk.report, free))
}

/// Where the keys of a page must lie; a root page has no bounds.
#[derive(Default, Clone, Copy)]
struct Bounds<'b> {
    from: Option<&'b [u8]>,
    below: Option<&'b [u8]>,
}

struct Walk<'s> {
    pages: Pages<'s>,
    used: Vec<u64>,
    report: Report,
}

impl Walk<'_> {
    fn is_used(&self, id: u64) -> bool {
        usize::try_from(id / 64).is_ok_and(|i| self.used[i] & (1 << (id % 64)) != 0)
    }

    /// Reads a page and marks it and its overflow; `None` after noting what is wrong.
    fn claim(&mut self, id: u64) -> Result<Option<(Header, Vec<u8>)>> {
        let (header, bytes) = match self.pages.read(id) {
            Ok(read) => read,
            Err(error) => return self.note(error).map(|()| None),
        };
        for id in id..=id + u64::from(header.overflow) {
            if self.is_used(id) {
                self.report.problems.push(Problem::UsedTwice(id));
                return Ok(None);
            }
            if let Ok(i) = usize::try_from(id / 64) {
                self.used[i] |= 1 << (id % 64);
            }
        }
        Ok(Some((header, bytes)))
    }

    /// Damage is noted and the walk goes on; anything else ends it.
    fn note(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Damaged(problem) => {
                self.report.problems.push(problem);
                Ok(())
            }
            other => Err(other),
        }
    }

    fn freelist(&mut self, id: u64) -> Result<Option<Vec<u64>>> {
        let Some((header, bytes)) = self.claim(id)? else { return Ok(None) };
        if header.kind != Some(Kind::Freelist) {
            self.report.problems.push(Problem::BadPage { id, what: "not the freelist it should be" });
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
            self.report.problems.push(Problem::TooDeep(id));
            return Ok(None);
        }
        let Some((_, bytes)) = self.claim(id)? else { return Ok(None) };
        self.node(&bytes, id, bounds, depth)
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
            self.report.problems.push(Problem::KeyOrder(id));
        }
        match (branch, list.len()) {
            (true, 0) => self.report.problems.push(Problem::BadPage { id, what: "a branch without children" }),
            (true, 1) => self.report.problems.push(Problem::LoneChild(id)),
            (false, 0) if bounds.from.is_some() => self.report.problems.push(Problem::EmptyLeaf(id)),
            _ => {}
        }
        let mut height = None;
        for (i, element) in list.iter().enumerate() {
            match element {
                Element::Value { .. } => {}
                Element::Bucket { value, .. } => self.bucket(value, id, depth)?,
                Element::Branch { key, child } => {
                    let below = list.get(i + 1).map(Element::key).or(bounds.below);
                    let under = self.page(*child, Bounds { from: Some(key), below }, depth + 1)?;
                    if height.is_some() && under.is_some() && under != height {
                        self.report.problems.push(Problem::Unbalanced(*child));
                    }
                    height = height.or(under);
                }
            }
        }
        Ok(if branch { height.map(|height: usize| height + 1) } else { Some(0) })
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
