//! Labels: what keeps content from containerd's garbage collector, and what CRI and kubelet go by.

use std::collections::BTreeMap;

use crate::oci::{Descriptor, Digest, media_type};

/// Labels of one object.
pub type Labels = BTreeMap<String, String>;

/// Longest key and value together, in bytes (containerd `labels.Validate`); with one longer, every later update fails.
pub const MAX_LABEL: usize = 4096;
/// The key of a label that containerd refuses for its length.
pub(crate) fn too_long<'l>((key, value): (&'l String, &String)) -> Option<&'l str> {
    (key.len() + value.len() > MAX_LABEL).then_some(key)
}

/// What a content reference starts with.
pub const GC_REF_CONTENT: &str = "containerd.io/gc.ref.content";
/// What a snapshot reference starts with; the snapshotter's name follows after a dot.
pub const GC_REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// CRI lists the image as its own.
pub const CRI_MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// kubelet's image collection passes the image by (containerd ≥ 1.6.22 and 1.7.3).
pub const CRI_PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// A layer's diffID, on its blob (containerd `labels.LabelUncompressed`).
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// A snapshot's chainID (containerd `snapshots.labelSnapshotRef`).
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// What the key of a label begins with that says from which repositories of a host a blob came.
pub(crate) const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";

/// The references from a blob to its children, as containerd names them (`images.ChildGCLabels`,
/// `SetChildrenMappedLabels`): counted per kind, in order, absent children included.
pub fn children(children: &[Descriptor]) -> Vec<(String, Digest)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    children
        .iter()
        .map(|child| {
            let kind = match child.media_type.as_str() {
                mt if media_type::is_image_config(mt) => "config",
                mt if media_type::is_manifest(mt) => "m.",
                mt if media_type::is_layer(mt) => "l.",
                _ => "",
            };
            let count = counts.entry(kind).or_default();
            let number = if *count > 0 || kind != "config" { count.to_string() } else { String::new() };
            *count += 1;
            (format!("{GC_REF_CONTENT}.{kind}{number}"), child.digest.clone())
        })
        .collect()
}

/// The reference to what refers to a blob, as containerd ≥ 2.2 names it; every release keeps what such a key leads to.
pub fn referrer(digest: &Digest) -> (String, Digest) {
    let short = digest.hex().get(..12).unwrap_or_default();
    (format!("{GC_REF_CONTENT}.referrer.{}.{short}", digest.algorithm().name()), digest.clone())
}

/// Whether a label is one of [`referrer`].
pub(crate) fn is_referrer_ref(key: &str) -> bool {
    key.strip_prefix(GC_REF_CONTENT).is_some_and(|rest| rest.starts_with(".referrer."))
}

/// Whether a label refers to a layer.
pub(crate) fn is_layer_ref(key: &str) -> bool {
    key.strip_prefix(GC_REF_CONTENT).is_some_and(|rest| rest.starts_with(".l."))
}

/// Key of the label that says from which repositories of a host a blob came.
pub(crate) fn distribution_source(host: &str) -> String {
    format!("{DISTRIBUTION_SOURCE}{host}")
}

/// A distribution source with a repository added (`docker.AppendDistributionSourceLabel`): sorted, without duplicates;
/// `None` when it would grow too long, and is left as it is.
pub(crate) fn with_repository(key: &str, old: Option<&str>, repository: &str) -> Option<String> {
    let old = old.unwrap_or_default();
    let mut repositories: Vec<&str> = old.split(',').filter(|r| !r.is_empty()).chain([repository]).collect();
    repositories.sort_unstable();
    repositories.dedup();
    let value = repositories.join(",");
    (key.len() + value.len() <= MAX_LABEL).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_counted_by_kind() {
        let child = |media_type: &str| Descriptor::new(media_type, Digest::of(media_type.as_bytes()), 1);
        let all = [
            media_type::OCI_CONFIG,
            media_type::DOCKER_LAYER,
            "application/x",
            media_type::OCI_LAYER,
            "y",
            media_type::DOCKER_CONFIG,
        ];
        let keys: Vec<String> =
            children(&all.map(child)).into_iter().map(|(key, _)| key.replace(GC_REF_CONTENT, "")).collect();
        assert_eq!(keys, [".config", ".l.0", ".0", ".l.1", ".1", ".config1"]);
    }

    #[test]
    fn sources_are_sorted_and_bounded() {
        let key = distribution_source("r.example");
        assert_eq!(key, "containerd.io/distribution.source.r.example");
        assert_eq!(with_repository(&key, None, "b").as_deref(), Some("b"));
        assert_eq!(with_repository(&key, Some("b"), "a").as_deref(), Some("a,b"));
        assert_eq!(with_repository(&key, Some("a,b"), "b").as_deref(), Some("a,b"));
        assert_eq!(with_repository(&key, Some("a,b"), &"x".repeat(MAX_LABEL)), None);
    }
}
