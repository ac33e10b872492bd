//! Images the tests share.

use ::prebake::fixture::{Content, DEMO, Spec};
use ::prebake::oci::{Descriptor, Digest, media_type};
use serde_json::json;

/// The demo's images.
pub fn demo() -> Content {
    Content::build(&Spec::parse(DEMO).unwrap()).unwrap()
}

/// Images of a spec.
pub fn build(spec: &str) -> Content {
    Content::build(&Spec::parse(spec).unwrap()).unwrap()
}

/// `app:1` for two platforms, with one small layer.
pub fn app() -> Content {
    build(
        "[layer.l]\nfiles = [{ path = \"f\", random = 1000 }]\n\
         [[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"l\"]\n",
    )
}

/// What `app:1` leads to.
pub fn target(content: &Content) -> Digest {
    content.tags[&("app".to_owned(), "1".to_owned())].clone()
}

/// Gives something a tag in `app`.
pub fn tag(content: &mut Content, tag: &str, digest: Digest) {
    content.tags.insert(("app".to_owned(), tag.to_owned()), digest);
}

/// An artifact with one blob, which has annotations.
pub fn artifact(
    content: &mut Content,
    kind: &str,
    data: &str,
    annotations: &serde_json::Value,
    subject: Option<&Digest>,
) -> Descriptor {
    let config = content.add(media_type::OCI_CONFIG, "{}");
    let mut layer = json!(content.add(kind, data.to_owned()));
    layer["annotations"] = annotations.clone();
    let mut manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": kind,
        "config": config, "layers": [layer]});
    if let Some(subject) = subject {
        let size = content.blobs[subject].1.len();
        manifest["subject"] = json!({"mediaType": media_type::OCI_INDEX, "digest": subject, "size": size});
    }
    content.add_json(media_type::OCI_MANIFEST, &manifest)
}
