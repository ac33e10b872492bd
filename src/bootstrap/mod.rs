//! From the catalog to containerd: what was fetched becomes what containerd lists.

#[cfg(feature = "live")]
pub mod live;
pub mod offline;
#[cfg(feature = "live")]
pub mod unit;
