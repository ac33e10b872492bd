//! Signatures and what else refers to an image: taken along, kept, and asked for before an image is admitted.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prebake::fixture::Content;
use prebake::oci::{Descriptor, Digest, media_type};
use serde_json::json;

use crate::answers::text;
use crate::support::content::build;
use crate::support::prebake::{Run, blobs, command, prebake};
use crate::support::registry::{TestRegistry, respond};

const BAKE: &str = "bake --tries 2 --platform linux/amd64";
const SPEC: &str = "[layer.l]\nfiles = [{ path = \"f\", random = 1000 }]\n[[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\nlayers = [\"l\"]\n";
const SBOM: &str = "application/spdx+json";

fn openssl(dir: &Path, args: &str) {
    let output = Command::new("openssl").current_dir(dir).args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A pair of keys, `NAME.key` and `NAME.pub`.
fn key(dir: &Path, name: &str, algorithm: &str) {
    openssl(dir, &format!("genpkey {algorithm} -out {name}.key"));
    openssl(dir, &format!("pkey -in {name}.key -pubout -out {name}.pub"));
}

const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";

fn target(content: &Content) -> Digest {
    content.tags[&("app".to_owned(), "1".to_owned())].clone()
}

/// An artifact with one blob that has annotations.
fn artifact(
    content: &mut Content,
    kind: &str,
    data: &str,
    annotations: serde_json::Value,
    subject: Option<&Digest>,
) -> Descriptor {
    let config = content.add(media_type::OCI_CONFIG, "{}");
    let blob = content.add(kind, data.to_owned());
    let mut layer = json!(blob);
    layer["annotations"] = annotations;
    let mut manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": kind, "config": config, "layers": [layer]});
    if let Some(subject) = subject {
        manifest["subject"] =
            json!({"mediaType": media_type::OCI_INDEX, "digest": subject, "size": content.blobs[subject].1.len()});
    }
    content.add_json(media_type::OCI_MANIFEST, &manifest)
}

fn tag(content: &mut Content, tag: &str, digest: Digest) {
    content.tags.insert(("app".to_owned(), tag.to_owned()), digest);
}

/// As `cosign sign --key` does it.
fn sign(content: &mut Content, dir: &Path, key: &str, of: &Digest, about: &Digest) {
    let payload =
        json!({"critical": {"identity": {"docker-reference": "app"}, "image": {"docker-manifest-digest": about},
        "type": "cosign container image signature"}, "optional": null})
        .to_string();
    std::fs::write(dir.join("payload"), &payload).unwrap();
    if key.starts_with("ed") {
        openssl(dir, &format!("pkeyutl -sign -rawin -inkey {key}.key -in payload -out signature"));
    } else {
        openssl(dir, &format!("dgst -sha256 -sign {key}.key -out signature payload"));
    }
    let signature = STANDARD.encode(std::fs::read(dir.join("signature")).unwrap());
    let annotations = json!({"dev.cosignproject.cosign/signature": signature});
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
    let manifest = artifact(content, kind, &payload, annotations, None);
    tag(content, &format!("{}.sig", of.as_tag()), manifest.digest);
}

#[test]
fn images_are_admitted_by_their_signatures() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, algorithm) in [("ours", P256), ("other", P256), ("ed", "-algorithm ED25519")] {
        key(dir, name, algorithm);
    }
    let bake = |content: Content, verify: &str, code: i32| {
        let registry = TestRegistry::start(content);
        let root = tempfile::tempdir().unwrap();
        let verify = verify.replace("DIR", dir.to_str().unwrap());
        let run = prebake(root.path(), &format!("{BAKE} {verify} {}", registry.reference("app:1"))).expect(code);
        let layers = registry.asked().iter().filter(|request| request.contains("/blobs/")).count();
        if code != 0 {
            assert!(layers <= 2, "a config and a payload, no layer");
            assert_eq!(prebake(root.path(), "images --json").expect(0).stdout, "");
        }
        run.stderr
    };
    let content = build(SPEC);
    let target = target(&content);
    let signed = |key: &str, about: &Digest| {
        let mut content = content.clone();
        sign(&mut content, dir, key, &target, about);
        content
    };
    for key in ["ours", "ed"] {
        bake(signed(key, &target), &format!("--verify-key DIR/{key}.pub"), 0);
        bake(signed(key, &target), &format!("--verify-key DIR/other.pub --verify-key 127.*/app:*=DIR/{key}.pub"), 0);
    }
    let refused = bake(content.clone(), "--verify-key DIR/ours.pub", 6);
    assert!(refused.contains(&format!("{target} is not admitted: it has no signature")), "{refused}");
    let refused = bake(signed("other", &target), "--verify-key DIR/ours.pub", 6);
    assert!(refused.contains("none of its 1 signatures is by one of the 1 keys for it"), "{refused}");
    // A signature of something else.
    let refused = bake(signed("ours", &Digest::of(b"x")), "--verify-key DIR/ours.pub", 6);
    assert!(refused.contains("none of its 1 signatures"), "{refused}");
    // Keys for other images ask nothing of this one.
    bake(content.clone(), "--verify-key other.example/*=DIR/ours.pub", 0);
    // A payload that was changed after it was signed, and a signature that is none.
    for (from, to) in [
        ("\"optional\":null", "\"optional\":nule"),
        ("\"dev.cosignproject.cosign/signature\":\"M", "\"dev.cosignproject.cosign/signature\":\"?"),
    ] {
        let mut changed = signed("ours", &target);
        let tag = ("app".to_owned(), format!("{}.sig", target.as_tag()));
        let manifest = String::from_utf8(changed.blobs[&changed.tags[&tag]].1.to_vec()).unwrap();
        let manifest = if from.contains("optional") {
            let value: serde_json::Value = serde_json::from_str(&manifest).unwrap();
            let old: Digest = value["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
            let payload = String::from_utf8(changed.blobs[&old].1.to_vec()).unwrap().replace(from, to);
            let new = changed.add("application/vnd.dev.cosign.simplesigning.v1+json", payload);
            manifest.replace(old.as_str(), new.digest.as_str())
        } else {
            manifest.replace(from, to)
        };
        let new = changed.add(media_type::OCI_MANIFEST, manifest);
        changed.tags.insert(tag, new.digest);
        bake(changed, "--verify-key DIR/ours.pub", 6);
    }
    // Keys that are none.
    std::fs::write(dir.join("rsa.pub"), "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").unwrap();
    for (file, word) in [("rsa.pub", "not a public key of ECDSA P-256 or Ed25519"), ("no.pub", "failed")] {
        let run = prebake(dir, &format!("bake a --verify-key {}", dir.join(file).display())).expect(2);
        assert!(run.stderr.contains(word), "{}", run.stderr);
    }
}

#[test]
fn referrers_come_along_and_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    key(dir.path(), "ours", P256);
    let mut content = build(SPEC);
    let target = target(&content);
    sign(&mut content, dir.path(), "ours", &target, &target);
    let sbom = artifact(&mut content, SBOM, "{\"sbom\": 1}", json!({}), Some(&target));
    // A signature of the list of parts: a referrer of a referrer.
    let about = artifact(&mut content, "application/x-about", "about", json!({}), Some(&sbom.digest));
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
