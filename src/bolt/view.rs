//! Buckets to be read.

use super::alloc::Pages;
use super::bucket::{Bucket, each, find};
use super::node::{Child, Node, Value};
use super::{Error, Result};

/// A bucket with its root page at hand, so that many keys of a small bucket cost one read.
pub struct View<'v> {
    root: Root<'v>,
    pages: &'v Pages<'v>,
}

enum Root<'v> {
    Loaded(&'v Node),
    Read(Node),
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
            Child::Stored(id) => Root::Read(pages.node(*id)?),
        };
        Ok(Self { root, pages })
    }

    fn node(&self) -> &Node {
        match &self.root {
            Root::Loaded(node) => node,
            Root::Read(node) => node,
        }
    }

    /// The value at `key`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `key` is a bucket; [`Error::Io`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        find(self.node(), key, self.pages, &mut |value| match value {
            None => Ok(None),
            Some(Value::Bytes(bytes)) => Ok(Some(bytes.clone())),
            Some(Value::Bucket(_)) => Err(Error::Invalid("a bucket where a value is expected")),
        })
    }

    /// Gives `f` the nested bucket at `key`, if there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `key` is a plain value; [`Error::Io`]; those of `f`.
    pub fn bucket<R>(&self, key: &[u8], f: &mut dyn FnMut(Option<View<'_>>) -> Result<R>) -> Result<R> {
        find(self.node(), key, self.pages, &mut |value| match value {
            None => f(None),
            Some(Value::Bucket(bucket)) => f(Some(View::new(bucket, self.pages)?)),
            Some(Value::Bytes(_)) => Err(Error::Invalid("a value where a bucket is expected")),
        })
    }

    /// Gives `f` every entry in the order of keys.
    ///
    /// # Errors
    /// [`Error::Io`]; those of `f`.
    pub fn each(&self, f: &mut dyn FnMut(&[u8], Seen<'_>) -> Result<()>) -> Result<()> {
        each(self.node(), self.pages, &mut |key, value| match value {
            Value::Bytes(bytes) => f(key, Seen::Value(bytes)),
            Value::Bucket(bucket) => f(key, Seen::Bucket(View::new(bucket, self.pages)?)),
        })
    }
}
