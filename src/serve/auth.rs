//! Who may ask: HTTP Basic (RFC 7617) by a file of `USER:PASSWORD` lines.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{Error, Result};
use crate::oci::Digest;

/// Users and their passwords.
pub struct Users(Vec<Digest>);

impl Users {
    /// Reads a file of `USER:PASSWORD` lines; empty ones and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::AuthLine`], [`Error::NoUsers`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let mut users = Vec::new();
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            if line.split_once(':').is_none_or(|(user, password)| user.is_empty() || password.is_empty()) {
                return Err(Error::AuthLine { path: path.to_owned(), line: n + 1 });
            }
            users.push(Digest::of(line.as_bytes()));
        }
        if users.is_empty() {
            return Err(Error::NoUsers { path: path.to_owned() });
        }
        Ok(Self(users))
    }

    /// Whether the value of an `Authorization` header is one of theirs. How long this takes tells nothing of passwords: digests
    /// are compared, to their ends, with all.
    pub(super) fn admit(&self, header: Option<&str>) -> bool {
        let pair = header.and_then(|header| {
            let (scheme, encoded) = header.split_once(' ')?;
            let encoded = Some(encoded.trim()).filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
            BASE64_STANDARD.decode(encoded).ok()
        });
        let Some(pair) = pair else { return false };
        let given = Digest::of(&pair);
        let differs =
            |own: &Digest| own.hex().bytes().zip(given.hex().bytes()).fold(0, |all, (a, b)| all | (a ^ b)) != 0;
        self.0.iter().fold(false, |admitted, own| admitted | !differs(own))
    }
}
