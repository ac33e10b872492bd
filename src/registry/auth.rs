//! Who we are to a host: nobody until it asks, then Basic or a Bearer token, one exchange at a time per repository.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_auth::parser::ChallengeParser;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::credentials::{Credential, Found, Keychain, Secret};
use super::hosts::Host;
use super::send::{Sender, is_loopback_url, site};
use super::{Error, Result, lock};

/// How much of a token server's answer is read, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// How long a token is good when its server does not say (the distribution project's token specification).
const DEFAULT_LIFE: Duration = Duration::from_mins(1);
/// No token is used for longer.
const LONGEST_LIFE: Duration = Duration::from_hours(24);
/// A token is renewed so long before it ends, or at four fifths of its life.
const MARGIN: Duration = Duration::from_secs(30);
const CLIENT_ID: &str = "prebake";

/// How to sign a request.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Signature {
    Nobody,
    Basic(String, Secret),
    Bearer(Secret),
}

impl Signature {
    pub(super) fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::Basic(user, password) => request.basic_auth(user, Some(password.reveal())),
            Self::Bearer(token) => match HeaderValue::from_str(&format!("Bearer {}", token.reveal())) {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    request.header(AUTHORIZATION, value)
                }
                // No registry can have meant it.
                Err(_) => request,
            },
        }
    }
}

/// Signatures by host, repository and what they are good for.
pub(super) struct Auth {
    keychain: Keychain,
    slots: Mutex<HashMap<(String, String, String), Slot>>,
}

/// Locked while an exchange is under way, so that parallel requests share one.
type Slot = Arc<AsyncMutex<State>>;

struct State {
    signature: Signature,
    /// How to get another token, and when.
    renewal: Option<(Bearer, Instant)>,
}

/// A repository of a host that is asked for something.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) host: &'a Arc<Host>,
    pub(super) repository: &'a str,
    /// What is being asked for, in words.
    pub(super) what: &'a str,
    pub(super) rights: Rights<'a>,
}

/// What a signature has to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights<'a> {
    Pull,
    Push,
    /// To push, and to pull from this repository of the same registry.
    Mount(&'a str),
}

/// A challenge for a token.
#[derive(Clone)]
struct Bearer {
    realm: Url,
    service: Option<String>,
    scopes: Vec<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) fn new(keychain: Keychain) -> Self {
        Self { keychain, slots: Mutex::default() }
    }

    fn slot(&self, place: Place<'_>) -> Slot {
        let mut slots = lock(&self.slots);
        let rights = match place.rights {
            Rights::Pull => String::new(),
            Rights::Push => "push".to_owned(),
            Rights::Mount(from) => format!("push {from}"),
        };
        let key = (place.host.url().to_owned(), place.repository.to_owned(), rights);
        let new = || Arc::new(AsyncMutex::new(State { signature: Signature::Nobody, renewal: None }));
        slots.entry(key).or_insert_with(new).clone()
    }

    /// The signature for a request that begins now: a token that is about to end is renewed before.
    pub(super) async fn signature(&self, sender: &Sender, place: Place<'_>) -> Result<Signature> {
        let slot = self.slot(place);
        let mut state = slot.lock().await;
        if let Some((bearer, _)) = state.renewal.clone().filter(|(_, when)| *when <= Instant::now()) {
            *state = self.exchange(sender, place, bearer).await?;
        }
        Ok(state.signature.clone())
    }

    /// Answers a 401 to a request that was signed with `refused`. `None` when there is nothing better to offer.
    pub(super) async fn answer(
        &self,
        sender: &Sender,
        place: Place<'_>,
        refused: &Signature,
        headers: &HeaderMap,
    ) -> Result<Option<Signature>> {
        let slot = self.slot(place);
        let mut state = slot.lock().await;
        if state.signature != *refused {
            // Another request got a new one meanwhile.
            return Ok(Some(state.signature.clone()));
        }
        let new = match asked_for(headers, place) {
            Some(Challenge::Bearer(bearer)) => self.exchange(sender, place, bearer).await?,
            Some(Challenge::Basic) => match self.find(place).await?.map(|found| found.credential) {
                Some(Credential::Password { user, password }) => {
                    State { signature: Signature::Basic(user, password), renewal: None }
                }
                Some(Credential::Bearer(token)) => State { signature: Signature::Bearer(token), renewal: None },
                _ => return Ok(None),
            },
            None => return Ok(None),
        };
        if new.signature == *refused {
            return Ok(None);
        }
        *state = new;
        Ok(Some(state.signature.clone()))
    }

    async fn find(&self, place: Place<'_>) -> Result<Option<Found>> {
        Ok(self.keychain.find(place.host.authority(), place.repository).await?)
    }

    /// Why a host that refuses may do so, for an error.
    pub(super) async fn who(&self, place: Place<'_>) -> String {
        match self.find(place).await {
            Ok(Some(found)) => format!("{} with the credentials in {}", found.credential.who(), found.from),
            _ => "to anonymous users; `docker login`, --creds-file or a credential helper can tell prebake who you are"
                .to_owned(),
        }
    }

    /// Gets a token: by the GET of the distribution project's specification, or with an identity token by the POST of `OAuth2`.
    async fn exchange(&self, sender: &Sender, place: Place<'_>, bearer: Bearer) -> Result<State> {
        let found = self.find(place).await?;
        let token_error = |why: String, passing| Error::Token {
            host: place.host.authority().to_owned(),
            realm: site(&bearer.realm).to_owned(),
            what: place.what.to_owned(),
            why,
            passing,
        };
        if bearer.realm.scheme() == "http"
            && place.host.base.scheme() == "https"
            && (found.is_some() || !place.host.headers.is_empty())
            && !is_loopback_url(&bearer.realm)
        {
            return Err(token_error("it would get the credentials without TLS".to_owned(), false));
        }
        let credential = found.map(|found| found.credential);
        if let Some(Credential::Bearer(token)) = credential {
            return Ok(State { signature: Signature::Bearer(token), renewal: None });
        }
        let joined = bearer.scopes.join(" ");
        let service = bearer.service.iter().map(|service| ("service", service.as_str()));
        let request = |http: reqwest::Client, mut url: Url| {
            let request = match &credential {
                Some(Credential::Identity(token)) => {
                    let scope = [("scope", joined.as_str())];
                    let grant =
                        [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token.reveal())];
                    let form: Vec<_> = grant.into_iter().chain(scope).chain(service.clone()).collect();
                    http.post(url).form(&form)
                }
                other => {
                    let scopes = bearer.scopes.iter().map(|scope| ("scope", scope.as_str()));
                    url.query_pairs_mut().extend_pairs(scopes).extend_pairs(service.clone());
                    match other {
                        Some(Credential::Password { user, password }) => {
                            http.get(url).basic_auth(user, Some(password.reveal()))
                        }
                        _ => http.get(url),
                    }
                }
            };
            request.headers(place.host.headers.clone())
        };
        let what = format!("a token for {}", place.what);
        let (status, body) = sender.small(place.host, &bearer.realm, &what, MAX_TOKEN, request).await?;
        match status {
            200..=299 => {}
            400 | 401 | 403 => {
                return Err(Error::Unauthorized {
                    host: place.host.authority().to_owned(),
                    what: place.what.to_owned(),
                    who: self.who(place).await,
                    detail: format!(": {} gives no token ({status}){}", site(&bearer.realm), super::send::words(&body)),
                });
            }
            status => {
                let passing = status >= 500 || status == 408;
                return Err(token_error(format!("it answered {status}{}", super::send::words(&body)), passing));
            }
        }
        // Secrets are no part of an error.
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| token_error("its answer is no token".to_owned(), false))?;
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or_else(|| token_error("its answer has no token".to_owned(), false))?;
        let life = answer
            .expires_in
            .filter(|seconds| *seconds > 0)
            .map_or(DEFAULT_LIFE, |seconds| Duration::from_secs(seconds).min(LONGEST_LIFE));
        let useful = life.saturating_sub(MARGIN).max(life * 4 / 5);
        let renewal = Instant::now().checked_add(useful).map(|when| (bearer, when));
        Ok(State { signature: Signature::Bearer(token.into()), renewal })
    }
}

enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// What a 401 asks for; a token where there is a choice.
fn asked_for(headers: &HeaderMap, place: Place<'_>) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()) {
        for challenge in ChallengeParser::new(value).flatten() {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let param = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                // A registry may give a path alone.
                let Some(realm) = param("realm").and_then(|realm| place.host.base.join(&realm).ok()) else { continue };
                if !matches!(realm.scheme(), "http" | "https") {
                    continue;
                }
                let scopes = scopes(param("scope"), place);
                return Some(Challenge::Bearer(Bearer { realm, service: param("service"), scopes }));
            }
        }
    }
    basic
}

/// What a token has to be good for: what the challenge says, and what is going to be asked for next.
fn scopes(said: Option<String>, place: Place<'_>) -> Vec<String> {
    let said = said.filter(|scope| !scope.trim().is_empty());
    let said = said.unwrap_or_else(|| format!("repository:{}:pull", place.repository));
    let source = match place.rights {
        Rights::Mount(from) => Some(format!("repository:{from}:pull")),
        _ => None,
    };
    let mut scopes: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
    if place.rights != Rights::Pull {
        let own = |scope: &&mut String| scope.ends_with(":pull") && Some(&**scope) != source.as_ref();
        for scope in scopes.iter_mut().filter(own) {
            scope.push_str(",push");
        }
    }
    scopes.extend(source.filter(|source| !scopes.contains(source)));
    scopes
}
