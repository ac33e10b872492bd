//! What a request asks for, by its path and query alone (distribution specification, "Endpoints").

use hyper::StatusCode;

use crate::oci::{Digest, MAX_TAG};

/// The longest name of a repository: what is left of what clients allow for with a registry in front of it.
const MAX_NAME: usize = 255;
/// Entries of a list that are given at once, at most.
pub(super) const MAX_PAGE: usize = 1000;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// Whether this is a registry.
    Base,
    /// All repositories.
    Catalog,
    /// Tags of a repository.
    Tags(String),
    /// A document of a repository.
    Manifest(String, Target),
    /// A blob of a repository.
    Blob(String, Digest),
    /// What refers to a document.
    Referrers(String, Digest),
    /// Figures.
    Metrics,
}

/// How a document is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Tag(String),
    Digest(Digest),
}

/// Why a request is not answered as it would like to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Of the specification's, "Error Codes".
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

/// Which part of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// How many entries.
    pub(super) n: usize,
    /// Those behind this one.
    pub(super) last: Option<String>,
}

/// What a path names.
pub(super) fn route(path: &str) -> Result<Route, Refusal> {
    let nothing = || Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "there is nothing under this path");
    let path = decode(path).ok_or_else(nothing)?;
    let rest = match path.as_str() {
        "/v2" | "/v2/" => return Ok(Route::Base),
        "/v2/_catalog" => return Ok(Route::Catalog),
        "/metrics" => return Ok(Route::Metrics),
        path => path.strip_prefix("/v2/").ok_or_else(nothing)?,
    };
    if let Some(repository) = rest.strip_suffix("/tags/list") {
        return Ok(Route::Tags(name(repository)?));
    }
    let (start, target) = rest.rsplit_once('/').ok_or_else(nothing)?;
    if let Some(repository) = start.strip_suffix("/manifests") {
        let target = if target.contains(':') {
            Target::Digest(digest(target)?)
        } else if is_tag(target) {
            Target::Tag(target.to_owned())
        } else {
            let message = format!("{:?} is neither a tag nor a digest", shown(target));
            return Err(Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message));
        };
        Ok(Route::Manifest(name(repository)?, target))
    } else if let Some(repository) = start.strip_suffix("/blobs").filter(|_| target.contains(':')) {
        Ok(Route::Blob(name(repository)?, digest(target)?))
    } else if let Some(repository) = start.strip_suffix("/referrers") {
        Ok(Route::Referrers(name(repository)?, digest(target)?))
    } else {
        Err(nothing())
    }
}

fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", format!("{error}")))
}

fn name(text: &str) -> Result<String, Refusal> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    let message = format!("{:?} cannot be the name of a repository", shown(text));
    Err(Refusal::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message))
}

/// As much of a text as a message repeats.
fn shown(text: &str) -> &str {
    text.char_indices().nth(160).map_or(text, |(end, _)| &text[..end])
}

/// Whether it is a name of a repository (specification, "Pulling manifests").
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('/').all(is_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators_fit = || {
        let mut separators = text.split(|c: char| u8::try_from(c).is_ok_and(is_word)).filter(|part| !part.is_empty());
        separators.all(|part| matches!(part, "." | "_" | "__") || part.bytes().all(|byte| byte == b'-'))
    };
    let ends = [text.bytes().next(), text.bytes().last()];
    ends.into_iter().all(|end| end.is_some_and(is_word)) && separators_fit()
}

/// Whether it is a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(super) fn is_tag(tag: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=MAX_TAG).contains(&tag.len()) && tag.bytes().all(fits) && !tag.starts_with(['.', '-'])
}

/// What a query says of a key, the first time.
pub(super) fn query(query: Option<&str>, key: &str) -> Option<String> {
    let mut pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(name, _)| *name == key).and_then(|(_, value)| decode(value))
}

/// Which part of a list a query asks for.
pub(super) fn page(text: Option<&str>) -> Result<Page, Refusal> {
    let n = match query(text, "n").filter(|n| !n.is_empty()) {
        None => MAX_PAGE,
        Some(n) if n.bytes().all(|byte| byte.is_ascii_digit()) => n.parse().unwrap_or(MAX_PAGE).min(MAX_PAGE),
        Some(_) => {
            let message = "n is not a number of entries";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", message));
        }
    };
    Ok(Page { n, last: query(text, "last").filter(|last| !last.is_empty()) })
}

/// Undoes percent-encoding. A plus stays one, because media types have them.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tags() {
        for good in ["a", "a/b", "team/app", "a.b/c_d/e__f/g---h", "registry.example_5000/a", "0"] {
            assert!(is_name(good), "{good}");
        }
        let long = "a".repeat(256);
        for bad in
            ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", ".a", "a-", "..", "a/../b", "é", "a\0", &long]
        {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_tag("_v1.0-x") && is_tag(&"a".repeat(128)));
        for bad in ["", ".a", "-a", "a:b", "a/b", "a b", &"a".repeat(129)] {
            assert!(!is_tag(bad), "{bad}");
        }
    }

    #[test]
    fn paths() {
        let digest = Digest::of(b"");
        let encoded = digest.as_str().replace(':', "%3A");
        assert_eq!(route(&format!("/v2/a/b/blobs/{encoded}")), Ok(Route::Blob("a/b".to_owned(), digest.clone())));
        let target = Target::Digest(digest);
        assert_eq!(route(&format!("/v2/blobs/manifests/{encoded}")), Ok(Route::Manifest("blobs".to_owned(), target)));
        let tagged = Route::Manifest("a/manifests/b".to_owned(), Target::Tag("c".to_owned()));
        assert_eq!(route("/v2/a/manifests/b/manifests/c"), Ok(tagged));
        for (path, status) in [
            ("/v2/a/manifests/sha256:totallywrong", 400),
            ("/v2/a/manifests/.INVALID_MANIFEST_NAME", 404),
            ("/v2/../../etc/passwd/manifests/1", 400),
            ("/v2/%2e%2e/tags/list", 400),
            ("/v2/a%00b/tags/list", 400),
            ("/v2/a/blobs/uploads/", 404),
            ("/v2/a/blobs/sha256:..%2f..%2fetc%2fpasswd", 404),
            ("/v2/%zz", 404),
            ("/v2/%ff/tags/list", 404),
            ("/v2//tags/list", 400),
            ("/", 404),
            ("", 404),
            ("*", 404),
        ] {
            assert_eq!(route(path).map_err(|refusal| refusal.status.as_u16()), Err(status), "{path}");
        }
    }

    #[test]
    fn queries() {
        assert_eq!(query(Some("a=1&b=x%2By+z"), "b").as_deref(), Some("x+y+z"));
        assert_eq!(query(Some("a"), "a").as_deref(), Some(""));
        assert_eq!(page(Some("n=2&last=x")), Ok(Page { n: 2, last: Some("x".to_owned()) }));
        assert_eq!(page(Some("n=99999999999999999999999")), Ok(Page { n: MAX_PAGE, last: None }));
        assert!(page(Some("n=-1")).is_err());
    }
}
