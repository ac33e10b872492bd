//! Layer bytes: tar streams and their compression.

mod pack;
mod read;

pub use pack::{Compression, File, Kind, compress, tar};
pub use read::{Entry, EntryKind, Reader, TarError, Time};
