//! Docker's `config.json` and Podman's `auth.json` (containers-auth.json(5)): one format.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{Credential, CredentialsError, Found, Result, host};

/// One such file.
pub(super) struct AuthFile {
    path: PathBuf,
    /// By registry, or by registry and the beginning of a repository's path (Podman).
    auths: BTreeMap<String, Credential>,
    helpers: BTreeMap<String, String>,
    /// The helper for all other registries.
    store: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    username: Option<String>,
    password: Option<String>,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// Where files are looked for, in this order.
pub(super) fn places() -> Vec<PathBuf> {
    let dir = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = dir("HOME");
    let under_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let docker = dir("DOCKER_CONFIG").or_else(|| under_home(".docker")).map(|dir| dir.join("config.json"));
    let podman = dir("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let fallback = dir("XDG_CONFIG_HOME").or_else(|| under_home(".config")).map(|dir| dir.join("containers/auth.json"));
    [dir("REGISTRY_AUTH_FILE"), docker, podman, fallback].into_iter().flatten().collect()
}

impl AuthFile {
    /// Reads a file; `None` when there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&bytes, path).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CredentialsError::Io { path: path.to_owned(), source }),
        }
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|source| CredentialsError::Malformed {
            path: path.to_owned(),
            what: "a Docker config.json",
            // Its own words may be somebody's password.
            source: format!("line {}, column {}", source.line(), source.column()).into(),
        })?;
        let mut auths = BTreeMap::new();
        for (key, entry) in raw.auths {
            let credential = match entry {
                Entry { registrytoken, .. } if !registrytoken.is_empty() => Credential::Bearer(registrytoken.into()),
                Entry { identitytoken, .. } if !identitytoken.is_empty() => Credential::Identity(identitytoken.into()),
                Entry { auth, .. } if !auth.is_empty() => {
                    let bad = || CredentialsError::BadAuth { path: path.to_owned(), registry: key.clone() };
                    decode(&auth).ok_or_else(bad)?
                }
                Entry { username: Some(user), password: Some(password), .. } => Credential::pair(user, password),
                // Docker leaves empty entries for registries whose credentials a helper keeps.
                _ => continue,
            };
            auths.extend(name(&key).map(|name| (name, credential)));
        }
        let helpers = raw.cred_helpers.into_iter().map(|(key, helper)| (host(&key), helper)).collect();
        let store = Some(raw.creds_store).filter(|store| !store.is_empty());
        Ok(Self { path: path.to_owned(), auths, helpers, store })
    }

    /// The helper that keeps the credentials of a registry: one of its own, else, where nothing is written in the file, that
    /// of all others.
    pub(super) fn helper_of(&self, registry: &str) -> Option<&str> {
        let own = self.helpers.get(registry);
        own.or_else(|| self.store.as_ref().filter(|_| !self.auths.contains_key(registry))).map(String::as_str)
    }

    /// A helper, in words.
    pub(super) fn helper_in_words(&self, helper: &str) -> String {
        format!("docker-credential-{helper}, which {} names", self.path.display())
    }

    /// What is written for the longest part of a repository's name.
    pub(super) fn get(&self, registry: &str, repository: &str) -> Option<Found> {
        let image = format!("{registry}/{repository}");
        let mut name = image.as_str();
        loop {
            if let Some(credential) = self.auths.get(name) {
                return Some(Found { credential: credential.clone(), from: self.path.display().to_string() });
            }
            name = name.rsplit_once('/')?.0;
        }
    }
}

fn decode(auth: &str) -> Option<Credential> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    Credential::parse(text.trim_end_matches('\0'))
}

/// What an entry is for: a registry, which Docker writes as a URL, or Podman's registry with a path. `None` for Docker's own
/// tokens, which it keeps under longer URLs, such as `…/v1/access-token`.
fn name(key: &str) -> Option<String> {
    let without_scheme = key.split_once("://").map_or(key, |(_, rest)| rest);
    let path = without_scheme.split_once('/').map_or("", |(_, path)| path.trim_end_matches('/'));
    match path {
        "" | "v1" | "v2" => Some(host(key)),
        _ if without_scheme != key => None,
        path => Some(format!("{}/{path}", host(key))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<AuthFile> {
        AuthFile::parse(json.as_bytes(), Path::new("config.json"))
    }

    #[test]
    fn what_docker_and_podman_write() {
        let file = parse(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
                 "https://index.docker.io/v1/access-token": {"auth": "eDp5"},
                 "r.example:5000": {"username": "u", "password": "p"}, "helped.example": {},
                 "r.example:5000/team": {"username": "team", "password": "p"},
                 "i.example": {"auth": "PHRva2VuPjo=", "identitytoken": "i"}, "b.example": {"registrytoken": "b"},
                 "t.example": {"auth": "PHRva2VuPjp4"}},
                 "credHelpers": {"gcr.io": "gcloud"}, "credsStore": "desktop"}"#,
        )
        .expect("parsed");
        let who = |registry, repository| file.get(registry, repository).map(|found| found.credential.who());
        assert_eq!(
            file.get("docker.io", "library/x").expect("there").credential,
            Credential::pair("user".into(), "pa:ss".into())
        );
        assert_eq!(who("r.example:5000", "app").as_deref(), Some("as \"u\""));
        assert_eq!(who("r.example:5000", "team/app").as_deref(), Some("as \"team\""));
        assert_eq!(who("i.example", "a").as_deref(), Some("by an identity token"));
        assert_eq!(who("t.example", "a").as_deref(), Some("by an identity token"));
        assert_eq!(who("b.example", "a").as_deref(), Some("by a registry token"));
        assert_eq!(who("r.example", "a"), None);
        assert_eq!(who("helped.example", "a"), None);
        assert_eq!(file.helper_of("gcr.io"), Some("gcloud"));
        assert_eq!(file.helper_of("helped.example"), Some("desktop"));
        assert_eq!(file.helper_of("docker.io"), None);
    }

    #[test]
    fn what_nobody_should_write() {
        assert!(matches!(parse("{"), Err(CredentialsError::Malformed { .. })));
        for auth in ["!", "bm9jb2xvbg=="] {
            let json = format!(r#"{{"auths": {{"r": {{"auth": "{auth}"}}}}}}"#);
            assert!(matches!(parse(&json), Err(CredentialsError::BadAuth { .. })), "{auth}");
        }
    }
}
