//! How much of what a database holds.

use super::Result;
use super::alloc::Pages;
use super::bucket::{BUCKET_HEADER, Bucket};
use super::node::{Child, Element, Value, elements, inline_elements};

/// What is in a bucket and in all the buckets in it; the bucket itself counts as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Buckets.
    pub buckets: u64,
    /// Those of them that lie in their parent's page.
    pub inline_buckets: u64,
    /// Plain keys.
    pub keys: u64,
    /// Bytes of these keys and their values.
    pub bytes: u64,
    /// Pages that lead to others.
    pub branch_pages: u64,
    /// Pages with keys and values.
    pub leaf_pages: u64,
    /// Pages that continue one of these.
    pub overflow_pages: u64,
    /// The most pages from a bucket's root to a leaf.
    pub depth: u64,
}

pub(super) fn stats(bucket: &Bucket, pages: &Pages<'_>) -> Result<Stats> {
    let mut stats = Stats { buckets: 1, ..Stats::default() };
    match &bucket.root {
        Child::Stored(id) => stats.page(*id, 1, pages)?,
        Child::Loaded(_) => {
            stats.inline_buckets = 1;
            bucket.each(pages, &mut |key, value| {
                if let Value::Bytes(value) = value {
                    stats.key(key, value);
                }
                Ok(())
            })?;
        }
    }
    Ok(stats)
}

impl Stats {
    fn key(&mut self, key: &[u8], value: &[u8]) {
        self.keys += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }

    fn page(&mut self, id: u64, depth: u64, pages: &Pages<'_>) -> Result<()> {
        let (header, page) = pages.read(id)?;
        let (branch, elements) = elements(&page, id)?;
        *(if branch { &mut self.branch_pages } else { &mut self.leaf_pages }) += 1;
        self.overflow_pages += u64::from(header.overflow);
        self.depth = self.depth.max(depth);
        for element in elements {
            match element? {
                Element::Branch { child, .. } => self.page(child, depth + 1, pages)?,
                Element::Value { key, value } => self.key(key, value),
                Element::Bucket { value, .. } => {
                    self.buckets += 1;
                    match Bucket::header(value, id)?.0 {
                        0 => {
                            self.inline_buckets += 1;
                            for element in inline_elements(&value[BUCKET_HEADER..], id)? {
                                if let Element::Value { key, value } = element? {
                                    self.key(key, value);
                                }
                            }
                        }
                        root => self.page(root, 1, pages)?,
                    }
                }
            }
        }
        Ok(())
    }
}
