//! The messages of containerd's services that are used, with the fields that are used; numbers by containerd's
//! `api/services/*/v1/*.proto` and `api/types/*.proto`, which have not changed between 1.6 and 2.4.

use std::collections::HashMap;

use prost::Message;

use crate::oci;

/// Nothing, or what nobody looks at.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

/// `google.protobuf.FieldMask`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FieldMask {
    #[prost(string, repeated, tag = "1")]
    pub(super) paths: Vec<String>,
}

/// `types.Descriptor`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Descriptor {
    #[prost(string, tag = "1")]
    pub(super) media_type: String,
    #[prost(string, tag = "2")]
    pub(super) digest: String,
    #[prost(int64, tag = "3")]
    pub(super) size: i64,
}

/// `types.Mount`: handed on as it came.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Mount {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "2")]
    pub(super) source: String,
    #[prost(string, tag = "3")]
    pub(super) target: String,
    #[prost(string, repeated, tag = "4")]
    pub(super) options: Vec<String>,
}

/// `leases.Lease`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Lease {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(map = "string, string", tag = "3")]
    pub(super) labels: HashMap<String, String>,
}

/// `leases.DeleteRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DeleteLease {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Answered when the garbage collection that it starts is over.
    #[prost(bool, tag = "2")]
    pub(super) sync: bool,
}

/// `leases.ListResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Leases {
    #[prost(message, repeated, tag = "1")]
    pub(super) leases: Vec<Lease>,
}

/// `leases.Resource`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Such as `snapshots/overlayfs`.
    #[prost(string, tag = "2")]
    pub(super) kind: String,
}

/// `leases.AddResourceRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AddResource {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) resource: Option<Resource>,
}

/// `content.WriteAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum WriteAction {
    Stat = 0,
    Write = 1,
    Commit = 2,
}

/// `content.WriteContentRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Write {
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub(super) action: i32,
    #[prost(string, tag = "2")]
    pub(super) reference: String,
    #[prost(int64, tag = "3")]
    pub(super) total: i64,
    #[prost(string, tag = "4")]
    pub(super) expected: String,
    #[prost(int64, tag = "5")]
    pub(super) offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    pub(super) data: Vec<u8>,
    #[prost(map = "string, string", tag = "7")]
    pub(super) labels: HashMap<String, String>,
}

/// `content.WriteContentResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Written {
    #[prost(int64, tag = "4")]
    pub(super) offset: i64,
}

/// `content.Info`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
    #[prost(map = "string, string", tag = "5")]
    pub(super) labels: HashMap<String, String>,
}

/// `content.InfoRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct InfoRequest {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
}

/// `content.InfoResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<Info>,
}

/// `content.UpdateRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct UpdateInfo {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<Info>,
    #[prost(message, optional, tag = "2")]
    pub(super) mask: Option<FieldMask>,
}

/// `images.Image`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(map = "string, string", tag = "2")]
    pub(super) labels: HashMap<String, String>,
    #[prost(message, optional, tag = "3")]
    pub(super) target: Option<Descriptor>,
}

/// `images.GetImageRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GetImage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

/// `images.GetImageResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GotImage {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<Image>,
}

/// `images.CreateImageRequest`; with a mask, `images.UpdateImageRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PutImage {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<Image>,
    #[prost(message, optional, tag = "2")]
    pub(super) mask: Option<FieldMask>,
}

/// `snapshots.PrepareSnapshotRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Prepare {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) key: String,
    #[prost(string, tag = "3")]
    pub(super) parent: String,
    #[prost(map = "string, string", tag = "4")]
    pub(super) labels: HashMap<String, String>,
}

/// `snapshots.PrepareSnapshotResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Prepared {
    #[prost(message, repeated, tag = "1")]
    pub(super) mounts: Vec<Mount>,
}

/// `snapshots.CommitSnapshotRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CommitSnapshot {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) key: String,
    #[prost(map = "string, string", tag = "4")]
    pub(super) labels: HashMap<String, String>,
}

/// `snapshots.StatSnapshotRequest`, `RemoveSnapshotRequest` and `UsageRequest`, which are alike.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OfSnapshot {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(super) key: String,
}

/// `snapshots.UsageResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Usage {
    #[prost(int64, tag = "1")]
    pub(super) size: i64,
}

/// `diff.ApplyRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Apply {
    #[prost(message, optional, tag = "1")]
    pub(super) diff: Option<Descriptor>,
    #[prost(message, repeated, tag = "2")]
    pub(super) mounts: Vec<Mount>,
}

/// `diff.ApplyResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Applied {
    #[prost(message, optional, tag = "1")]
    pub(super) applied: Option<Descriptor>,
}

/// As protobuf has sizes.
pub(super) fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

impl From<&oci::Descriptor> for Descriptor {
    fn from(descriptor: &oci::Descriptor) -> Self {
        let oci::Descriptor { media_type, digest, size, .. } = descriptor;
        Self { media_type: media_type.clone(), digest: digest.to_string(), size: signed(*size) }
    }
}
