//! Who we are to a registry: nobody until it asks, then Basic or a Bearer token, one exchange at a time per repository.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use oci_client::RegistryOperation;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use reqwest::RequestBuilder;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use tokio::sync::Mutex as AsyncMutex;

use super::client::{CONNECT_TIMEOUT, READ_TIMEOUT};
use super::{Credentials, Error, Result};

/// How to sign a request.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Signature {
    Nobody,
    Basic(String, String),
    Bearer(String),
}

impl Signature {
    pub(super) fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::Basic(user, password) => request.basic_auth(user, Some(password)),
            Self::Bearer(token) => request.bearer_auth(token),
        }
    }
}

/// Signatures by registry and repository.
pub(super) struct Auth {
    credentials: Credentials,
    has_certificates: bool,
    slots: Mutex<HashMap<(String, String), Slot>>,
}

/// Locked while an exchange is under way, so that parallel requests share one.
pub(super) type Slot = Arc<AsyncMutex<Signature>>;

/// A repository of a registry, and how the registry is reached.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) registry: &'a str,
    pub(super) repository: &'a str,
    pub(super) plain_http: bool,
    /// What is being asked for, in words.
    pub(super) what: &'a str,
}

impl Auth {
    pub(super) fn new(credentials: Credentials, has_certificates: bool) -> Self {
        Self { credentials, has_certificates, slots: Mutex::default() }
    }

    /// Where the signature for a repository is kept.
    pub(super) fn slot(&self, place: Place<'_>) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (place.registry.to_owned(), place.repository.to_owned());
        slots.entry(key).or_insert_with(|| Arc::new(AsyncMutex::new(Signature::Nobody))).clone()
    }

    /// Whether there are credentials for a registry, in words for an error.
    pub(super) fn who(&self, registry: &str) -> &'static str {
        if self.credentials.get(registry).is_some() {
            "with the credentials in Docker's config.json"
        } else {
            "to anonymous users; `docker login` or another tool can put credentials into Docker's config.json"
        }
    }

    /// Answers a 401 to a request that was signed with `refused`. `None` when there is nothing better to offer.
    pub(super) async fn answer(
        &self,
        place: Place<'_>,
        refused: &Signature,
        headers: &HeaderMap,
    ) -> Result<Option<Signature>> {
        let slot = self.slot(place);
        let mut signature = slot.lock().await;
        if *signature != *refused {
            // Another request got a new one meanwhile.
            return Ok(Some(signature.clone()));
        }
        let pair = self.credentials.get(place.registry);
        let new = match (asked_for(headers), pair) {
            (Some(Scheme::Bearer), pair) => Some(Signature::Bearer(self.token(place, pair).await?)),
            (Some(Scheme::Basic), Some((user, password))) => Some(Signature::Basic(user.clone(), password.clone())),
            _ => None,
        };
        let new = new.filter(|new| new != refused);
        if let Some(new) = &new {
            *signature = new.clone();
        }
        Ok(new)
    }

    async fn token(&self, place: Place<'_>, pair: Option<&(String, String)>) -> Result<String> {
        // oci-client panics where no CA certificates are installed.
        if !self.has_certificates {
            return Err(Error::NoCertificates);
        }
        let error = |source| Error::Token {
            registry: place.registry.to_owned(),
            what: place.what.to_owned(),
            source: Box::new(source),
        };
        let protocol = if place.plain_http { ClientProtocol::Http } else { ClientProtocol::Https };
        // A client keeps the first credentials it sees for a registry, so each exchange gets its own.
        let client = oci_client::Client::try_from(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            ..ClientConfig::default()
        })
        .map_err(error)?;
        let reference = oci_client::Reference::with_tag(
            place.registry.to_owned(),
            place.repository.to_owned(),
            "latest".to_owned(),
        );
        let auth = match pair {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        };
        match client.auth(&reference, &auth, RegistryOperation::Pull).await {
            Ok(Some(token)) => Ok(token),
            Ok(None) | Err(oci_client::errors::OciDistributionError::AuthenticationFailure(_)) => {
                Err(Error::Unauthorized {
                    registry: place.registry.to_owned(),
                    what: place.what.to_owned(),
                    who: self.who(place.registry),
                    detail: ": it gives no token".to_owned(),
                })
            }
            Err(source) => Err(error(source)),
        }
    }
}

enum Scheme {
    Basic,
    Bearer,
}

/// The scheme of the challenge; Bearer where there is a choice.
fn asked_for(headers: &HeaderMap) -> Option<Scheme> {
    let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let schemes: Vec<String> =
        challenges.filter_map(|c| c.split_whitespace().next().map(str::to_ascii_lowercase)).collect();
    let has = |name| schemes.iter().any(|scheme| scheme == name);
    has("bearer").then_some(Scheme::Bearer).or_else(|| has("basic").then_some(Scheme::Basic))
}
