//! Layer bytes: tar streams and their compression.

mod pack;

pub use pack::{Compression, File, Kind, compress, tar};
