//! What can be wrong with a gzip stream.

use std::io;

/// Why a gzip stream cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GzipError {
    /// The source of the compressed bytes failed.
    #[error("reading the gzip stream failed")]
    Read(#[from] io::Error),
    /// The source ended inside of a member, or was empty.
    #[error("unexpected end of the gzip stream")]
    Truncated,
    /// A member's header is not one (RFC 1952, section 2.3).
    #[error("invalid gzip header: {0}")]
    Header(&'static str),
    /// The compressed data breaks the rules of RFC 1951.
    #[error("corrupt deflate data: {0}")]
    Deflate(&'static str),
    /// CRC-32 or size of a member's contents are not what its trailer says (RFC 1952, section 2.3.1).
    #[error("gzip checksum or size mismatch")]
    Checksum,
    /// The reader was used again after it had failed.
    #[error("the gzip stream failed before")]
    Failed,
}
