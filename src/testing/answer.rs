//! What such a registry answers: what is there, to whom it may be given, unless something is to go wrong.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::body::Body as _;
use hyper::header::{AUTHORIZATION, CONTENT_RANGE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use serde_json::json;

use super::fault::{Effects, Fault, RangeFault, What, what};
use crate::fixture::{Body, Content, Pause, broken, full, paced, response};
use crate::oci::{Digest, media_type};

/// Where tokens are given out.
pub(super) const TOKEN: &str = "/token";
/// Pieces a second of a body that is held back.
const PIECES: u64 = 20;

/// Whom a registry answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Auth {
    /// Everybody.
    #[default]
    None,
    /// Who sends this name and password with each request.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// Who has a token of its own, which it gives to this name and password, or, without one, to everybody (distribution
    /// specification, "Token Authentication").
    Token {
        /// Name and password.
        user: Option<(String, String)>,
    },
}

pub(super) struct Answers {
    content: Content,
    faults: Vec<(Fault, AtomicU64)>,
    auth: Auth,
    tokens: Mutex<HashSet<String>>,
    given: AtomicU64,
}

impl Answers {
    pub(super) fn new(content: Content, faults: Vec<Fault>, mut auth: Auth) -> Self {
        // Where no tokens are, none expires.
        if auth == Auth::None && faults.iter().any(|fault| fault.effects.expired_token || fault.what == What::Token) {
            auth = Auth::Token { user: None };
        }
        let faults = faults.into_iter().map(|fault| (fault, AtomicU64::new(0))).collect();
        Self { content, faults, auth, tokens: Mutex::default(), given: AtomicU64::new(0) }
    }

    pub(super) fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        let what = what(path);
        let mut all = Vec::new();
        let is_let_in = what == What::Token || self.lets_in(request);
        // What is not let in comes again: it does not count.
        for (fault, count) in self.faults.iter().filter(|(fault, _)| is_let_in && fault.is_about(what, path)) {
            if fault.befalls(count.fetch_add(1, Ordering::SeqCst) + 1) {
                all.push(&fault.effects);
            }
        }
        if all.iter().any(|effects| effects.expired_token) {
            self.forget(request);
            return self.challenge(request, "invalid_token");
        }
        let mut answer = if !is_let_in {
            self.challenge(request, "")
        } else if what == What::Token {
            self.token(request)
        } else {
            let ignored = all.iter().any(|effects| effects.range == Some(RangeFault::Ignored));
            self.plain(request, path, what, ignored)
        };
        for effects in all {
            answer = spoilt(answer, effects);
        }
        answer
    }

    fn plain<B>(&self, request: &Request<B>, path: &str, what: What, without_range: bool) -> Response<Body> {
        let repository = || path.strip_prefix("/v2/")?.rsplitn(3, '/').nth(2);
        match what {
            What::Tags => {
                let name = repository().unwrap_or_default();
                let tags = self.content.tags.keys().filter(|(own, _)| own == name).map(|(_, tag)| tag);
                let body = json!({"name": name, "tags": tags.collect::<Vec<_>>()}).to_string();
                response(StatusCode::OK, "application/json", full(body))
            }
            What::Referrers => {
                let subject = path.rsplit('/').next().and_then(|text| text.parse::<Digest>().ok());
                let list = subject.zip(repository()).and_then(|(subject, repository)| {
                    let digest = self.content.tags.get(&(repository.to_owned(), subject.as_tag()))?;
                    Some(self.content.blobs.get(digest)?.1.clone())
                });
                let none = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []}).to_string();
                response(StatusCode::OK, media_type::OCI_INDEX, full(list.unwrap_or_else(|| none.into())))
            }
            _ if without_range => {
                let mut whole = Request::new(());
                (*whole.method_mut(), *whole.uri_mut()) = (request.method().clone(), request.uri().clone());
                self.content.answer(&whole)
            }
            _ => self.content.answer(request),
        }
    }

    fn lets_in<B>(&self, request: &Request<B>) -> bool {
        match &self.auth {
            Auth::None => true,
            Auth::Basic { user, password } => is_user(request, user, password),
            Auth::Token { .. } => {
                let token = said(request).and_then(|text| text.strip_prefix("Bearer "));
                token.is_some_and(|token| self.tokens().contains(token))
            }
        }
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget<B>(&self, request: &Request<B>) {
        if let Some(token) = said(request).and_then(|text| text.strip_prefix("Bearer ")) {
            self.tokens().remove(token);
        }
    }

    fn token<B>(&self, request: &Request<B>) -> Response<Body> {
        if let Auth::Token { user: Some((user, password)) } = &self.auth
            && !is_user(request, user, password)
        {
            let error = r#"{"errors":[{"code":"UNAUTHORIZED","message":"another name or password"}]}"#;
            return response(StatusCode::UNAUTHORIZED, "application/json", full(error));
        }
        let token = format!("token-{}", self.given.fetch_add(1, Ordering::SeqCst) + 1);
        self.tokens().insert(token.clone());
        let body = json!({"token": token, "access_token": token, "expires_in": 300}).to_string();
        response(StatusCode::OK, "application/json", full(body))
    }

    fn challenge<B>(&self, request: &Request<B>, error: &str) -> Response<Body> {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let mut answer = response(StatusCode::UNAUTHORIZED, "application/json", full(body));
        let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        let text = match self.auth {
            Auth::Token { .. } => {
                let error = if error.is_empty() { String::new() } else { format!(",error=\"{error}\"") };
                format!("Bearer realm=\"http://{host}{TOKEN}\",service=\"{host}\"{error}")
            }
            _ => "Basic realm=\"tests\"".to_owned(),
        };
        answer.headers_mut().extend(HeaderValue::from_str(&text).ok().map(|value| (WWW_AUTHENTICATE, value)));
        answer
    }
}

fn spoilt(mut answer: Response<Body>, effects: &Effects) -> Response<Body> {
    if let Some(status) = effects.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        let error = r#"{"errors":[{"code":"UNKNOWN","message":"a fault that was asked for"}]}"#;
        answer = response(status, "application/json", full(error));
    }
    if let Some(seconds) = effects.retry_after {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if let Some(delay) = effects.delay {
        answer.extensions_mut().insert(Pause(delay));
    }
    let is_part = answer.headers().contains_key(CONTENT_RANGE);
    let is_wrong = is_part && effects.range == Some(RangeFault::Wrong);
    if !(is_wrong || effects.corrupt || effects.cut.is_some() || effects.rate.is_some()) {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let mut bytes = known(body).to_vec();
    let middle = bytes.len() / 2;
    if is_wrong {
        bytes.rotate_left(middle);
    }
    if effects.corrupt
        && let Some(byte) = bytes.get_mut(middle)
    {
        *byte ^= 1;
    }
    let bytes = Bytes::from(bytes);
    let body = match (effects.cut.and_then(|cut| usize::try_from(cut).ok()), effects.rate) {
        (Some(cut), _) if cut < bytes.len() => broken(bytes.slice(..cut)),
        (_, Some(rate)) => {
            let chunk = usize::try_from(rate.div_ceil(PIECES)).unwrap_or(usize::MAX);
            paced(&bytes, chunk, Duration::from_millis(1000 / PIECES))
        }
        _ => full(bytes),
    };
    Response::from_parts(head, body)
}

/// What a body holds that was made of known bytes.
fn known(mut body: Body) -> Bytes {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(&mut body).poll_frame(&mut context) {
        std::task::Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

fn said<B>(request: &Request<B>) -> Option<&str> {
    request.headers().get(AUTHORIZATION)?.to_str().ok()
}

fn is_user<B>(request: &Request<B>, user: &str, password: &str) -> bool {
    let sent = said(request).and_then(|text| text.strip_prefix("Basic "));
    sent.is_some_and(|sent| sent == STANDARD.encode(format!("{user}:{password}")))
}
