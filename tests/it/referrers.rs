//! What refers to an image: taken along, and kept.

use std::path::Path;

use prebake::oci::{Descriptor, Digest, media_type};
use serde_json::json;

use crate::answers::text;
use crate::support::content::{app, artifact, tag, target};
use crate::support::prebake::{Run, blobs, command, prebake};
use crate::support::registry::{TestRegistry, respond};

const BAKE: &str = "bake --tries 2 --platform linux/amd64";
const SBOM: &str = "application/spdx+json";

#[test]
fn referrers_come_along_and_are_kept() {
    let mut content = app();
    let target = target(&content);
    let signature =
        artifact(&mut content, "application/vnd.dev.cosign.simplesigning.v1+json", "signed", &json!({}), None);
    tag(&mut content, &format!("{}.sig", target.as_tag()), signature.digest);
    let sbom = artifact(&mut content, SBOM, "{\"sbom\": 1}", &json!({}), Some(&target));
    // A signature of the list of parts: a referrer of a referrer.
    let about = artifact(&mut content, "application/x-about", "about", &json!({}), Some(&sbom.digest));
    let list = |referrer: &Descriptor, kind: &str| {
        let mut entry = json!(referrer);
        entry["artifactType"] = json!(kind);
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]})
    };
    let (of_target, of_sbom) = (list(&sbom, SBOM), list(&about, "application/x-about"));
    for api in [true, false] {
        let mut content = content.clone();
        if !api {
            // The tags that stand in for the API.
            for (subject, list) in [(&target, &of_target), (&sbom.digest, &of_sbom)] {
                let index = content.add_json(media_type::OCI_INDEX, list);
                tag(&mut content, &subject.as_tag(), index.digest);
            }
        }
        let (target_path, sbom_path) = (format!("/referrers/{target}"), format!("/referrers/{}", sbom.digest));
        let (of_target, of_sbom) = (of_target.to_string(), of_sbom.to_string());
        let registry = TestRegistry::faulty(content, move |request| {
            let path = request.uri().path();
            if !path.contains("/referrers/") {
                return None;
            }
            let empty = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []}).to_string();
            let body = match path {
                _ if !api => return Some(text(404, "")),
                // On a second page.
                path if path.ends_with(&target_path) && request.uri().query() != Some("last=1") => {
                    let headers =
                        [("content-type", media_type::OCI_INDEX), ("link", &*format!("<{path}?last=1>; rel=\"next\""))];
                    return Some(respond(200, &headers, prebake::fixture::full(empty)));
                }
                path if path.ends_with(&target_path) => of_target.clone(),
                path if path.ends_with(&sbom_path) => of_sbom.clone(),
                _ => empty,
            };
            Some(respond(200, &[("content-type", media_type::OCI_INDEX)], prebake::fixture::full(body)))
        });
        let bake = |more: &str| {
            let root = tempfile::tempdir().unwrap();
            prebake(root.path(), &format!("{BAKE} {more} {}", registry.reference("app:1"))).expect(0);
            prebake(root.path(), "check").expect(0);
            root
        };
        let has = |root: &Path, digest: &Digest| blobs(root).contains_key(digest.hex());
        let root = bake("");
        assert!(!has(root.path(), &sbom.digest));
        let root = bake("--referrers");
        assert!(has(root.path(), &sbom.digest) && has(root.path(), &about.digest));
        let db = root.path().join("var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db");
        let dump: Run = command().args(["bolt", "dump"]).arg(db).output().unwrap().into();
        let label = format!("containerd.io/gc.ref.content.referrer.sha256.{}", &sbom.digest.hex()[..12]);
        assert!(dump.stdout.contains(&label), "{}", dump.stdout);
        assert_eq!(blobs(root.path()).len(), 4 + 3 + 3 + 3 - 2, "three artifacts that share a config");
        let root = bake(&format!("--referrers={SBOM}"));
        assert!(has(root.path(), &sbom.digest) && !has(root.path(), &about.digest));
    }
}
