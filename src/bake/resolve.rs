//! Which manifest of an index is for a platform. Pure.

use std::collections::BTreeSet;

use super::Error;
use crate::oci::{Config, Descriptor, Document, Index, Manifest, Platform, media_type};

/// Entries that may lead to the platform's manifest, best first.
///
/// Entries that name the platform count. Only when there are none, those that name no platform do, and their configs
/// decide. Attestations (`unknown/unknown`) never do.
pub(crate) fn candidates<'i>(index: &'i Index, wanted: &Platform) -> Vec<&'i Descriptor> {
    let documents = || {
        let document = |d: &&Descriptor| media_type::is_manifest(&d.media_type) || media_type::is_index(&d.media_type);
        index.manifests.iter().filter(document)
    };
    let named: Vec<_> = documents().filter(|entry| entry.platform().as_ref() == Some(wanted)).collect();
    match named.first() {
        Some(first) => vec![first],
        None => documents().filter(|entry| entry.platform().is_none()).collect(),
    }
}

/// The platforms an index names.
pub(crate) fn platforms(index: &Index) -> BTreeSet<String> {
    let named = index.manifests.iter().filter_map(Descriptor::platform);
    named.filter(|platform| !platform.is_unknown()).map(|platform| platform.to_string()).collect()
}

/// Whether a manifest's config is of the platform; `said` is what the index says of the manifest.
///
/// # Errors
/// [`Error::PlatformMismatch`] when the index says something else than the config.
pub(super) fn fits(config: &Config, said: Option<&Platform>, wanted: &Platform) -> Result<bool, Error> {
    match said {
        Some(said) if config.platform != *said => {
            Err(Error::PlatformMismatch { index: said.to_string(), config: config.platform.to_string() })
        }
        _ => Ok(config.platform == *wanted),
    }
}

/// The children of a document in containerd's order (`images.Children`).
pub(super) fn children(document: &Document) -> Vec<Descriptor> {
    match document {
        Document::Index(Index { manifests }) => manifests.clone(),
        Document::Manifest(Manifest { config, layers }) => std::iter::once(config).chain(layers).cloned().collect(),
    }
}

/// The first word of containerd's name for the write of such a blob (`remotes.MakeRefKey`).
pub(super) fn ref_kind(kind: &str) -> &'static str {
    match kind {
        kind if media_type::is_manifest(kind) => "manifest",
        kind if media_type::is_index(kind) => "index",
        kind if media_type::is_layer(kind) => "layer",
        kind if media_type::is_image_config(kind) => "config",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &[(&str, Option<&str>)]) -> Index {
        let entries: Vec<String> = entries
            .iter()
            .enumerate()
            .map(|(i, (media_type, platform))| {
                let platform = platform.map_or(String::new(), |platform| {
                    let mut parts = platform.split('/');
                    let mut part = || parts.next().unwrap_or_default();
                    format!(r#","platform":{{"os":"{}","architecture":"{}","variant":"{}"}}"#, part(), part(), part())
                });
                format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{i:064x}","size":1{platform}}}"#)
            })
            .collect();
        let json = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
        match Document::parse(json.as_bytes(), media_type::OCI_INDEX) {
            Ok((Document::Index(index), _)) => index,
            other => panic!("{other:?}"),
        }
    }

    fn chosen(index: &Index, wanted: &str) -> Vec<String> {
        let wanted = wanted.parse().expect("a platform");
        candidates(index, &wanted).iter().map(|d| d.digest.hex()[63..].to_owned()).collect()
    }

    #[test]
    fn strictly_the_platform() {
        const M: &str = media_type::OCI_MANIFEST;
        let all = index(&[
            (M, Some("linux/arm/v6")),
            (M, Some("linux/arm64/v8")),
            (M, Some("linux/arm/v7")),
            (M, Some("unknown/unknown")),
            (M, Some("linux/amd64")),
            (M, Some("linux/amd64")),
        ]);
        assert_eq!(chosen(&all, "linux/arm64"), ["1"]);
        assert_eq!(chosen(&all, "linux/arm/v7"), ["2"]);
        assert_eq!(chosen(&all, "linux/arm/v6"), ["0"]);
        assert_eq!(chosen(&all, "linux/arm/v5"), Vec::<String>::new());
        assert_eq!(chosen(&all, "linux/amd64"), ["4"]);
        let all = platforms(&all).into_iter().collect::<Vec<_>>();
        assert_eq!(all, ["linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64"]);
    }

    #[test]
    fn entries_without_a_platform_are_asked_last() {
        const M: &str = media_type::OCI_MANIFEST;
        let some =
            index(&[(M, None), (M, Some("linux/amd64")), ("application/x", None), (media_type::OCI_INDEX, None)]);
        assert_eq!(chosen(&some, "linux/amd64"), ["1"]);
        assert_eq!(chosen(&some, "linux/arm64"), ["0", "3"]);
    }
}
