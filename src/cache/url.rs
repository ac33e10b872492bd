//! Where a cache is.

use std::fmt;
use std::str::FromStr;

/// Kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    S3,
    Azure,
    Google,
    File,
}

/// A store, and the prefix of a cache's keys in it: `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX`, or
/// `file:///DIRECTORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheUrl {
    pub(super) scheme: Scheme,
    pub(super) bucket: String,
    pub(super) prefix: String,
}

impl FromStr for CacheUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = "a cache is at s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX or file:///DIRECTORY";
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("this is no URL; {known}"))?;
        let scheme = match scheme {
            "s3" => Scheme::S3,
            "az" => Scheme::Azure,
            "gs" => Scheme::Google,
            "file" => Scheme::File,
            _ => return Err(format!("{scheme:?} is no kind of store; {known}")),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        if bucket.contains(['@', '?', '#', ':']) || prefix.contains(['?', '#']) {
            // It may have a password in it.
            return Err("this has more than a bucket and a prefix; who we are is in the environment".to_owned());
        }
        if prefix.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(format!("{text:?} leads out of itself"));
        }
        match (scheme, bucket, prefix) {
            (Scheme::File, "", dir) if !dir.is_empty() => {}
            (Scheme::File, ..) => return Err(format!("{text:?} names no directory; write file:///mnt/cache")),
            (_, "", _) => return Err(format!("{text:?} names no bucket; {known}")),
            _ => {}
        }
        Ok(Self { scheme, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for CacheUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, bucket, prefix } = self;
        let name = match scheme {
            Scheme::S3 => "s3",
            Scheme::Azure => "az",
            Scheme::Google => "gs",
            Scheme::File => "file",
        };
        write!(f, "{name}://{bucket}{}{prefix}", if prefix.is_empty() { "" } else { "/" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_said() {
        for text in ["s3://bucket", "s3://bucket/team/cache", "az://container/x", "gs://b/y", "file:///mnt/cache"] {
            assert_eq!(text.parse::<CacheUrl>().map(|url| url.to_string()).as_deref(), Ok(text));
        }
        assert_eq!("s3://bucket/a/".parse::<CacheUrl>().expect("parsed").prefix, "a");
        for text in [
            "bucket",
            "ftp://b/c",
            "s3:///x",
            "file://",
            "file://host/x",
            "s3://user:pw@b/c",
            "s3://b/../c",
            "s3://b/c?d",
        ] {
            assert!(text.parse::<CacheUrl>().is_err(), "{text}");
        }
    }
}
