//! kubelet's credential provider plugins (KEP-2133, `credentialprovider.kubelet.k8s.io/v1`), run as kubelet runs them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::helper::Run;
use super::{Credential, CredentialsError, Found, HELPER_TIMEOUT, Result, Said};
use crate::duration;
use crate::oci::glob_matches;

const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

/// The providers of a `CredentialProviderConfig`.
pub struct Plugins(Vec<Arc<Provider>>);

/// One provider.
pub(super) struct Provider {
    name: String,
    program: PathBuf,
    patterns: Vec<Pattern>,
    cache: Duration,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Config {
    providers: Vec<RawProvider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProvider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<RawEnv>,
}

#[derive(Deserialize)]
struct RawEnv {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    api_version: String,
    cache_key_type: CacheKey,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Pair>>,
}

#[derive(Deserialize, Clone, Copy)]
enum CacheKey {
    Image,
    Registry,
    Global,
}

#[derive(Deserialize)]
struct Pair {
    username: String,
    password: String,
}

impl Plugins {
    /// Reads kubelet's `--image-credential-provider-config`, YAML or JSON; the programs are in `bin_dir`.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn read(config: &Path, bin_dir: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(config)
            .map_err(|source| CredentialsError::Io { path: config.to_owned(), source })?;
        let malformed = |source: Box<dyn std::error::Error + Send + Sync>| CredentialsError::Malformed {
            path: config.to_owned(),
            what: "a CredentialProviderConfig of kubelet",
            source,
        };
        let raw: Config = serde_saphyr::from_str(&text).map_err(|error| {
            // Its own words show lines of the file, and a provider's environment may be secret.
            let place = error.location().map(|at| format!("line {}, column {}", at.line(), at.column()));
            malformed(place.unwrap_or_else(|| "it has no providers".to_owned()).into())
        })?;
        let provider = |raw: RawProvider| {
            if raw.api_version != API_VERSION {
                let what = format!("provider {:?} speaks {}, prebake only {API_VERSION}", raw.name, raw.api_version);
                return Err(malformed(what.into()));
            }
            if raw.name.contains('/') || raw.name.starts_with('.') {
                return Err(malformed(format!("{:?} is not the name of a program", raw.name).into()));
            }
            let cache = duration::parse(&raw.default_cache_duration)
                .ok_or_else(|| malformed(format!("{:?} is no duration", raw.default_cache_duration).into()))?;
            Ok(Arc::new(Provider {
                program: bin_dir.join(&raw.name),
                patterns: raw.match_images.iter().map(|text| Pattern::new(text)).collect(),
                cache,
                args: raw.args,
                env: raw.env.into_iter().map(|env| (env.name, env.value)).collect(),
                name: raw.name,
            }))
        };
        Ok(Self(raw.providers.into_iter().map(provider).collect::<Result<_>>()?))
    }

    /// The providers for an image, in the order of the file.
    pub(super) fn matching(&self, image: &str) -> impl Iterator<Item = &Arc<Provider>> {
        self.0.iter().filter(move |provider| provider.patterns.iter().any(|pattern| pattern.matches(image)))
    }
}

impl Provider {
    /// In words.
    pub(super) fn from(&self) -> String {
        format!("kubelet's provider {}", self.name)
    }

    /// What its answers for an image may be kept under.
    pub(super) fn keys(&self, image: &str) -> [String; 3] {
        [CacheKey::Image, CacheKey::Registry, CacheKey::Global].map(|kind| self.key(kind, image))
    }

    fn key(&self, kind: CacheKey, image: &str) -> String {
        match kind {
            CacheKey::Image => format!("{}\nimage {image}", self.name),
            CacheKey::Registry => format!("{}\nregistry {}", self.name, image.split('/').next().unwrap_or_default()),
            CacheKey::Global => format!("{}\nglobal", self.name),
        }
    }

    /// Asks it about an image.
    pub(super) async fn run(&self, image: &str) -> Result<Said> {
        let failed = |why: String| CredentialsError::Helper { helper: self.from(), registry: image.to_owned(), why };
        let request = json!({"kind": "CredentialProviderRequest", "apiVersion": API_VERSION, "image": image});
        let run = Run { program: self.program.clone().into(), args: &self.args, env: &self.env, limit: HELPER_TIMEOUT };
        let (ok, output, complaint) = run.output(request.to_string().as_bytes()).await.map_err(failed)?;
        if !ok {
            return Err(failed(complaint));
        }
        // What it said may be a secret, and so is no part of an error.
        let response: Response =
            serde_json::from_slice(&output).map_err(|_| failed("it answered something else".to_owned()))?;
        if response.api_version != API_VERSION {
            return Err(failed(format!("it answered in {:?}", response.api_version)));
        }
        let duration = match response.cache_duration {
            None => self.cache,
            Some(text) => duration::parse(&text).ok_or_else(|| failed(format!("{text:?} is no duration")))?,
        };
        let entry = |(pattern, pair): (String, Pair)| {
            let credential = Credential::pair(pair.username, pair.password);
            (Some(Pattern::new(&pattern)), Found { credential, from: self.from() })
        };
        // The most specific one first, as in kubelet's keyring.
        let entries = response.auth.unwrap_or_default().into_iter().rev().map(entry).collect();
        Ok(Said { key: self.key(response.cache_key_type, image), duration, entries })
    }
}

/// Images by host, port and the beginning of the path; each part of the host is a glob (`credentialprovider.URLsMatch`).
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    host: Vec<String>,
    port: Option<String>,
    path: String,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        let host = host.split('.').map(str::to_owned).collect();
        Self { host, port: port.map(str::to_owned), path: path.to_owned() }
    }

    pub(super) fn matches(&self, image: &str) -> bool {
        let image = Self::new(image);
        self.port == image.port
            && self.host.len() == image.host.len()
            && self.host.iter().zip(&image.host).all(|(glob, part)| glob_matches(glob, part))
            && image.path.starts_with(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_as_kubelet_reads_them() {
        for (pattern, image, matches) in [
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-west-1.amazonaws.com/app", true),
            ("*.dkr.ecr.*.amazonaws.com", "a.123.dkr.ecr.eu-west-1.amazonaws.com/app", false),
            ("*.azurecr.io", "my.azurecr.io/a/b", true),
            ("*.azurecr.io", "azurecr.io/a", false),
            ("r.example/team", "r.example/team/app", true),
            ("r.example/team", "r.example/other", false),
            ("r.example:5000", "r.example/app", false),
            ("r.example:5000", "r.example:5000/app", true),
            ("re*.ex*le", "registry.example/app", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(image), matches, "{pattern} {image}");
        }
    }
}
