//! From the catalog to containerd: what was fetched becomes what containerd lists.

pub mod offline;
