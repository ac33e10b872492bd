//! Who we are to registries: the sources of credentials, in the order in which they are asked.

mod files;
mod helper;
mod kubelet;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use files::AuthFile;
use kubelet::Pattern;
pub use kubelet::Plugins;

/// How long a credential helper, or a kubelet plugin, may take (kubelet: `pluginExecTimeout`).
const HELPER_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a helper's answer is used before it is asked again: helpers of clouds give what expires.
const HELPER_CACHE: Duration = Duration::from_mins(10);

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What one is known to a registry by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// For Basic authentication, or for a token server.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// An `OAuth2` refresh token, exchanged at the token server (Docker's `identitytoken`).
    Identity(Secret),
    /// A bearer token for the registry itself (Docker's `registrytoken`).
    Bearer(Secret),
}

impl Credential {
    /// A pair as users and helpers write it; Docker's helpers call the user `<token>` when the secret is an identity token.
    fn pair(user: String, secret: String) -> Self {
        match user.as_str() {
            "<token>" => Self::Identity(secret.into()),
            _ => Self::Password { user, password: secret.into() },
        }
    }

    /// `USER:PASSWORD`.
    fn parse(text: &str) -> Option<Self> {
        let (user, password) = text.split_once(':')?;
        (!user.is_empty()).then(|| Self::pair(user.to_owned(), password.to_owned()))
    }

    /// Without the secret.
    pub(super) fn who(&self) -> String {
        match self {
            Self::Password { user, .. } => format!("as {user:?}"),
            Self::Identity(_) => "by an identity token".to_owned(),
            Self::Bearer(_) => "by a registry token".to_owned(),
        }
    }
}

/// A credential, and where it comes from.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The credential.
    pub(super) credential: Credential,
    /// Its source, in words.
    pub(super) from: String,
}

/// Why credentials could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("reading {} failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Where it fails.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An entry does not decode.
    #[error("the credentials for {registry} in {} are not base64 of USER:PASSWORD", path.display())]
    BadAuth {
        /// The file.
        path: PathBuf,
        /// The entry.
        registry: String,
    },
    /// A line of a file of credentials, or what was given on the command line.
    #[error("{place} is not {what}")]
    BadPair {
        /// Where it stands; never what it is.
        place: String,
        /// What it should be.
        what: &'static str,
    },
    /// A helper failed, took too long, or said something else than credentials.
    #[error("{helper} gave no credentials for {registry}: {why}")]
    Helper {
        /// The program.
        helper: String,
        /// For which registry.
        registry: String,
        /// What happened, or its own words.
        why: String,
    },
}

type Result<T, E = CredentialsError> = std::result::Result<T, E>;

/// All sources of credentials, asked in the order of their fields.
#[derive(Clone, Default)]
pub struct Keychain {
    given: HashMap<String, Found>,
    files: Vec<Arc<AuthFile>>,
    plugins: Option<Arc<Plugins>>,
    /// Locked while a program runs, so that each is asked once.
    answers: Arc<Mutex<HashMap<String, Answer>>>,
}

/// What a program said.
struct Said {
    /// Whatever has this key need not ask again,
    key: String,
    /// for so long.
    duration: Duration,
    /// Credentials by the images they are for; without a pattern for whatever was asked.
    entries: Vec<(Option<Pattern>, Found)>,
}

struct Answer {
    entries: Vec<(Option<Pattern>, Found)>,
    until: Instant,
}

/// A place where credentials would be looked for, in words.
#[derive(Debug, Clone, Serialize)]
pub struct Look {
    /// The source.
    pub from: String,
    /// Whom one would be; `None` where only running a program would tell.
    pub who: Option<String>,
}

impl Keychain {
    /// Takes `USER:PASSWORD` for a registry; `place` says where it stands. What was given before counts.
    ///
    /// # Errors
    /// [`CredentialsError::BadPair`].
    pub fn give(&mut self, registry: &str, pair: &str, place: &str) -> Result<()> {
        let bad = || CredentialsError::BadPair { place: place.to_owned(), what: "USER:PASSWORD" };
        let credential = Credential::parse(pair).ok_or_else(bad)?;
        let found = Found { credential, from: place.to_owned() };
        self.given.entry(host(registry)).or_insert(found);
        Ok(())
    }

    /// Takes a file with a line `REGISTRY USER:PASSWORD` for each registry; `#` starts a comment.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn give_file(&mut self, path: &Path) -> Result<()> {
        let text =
            std::fs::read_to_string(path).map_err(|source| CredentialsError::Io { path: path.to_owned(), source })?;
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let place = format!("{}:{}", path.display(), i + 1);
            let Some((registry, pair)) = line.split_once([' ', '\t']) else {
                return Err(CredentialsError::BadPair { place, what: "REGISTRY USER:PASSWORD" });
            };
            self.give(registry, pair.trim_start(), &place)?;
        }
        Ok(())
    }

    /// Reads what `REGISTRY_AUTH_FILE` names, then Docker's `config.json` (`DOCKER_CONFIG`), then Podman's `auth.json`; those
    /// that are not there are passed over.
    ///
    /// # Errors
    /// [`CredentialsError`]: a file that is there must be right, or images would silently be pulled as somebody else.
    pub fn add_files(&mut self) -> Result<()> {
        for path in files::places() {
            self.files.extend(AuthFile::read(&path)?.map(Arc::new));
        }
        Ok(())
    }

    /// Asks kubelet's credential providers as well.
    pub fn add_plugins(&mut self, plugins: Plugins) {
        self.plugins = Some(Arc::new(plugins));
    }

    /// The credential for a repository of the host that is asked. Runs programs, each once for what it says it is good for.
    ///
    /// # Errors
    /// [`CredentialsError`]: a source that has something to say and cannot is not passed over.
    pub(super) async fn find(&self, registry: &str, repository: &str) -> Result<Option<Found>> {
        let registry = &host(registry);
        if let Some(found) = self.given.get(registry) {
            return Ok(Some(found.clone()));
        }
        let image = format!("{registry}/{repository}");
        for file in &self.files {
            if let Some(helper) = file.helper_of(registry) {
                let key = format!("{helper}\n{registry}");
                let said = helper::get(helper, registry, key.clone(), file.helper_in_words(helper));
                if let Some(found) = self.ask(&[key], &image, said).await? {
                    return Ok(Some(found));
                }
            }
            if let Some(found) = file.get(registry, repository) {
                return Ok(Some(found));
            }
        }
        for provider in self.plugins.iter().flat_map(|plugins| plugins.matching(&image)) {
            if let Some(found) = self.ask(&provider.keys(&image), &image, provider.run(&image)).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What a program says, or said before under one of the keys.
    async fn ask(
        &self,
        keys: &[String],
        image: &str,
        run: impl Future<Output = Result<Said>>,
    ) -> Result<Option<Found>> {
        let pick = |entries: &[(Option<Pattern>, Found)]| {
            let fits = |pattern: &Option<Pattern>| pattern.as_ref().is_none_or(|pattern| pattern.matches(image));
            entries.iter().find(|(pattern, _)| fits(pattern)).map(|(_, found)| found.clone())
        };
        let mut answers = self.answers.lock().await;
        let now = Instant::now();
        if let Some(answer) = keys.iter().filter_map(|key| answers.get(key)).find(|answer| answer.until > now) {
            return Ok(pick(&answer.entries));
        }
        let said = run.await?;
        let found = pick(&said.entries);
        if !said.duration.is_zero() {
            // Longer than anybody runs, where the program names a time past all clocks.
            let until = now.checked_add(said.duration).unwrap_or(now + Duration::from_hours(24));
            answers.insert(said.key, Answer { entries: said.entries, until });
        }
        Ok(found)
    }

    /// The places that would be looked at for a repository of a host, up to the first that surely has something; no program
    /// is run.
    pub fn explain(&self, registry: &str, repository: &str) -> Vec<Look> {
        let registry = &host(registry);
        let sure = |found: Found| Look { who: Some(found.credential.who()), from: found.from };
        if let Some(found) = self.given.get(registry) {
            return vec![sure(found.clone())];
        }
        let mut looks = Vec::new();
        for file in &self.files {
            looks.extend(file.helper_of(registry).map(|helper| Look { from: file.helper_in_words(helper), who: None }));
            if let Some(found) = file.get(registry, repository) {
                looks.push(sure(found));
                return looks;
            }
        }
        let image = format!("{registry}/{repository}");
        let providers = self.plugins.iter().flat_map(|plugins| plugins.matching(&image));
        looks.extend(providers.map(|provider| Look { from: provider.from(), who: None }));
        looks
    }
}

/// The host of a key or name, which may be a URL; Docker Hub has several names.
fn host(key: &str) -> String {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    match key.split('/').next().unwrap_or_default().to_ascii_lowercase() {
        host if matches!(&*host, "index.docker.io" | "registry-1.docker.io") => "docker.io".to_owned(),
        host => host,
    }
}
