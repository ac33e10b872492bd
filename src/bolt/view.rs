//! Buckets to be read.

use super::alloc::{Page, Pages};
use super::bucket::{BUCKET_HEADER, Bucket, child_index, each, position};
use super::node::{Child, Element, Node, Value, elements, inline_elements};
use super::{Error, Result};

/// A bucket with its root page at hand, so that many keys of a small bucket cost one read.
pub struct View<'v> {
    sequence: u64,
    root: Root<'v>,
    pages: &'v Pages<'v>,
}

/// Where a bucket's elements are: changed by this transaction, on a page, or on the inline page in a value.
enum Root<'v> {
    Loaded(&'v Node),
    Page(u64, Page),
    Inline(u64, &'v [u8]),
}

/// An entry of a bucket that is being read.
pub enum Seen<'v> {
    /// A plain value.
    Value(&'v [u8]),
    /// A nested bucket.
    Bucket(View<'v>),
}

impl<'v> View<'v> {
    pub(super) fn new(bucket: &'v Bucket, pages: &'v Pages<'v>) -> Result<Self> {
        let root = match &bucket.root {
            Child::Loaded(node) => Root::Loaded(node),
            Child::Stored(id) => Root::Page(*id, pages.read(*id)?.1),
        };
        Ok(Self { sequence: bucket.sequence, root, pages })
    }

    /// The bucket whose value is on page `id`.
    fn of_value(value: &'v [u8], id: u64, pages: &'v Pages<'v>) -> Result<Self> {
        let root = match Bucket::header(value, id)?.0 {
            0 => Root::Inline(id, &value[BUCKET_HEADER..]),
            root => Root::Page(root, pages.read(root)?.1),
        };
        Ok(Self { sequence: Bucket::header(value, id)?.1, root, pages })
    }

    /// The bucket's sequence.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The value at `key`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `key` is a bucket; [`Error::Io`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.find(key, &mut |seen| match seen {
            None => Ok(None),
            Some(Seen::Value(bytes)) => Ok(Some(bytes.to_vec())),
            Some(Seen::Bucket(_)) => Err(Error::Invalid("a bucket where a value is expected")),
        })
    }

    /// Gives `f` the nested bucket at `key`, if there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `key` is a plain value; [`Error::Io`]; those of `f`.
    pub fn bucket<R>(&self, key: &[u8], f: &mut dyn FnMut(Option<View<'_>>) -> Result<R>) -> Result<R> {
        self.find(key, &mut |seen| match seen {
            None => f(None),
            Some(Seen::Bucket(view)) => f(Some(view)),
            Some(Seen::Value(_)) => Err(Error::Invalid("a value where a bucket is expected")),
        })
    }

    /// Gives `f` the bucket at a path from this one, if there is one.
    pub(super) fn at<R>(self, path: &[&[u8]], f: &mut dyn FnMut(Option<View<'_>>) -> Result<R>) -> Result<R> {
        let Some((key, rest)) = path.split_first() else { return f(Some(self)) };
        self.bucket(key, &mut |found| match found {
            None => f(None),
            Some(view) => view.at(rest, f),
        })
    }

    fn find<R>(&self, key: &[u8], f: &mut dyn FnMut(Option<Seen<'_>>) -> Result<R>) -> Result<R> {
        match &self.root {
            Root::Loaded(node) => self.find_in(node, key, f),
            Root::Page(id, page) => self.find_on(page, *id, key, f),
            Root::Inline(id, bytes) => {
                for element in inline_elements(bytes, *id)? {
                    let element = element?;
                    if element.key() == key {
                        return f(Some(self.element(element, *id)?));
                    }
                }
                f(None)
            }
        }
    }

    fn find_in<R>(&self, node: &Node, key: &[u8], f: &mut dyn FnMut(Option<Seen<'_>>) -> Result<R>) -> Result<R> {
        match node {
            Node::Branch(entries) => match entries.get(child_index(entries, key)).map(|entry| &entry.child) {
                None => f(None),
                Some(Child::Loaded(node)) => self.find_in(node, key, f),
                Some(Child::Stored(id)) => self.find_on(&self.pages.read(*id)?.1, *id, key, f),
            },
            Node::Leaf(entries) => match position(entries, key) {
                Err(_) => f(None),
                Ok(i) => f(Some(self.value(&entries[i].value)?)),
            },
        }
    }

    fn find_on<R>(
        &self,
        bytes: &[u8],
        id: u64,
        key: &[u8],
        f: &mut dyn FnMut(Option<Seen<'_>>) -> Result<R>,
    ) -> Result<R> {
        let (branch, elements) = elements(bytes, id)?;
        let mut last = None;
        for element in elements {
            let element = element?;
            // In a branch, the key belongs to the last child that does not begin above it, or to the first.
            if element.key() > key && (!branch || last.is_some()) {
                break;
            }
            last = Some(element);
        }
        match last {
            Some(Element::Branch { child, .. }) => self.find_on(&self.pages.read(child)?.1, child, key, f),
            Some(element) if element.key() == key => f(Some(self.element(element, id)?)),
            _ => f(None),
        }
    }

    /// Gives `f` every entry in the order of keys.
    ///
    /// # Errors
    /// [`Error::Io`]; those of `f`.
    pub fn each(&self, f: &mut dyn FnMut(&[u8], Seen<'_>) -> Result<()>) -> Result<()> {
        match &self.root {
            Root::Loaded(node) => each(node, self.pages, &mut |key, value| f(key, self.value(value)?)),
            Root::Page(id, page) => self.each_on(page, *id, f),
            Root::Inline(id, bytes) => inline_elements(bytes, *id)?.try_for_each(|element| {
                let element = element?;
                f(element.key(), self.element(element, *id)?)
            }),
        }
    }

    fn each_on(&self, bytes: &[u8], id: u64, f: &mut dyn FnMut(&[u8], Seen<'_>) -> Result<()>) -> Result<()> {
        for element in elements(bytes, id)?.1 {
            match element? {
                Element::Branch { child, .. } => self.each_on(&self.pages.read(child)?.1, child, f)?,
                element => f(element.key(), self.element(element, id)?)?,
            }
        }
        Ok(())
    }

    fn value<'s>(&'s self, value: &'s Value) -> Result<Seen<'s>> {
        Ok(match value {
            Value::Bytes(bytes) => Seen::Value(bytes),
            Value::Bucket(bucket) => Seen::Bucket(View::new(bucket, self.pages)?),
        })
    }

    fn element<'s>(&'s self, element: Element<'s>, id: u64) -> Result<Seen<'s>> {
        match element {
            Element::Value { value, .. } => Ok(Seen::Value(value)),
            Element::Bucket { value, .. } => View::of_value(value, id, self.pages).map(Seen::Bucket),
            Element::Branch { .. } => unreachable!("an element of a leaf"),
        }
    }
}
