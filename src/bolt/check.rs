//! Verification of a whole file: what bbolt's `Tx.Check` finds, and what it misses and later panics on.

use super::alloc::{FreeRuns, Pages};
use super::bucket::Bucket;
use super::node::{Child, Node, Value};
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
    walk.page(meta.root, &Bounds::default(), 0)?;
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
#[derive(Default)]
struct Bounds {
    from: Option<Vec<u8>>,
    below: Option<Vec<u8>>,
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
    fn page(&mut self, id: u64, bounds: &Bounds, depth: usize) -> Result<Option<usize>> {
        if depth > MAX_DEPTH {
            self.report.problems.push(Problem::TooDeep(id));
            return Ok(None);
        }
        let Some((_, bytes)) = self.claim(id)? else { return Ok(None) };
        let node = match Node::decode(&bytes, id) {
            Ok(node) => node,
            Err(error) => return self.note(error).map(|()| None),
        };
        drop(bytes);
        self.node(&node, id, bounds, depth)
    }

    fn node(&mut self, node: &Node, id: u64, bounds: &Bounds, depth: usize) -> Result<Option<usize>> {
        let keys: Vec<&[u8]> = match node {
            Node::Branch(entries) => entries.iter().map(|e| e.key.as_slice()).collect(),
            Node::Leaf(entries) => entries.iter().map(|e| e.key.as_slice()).collect(),
        };
        let sorted = keys.windows(2).all(|pair| pair[0] < pair[1])
            && bounds.from.as_deref().is_none_or(|from| keys.first().is_none_or(|first| *first >= from))
            && bounds.below.as_deref().is_none_or(|below| keys.last().is_none_or(|last| *last < below));
        if !sorted {
            self.report.problems.push(Problem::KeyOrder(id));
        }
        match node {
            Node::Branch(entries) => {
                match entries.len() {
                    0 => self.report.problems.push(Problem::BadPage { id, what: "a branch without children" }),
                    1 => self.report.problems.push(Problem::LoneChild(id)),
                    _ => {}
                }
                let mut height = None;
                for (i, entry) in entries.iter().enumerate() {
                    let Child::Stored(child) = entry.child else { unreachable!("decoded children are stored") };
                    let inner = Bounds {
                        from: Some(entry.key.clone()),
                        below: keys.get(i + 1).map(|key| key.to_vec()).or_else(|| bounds.below.clone()),
                    };
                    let below = self.page(child, &inner, depth + 1)?;
                    if height.is_some() && below.is_some() && below != height {
                        self.report.problems.push(Problem::Unbalanced(child));
                    }
                    height = height.or(below);
                }
                Ok(height.map(|height| height + 1))
            }
            Node::Leaf(entries) => {
                if entries.is_empty() && bounds.from.is_some() {
                    self.report.problems.push(Problem::EmptyLeaf(id));
                }
                for entry in entries {
                    if let Value::Bucket(bucket) = &entry.value {
                        self.bucket(bucket, id, depth)?;
                    }
                }
                Ok(Some(0))
            }
        }
    }

    fn bucket(&mut self, bucket: &Bucket, id: u64, depth: usize) -> Result<()> {
        match &bucket.root {
            Child::Stored(root) => self.page(*root, &Bounds::default(), depth + 1).map(drop),
            Child::Loaded(inline) => self.node(inline, id, &Bounds::default(), depth + 1).map(drop),
        }
    }
}
