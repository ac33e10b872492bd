//! Fixture images as skopeo's `dir:` layout, which keeps every byte.

use std::fs;
use std::path::Path;

use ::prebake::fixture::Content;
use ::prebake::oci::{Digest, Document, media_type};

/// Writes the image `repository:tag` with everything below it.
pub fn write_dir(content: &Content, repository: &str, tag: &str, dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    let top = &content.tags[&(repository.to_owned(), tag.to_owned())];
    write(content, top, dir, true);
}

fn write(content: &Content, digest: &Digest, dir: &Path, top: bool) {
    let (kind, bytes) = &content.blobs[digest];
    let document = media_type::is_manifest(kind) || media_type::is_index(kind);
    let name = match (top, document) {
        (true, _) => "manifest.json".to_owned(),
        (false, true) => format!("{}.manifest.json", digest.hex()),
        (false, false) => digest.hex().to_owned(),
    };
    fs::write(dir.join(name), bytes).unwrap();
    if !document {
        return;
    }
    let children = match Document::parse(bytes, kind).unwrap().0 {
        Document::Index(index) => index.manifests,
        Document::Manifest(manifest) => [vec![manifest.config], manifest.layers].concat(),
    };
    for child in children {
        write(content, &child.digest, dir, false);
    }
}
