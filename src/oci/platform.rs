//! Platforms, compared strictly: an image for another variant is an image for another machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, in the normal form of `containerd/platforms` (`normalizeArch`): `aarch64`
/// is `arm64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`, `amd64/v1` is `amd64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// A text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform; write OS/ARCH or OS/ARCH/VARIANT, such as linux/amd64 or linux/arm/v7")]
pub struct PlatformError(String);

impl Platform {
    /// Normalises what a document says. Empty parts stay empty and match nothing.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let architecture = architecture.to_lowercase();
        let variant = variant.to_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("amd64" | "x86_64" | "x86-64", variant) => ("amd64", if variant == "v1" { "" } else { variant }),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// `linux/` and the architecture this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            architecture => architecture,
        };
        Self::new("linux", architecture, "")
    }

    /// Whether nothing is said: what an index entry without a platform, or a config that is none, comes to.
    pub fn is_unknown(&self) -> bool {
        self.os.is_empty() || self.architecture.is_empty() || self.os == "unknown" || self.architecture == "unknown"
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(word) {
            return Err(PlatformError(text.to_owned()));
        }
        Ok(Self::new(parts[0], parts[1], parts.get(2).unwrap_or(&"")))
    }
}

impl TryFrom<String> for Platform {
    type Error = PlatformError;
    fn try_from(text: String) -> Result<Self, PlatformError> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |part: &str| if part.is_empty() { "unknown".to_owned() } else { part.to_owned() };
        let variant = if self.variant.is_empty() { String::new() } else { format!("/{}", self.variant) };
        f.pad(&format!("{}/{}{variant}", or(&self.os), or(&self.architecture)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn equal_names_of_one_platform() {
        for (a, b) in [
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/7"),
            ("linux/x86_64", "linux/amd64/v1"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/i386", "linux/386"),
        ] {
            assert_eq!(platform(a), platform(b), "{a} {b}");
        }
    }

    #[test]
    fn different_platforms() {
        for (a, b) in [
            ("linux/arm/v7", "linux/arm/v6"),
            ("linux/arm64", "linux/arm/v8"),
            ("linux/amd64", "linux/amd64/v2"),
            ("linux/amd64", "linux/386"),
            ("linux/amd64", "windows/amd64"),
        ] {
            assert_ne!(platform(a), platform(b), "{a} {b}");
        }
    }

    #[test]
    fn bad_platforms() {
        for bad in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
