//! Nodes: the elements of one branch or leaf page, in memory.

use super::bucket::Bucket;
use super::page::{HEADER, Header, Kind, u32_at, u64_at};
use super::{Error, MAX_KEY, Problem, Result};

const ELEMENT: usize = 16;
const BUCKET_FLAG: u32 = 0x01;

/// A subtree: on disk, or loaded because this transaction changes it.
#[derive(Debug)]
pub(super) enum Child {
    Stored(u64),
    Loaded(Box<Node>),
}

#[derive(Debug)]
pub(super) struct Branch {
    /// Not above the first key of the child; written as exactly that key.
    pub(super) key: Vec<u8>,
    pub(super) child: Child,
}

#[derive(Debug)]
pub(super) enum Value {
    Bytes(Vec<u8>),
    Bucket(Bucket),
}

#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) key: Vec<u8>,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Node {
    Branch(Vec<Branch>),
    Leaf(Vec<Leaf>),
}

/// An element where it lies on its page.
#[derive(Debug, Clone, Copy)]
pub(super) enum Element<'b> {
    Branch { key: &'b [u8], child: u64 },
    Value { key: &'b [u8], value: &'b [u8] },
    Bucket { key: &'b [u8], value: &'b [u8] },
}

impl<'b> Element<'b> {
    pub(super) fn key(&self) -> &'b [u8] {
        match self {
            Self::Branch { key, .. } | Self::Value { key, .. } | Self::Bucket { key, .. } => key,
        }
    }
}

/// The elements of a page with its overflow pages, or of an inline page, and whether it is a branch. `id` is only for
/// messages.
pub(super) fn elements(b: &[u8], id: u64) -> Result<(bool, impl Iterator<Item = Result<Element<'_>>>)> {
    let bad = move |what| Error::Damaged(Problem::BadPage { id, what });
    if b.len() < HEADER {
        return Err(bad("a page shorter than its header"));
    }
    let header = Header::decode(b);
    let branch = match header.kind {
        Some(Kind::Branch) => true,
        Some(Kind::Leaf) => false,
        _ => return Err(bad("neither a branch nor a leaf")),
    };
    let table = HEADER + header.count * ELEMENT;
    // Elements that share bytes would let a small page claim gigabytes.
    let mut room = b.len().checked_sub(table).ok_or_else(|| bad("more elements than the page has room for"))?;
    let mut slice = move |at: usize, from: usize, len: usize| {
        room = room.checked_sub(len).ok_or_else(|| bad("elements that overlap"))?;
        let start = at + from;
        b.get(start..start.saturating_add(len)).ok_or_else(|| bad("an element outside its page"))
    };
    let bounded = move |ksize| if ksize > MAX_KEY { Err(bad("a key longer than bbolt accepts")) } else { Ok(ksize) };
    let element = move |i| {
        let at = HEADER + i * ELEMENT;
        if branch {
            let ksize = u32_at(b, at + 4) as usize;
            let key = slice(at, u32_at(b, at) as usize, bounded(ksize)?)?;
            return Ok(Element::Branch { key, child: u64_at(b, at + 8) });
        }
        let (pos, ksize) = (u32_at(b, at + 4) as usize, u32_at(b, at + 8) as usize);
        let key = slice(at, pos, bounded(ksize)?)?;
        let value = slice(at, pos.saturating_add(ksize), u32_at(b, at + 12) as usize)?;
        Ok(match u32_at(b, at) & BUCKET_FLAG {
            0 => Element::Value { key, value },
            _ => Element::Bucket { key, value },
        })
    };
    Ok((branch, (0..header.count).map(element)))
}

/// The elements of the page inside a bucket's value: a leaf's, and none of them a bucket.
pub(super) fn inline_elements(b: &[u8], id: u64) -> Result<impl Iterator<Item = Result<Element<'_>>>> {
    let bad = move |what| Error::Damaged(Problem::BadPage { id, what });
    let (branch, elements) = elements(b, id)?;
    if branch {
        return Err(bad("an inline bucket that is a branch"));
    }
    Ok(elements.map(move |element| match element? {
        Element::Bucket { .. } => Err(bad("a bucket inside an inline bucket")),
        element => Ok(element),
    }))
}

impl Node {
    /// Decodes a page with its overflow pages.
    pub(super) fn decode(b: &[u8], id: u64) -> Result<Self> {
        let (branch, elements) = elements(b, id)?;
        if branch {
            let entry = |element| match element? {
                Element::Branch { key, child } => Ok(Branch { key: key.to_vec(), child: Child::Stored(child) }),
                Element::Value { .. } | Element::Bucket { .. } => unreachable!("a branch's element"),
            };
            return elements.map(entry).collect::<Result<_>>().map(Self::Branch);
        }
        let entry = |element| match element? {
            Element::Value { key, value } => Ok(Leaf { key: key.to_vec(), value: Value::Bytes(value.to_vec()) }),
            Element::Bucket { key, value } => {
                Ok(Leaf { key: key.to_vec(), value: Value::Bucket(Bucket::decode(value, id)?) })
            }
            Element::Branch { .. } => unreachable!("a leaf's element"),
        };
        elements.map(entry).collect::<Result<_>>().map(Self::Leaf)
    }

    /// Decodes the page inside a bucket's value.
    pub(super) fn decode_inline(b: &[u8], id: u64) -> Result<Self> {
        let entry = |element: Result<Element<'_>>| match element? {
            Element::Value { key, value } => Ok(Leaf { key: key.to_vec(), value: Value::Bytes(value.to_vec()) }),
            Element::Branch { .. } | Element::Bucket { .. } => unreachable!("not in an inline page"),
        };
        inline_elements(b, id)?.map(entry).collect::<Result<_>>().map(Self::Leaf)
    }

    /// Encodes as page `id` with `overflow` more pages; the caller pads.
    pub(super) fn encode(&self, id: u64, overflow: u32) -> Vec<u8> {
        let kind = if matches!(self, Self::Branch(_)) { Kind::Branch } else { Kind::Leaf };
        let mut out = Header::encode(id, kind, self.len(), overflow).to_vec();
        let mut data = Vec::new();
        let table = self.len() * ELEMENT;
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let pos = |data: &Vec<u8>, i: usize| word(table - i * ELEMENT + data.len());
        match self {
            Self::Branch(entries) => {
                for (i, entry) in entries.iter().enumerate() {
                    out.extend(pos(&data, i));
                    out.extend(word(entry.key.len()));
                    let Child::Stored(child) = entry.child else {
                        unreachable!("children are stored before their parent")
                    };
                    out.extend(child.to_le_bytes());
                    data.extend(&entry.key);
                }
            }
            Self::Leaf(entries) => {
                for (i, entry) in entries.iter().enumerate() {
                    let at = pos(&data, i);
                    data.extend(&entry.key);
                    let start = data.len();
                    let flags = match &entry.value {
                        Value::Bytes(bytes) => {
                            data.extend(bytes);
                            0
                        }
                        Value::Bucket(bucket) => {
                            bucket.encode(&mut data);
                            BUCKET_FLAG
                        }
                    };
                    out.extend(flags.to_le_bytes());
                    out.extend(at);
                    out.extend(word(entry.key.len()));
                    out.extend(word(data.len() - start));
                }
            }
        }
        out.extend(data);
        out
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Branch(entries) => entries.len(),
            Self::Leaf(entries) => entries.len(),
        }
    }

    /// Bytes of the encoded page.
    pub(super) fn size(&self) -> usize {
        HEADER
            + match self {
                Self::Branch(entries) => entries.iter().map(Branch::size).sum::<usize>(),
                Self::Leaf(entries) => entries.iter().map(Leaf::size).sum::<usize>(),
            }
    }

    /// The smallest key; empty for an empty leaf.
    pub(super) fn first_key(&self) -> &[u8] {
        match self {
            Self::Branch(entries) => entries.first().map_or(&[], |e| &e.key),
            Self::Leaf(entries) => entries.first().map_or(&[], |e| &e.key),
        }
    }

    /// Moves everything of `right` behind what is here. Both are of one kind, as all nodes of one level are.
    pub(super) fn append(&mut self, right: Self) {
        match (self, right) {
            (Self::Branch(left), Self::Branch(right)) => left.extend(right),
            (Self::Leaf(left), Self::Leaf(right)) => left.extend(right),
            _ => unreachable!("the depth of siblings is verified when a database is opened"),
        }
    }

    /// Cuts into nodes that fit a page each where they can: even shares, and never a branch of one child.
    pub(super) fn split(self, page_size: usize) -> Vec<Self> {
        match self {
            Self::Branch(entries) => split(entries, Branch::size, page_size, 2).into_iter().map(Self::Branch).collect(),
            Self::Leaf(entries) => split(entries, Leaf::size, page_size, 1).into_iter().map(Self::Leaf).collect(),
        }
    }
}

impl Branch {
    fn size(&self) -> usize {
        ELEMENT + self.key.len()
    }
}

impl Leaf {
    fn size(&self) -> usize {
        let value = match &self.value {
            Value::Bytes(bytes) => bytes.len(),
            Value::Bucket(bucket) => bucket.encoded_len(),
        };
        ELEMENT + self.key.len() + value
    }
}

fn split<T>(entries: Vec<T>, size_of: fn(&T) -> usize, page_size: usize, min: usize) -> Vec<Vec<T>> {
    let total: usize = entries.iter().map(size_of).sum();
    let room = page_size - HEADER;
    if total <= room {
        return vec![entries];
    }
    let share = total / total.div_ceil(room);
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut part = Vec::new();
    let mut size = 0;
    for entry in entries {
        let more = size_of(&entry);
        if part.len() >= min && (size >= share || size + more > room) {
            parts.push(std::mem::take(&mut part));
            size = 0;
        }
        size += more;
        part.push(entry);
    }
    match parts.last_mut() {
        Some(last) if part.len() < min => last.append(&mut part),
        _ => parts.push(part),
    }
    parts
}
