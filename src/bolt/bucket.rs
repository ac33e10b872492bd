//! Buckets: a tree of nodes and a sequence, changed in memory and settled onto pages at commit.

use std::cmp::Ordering;

use super::alloc::{Pager, Pages};
use super::node::{Branch, Child, Leaf, Node, Value};
use super::page::u64_at;
use super::{Error, Problem, Result};

pub(super) const BUCKET_HEADER: usize = 16;

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) sequence: u64,
    pub(super) root: Child,
}

impl Bucket {
    pub(super) fn empty() -> Self {
        Self { sequence: 0, root: Child::Loaded(Box::new(Node::Leaf(Vec::new()))) }
    }

    /// Decodes a bucket's value on page `id`.
    pub(super) fn decode(b: &[u8], id: u64) -> Result<Self> {
        let (root, sequence) = Self::header(b, id)?;
        let root = match root {
            0 => Child::Loaded(Box::new(Node::decode_inline(&b[BUCKET_HEADER..], id)?)),
            root => Child::Stored(root),
        };
        Ok(Self { sequence, root })
    }

    /// Root page and sequence of a bucket's value on page `id`; root 0: an inline page follows.
    pub(super) fn header(b: &[u8], id: u64) -> Result<(u64, u64)> {
        if b.len() < BUCKET_HEADER {
            return Err(Error::Damaged(Problem::BadPage { id, what: "a bucket shorter than its header" }));
        }
        Ok((u64_at(b, 0), u64_at(b, 8)))
    }

    /// Bytes of the bucket's value, once it is settled.
    pub(super) fn encoded_len(&self) -> usize {
        match &self.root {
            Child::Stored(_) => BUCKET_HEADER,
            Child::Loaded(node) => BUCKET_HEADER + node.size(),
        }
    }

    /// Appends the bucket's value. A root that is still loaded goes inline.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let root = if let Child::Stored(id) = self.root { id } else { 0 };
        out.extend(root.to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        if let Child::Loaded(node) = &self.root {
            out.extend(node.encode(0, 0));
        }
    }

    /// Gives `f` the value at `key`.
    pub(super) fn find<R>(
        &self,
        key: &[u8],
        pages: &Pages<'_>,
        f: &mut dyn FnMut(Option<&Value>) -> Result<R>,
    ) -> Result<R> {
        with_node(&self.root, pages, |node| find(node, key, pages, f))
    }

    /// Gives `f` every entry in the order of keys.
    pub(super) fn each(&self, pages: &Pages<'_>, f: &mut dyn FnMut(&[u8], &Value) -> Result<()>) -> Result<()> {
        with_node(&self.root, pages, |node| each(node, pages, f))
    }

    /// The leaf in which `key` is or belongs, loaded to be changed.
    pub(super) fn leaf_mut(&mut self, key: &[u8], pager: &mut Pager<'_>) -> Result<&mut Vec<Leaf>> {
        let mut child = &mut self.root;
        loop {
            match load(child, pager)? {
                Node::Leaf(entries) => return Ok(entries),
                Node::Branch(entries) => {
                    let i = child_index(entries, key);
                    child = &mut entries[i].child;
                }
            }
        }
    }

    /// Frees every page of the bucket and of the buckets in it.
    pub(super) fn free(self, pager: &mut Pager<'_>) -> Result<()> {
        free(self.root, pager)
    }

    /// Brings the tree into the shape bbolt asks for and writes what changed; afterwards the root is stored, or goes
    /// inline into its parent's leaf. The root bucket of a file is never inline.
    pub(super) fn settle(&mut self, may_inline: bool, pager: &mut Pager<'_>) -> Result<()> {
        let Child::Loaded(node) = &mut self.root else { return Ok(()) };
        rebalance(node, pager)?;
        while let Node::Branch(entries) = &mut **node {
            match entries.len() {
                0 => **node = Node::Leaf(Vec::new()),
                1 => {
                    let Some(only) = entries.pop() else { unreachable!("one entry") };
                    match only.child {
                        Child::Stored(id) => {
                            self.root = Child::Stored(id);
                            return Ok(());
                        }
                        Child::Loaded(child) => *node = child,
                    }
                }
                _ => break,
            }
        }
        if may_inline && fits_inline(node, pager.page_size) {
            return Ok(());
        }
        let mut node = std::mem::replace(&mut **node, Node::Leaf(Vec::new()));
        loop {
            let mut parts = store(node, pager)?;
            if parts.len() == 1 {
                let Some(Branch { child, .. }) = parts.pop() else { unreachable!("one part") };
                self.root = child;
                return Ok(());
            }
            node = Node::Branch(parts);
        }
    }
}

/// bbolt's rule (`Bucket.inlineable`): one leaf, no sub-buckets, at most a quarter of a page.
fn fits_inline(node: &Node, page_size: usize) -> bool {
    let Node::Leaf(entries) = node else { return false };
    node.size() <= page_size / 4 && entries.iter().all(|e| matches!(e.value, Value::Bytes(_)))
}

/// Where `key` is among the entries of a leaf, or would go.
pub(super) fn position(entries: &[Leaf], key: &[u8]) -> std::result::Result<usize, usize> {
    // Many records in a row go to the end of a long leaf.
    match entries.last().map(|last| last.key.as_slice().cmp(key)) {
        None | Some(Ordering::Less) => Err(entries.len()),
        Some(Ordering::Equal) => Ok(entries.len() - 1),
        Some(Ordering::Greater) => entries.binary_search_by(|e| e.key.as_slice().cmp(key)),
    }
}

/// The child that holds `key` if any does: the last one whose key is not above it, else the first.
pub(super) fn child_index(entries: &[Branch], key: &[u8]) -> usize {
    entries.partition_point(|e| e.key.as_slice() <= key).saturating_sub(1)
}

fn load<'c>(child: &'c mut Child, pager: &mut Pager<'_>) -> Result<&'c mut Node> {
    if let Child::Stored(id) = *child {
        *child = Child::Loaded(Box::new(pager.load(id)?));
    }
    match child {
        Child::Loaded(node) => Ok(node),
        Child::Stored(_) => unreachable!("just loaded"),
    }
}

fn with_node<R>(child: &Child, pages: &Pages<'_>, f: impl FnOnce(&Node) -> Result<R>) -> Result<R> {
    match child {
        Child::Loaded(node) => f(node),
        Child::Stored(id) => f(&pages.node(*id)?),
    }
}

/// Gives `f` the value at `key` below a node.
pub(super) fn find<R>(
    node: &Node,
    key: &[u8],
    pages: &Pages<'_>,
    f: &mut dyn FnMut(Option<&Value>) -> Result<R>,
) -> Result<R> {
    match node {
        Node::Branch(entries) => match entries.get(child_index(entries, key)) {
            Some(entry) => with_node(&entry.child, pages, |node| find(node, key, pages, f)),
            None => f(None),
        },
        Node::Leaf(entries) => f(position(entries, key).ok().map(|i| &entries[i].value)),
    }
}

/// Gives `f` every entry below a node.
pub(super) fn each(node: &Node, pages: &Pages<'_>, f: &mut dyn FnMut(&[u8], &Value) -> Result<()>) -> Result<()> {
    match node {
        Node::Branch(entries) => {
            entries.iter().try_for_each(|e| with_node(&e.child, pages, |node| each(node, pages, f)))
        }
        Node::Leaf(entries) => entries.iter().try_for_each(|e| f(&e.key, &e.value)),
    }
}

fn free(child: Child, pager: &mut Pager<'_>) -> Result<()> {
    let node = match child {
        Child::Loaded(node) => *node,
        Child::Stored(id) => pager.load(id)?,
    };
    match node {
        Node::Branch(entries) => entries.into_iter().try_for_each(|e| free(e.child, pager)),
        Node::Leaf(entries) => entries.into_iter().try_for_each(|e| match e.value {
            Value::Bucket(bucket) => bucket.free(pager),
            Value::Bytes(_) => Ok(()),
        }),
    }
}

fn underfull(node: &Node, page_size: usize) -> bool {
    node.size() < page_size / 4 || (matches!(node, Node::Branch(_)) && node.len() < 2)
}

/// Settles the buckets in the changed leaves, drops empty children, and merges small ones with a neighbour, so that
/// below `node` no branch is left with fewer than two children.
fn rebalance(node: &mut Node, pager: &mut Pager<'_>) -> Result<()> {
    let entries = match node {
        Node::Leaf(entries) => {
            return entries.iter_mut().try_for_each(|e| match &mut e.value {
                Value::Bucket(bucket) => bucket.settle(true, pager),
                Value::Bytes(_) => Ok(()),
            });
        }
        Node::Branch(entries) => entries,
    };
    for entry in entries.iter_mut() {
        if let Child::Loaded(child) = &mut entry.child {
            rebalance(child, pager)?;
        }
    }
    entries.retain(|e| !matches!(&e.child, Child::Loaded(child) if child.len() == 0));
    while entries.len() > 1 {
        let small = |e: &Branch| matches!(&e.child, Child::Loaded(child) if underfull(child, pager.page_size));
        let Some(i) = entries.iter().position(small) else { break };
        let mut right = entries.remove(i.max(1));
        let left = load(&mut entries[i.max(1) - 1].child, pager)?;
        load(&mut right.child, pager)?;
        let Child::Loaded(right) = right.child else { unreachable!("just loaded") };
        left.append(*right);
        // A lone grandchild has neighbours now.
        rebalance(left, pager)?;
    }
    Ok(())
}

/// Writes a node and its loaded children, as as many pages as it takes: what their parent then refers to.
fn store(node: Node, pager: &mut Pager<'_>) -> Result<Vec<Branch>> {
    let node = match node {
        Node::Branch(entries) => {
            let mut stored = Vec::with_capacity(entries.len());
            for entry in entries {
                match entry.child {
                    Child::Stored(_) => stored.push(entry),
                    Child::Loaded(child) => stored.extend(store(*child, pager)?),
                }
            }
            Node::Branch(stored)
        }
        leaf @ Node::Leaf(_) => leaf,
    };
    node.split(pager.page_size)
        .into_iter()
        .map(|part| Ok(Branch { key: part.first_key().to_vec(), child: Child::Stored(pager.store(&part)?) }))
        .collect()
}
