//! What stands in for object stores where prebake is built without them: none can be opened.
#![allow(clippy::unused_async, reason = "it is asked as the real one is")]

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use reqwest::Url;

use super::url::CacheUrl;
use super::{Error, Object, Result, Stream};

/// A client for a URL; also whether the user allows plain HTTP to anywhere.
pub type ClientFor = Arc<dyn Fn(&Url, bool) -> Result<reqwest::Client, BoxError> + Send + Sync>;
/// Why there is no client for a URL.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// There is none.
pub(super) enum Store {}
/// Nothing is stored in it.
pub(super) struct Parts<'s>(&'s Store);

impl Store {
    pub(super) fn open(_: &CacheUrl, _: ClientFor, _: bool) -> Result<Self> {
        Err(Error::Without)
    }

    pub(super) fn place(&self) -> &str {
        match *self {}
    }

    pub(super) fn requests(&self) -> (u64, u64) {
        match *self {}
    }

    pub(super) async fn head(&self, _: &str) -> Result<Option<Object>> {
        match *self {}
    }

    pub(super) async fn get(&self, _: &str, _: u64) -> Result<Option<(Object, Stream)>> {
        match *self {}
    }

    pub(super) async fn get_small(&self, _: &str, _: u64) -> Result<Option<(Object, Option<Bytes>)>> {
        match *self {}
    }

    pub(super) async fn put(&self, _: &str, _: Vec<Bytes>) -> Result<()> {
        match *self {}
    }

    pub(super) async fn put_new(&self, _: &str, _: String) -> Result<bool> {
        match *self {}
    }

    pub(super) async fn begin(&self, _: &str) -> Result<Parts<'_>> {
        match *self {}
    }

    pub(super) async fn delete(&self, _: &str) -> Result<()> {
        match *self {}
    }

    pub(super) async fn remove_unnamed(&self, _: &[&str], _: SystemTime, _: bool) -> Result<u64> {
        match *self {}
    }

    pub(super) fn list(&self, _: &str) -> BoxStream<'_, Result<Object>> {
        match *self {}
    }
}

impl Parts<'_> {
    pub(super) async fn part(&mut self, _: Vec<Bytes>) -> Result<()> {
        match *self.0 {}
    }

    pub(super) async fn complete(&mut self) -> Result<()> {
        match *self.0 {}
    }

    pub(super) async fn abort(&mut self) -> Result<()> {
        match *self.0 {}
    }
}
