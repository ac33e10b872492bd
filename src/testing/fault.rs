//! What goes wrong, in words: `blob:3 status=429 retry-after=2`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::duration;
use crate::oci::glob_matches;
use crate::spec::parse_size;

/// One thing that goes wrong: which requests it befalls, and what becomes of their answers.
///
/// ```text
/// WHAT[:WHICH] [path=GLOB] EFFECT…
///   WHAT    blob, manifest, token, tags, referrers, any
///   WHICH   3: the third such request · 2-4 · 3-: from the third on · without it, each
///   EFFECT  status=CODE · retry-after=SECONDS · delay=500ms · rate=64KiB: bytes a second · cut=1000: the connection breaks
///           behind so many bytes · corrupt: a byte is another one · range=ignored · range=wrong · expired-token
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    text: String,
    pub(super) what: What,
    /// The first and the last request, counted from 1.
    which: (u64, u64),
    path: Option<String>,
    pub(super) effects: Effects,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Blob,
    Manifest,
    Token,
    Tags,
    Referrers,
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Effects {
    pub(super) status: Option<u16>,
    pub(super) retry_after: Option<u64>,
    pub(super) delay: Option<Duration>,
    pub(super) rate: Option<u64>,
    pub(super) cut: Option<u64>,
    pub(super) corrupt: bool,
    pub(super) range: Option<RangeFault>,
    pub(super) expired_token: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeFault {
    /// The whole is given.
    Ignored,
    /// Other bytes are given than were asked for, and said to be the right ones.
    Wrong,
}

/// A text that is no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no fault: {why}; write it like 'blob:3 status=429 retry-after=2'")]
pub struct FaultError {
    text: String,
    why: String,
}

impl What {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Blob, "blob"),
        (Self::Manifest, "manifest"),
        (Self::Token, "token"),
        (Self::Tags, "tags"),
        (Self::Referrers, "referrers"),
        (Self::Any, "any"),
    ];
}

impl Fault {
    /// Whether it befalls the `n`th request of its kind.
    pub(super) fn befalls(&self, n: u64) -> bool {
        (self.which.0..=self.which.1).contains(&n)
    }

    /// Whether a request is of its kind.
    pub(super) fn is_about(&self, what: What, path: &str) -> bool {
        (self.what == what || self.what == What::Any) && self.path.as_ref().is_none_or(|glob| glob_matches(glob, path))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        parse(text).map_err(|why| FaultError { text: text.to_owned(), why })
    }
}

fn parse(text: &str) -> Result<Fault, String> {
    let mut words = text.split_whitespace();
    let (what, which) = words.next().map(|word| word.split_once(':').unwrap_or((word, "1-"))).unwrap_or_default();
    let known = || What::ALL.map(|(_, name)| name).join(", ");
    let found = What::ALL.iter().find(|(_, name)| *name == what);
    let (what, _) = found.ok_or_else(|| format!("it begins with none of {}", known()))?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
    let which = match which.split_once('-') {
        None => (number(which)?, number(which)?),
        Some((first, "")) => (number(first)?, u64::MAX),
        Some((first, last)) => (number(first)?, number(last)?),
    };
    if which.0 == 0 || which.0 > which.1 {
        return Err("it can never occur: requests are counted from 1, and the first comes before the last".to_owned());
    }
    let (mut effects, mut path) = (Effects::default(), None);
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match (key, value) {
            ("path", glob) => path = Some(glob.to_owned()),
            ("status", code) => {
                let code = code.parse().ok().filter(|code| (200..600).contains(code));
                effects.status = Some(code.ok_or_else(|| format!("{value:?} is no status"))?);
            }
            ("retry-after", seconds) => effects.retry_after = Some(number(seconds)?),
            ("delay", time) => {
                let delay = duration::parse(time).ok_or_else(|| format!("{time:?} is no duration such as 500ms"))?;
                effects.delay = Some(delay);
            }
            ("rate", size) => effects.rate = Some(parse_size(size)?.max(1)),
            ("cut", size) => effects.cut = Some(parse_size(size)?),
            ("corrupt", "") => effects.corrupt = true,
            ("range", "ignored") => effects.range = Some(RangeFault::Ignored),
            ("range", "wrong") => effects.range = Some(RangeFault::Wrong),
            ("expired-token", "") => effects.expired_token = true,
            _ => return Err(format!("{word:?} is nothing that can go wrong")),
        }
    }
    if effects == Effects::default() {
        return Err("nothing goes wrong".to_owned());
    }
    Ok(Fault { text: text.to_owned(), what: *what, which, path, effects })
}

/// What a request's path is about.
pub(super) fn what(path: &str) -> What {
    let last_but_one = path.rsplit('/').nth(1);
    match last_but_one {
        _ if path == super::answer::TOKEN => What::Token,
        Some("blobs") => What::Blob,
        Some("manifests") => What::Manifest,
        Some("tags") => What::Tags,
        Some("referrers") => What::Referrers,
        _ => What::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_in_words() {
        let fault: Fault = "blob:3 status=429 retry-after=2".parse().expect("a fault");
        assert_eq!((fault.effects.status, fault.effects.retry_after), (Some(429), Some(2)));
        assert!(!fault.befalls(2) && fault.befalls(3) && !fault.befalls(4));
        let fault: Fault =
            "any:2- path=*/app/* delay=1m rate=64KiB cut=10 corrupt range=wrong".parse().expect("a fault");
        assert!(
            fault.befalls(9) && fault.is_about(What::Tags, "/v2/app/tags/list") && !fault.is_about(What::Blob, "/v2/x")
        );
        assert!("manifest:2-3 expired-token".parse::<Fault>().expect("a fault").befalls(3));
        for wrong in ["", "blob", "blob:x corrupt", "layer corrupt", "blob status=20", "blob delay=2", "blob slow"] {
            wrong.parse::<Fault>().expect_err(wrong);
        }
        for wrong in ["blob:0 corrupt", "blob:0- corrupt", "blob:5-2 corrupt"] {
            wrong.parse::<Fault>().expect_err(wrong);
        }
    }
}
