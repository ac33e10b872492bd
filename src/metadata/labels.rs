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
const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";

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

/// Adds a repository to the distribution source of a host (`docker.AppendDistributionSourceLabel`): sorted, without
/// duplicates, and left as it is when it would grow too long.
pub fn add_distribution_source(labels: &mut Labels, host: &str, repository: &str) {
    let key = format!("{DISTRIBUTION_SOURCE}{host}");
    let old = labels.get(&key).cloned().unwrap_or_default();
    let mut repositories: Vec<&str> = old.split(',').filter(|r| !r.is_empty()).chain([repository]).collect();
    repositories.sort_unstable();
    repositories.dedup();
    let value = repositories.join(",");
    if key.len() + value.len() <= MAX_LABEL {
        labels.insert(key, value);
    }
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
        let mut labels = Labels::new();
        for repository in ["b", "a", "b"] {
            add_distribution_source(&mut labels, "r.example", repository);
        }
        assert_eq!(labels["containerd.io/distribution.source.r.example"], "a,b");
        add_distribution_source(&mut labels, "r.example", &"x".repeat(MAX_LABEL));
        assert_eq!(labels["containerd.io/distribution.source.r.example"], "a,b");
    }
}
