//! References: what a person types to name an image, and the image name containerd knows it by.
//!
//! The grammar is that of `distribution/reference`, normalised as Docker and CRI do (`ParseDockerRef`): `nginx` is
//! `docker.io/library/nginx:latest`, and a reference with tag and digest is named by its digest.

use std::fmt;
use std::str::FromStr;

use super::Digest;

/// The longest repository name with its registry (`reference.NameTotalLengthMax`).
const MAX_NAME: usize = 255;
/// The longest tag (distribution specification).
pub const MAX_TAG: usize = 128;
const DEFAULT_REGISTRY: &str = "docker.io";

/// A normalised reference: registry, repository, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ReferenceError {
    text: String,
    /// Character of `text`, counted from 0.
    at: usize,
    what: &'static str,
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.text.chars().take(300).collect();
        match self.text.chars().nth(self.at) {
            Some(c) => write!(f, "bad reference {shown:?}: character {} ({c:?}): {}", self.at + 1, self.what),
            None => write!(f, "bad reference {shown:?}: at its end: {}", self.what),
        }
    }
}

impl Reference {
    /// Host and port as in the image name; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The registry without its port, as containerd keys `containerd.io/distribution.source.<host>` by.
    pub fn registry_host(&self) -> &str {
        match self.registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => self.registry.split(':').next().unwrap_or_default(),
        }
    }

    /// Path of the repository, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What to ask a registry for: the digest, else the tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The digest, when the reference has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository's image with this digest.
    #[must_use]
    pub fn by_digest(&self, digest: &Digest) -> Self {
        Self { tag: None, digest: Some(digest.clone()), ..self.clone() }
    }

    /// Whether its name fits a pattern, see [`glob_matches`]. Registries that are written in another way and mean the same fit
    /// as well: in capitals, with HTTPS's own port, Docker Hub by one of its other names.
    pub fn fits(&self, pattern: &str) -> bool {
        let name = self.to_string();
        let (patterns, names) = (spellings(pattern), spellings(&name));
        patterns.iter().any(|pattern| names.iter().any(|name| glob_matches(pattern, name)))
    }

    /// The image name by digest (CRI's repo digest).
    pub fn digest_name(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

/// A name or pattern with its registry in lower case, and in its shortest form.
fn spellings(name: &str) -> [String; 2] {
    // A pattern's star may stand for the slash.
    let at = name.find('/').or_else(|| name.find('*')).unwrap_or(0);
    let (registry, rest) = name.split_at(at);
    let registry = registry.to_ascii_lowercase();
    let short = registry.strip_suffix(":443").unwrap_or(&registry);
    let short = if matches!(short, "index.docker.io" | "registry-1.docker.io") { DEFAULT_REGISTRY } else { short };
    [format!("{short}{rest}"), format!("{registry}{rest}")]
}

/// Whether a text fits a pattern in which `*` stands for anything.
pub fn glob_matches(glob: &str, text: &str) -> bool {
    // Where the last `*` was, and how much it takes so far: only that one is ever tried again.
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if glob.get(g) == Some(&b'*') {
            star = Some((g, t));
            g += 1;
        } else if glob.get(g) == Some(&text[t]) {
            (g, t) = (g + 1, t + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (g, t) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|byte| *byte == b'*')
}

/// The image name: `registry/repository:tag`, or `registry/repository@digest` when there is a digest.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.digest.is_some() { '@' } else { ':' };
        f.pad(&format!("{}/{}{mark}{}", self.registry, self.repository, self.target()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error =
            |byte: usize, what| ReferenceError { text: text.to_owned(), at: text[..byte].chars().count(), what };
        if text.is_empty() {
            return Err(error(0, "it is empty"));
        }
        if let Some(at) = text.find("://") {
            return Err(error(at, "a reference has no scheme; leave out everything up to \"://\""));
        }
        if let Some((at, _)) = text.char_indices().find(|(_, c)| !c.is_ascii_graphic()) {
            return Err(error(at, "only visible ASCII characters are allowed"));
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => {
                let at = name.len() + 1;
                (
                    name,
                    Some(digest.parse::<Digest>().map_err(|_| {
                        error(
                            at + bad_digest_at(digest),
                            "a digest is sha256: and 64 lower-case hexadecimal digits, or sha512: and 128",
                        )
                    })?),
                )
            }
        };
        let (registry, path, path_at) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest, first.len() + 1),
            _ => (DEFAULT_REGISTRY, name, 0),
        };
        check_registry(registry).map_err(|(at, what)| error(at, what))?;
        let (repository, tag) = match path.rfind(':') {
            Some(colon) if !path[colon..].contains('/') => (&path[..colon], Some(&path[colon + 1..])),
            _ => (path, None),
        };
        check_repository(repository).map_err(|(at, what)| error(path_at + at, what))?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(|(at, what)| error(path_at + repository.len() + 1 + at, what))?;
        }
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let library = registry == DEFAULT_REGISTRY && !repository.contains('/');
        if library && repository.len() == 64 && repository.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error(path_at, "64 hexadecimal digits are an image id, not a name"));
        }
        let repository = if library { format!("library/{repository}") } else { repository.to_owned() };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(error(text.len(), "registry and repository together are longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Docker's rule for whether the part before the first slash is a registry (`splitDockerDomain`).
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

type Wrong = (usize, &'static str);

fn bad_digest_at(digest: &str) -> usize {
    let hex_at = digest.find(':').map_or(0, |colon| colon + 1);
    if !matches!(&digest[..hex_at], "sha256:" | "sha512:") {
        return 0;
    }
    digest[hex_at..]
        .bytes()
        .position(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        .map_or(digest.len(), |at| hex_at + at)
}

fn check_registry(registry: &str) -> Result<(), Wrong> {
    let (host, port_at) = if let Some(rest) = registry.strip_prefix('[') {
        let close = rest.find(']').ok_or((registry.len(), "an IPv6 address ends with \"]\""))?;
        if let Some(at) = rest[..close].bytes().position(|b| !(b.is_ascii_hexdigit() || b == b':')) {
            return Err((1 + at, "an IPv6 address has hexadecimal digits and colons"));
        }
        if rest[..close].parse::<std::net::Ipv6Addr>().is_err() {
            return Err((1, "this is not an IPv6 address"));
        }
        ("", close + 2)
    } else {
        let end = registry.find(':').unwrap_or(registry.len());
        (&registry[..end], end)
    };
    let mut at = 0;
    for label in host.split('.').filter(|_| !host.is_empty()) {
        if label.is_empty() {
            return Err((at, "a registry's name has something between its dots"));
        }
        if let Some(bad) = label.bytes().position(|b| !(b.is_ascii_alphanumeric() || b == b'-')) {
            return Err((at + bad, "a registry's name has letters, digits, \"-\" and \".\""));
        }
        if label.starts_with('-') || label.ends_with('-') {
            let bad = if label.starts_with('-') { 0 } else { label.len() - 1 };
            return Err((at + bad, "no part of a registry's name starts or ends with \"-\""));
        }
        at += label.len() + 1;
    }
    if host.is_empty() && !registry.starts_with('[') {
        return Err((0, "there is no registry before the port"));
    }
    let port = &registry[port_at..];
    if port.is_empty() {
        return Ok(());
    }
    let Some(digits) = port.strip_prefix(':') else { return Err((port_at, "only a port can follow the address")) };
    if let Some(bad) = digits.bytes().position(|b| !b.is_ascii_digit()) {
        return Err((port_at + 1 + bad, "a port is a number"));
    }
    if digits.parse::<u16>().is_err() {
        return Err((port_at + 1, "a port is a number from 0 to 65535"));
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), Wrong> {
    let mut start = 0;
    for part in repository.split('/') {
        if part.is_empty() {
            return Err((start, "a part of the repository's name is missing"));
        }
        let bytes = part.as_bytes();
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let mut at = 0;
        while at < bytes.len() {
            if word(bytes[at]) {
                at += 1;
                continue;
            }
            let run = bytes[at..].iter().take_while(|b| !word(**b)).count();
            let separator = &part[at..at + run];
            if let Some(bad) = separator.bytes().position(|b| !b"._-".contains(&b)) {
                return Err((
                    start + at + bad,
                    "a repository's name has lower-case letters, digits, \".\", \"_\", \"-\" and \"/\"",
                ));
            }
            if at == 0 || at + run == bytes.len() {
                return Err((start + at, "a part of a repository's name starts and ends with a letter or digit"));
            }
            if !(matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-')) {
                return Err((
                    start + at + 1,
                    "letters or digits are parted by one \".\", one or two \"_\", or any number of \"-\"",
                ));
            }
            at += run;
        }
        start += part.len() + 1;
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), Wrong> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if tag.is_empty() {
        return Err((0, "there is no tag after the colon"));
    }
    if let Some(bad) = tag.bytes().position(|b| !(word(b) || b == b'.' || b == b'-')) {
        return Err((bad, "a tag has letters, digits, \"_\", \".\" and \"-\""));
    }
    if !word(tag.as_bytes()[0]) {
        return Err((0, "a tag starts with a letter, a digit or \"_\""));
    }
    if tag.len() > MAX_TAG {
        return Err((MAX_TAG, "a tag has at most 128 characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn normal_forms() {
        let digest = format!("sha256:{HEX}");
        for (text, name) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.2", "docker.io/library/nginx:1.2".to_owned()),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/a/b/c:t", "localhost:5000/a/b/c:t".to_owned()),
            ("[::1]:5000/app:v1", "[::1]:5000/app:v1".to_owned()),
            ("[fd00::1]/app", "[fd00::1]/app:latest".to_owned()),
            ("127.0.0.1:80/a__b/c---d.e", "127.0.0.1:80/a__b/c---d.e:latest".to_owned()),
            ("REG/app", "REG/app:latest".to_owned()),
            (&format!("r.example/app@{digest}"), format!("r.example/app@{digest}")),
            (&format!("r.example/app:v1@{digest}"), format!("r.example/app@{digest}")),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ] {
            assert_eq!(text.parse::<Reference>().map(|r| r.to_string()), Ok(name), "{text}");
        }
    }

    #[test]
    fn patterns_mean_a_registry_however_it_is_written() {
        for (pattern, name, fits) in [
            ("*", "app", true),
            ("docker.io/*", "registry-1.docker.io/library/app:1", true),
            ("registry-1.docker.io/library/*", "app", true),
            ("r.example/app:*", "R.Example:443/app", true),
            ("R.Example:443/*", "r.example/app", true),
            ("r.example:*/app*", "r.example:443/app", true),
            ("R.*e/app:V1", "r.example/app:V1", true),
            ("r.example*:V1", "R.EXAMPLE/app:V1", true),
            ("r.example/*", "r.example:5000/app", false),
            ("r.example/app:v1", "r.example/app:V1", false),
            ("r.example/*", "other/r.example/app", false),
        ] {
            let reference: Reference = name.parse().expect("a reference");
            assert_eq!(reference.fits(pattern), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn which_character_is_wrong() {
        let bad_hex = format!("a@sha256:{}G", &HEX[1..]);
        for (text, at) in [
            ("", 0),
            ("Nginx", 0),
            ("nginX", 4),
            ("r.example/App", 10),
            ("r.example/app:", 14),
            ("r.example/app:-x", 14),
            ("r.example/app:v 1", 15),
            ("r.example//app", 10),
            ("r.example/app/", 14),
            ("r.example:port/app", 10),
            ("r.example:99999/app", 10),
            ("r..example/app", 2),
            ("-r.example/app", 0),
            ("[::g]/app", 3),
            ("[::1/app", 4),
            ("[::1]x/app", 5),
            ("https://r.example/app", 5),
            ("app@sha256:abc", 14),
            ("app@md5:abc", 4),
            ("app.-x", 4),
            ("app_", 3),
            ("größe", 2),
            (&bad_hex, 72),
            (HEX, 0),
        ] {
            assert_eq!(text.parse::<Reference>().map_err(|e| e.at), Err(at), "{text}");
        }
    }

    #[test]
    fn hosts() {
        for (text, host) in [("r.example:5000/a", "r.example"), ("[::1]:5000/a", "::1"), ("nginx", "docker.io")] {
            assert_eq!(text.parse::<Reference>().expect("a reference").registry_host(), host);
        }
    }
}
