//! How places are named.

use std::fmt;
use std::path::PathBuf;

use crate::oci::{Reference, ReferenceError};

/// What a reference may begin with.
const REGISTRY: &str = "docker://";

/// What kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `oci:DIR[:NAME]`: an OCI layout.
    Oci,
    /// `oci-archive:FILE[:NAME]`: the same in an archive, which may be compressed.
    OciArchive,
    /// `docker-archive:FILE[:NAME]`: what `docker save` writes.
    DockerArchive,
    /// `containerd:ROOT[:NAMESPACE]`: the state of a containerd that does not run, or a root that has it.
    Containerd,
    /// `bundle:FILE[:NAME]`: what `prebake bundle create` writes.
    Bundle,
}

impl Scheme {
    const ALL: [Self; 5] = [Self::Oci, Self::OciArchive, Self::DockerArchive, Self::Containerd, Self::Bundle];

    /// What names of such places begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Oci => "oci:",
            Self::OciArchive => "oci-archive:",
            Self::DockerArchive => "docker-archive:",
            Self::Containerd => "containerd:",
            Self::Bundle => "bundle:",
        }
    }
}

/// A place on this machine that holds images, by its name. Nothing is known of what is there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Of what kind.
    pub scheme: Scheme,
    /// `PATH[:NAME]`.
    pub rest: String,
    /// What the path is relative to.
    pub dir: PathBuf,
}

/// What a person names: an image of a registry, or of a place, by the name it has there or by another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// `REF`, or `docker://REF`.
    Registry(Reference),
    /// `PLACE`: all images of it, or the one behind its colon.
    Place(Place),
    /// `NAME=PLACE`: its only image, or the one behind its colon, under this name.
    As(Reference, Place),
}

/// A text that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// No reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No path behind the scheme.
    #[error("{0:?} names no path")]
    NoPath(String),
    /// What is given a name of its own is no place.
    #[error("{0:?}: only what is in a place can be given another name, such as in NAME=oci:DIR")]
    NoPlace(String),
}

impl Named {
    /// The name it has here, unless its place tells.
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Registry(reference) | Self::As(reference, _) => Some(reference),
            Self::Place(_) => None,
        }
    }

    /// The place it is in.
    pub fn place_mut(&mut self) -> Option<&mut Place> {
        match self {
            Self::Registry(_) => None,
            Self::Place(place) | Self::As(_, place) => Some(place),
        }
    }

    /// Reads `[NAME=]PLACE` or `[docker://]REF`.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        if let Some(place) = Place::parse(text)? {
            return Ok(Self::Place(place));
        }
        if let Some((name, rest)) = text.split_once('=') {
            let name = name.parse()?;
            return match Place::parse(rest)? {
                Some(place) => Ok(Self::As(name, place)),
                None => Err(PlaceError::NoPlace(rest.to_owned())),
            };
        }
        Ok(Self::Registry(text.strip_prefix(REGISTRY).unwrap_or(text).parse()?))
    }
}

impl Place {
    /// Reads `SCHEME:PATH[:NAME]`; `None` when the text begins with no scheme of a place.
    ///
    /// # Errors
    /// [`PlaceError::NoPath`].
    pub fn parse(text: &str) -> Result<Option<Self>, PlaceError> {
        for scheme in Scheme::ALL {
            let Some(rest) = text.strip_prefix(scheme.prefix()) else { continue };
            if rest.is_empty() || rest.starts_with(':') {
                return Err(PlaceError::NoPath(text.to_owned()));
            }
            return Ok(Some(Self { scheme, rest: rest.to_owned(), dir: PathBuf::new() }));
        }
        Ok(None)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme.prefix(), self.rest)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Place(place) => place.fmt(f),
            Self::As(reference, place) => write!(f, "{reference}={place}"),
        }
    }
}

impl From<Reference> for Named {
    fn from(reference: Reference) -> Self {
        Self::Registry(reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named() {
        for (text, shown) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("docker://nginx:1", "docker.io/library/nginx:1"),
            ("oci:dir:app:1", "oci:dir:app:1"),
            ("bundle:a=b.bundle", "bundle:a=b.bundle"),
            ("x.example/app:1=oci-archive:a.tar", "x.example/app:1=oci-archive:a.tar"),
            ("oci:", "\"oci:\" names no path"),
            ("a=b", "\"b\": only what is in a place can be given another name, such as in NAME=oci:DIR"),
            ("B@=oci:x", "bad reference"),
        ] {
            let got = Named::parse(text).map_or_else(|error| error.to_string(), |named| named.to_string());
            assert!(got.starts_with(shown), "{text}: {got}");
        }
    }
}
