//! Values as people read them.

use chrono::{DateTime, SecondsFormat, Utc};

use super::codec;
use crate::bolt::key_text;

/// What a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown<'v> {
    /// A time in UTC.
    Time(DateTime<Utc>),
    /// A number.
    Number(i64),
    /// Text.
    Text(&'v str),
    /// Anything else, protobuf mostly.
    Bytes(&'v [u8]),
}

impl Shown<'_> {
    /// The name of what it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Time(_) => "time",
            Self::Number(_) => "number",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
        }
    }
}

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(at) => f.write_str(&at.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            Self::Number(n) => write!(f, "{n}"),
            Self::Text(text) => f.write_str(text),
            Self::Bytes(bytes) => f.write_str(&hex::encode(bytes)),
        }
    }
}

/// What a value is, as containerd's databases name their keys: times and numbers are binary there. `bucket` is the name of
/// the innermost bucket; labels may have any name.
pub fn show<'v>(bucket: &[u8], key: &[u8], value: &'v [u8]) -> Shown<'v> {
    let known = match key {
        _ if bucket == b"labels" || bucket == b"annotations" => None,
        b"createdat" | b"updatedat" | b"expireat" => codec::parse_time(value).map(Shown::Time),
        b"version" | b"size" | b"inodes" => codec::parse_varint(value).map(Shown::Number),
        b"id" => codec::parse_uvarint(value).and_then(|id| i64::try_from(id).ok()).map(Shown::Number),
        b"kind" => <[u8; 1]>::try_from(value).ok().map(|[kind]| match kind {
            1 => Shown::Text("view"),
            2 => Shown::Text("active"),
            3 => Shown::Text("committed"),
            other => Shown::Number(other.into()),
        }),
        _ => None,
    };
    known.unwrap_or_else(|| match std::str::from_utf8(value) {
        Ok(text) if !text.chars().any(char::is_control) => Shown::Text(text),
        _ => Shown::Bytes(value),
    })
}

/// A key as text; a link between snapshots as "parent > child".
pub fn show_key(bucket: &[u8], key: &[u8]) -> String {
    match codec::parse_link(key).filter(|_| bucket == b"parents") {
        Some((parent, child)) => format!("{parent} > {child}"),
        None => key_text(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_their_keys() {
        let time = [1, 0, 0, 0, 0x0e, 0xdc, 0xe5, 0xe8, 0, 0x07, 0x5b, 0xcd, 0x15, 0xff, 0xff];
        for (bucket, key, value, kind, text) in [
            ("x", "createdat", &time[..], "time", "2023-11-14T22:13:20.123456789Z"),
            ("x", "size", &[0xfa, 0x05], "number", "381"),
            ("x", "id", &[0x80, 0x01], "number", "128"),
            ("x", "kind", &[3], "text", "committed"),
            ("x", "kind", &[0], "number", "0"),
            ("x", "digest", b"sha256:00", "text", "sha256:00"),
            ("labels", "size", b"10", "text", "10"),
            ("x", "spec", &[0x0a, 0xff], "bytes", "0aff"),
            ("x", "size", &[0xff], "bytes", "ff"),
        ] {
            let shown = show(bucket.as_bytes(), key.as_bytes(), value);
            assert_eq!((shown.kind(), shown.to_string().as_str()), (kind, text), "{key}");
        }
        assert_eq!(show_key(b"parents", &[1, 0, 2]), "1 > 2");
        assert_eq!(show_key(b"x", &[1, 0, 2]), "\\x01\\x00\\x02");
    }
}
