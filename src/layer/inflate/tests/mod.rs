//! Streams made by hand and by flate2, whole and damaged.

mod contents;
mod deflate;
mod members;
mod support;
