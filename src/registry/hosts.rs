//! Which hosts to ask for a registry's images: containerd's `hosts.toml` (`core/remotes/docker/config/hosts.go`).

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::duration;

/// What containerd's documentation calls this file.
const FILE: &str = "hosts.toml";
/// Docker Hub's name in references, and the host that serves it.
pub(super) const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// A host that may be asked for images of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Scheme, host, port and path up to the repository's name.
    pub(super) base: Url,
    /// Host and port, as they are written.
    authority: String,
    /// `http` is spoken only when TLS does not work, as in containerd where it cannot be told before.
    pub(super) https_first: bool,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    pub(super) tls: TlsFiles,
    /// Sent with every request to it, and to its token server.
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
    /// Where this is written, or why it holds.
    pub why: String,
}

/// What a host may be asked for (`docker.HostCapabilities`).
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Blobs and manifests by digest.
    pub pull: bool,
    /// Tags.
    pub resolve: bool,
    /// Uploads.
    pub push: bool,
    /// What refers to an image.
    pub referrers: bool,
}

impl Capabilities {
    const ALL: Self = Self { pull: true, resolve: true, push: true, referrers: true };
    const NONE: Self = Self { pull: false, resolve: false, push: false, referrers: false };
}

/// Files of certificates for a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct TlsFiles {
    pub(super) ca: Vec<PathBuf>,
    /// Certificates with their keys; the key may be in the same file.
    pub(super) client: Vec<(PathBuf, PathBuf)>,
    pub(super) skip_verify: Option<bool>,
}

impl TlsFiles {
    fn is_explicit(&self) -> bool {
        *self != Self::default()
    }
}

impl Host {
    /// Whoever is at a URL, about whom nothing is known.
    pub(super) fn unknown(url: &Url) -> Self {
        Table::default().host(url.clone(), url.authority(), String::new())
    }

    /// Host and port, as they are written.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether a URL is one of its own.
    pub(super) fn is_at(&self, url: &Url) -> bool {
        let same = |own: &Url| {
            (own.scheme(), own.host_str(), own.port_or_known_default())
                == (url.scheme(), url.host_str(), url.port_or_known_default())
        };
        same(&self.base) || self.https_first && same(&with_tls(&self.base))
    }

    /// Where its API is.
    pub fn url(&self) -> &str {
        self.base.as_str()
    }

    /// Whether it stands in for the registry, which it is then told with `ns` (`RegistryHost.isProxy`).
    pub fn is_mirror_of(&self, registry: &str) -> bool {
        self.authority() != registry && (registry, self.authority()) != DOCKER_HUB
    }

    /// Its settings, in words.
    pub fn settings(&self) -> Vec<String> {
        let mut all: Vec<String> = self.tls.ca.iter().map(|path| format!("ca {}", path.display())).collect();
        all.extend(
            self.tls.client.iter().map(|(certificate, _)| format!("client certificate {}", certificate.display())),
        );
        match (self.tls.skip_verify, self.https_first) {
            (Some(true), true) => all.push("https if it speaks it, certificate not verified; else http".to_owned()),
            (Some(true), false) => all.push("certificate not verified".to_owned()),
            (_, true) => all.push("https if it speaks it; else http".to_owned()),
            _ => {}
        }
        // Their values may be secrets.
        all.extend(self.headers.keys().map(|name| format!("header {name}")));
        all.extend(self.dial_timeout.map(|limit| format!("connects within {limit:?}")));
        all
    }
}

/// Why a registry's hosts cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostsError {
    /// A file or directory cannot be read.
    #[error("reading {} failed", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A registry's name that no URL can have.
    #[error("{registry} is no host: {why}")]
    BadName {
        /// The registry.
        registry: String,
        /// What is wrong with it.
        why: String,
    },
    /// A `hosts.toml` that containerd would ignore with all its mirrors.
    #[error("{}:{line}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, with the key it is about.
        what: String,
    },
}

/// Directories of `hosts.toml` files, the first one first: containerd's `config_path`.
#[derive(Debug, Clone, Default)]
pub struct HostsDirs(pub Vec<PathBuf>);

impl HostsDirs {
    /// The hosts for a registry, in the order in which they are asked. With `plain_http`, a registry that nothing is written
    /// about is asked without TLS.
    ///
    /// # Errors
    /// [`HostsError`].
    pub fn hosts(&self, registry: &str, plain_http: bool) -> Result<Vec<Host>, HostsError> {
        for dir in self.0.iter().flat_map(|root| candidates(root, registry)) {
            match std::fs::metadata(&dir) {
                Ok(_) => return load(&dir, registry, plain_http),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(HostsError::Io { path: dir, source }),
            }
        }
        Ok(vec![default_host(registry, plain_http, Table::default(), "no hosts.toml is about it".to_owned())?])
    }
}

/// Directories for a registry, of which the first that exists counts (`hostPaths`).
fn candidates(root: &Path, registry: &str) -> Vec<PathBuf> {
    let with_port = registry.rfind(':').filter(|at| *at > 0);
    let escaped = with_port.map(|at| format!("{}_{}_", &registry[..at], &registry[at + 1..]));
    escaped.iter().map(String::as_str).chain([registry, "_default"]).map(|name| root.join(name)).collect()
}

fn load(dir: &Path, registry: &str, plain_http: bool) -> Result<Vec<Host>, HostsError> {
    let path = dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(HostsError::Io { path, source }),
    };
    if text.is_empty() {
        let why = format!("certificates in {}", dir.display());
        return Ok(vec![default_host(registry, plain_http, certificates(dir)?, why)?]);
    }
    let file = File { path: &path, dir, text: &text };
    file.parse(registry, plain_http)
}

/// Docker's layout: `*.crt` are CAs, `*.cert` and `*.key` of the same name a client's pair (`loadCertFiles`).
fn certificates(dir: &Path) -> Result<Table, HostsError> {
    let error = |source| HostsError::Io { path: dir.to_owned(), source };
    let mut table = Table::default();
    let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(error)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(|path| !path.is_dir()).collect();
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => table.tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = if key.exists() { key } else { path.clone() };
                table.tls.client.push((path, key));
            }
            _ => {}
        }
    }
    Ok(table)
}

/// The keys that a host, and the top level, may have.
#[derive(Debug, Default)]
struct Table {
    capabilities: Option<Capabilities>,
    tls: TlsFiles,
    headers: HeaderMap,
    override_path: bool,
    dial_timeout: Option<Duration>,
}

/// The registry itself, where no file names a server: `ConfigureHosts`.
fn default_host(registry: &str, plain_http: bool, mut table: Table, why: String) -> Result<Host, HostsError> {
    let authority = if registry == DOCKER_HUB.0 { DOCKER_HUB.1 } else { registry };
    let (host, port) = split(authority);
    let local = is_loopback(host) && !plain_http;
    // Another port may speak either.
    let plain = plain_http || local && !matches!(port, None | Some("443"));
    let scheme = if plain { "http" } else { "https" };
    if local && port != Some("80") {
        table.tls.skip_verify = Some(true);
    }
    let base = Url::parse(&format!("{scheme}://{authority}/v2/"))
        .map_err(|error| HostsError::BadName { registry: registry.to_owned(), why: error.to_string() })?;
    table.capabilities = None;
    Ok(table.host(base, authority, why))
}

impl Table {
    fn host(self, base: Url, authority: &str, why: String) -> Host {
        Host {
            https_first: base.scheme() == "http" && self.tls.is_explicit() && split(authority).1 != Some("80"),
            base,
            authority: authority.to_owned(),
            capabilities: self.capabilities.unwrap_or(Capabilities::ALL),
            tls: self.tls,
            headers: self.headers,
            dial_timeout: self.dial_timeout,
            why,
        }
    }
}

/// A URL with HTTPS instead of HTTP; a port that is written stays.
pub(super) fn with_tls(url: &Url) -> Url {
    let mut tls = url.clone();
    // HTTP's URL can always become HTTPS's.
    let _ = tls.set_scheme("https");
    tls
}

/// containerd's rule for registries that speak plain HTTP by default (`docker.IsLocalhost`).
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Host and port of an authority.
fn split(authority: &str) -> (&str, Option<&str>) {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    }
}

struct File<'f> {
    path: &'f Path,
    dir: &'f Path,
    text: &'f str,
}

type Value<'v> = Spanned<DeValue<'v>>;

impl File<'_> {
    fn parse(&self, registry: &str, plain_http: bool) -> Result<Vec<Host>, HostsError> {
        let root = DeTable::parse(self.text).map_err(|error| {
            self.wrong(&error.span().unwrap_or(0..0), error.message().lines().next().unwrap_or_default())
        })?;
        let root = root.get_ref();
        let mut hosts = Vec::new();
        if let Some(tables) = root.get("host") {
            let tables = tables
                .get_ref()
                .as_table()
                .ok_or_else(|| self.wrong(&tables.span(), "host is not a table of hosts"))?;
            // In the order of the file, which the parser's own table does not keep.
            let mut tables: Vec<_> = tables.iter().collect();
            tables.sort_by_key(|(name, _)| name.span().start);
            for (name, value) in tables {
                let key = format!("host.{:?}", name.get_ref());
                let table = value.get_ref().as_table();
                let table = table.ok_or_else(|| self.wrong(&value.span(), format!("{key} is not a table")))?;
                hosts.push(self.host(name.get_ref(), &name.span(), &key, self.table(table, &key)?)?);
            }
        }
        let table = self.table(root, "")?;
        hosts.push(match root.get("server") {
            Some(server) if server.get_ref().as_str() != Some("") => {
                let name = self.string(server, "server")?;
                self.host(name, &server.span(), "server", table)?
            }
            _ => {
                let why = format!("{}: no server is named", self.path.display());
                default_host(registry, plain_http, table, why)?
            }
        });
        Ok(hosts)
    }

    /// `parseHostConfig`.
    fn host(&self, name: &str, at: &Range<usize>, key: &str, table: Table) -> Result<Host, HostsError> {
        let with_scheme = if name.starts_with("http") { name.to_owned() } else { format!("https://{name}") };
        let bad = |why: &dyn fmt::Display| self.wrong(at, format!("{key}: {name:?} is not the URL of a host: {why}"));
        let mut base = Url::parse(&with_scheme).map_err(|e| bad(&e))?;
        if !matches!(base.scheme(), "http" | "https") || base.path().starts_with("//") {
            return Err(bad(&"it is neither http nor https"));
        }
        if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
            return Err(bad(&"it may have a host, a port and a path"));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        let path = if path.ends_with("/v2") || table.override_path { path } else { format!("{path}/v2") };
        base.set_path(&format!("{path}/"));
        let written = with_scheme.split_once("://").map_or("", |(_, rest)| rest);
        let authority = written.split(['/', '#']).next().unwrap_or_default();
        Ok(table.host(base, authority, format!("{}:{}: {key}", self.path.display(), self.line(at))))
    }

    fn table(&self, table: &DeTable<'_>, prefix: &str) -> Result<Table, HostsError> {
        let mut result = Table::default();
        for (name, value) in table {
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            match &**name.get_ref() {
                "capabilities" => result.capabilities = self.capabilities(value, &key)?,
                "ca" => result.tls.ca = self.files(value, &key)?,
                "client" => result.tls.client = self.pairs(value, &key)?,
                "skip_verify" => result.tls.skip_verify = Some(self.boolean(value, &key)?),
                "override_path" => result.override_path = self.boolean(value, &key)?,
                "header" => result.headers = self.headers(value, &key)?,
                "dial_timeout" if value.get_ref().as_str() != Some("") => {
                    let text = self.string(value, &key)?;
                    let limit = duration::parse(text);
                    let bad = || self.wrong(&value.span(), format!("{key}: {text:?} is no duration; write it like 3s"));
                    result.dial_timeout = Some(limit.ok_or_else(bad)?);
                }
                // Unknown keys mean nothing to containerd.
                _ => {}
            }
        }
        Ok(result)
    }

    fn capabilities(&self, value: &Value<'_>, key: &str) -> Result<Option<Capabilities>, HostsError> {
        let mut all = Capabilities::NONE;
        let names = self.array(value, key)?;
        for name in names {
            let text = self.string(name, key)?;
            *(match text.to_ascii_lowercase().as_str() {
                "pull" => &mut all.pull,
                "resolve" => &mut all.resolve,
                "push" => &mut all.push,
                "referrers" => &mut all.referrers,
                _ => {
                    let known = "they are pull, resolve, push, referrers";
                    return Err(self.wrong(&name.span(), format!("{key}: unknown capability {text:?}; {known}")));
                }
            }) = true;
        }
        Ok((!names.is_empty()).then_some(all))
    }

    fn files(&self, value: &Value<'_>, key: &str) -> Result<Vec<PathBuf>, HostsError> {
        if value.get_ref().is_str() {
            return Ok(vec![self.dir.join(self.string(value, key)?)]);
        }
        self.array(value, key)?.iter().map(|file| Ok(self.dir.join(self.string(file, key)?))).collect()
    }

    fn pairs(&self, value: &Value<'_>, key: &str) -> Result<Vec<(PathBuf, PathBuf)>, HostsError> {
        let alone = |file: &Value<'_>| {
            let path = self.dir.join(self.string(file, key)?);
            Ok((path.clone(), path))
        };
        if value.get_ref().is_str() {
            return Ok(vec![alone(value)?]);
        }
        let pair = |item: &Value<'_>| {
            if item.get_ref().is_str() {
                return alone(item);
            }
            let parts = self.array(item, key)?;
            let [certificate, own_key] = parts else {
                return Err(self.wrong(&item.span(), format!("{key}: a pair is [certificate, key]")));
            };
            let certificate = self.dir.join(self.string(certificate, key)?);
            let own_key = match self.string(own_key, key)? {
                "" => certificate.clone(),
                file => self.dir.join(file),
            };
            Ok((certificate, own_key))
        };
        self.array(value, key)?.iter().map(pair).collect()
    }

    fn headers(&self, value: &Value<'_>, key: &str) -> Result<HeaderMap, HostsError> {
        let table = value.get_ref().as_table();
        let table = table.ok_or_else(|| self.wrong(&value.span(), format!("{key} is not a table of headers")))?;
        let mut headers = HeaderMap::new();
        for (name, value) in table {
            let key = format!("{key}.{}", name.get_ref());
            let bad = |at: Range<usize>, what| self.wrong(&at, format!("{key}: this cannot be {what} of a header"));
            let header = HeaderName::from_bytes(name.get_ref().as_bytes()).map_err(|_| bad(name.span(), "the name"))?;
            let one = std::slice::from_ref(value);
            for value in if value.get_ref().is_str() { one } else { self.array(value, &key)? } {
                let text = self.string(value, &key)?;
                let mut value = HeaderValue::from_str(text).map_err(|_| bad(value.span(), "the value"))?;
                value.set_sensitive(true);
                headers.append(&header, value);
            }
        }
        Ok(headers)
    }

    fn string<'v>(&self, value: &'v Value<'_>, key: &str) -> Result<&'v str, HostsError> {
        value.get_ref().as_str().ok_or_else(|| self.not(value, key, "a string"))
    }

    fn boolean(&self, value: &Value<'_>, key: &str) -> Result<bool, HostsError> {
        value.get_ref().as_bool().ok_or_else(|| self.not(value, key, "true or false"))
    }

    fn array<'v, 't>(&self, value: &'v Value<'t>, key: &str) -> Result<&'v [Value<'t>], HostsError> {
        value.get_ref().as_array().map(|array| &array[..]).ok_or_else(|| self.not(value, key, "an array"))
    }

    fn not(&self, value: &Value<'_>, key: &str, what: &str) -> HostsError {
        self.wrong(&value.span(), format!("{key} is not {what}"))
    }

    fn wrong(&self, at: &Range<usize>, what: impl Into<String>) -> HostsError {
        HostsError::Malformed { path: self.path.to_owned(), line: self.line(at), what: what.into() }
    }

    fn line(&self, at: &Range<usize>) -> usize {
        self.text.as_bytes().iter().take(at.start).filter(|byte| **byte == b'\n').count() + 1
    }
}
