//! Credentials from Docker's `config.json` (`auths`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// User names and passwords by registry.
#[derive(Clone, Default)]
pub struct Credentials(BTreeMap<String, (String, String)>);

/// Why the credentials could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// The file is there and cannot be read.
    #[error("reading {} failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not what Docker writes.
    #[error("{} is not a Docker config.json", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it fails.
        source: serde_json::Error,
    },
    /// An entry does not decode.
    #[error("the credentials for {registry} in {} are not base64 of USER:PASSWORD", path.display())]
    BadAuth {
        /// The file.
        path: PathBuf,
        /// The entry.
        registry: String,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Credentials {
    /// Reads `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; none of them is no credentials.
    ///
    /// # Errors
    /// [`CredentialsError`]: a file that is there must be right, or images would silently be pulled as somebody else.
    pub fn from_docker_config() -> Result<Self, CredentialsError> {
        let dir = match (std::env::var_os("DOCKER_CONFIG"), std::env::var_os("HOME")) {
            (Some(dir), _) if !dir.is_empty() => PathBuf::from(dir),
            (_, Some(home)) => PathBuf::from(home).join(".docker"),
            _ => return Ok(Self::default()),
        };
        let path = dir.join("config.json");
        match std::fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes, &path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(CredentialsError::Io { path, source }),
        }
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, CredentialsError> {
        let file: File = serde_json::from_slice(bytes)
            .map_err(|source| CredentialsError::Malformed { path: path.to_owned(), source })?;
        let mut all = BTreeMap::new();
        for (registry, entry) in file.auths {
            let pair = match (entry.auth.filter(|auth| !auth.is_empty()), entry.username, entry.password) {
                (Some(auth), ..) => {
                    let pair = decode(&auth);
                    Some(pair.ok_or_else(|| CredentialsError::BadAuth {
                        path: path.to_owned(),
                        registry: registry.clone(),
                    })?)
                }
                (None, Some(user), Some(password)) => Some((user, password)),
                // Docker leaves empty entries for registries whose credentials a helper keeps.
                _ => None,
            };
            if let Some(pair) = pair.filter(|_| names_a_registry(&registry)) {
                all.insert(host(&registry).to_owned(), pair);
            }
        }
        Ok(Self(all))
    }

    /// User and password for a registry by its name in references.
    pub(super) fn get(&self, registry: &str) -> Option<&(String, String)> {
        self.0.get(host(registry))
    }
}

fn decode(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Docker keeps tokens of its own under longer paths, such as `…/v1/access-token`.
fn names_a_registry(key: &str) -> bool {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let path = key.split_once('/').map_or("", |(_, path)| path);
    matches!(path.trim_end_matches('/'), "" | "v1" | "v2")
}

/// The host of an entry's key, which may be a URL; Docker Hub has several names.
fn host(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    match key.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Credentials, CredentialsError> {
        Credentials::parse(json.as_bytes(), Path::new("config.json"))
    }

    #[test]
    fn what_docker_writes() {
        let all = parse(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
                 "https://index.docker.io/v1/access-token": {"auth": "eDp5"},
                 "r.example:5000": {"username": "u", "password": "p"}, "helped.example": {}}, "credsStore": "x"}"#,
        )
        .expect("parsed");
        assert_eq!(all.get("docker.io"), Some(&("user".into(), "pa:ss".into())));
        assert_eq!(all.get("r.example:5000"), Some(&("u".into(), "p".into())));
        assert_eq!(all.get("r.example"), None);
        assert_eq!(all.get("helped.example"), None);
    }

    #[test]
    fn what_nobody_should_write() {
        assert!(matches!(parse("{"), Err(CredentialsError::Malformed { .. })));
        assert!(matches!(parse(r#"{"auths": {"r": {"auth": "!"}}}"#), Err(CredentialsError::BadAuth { .. })));
    }
}
