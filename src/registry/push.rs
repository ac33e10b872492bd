//! What a registry can be given: documents, and blobs that it has in another repository. All of it goes to one host, the first
//! that may be pushed to.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::auth::Rights;
use super::client::said_digest;
use super::send::Ask;
use super::upload::{Payload, Upload};
use super::{Client, Error, RawDocument, Result};
use crate::oci::{Descriptor, Digest, MAX_DOCUMENT, Reference, media_type};

/// Pages of a list of tags that are asked for.
const MAX_PAGES: usize = 1000;

/// What became of a mount.
#[derive(Debug)]
pub enum Mounted {
    /// The repository has the blob.
    Yes,
    /// It does not, and there is an upload to go on with (distribution specification, "Mounting a blob").
    Upload(Upload),
    /// It does not.
    No,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Client {
    /// Whether the repository that is pushed to has a blob.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn has_blob(&self, to: &Reference, digest: &Digest) -> Result<bool> {
        let what = format!("blob {digest}");
        let ask = Ask::new("blobs", digest.as_str(), "*/*", &what);
        let ask = Ask { method: Method::HEAD, rights: Rights::Push, ..ask };
        match self.patiently(to, &ask).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the repository that is pushed to has this document under a tag or digest.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn has_document(&self, to: &Reference, target: &str, digest: &Digest) -> Result<bool> {
        let what = format!("{}{}{target}", to.repository(), if target.contains(':') { "@" } else { ":" });
        let accept = media_type::DOCUMENTS.join(", ");
        let ask = Ask::new("manifests", target, &accept, &what);
        let ask = Ask { method: Method::HEAD, rights: Rights::Push, ..ask };
        match self.patiently(to, &ask).await {
            // Who does not say which one it is has it by its digest at most.
            Ok(answer) => Ok(said_digest(&answer).map_or(target == digest.as_str(), |said| said == digest.as_str())),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`Client::document`], of where it is pushed to.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pushed_document(&self, to: &Reference, target: &str) -> Result<RawDocument> {
        let what = format!("{}:{target}", to.repository());
        let accept = media_type::DOCUMENTS.join(", ");
        let ask = Ask { rights: Rights::Push, ..Ask::new("manifests", target, &accept, &what) };
        self.collect(to, &ask, MAX_DOCUMENT, None).await
    }

    /// As [`Client::referrers`], of where it is pushed to.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pushed_referrers(&self, to: &Reference, subject: &Digest) -> Result<Vec<Descriptor>> {
        self.list_referrers(to, subject, Rights::Push).await
    }

    /// Asks for a blob of another repository of the same registry.
    ///
    /// # Errors
    /// [`Error`], when nothing can be said; a refusal is none.
    pub async fn mount(&self, to: &Reference, digest: &Digest, from: &str) -> Result<Mounted> {
        let what = format!("a mount of blob {digest} from {from}");
        let query = [("mount", digest.as_str()), ("from", from)].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let ask = Ask::new("blobs", "uploads/", "*/*", &what);
        let ask = Ask { method: Method::POST, query: query.into(), rights: Rights::Mount(from), ..ask };
        match self.patiently(to, &ask).await {
            Ok(answer) if answer.response.status() == StatusCode::CREATED => Ok(Mounted::Yes),
            Ok(answer) => Ok(Upload::of(&answer, &what).map_or(Mounted::No, Mounted::Upload)),
            Err(Error::NotFound { .. } | Error::Unauthorized { .. } | Error::Status { status: 400..500, .. }) => {
                Ok(Mounted::No)
            }
            Err(error) => Err(error),
        }
    }

    /// Puts an index or manifest under a tag or digest. Whether the registry says that it lists it as a referrer of its
    /// subject (`OCI-Subject`).
    ///
    /// # Errors
    /// [`Error`]; [`Error::WrongClaim`] when the registry says that it took something else.
    pub async fn put_document(&self, to: &Reference, target: &str, media_type: &str, bytes: &[u8]) -> Result<bool> {
        let what = format!("a push of {}{}{target}", to.repository(), if target.contains(':') { "@" } else { ":" });
        let mut headers = HeaderMap::new();
        headers.extend(HeaderValue::from_str(media_type).ok().map(|value| (CONTENT_TYPE, value)));
        let body = || bytes.to_vec().into();
        let payload = Payload { headers, body: &body, passing: None };
        let ask = Ask::new("manifests", target, "*/*", &what);
        let ask = Ask { method: Method::PUT, rights: Rights::Push, payload: Some(&payload), ..ask };
        let answer = self.patiently(to, &ask).await?;
        if let Some(said) = said_digest(&answer) {
            let got = Digest::of_as(bytes, said.parse().ok().as_ref());
            if said != got.as_str() {
                let (host, claimed) = (answer.host.authority().to_owned(), said.to_owned());
                return Err(Error::WrongClaim { host, what, claimed, got: got.to_string() });
            }
        }
        Ok(answer.response.headers().contains_key("oci-subject"))
    }

    /// All tags of a repository.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        let what = format!("tags of {}", reference.repository());
        let mut ask = Ask::new("tags", "list", "application/json", &what);
        let mut all = Vec::new();
        for _ in 0..MAX_PAGES {
            let raw = self.collect(reference, &ask, MAX_DOCUMENT, None).await?;
            let page: Tags = serde_json::from_slice(&raw.bytes)
                .map_err(|error| Error::NoTags { what: what.clone(), why: error.to_string() })?;
            all.extend(page.tags.unwrap_or_default());
            match raw.next {
                Some(query) if query != ask.query => ask.query = query,
                _ => return Ok(all),
            }
        }
        Err(Error::NoTags { what, why: format!("there are more than {MAX_PAGES} pages of them") })
    }
}
