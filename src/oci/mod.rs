//! OCI's words as types: digests, descriptors, documents, platforms, references. Pure: nothing here does I/O, and the raw
//! bytes of a document are never re-serialised.

mod digest;
mod document;
mod platform;
mod reference;

pub use digest::{Algorithm, Digest, DigestError, Hasher, chain_ids};
pub use document::{
    Config, Descriptor, Document, DocumentError, Index, MAX_DOCUMENT, MAX_ENTRIES, Manifest, media_type,
};
pub use platform::{Platform, PlatformError};
pub use reference::{MAX_TAG, Reference, ReferenceError, glob_matches};
