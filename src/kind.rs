//! The closed set of kinds every error falls into, and the one place that says which.

use std::io;

use serde::Serialize;

use crate::{
    bake, bolt, bootstrap, bundle, cache, care, catalog, content, fixture, layer, metadata, registry, root, serve,
    snapshot, source, spec,
};

/// What kind of thing went wrong; the command line gives each its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The image, the blob, the platform does not exist.
    NotFound,
    /// Credentials are missing or not enough.
    Unauthorized,
    /// Another process uses the root.
    Busy,
    /// Bytes are not what they should be.
    Corrupt,
    /// The disk is full.
    NoSpace,
    /// What was asked for cannot be done.
    InvalidInput,
    /// A registry cannot be reached, or fails.
    Unavailable,
    /// The system refused something else.
    Io,
}

impl Kind {
    /// What helps, in one line.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::NotFound => "check name, tag and platform; `prebake registry explain` shows who is asked",
            Self::Unauthorized => {
                "log in, or name credentials: a registry's with --creds-file, a cache's in the environment; `prebake registry explain` shows as whom registries are asked"
            }
            Self::Busy => "wait for the other process, or stop it",
            Self::Corrupt => {
                "try again; if it stays so, what the registry has is damaged, or not signed by whom you trust"
            }
            Self::NoSpace => "free some space, or unpack less; `prebake plan` shows what takes how much",
            Self::InvalidInput => {
                "what is asked for cannot be done with this image; choose another tag, platform or policy"
            }
            Self::Unavailable => "try again with --retry-failed: what came is kept, and goes on where it broke off",
            Self::Io => "the system refused something; its words say what",
        }
    }
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

impl From<&io::Error> for Kind {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io,
        }
    }
}

impl From<&registry::Error> for Kind {
    fn from(error: &registry::Error) -> Self {
        use registry::Error;
        match error {
            Error::NotFound { .. } | Error::NoHost { .. } => Self::NotFound,
            Error::Unauthorized { .. } => Self::Unauthorized,
            Error::TooLarge { .. } | Error::WrongClaim { .. } | Error::WrongBytes { .. } | Error::NoTags { .. } => {
                Self::Corrupt
            }
            Error::GaveUp { source, .. } => (&**source).into(),
            Error::Hosts(error) => error.into(),
            Error::Credentials(error) => error.into(),
            Error::Tls { .. } => Self::InvalidInput,
            Error::Status { .. }
            | Error::Limited { .. }
            | Error::Quota { .. }
            | Error::Transport { .. }
            | Error::Stalled { .. }
            | Error::CutOff { .. }
            | Error::WrongRange { .. }
            | Error::Address { .. }
            | Error::Redirect { .. }
            | Error::Upload { .. }
            | Error::Read { .. }
            | Error::Token { .. } => Self::Unavailable,
            Error::Cache(error) => error.into(),
            Error::Setup(_) => Self::Io,
        }
    }
}

impl From<&cache::Error> for Kind {
    fn from(error: &cache::Error) -> Self {
        use cache::{Error, Why};
        match error {
            Error::Store { why: Why::Full, .. } => Self::NoSpace,
            Error::Store { why: Why::Refused, .. } => Self::Unauthorized,
            Error::Version { .. } | Error::Without => Self::InvalidInput,
            Error::NoCache { .. } => Self::NotFound,
            Error::Store { .. } | Error::Silent { .. } | Error::Slow { .. } | Error::Off { .. } => Self::Unavailable,
        }
    }
}

impl From<&source::Error> for Kind {
    fn from(error: &source::Error) -> Self {
        use source::Error;
        match error {
            Error::Registry(error) => error.into(),
            Error::Io { source, .. } => source.into(),
            Error::Archive { .. } | Error::Twice { .. } | Error::Unusable { .. } | Error::Document { .. } => {
                Self::Corrupt
            }
            Error::TooLarge { .. } | Error::Damaged { .. } => Self::Corrupt,
            Error::Lacks { .. } | Error::Which { .. } | Error::Nameless { .. } => Self::InvalidInput,
            Error::NoImage { .. } | Error::Absent { .. } | Error::Part { .. } => Self::NotFound,
            Error::Content(error) => error.into(),
            Error::Metadata(error) => error.into(),
            Error::Root(error) => error.into(),
            Error::Task => Self::Io,
        }
    }
}

impl From<&bundle::Error> for Kind {
    fn from(error: &bundle::Error) -> Self {
        use bundle::Error;
        match error {
            Error::Source(error) => error.into(),
            Error::Bake(error) => error.into(),
            Error::Content(error) => error.into(),
            Error::Root(error) => error.into(),
            Error::Catalog(error) => error.into(),
            Error::Images(failed) => {
                let mut kinds = failed.iter().filter_map(|image| Some(image.failure.as_ref()?.kind));
                let first = kinds.next().unwrap_or(Self::Io);
                if kinds.all(|kind| kind == first) { first } else { Self::Unavailable }
            }
            Error::Io { source, .. } => source.into(),
            Error::Length { .. } | Error::WrongDigest { .. } | Error::Contents { .. } => Self::Corrupt,
            Error::WrongSignature(_) | Error::Unsigned(_) => Self::Corrupt,
            Error::NoSpace { .. } => Self::NoSpace,
            Error::NoBundle(_) | Error::Inventory { .. } => Self::InvalidInput,
            Error::Lacking { .. } | Error::Export { .. } => Self::NotFound,
            Error::Registry(error) => error.into(),
            Error::Document { source: crate::oci::DocumentError::Schema1, .. } => Self::InvalidInput,
            Error::Document { .. } | Error::TooDeep | Error::TooManyDocuments => Self::Corrupt,
            Error::NoList { .. } => Self::Corrupt,
            Error::Incomplete { .. } | Error::NoPlatform { .. } | Error::NoTags { .. } => Self::NotFound,
            Error::WrongName { .. } | Error::Destination(_) => Self::InvalidInput,
            Error::NotLocked(_) | Error::Unlocked { .. } => Self::InvalidInput,
            Error::Stopped => Self::Unavailable,
            Error::Task => Self::Io,
        }
    }
}

impl From<&serve::Error> for Kind {
    fn from(error: &serve::Error) -> Self {
        use serve::Error;
        match error {
            Error::Source(error) => error.into(),
            Error::Bind { source, .. } | Error::File { source, .. } => source.into(),
            Error::Exposed { .. } | Error::AuthLine { .. } | Error::NoUsers { .. } | Error::Tls { .. } => {
                Self::InvalidInput
            }
            Error::Task => Self::Io,
        }
    }
}

impl From<&spec::SpecError> for Kind {
    fn from(_: &spec::SpecError) -> Self {
        Self::InvalidInput
    }
}

impl From<&registry::HostsError> for Kind {
    fn from(error: &registry::HostsError) -> Self {
        match error {
            registry::HostsError::Io { source, .. } => source.into(),
            _ => Self::InvalidInput,
        }
    }
}

impl From<&registry::CredentialsError> for Kind {
    fn from(error: &registry::CredentialsError) -> Self {
        match error {
            registry::CredentialsError::Io { source, .. } => source.into(),
            registry::CredentialsError::Helper { .. } => Self::Unauthorized,
            _ => Self::InvalidInput,
        }
    }
}

impl From<&root::RootError> for Kind {
    fn from(error: &root::RootError) -> Self {
        (&error.source).into()
    }
}

impl From<&content::Error> for Kind {
    fn from(error: &content::Error) -> Self {
        use content::Error;
        match error {
            Error::Io { source, .. } => source.into(),
            Error::Root(error) => error.into(),
            Error::TooLong { .. } | Error::TooShort { .. } | Error::WrongDigest { .. } => Self::Corrupt,
        }
    }
}

impl From<&catalog::Error> for Kind {
    fn from(error: &catalog::Error) -> Self {
        match error {
            catalog::Error::Redb { source, .. } => match &**source {
                redb::Error::Io(error) => error.into(),
                redb::Error::Corrupted(_) => Self::Corrupt,
                _ => Self::Io,
            },
            catalog::Error::Record { .. } => Self::Corrupt,
        }
    }
}

impl From<&fixture::BuildError> for Kind {
    fn from(error: &fixture::BuildError) -> Self {
        use fixture::BuildError;
        match error {
            BuildError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Self::NotFound,
            BuildError::Io { source, .. } | BuildError::Pack(source) => source.into(),
            _ => Self::InvalidInput,
        }
    }
}

impl From<&fixture::SpecError> for Kind {
    fn from(error: &fixture::SpecError) -> Self {
        match error {
            fixture::SpecError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Self::NotFound,
            fixture::SpecError::Io { source, .. } => source.into(),
            fixture::SpecError::Toml(_) => Self::InvalidInput,
        }
    }
}

#[cfg(feature = "cli")]
impl From<&fixture::ShrinkError> for Kind {
    fn from(error: &fixture::ShrinkError) -> Self {
        use fixture::ShrinkError;
        match error {
            ShrinkError::Source(source) | ShrinkError::Absent { source, .. } => (&**source).into(),
            ShrinkError::NoPlatform { .. } => Self::NotFound,
            ShrinkError::Layer { source, .. } => source.into(),
            ShrinkError::Pack(source) => source.into(),
        }
    }
}

impl From<&bolt::Error> for Kind {
    fn from(error: &bolt::Error) -> Self {
        use bolt::Error;
        match error {
            Error::Io { source, .. } => source.into(),
            Error::Locked => Self::Busy,
            Error::NotBolt(_) | Error::Damaged(_) | Error::Invalid(_) => Self::Corrupt,
            Error::Poisoned => Self::Io,
        }
    }
}

impl From<&metadata::Error> for Kind {
    fn from(error: &metadata::Error) -> Self {
        use metadata::Error;
        match error {
            Error::Busy { .. } | Error::Waited { .. } => Self::Busy,
            Error::Bolt { source, .. } => source.into(),
            Error::Io { source, .. } => source.into(),
            Error::Root(error) => error.into(),
            Error::Namespace(_) => Self::InvalidInput,
            Error::Record { .. } => Self::Corrupt,
        }
    }
}

impl From<&bootstrap::offline::Error> for Kind {
    fn from(error: &bootstrap::offline::Error) -> Self {
        use bootstrap::offline::Error;
        match error {
            Error::MissingBlob { .. } => Self::NotFound,
            Error::Content(error) => error.into(),
            Error::Metadata(error) => error.into(),
        }
    }
}

#[cfg(feature = "live")]
impl From<&bootstrap::live::Error> for Kind {
    fn from(error: &bootstrap::live::Error) -> Self {
        use bootstrap::live::Error;
        match error {
            Error::Connect { .. } => Self::Unavailable,
            Error::Call { source, .. } => match source.code {
                tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Aborted => Self::Unavailable,
                tonic::Code::NotFound => Self::NotFound,
                tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Self::Unauthorized,
                tonic::Code::InvalidArgument | tonic::Code::Unimplemented => Self::InvalidInput,
                tonic::Code::FailedPrecondition | tonic::Code::DataLoss => Self::Corrupt,
                // containerd hands a system's refusals on in words.
                _ if source.message.contains("no space left on device") => Self::NoSpace,
                _ => Self::Io,
            },
            Error::MissingBlob { .. } => Self::NotFound,
            Error::Blob(error) => (&**error).into(),
            Error::WrongDiffId { .. } => Self::Corrupt,
            Error::Contended { .. } => Self::Busy,
            Error::Content(error) => error.into(),
            Error::Task => Self::Io,
        }
    }
}

#[cfg(feature = "live")]
impl From<&bootstrap::unit::Error> for Kind {
    fn from(error: &bootstrap::unit::Error) -> Self {
        use bootstrap::unit::Error;
        match error {
            Error::Root(error) => error.into(),
            Error::Io { source, .. } => source.into(),
        }
    }
}

impl From<&bake::Error> for Kind {
    fn from(error: &bake::Error) -> Self {
        use bake::Error;
        match error {
            Error::Source(error) => error.into(),
            Error::Content(error) => error.into(),
            Error::Catalog(error) => error.into(),
            Error::Metadata(error) => error.into(),
            Error::Bootstrap(error) => error.into(),
            #[cfg(feature = "live")]
            Error::Live(error) => error.into(),
            Error::Root(error) => error.into(),
            Error::Document { source, .. } => match source {
                crate::oci::DocumentError::Schema1 => Self::InvalidInput,
                _ => Self::Corrupt,
            },
            Error::NoPlatform { .. } => Self::NotFound,
            Error::PlatformMismatch { .. } | Error::TooLarge { .. } | Error::TooDeep | Error::TooManyDocuments => {
                Self::Corrupt
            }
            Error::Layer { source, .. } => source.into(),
            Error::LayerCount { .. } | Error::EmptyLayer(_) | Error::Unsigned { .. } => Self::Corrupt,
            Error::Discard { .. } => Self::InvalidInput,
            Error::Snapshot(error) => error.into(),
            Error::NoSpace { .. } | Error::NoInodes { .. } | Error::OverLimit { .. } => Self::NoSpace,
            Error::NoImage(_) | Error::Absent(_) => Self::NotFound,
            Error::Walk(error) => error.into(),
            Error::Task => Self::Io,
        }
    }
}

impl From<&content::WalkError> for Kind {
    fn from(error: &content::WalkError) -> Self {
        use content::WalkError;
        match error {
            WalkError::Missing(_) | WalkError::NoManifest(_) => Self::NotFound,
            WalkError::Content(error) => error.into(),
            WalkError::Document(..) | WalkError::TooDeep => Self::Corrupt,
        }
    }
}

impl From<&layer::Error> for Kind {
    fn from(error: &layer::Error) -> Self {
        use layer::Error;
        match error {
            Error::Source(error) | Error::Io(error) => error.into(),
            Error::Entry { source, .. } => match source.kind() {
                // What the archive asks for cannot be done.
                io::ErrorKind::AlreadyExists
                | io::ErrorKind::DirectoryNotEmpty
                | io::ErrorKind::InvalidFilename
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied => Self::Corrupt,
                _ => source.into(),
            },
            Error::Compression { .. }
            | Error::Tar(_)
            | Error::UnknownEntry { .. }
            | Error::BadWhiteout(_)
            | Error::TooLarge { .. }
            | Error::WrongDiffId { .. } => Self::Corrupt,
            Error::UnknownMediaType(_) => Self::InvalidInput,
            Error::Stopped => Self::Unavailable,
        }
    }
}

impl From<&snapshot::Error> for Kind {
    fn from(error: &snapshot::Error) -> Self {
        use snapshot::Error;
        match error {
            Error::Root(error) => error.into(),
            Error::Metadata(error) => error.into(),
            Error::Unfit(_) => Self::InvalidInput,
        }
    }
}

impl From<&care::Error> for Kind {
    fn from(error: &care::Error) -> Self {
        use care::Error;
        match error {
            Error::Content(error) => error.into(),
            Error::Source(error) => error.into(),
            Error::Metadata(error) => error.into(),
            Error::Root(error) => error.into(),
            Error::Catalog(error) => error.into(),
            Error::Snapshot(error) => error.into(),
            Error::Unsound(_) => Self::Corrupt,
            Error::Layer { source, .. } => source.into(),
            Error::Read { source, .. } => source.into(),
            Error::NoImage(_) | Error::NoObject(_) => Self::NotFound,
            Error::Ambiguous(_) | Error::Fetched { .. } => Self::InvalidInput,
        }
    }
}
