//! Signatures by a key, made by openssl as cosign makes them.

use std::path::Path;
use std::process::Command;

use ::prebake::fixture::Content;
use ::prebake::oci::{Descriptor, Digest, media_type};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::content::{app, artifact, tag, target};
use crate::support::prebake::prebake;
use crate::support::registry::TestRegistry;

const BAKE: &str = "bake --tries 2 --platform linux/amd64";

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

/// Arguments that sign `payload`.
fn sign_with(key: &str) -> String {
    match key {
        "ed" => format!("pkeyutl -sign -rawin -inkey {key}.key -in payload -out signature"),
        _ => format!("dgst -sha256 -sign {key}.key -out signature payload"),
    }
}

/// As `cosign sign --key` did it first.
fn sign(content: &mut Content, dir: &Path, key: &str, of: &Digest, about: &Digest) {
    let payload =
        json!({"critical": {"identity": {"docker-reference": "app"}, "image": {"docker-manifest-digest": about},
        "type": "cosign container image signature"}, "optional": null})
        .to_string();
    std::fs::write(dir.join("payload"), &payload).unwrap();
    openssl(dir, &sign_with(key));
    let signature = STANDARD.encode(std::fs::read(dir.join("signature")).unwrap());
    let annotations = json!({"dev.cosignproject.cosign/signature": signature});
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
    let manifest = artifact(content, kind, &payload, &annotations, None);
    tag(content, &format!("{}.sig", of.as_tag()), manifest.digest);
}

/// As `cosign sign --key` does it since its third release.
fn sign_in_bundle(content: &mut Content, dir: &Path, key: &str, says: &str, about: &Digest) {
    let statement = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": says, "predicate": {},
        "subject": [{"digest": {"sha256": about.hex()}, "annotations": {}}]})
    .to_string();
    let kind = "application/vnd.in-toto+json";
    std::fs::write(dir.join("payload"), format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len()))
        .unwrap();
    openssl(dir, &sign_with(key));
    let sig = STANDARD.encode(std::fs::read(dir.join("signature")).unwrap());
    let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let text = json!({"mediaType": bundle, "verificationMaterial": {"publicKey": {"hint": "x"}},
        "dsseEnvelope": {"payload": STANDARD.encode(&statement), "payloadType": kind, "signatures": [{"sig": sig}]}});
    let target = target(content);
    let manifest = artifact(content, bundle, &text.to_string(), &json!({}), Some(&target));
    let mut entry = json!(manifest);
    entry["artifactType"] = json!(bundle);
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
    let index = content.add_json(media_type::OCI_INDEX, &index);
    tag(content, &target.as_tag(), index.digest);
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
    let content = app();
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
    let signs = "https://sigstore.dev/cosign/sign/v1";
    for (key, says, about, code) in [
        ("ours", signs, &target, 0),
        ("ed", signs, &target, 0),
        ("other", signs, &target, 6),
        ("ours", "https://slsa.dev/provenance/v1", &target, 6),
        ("ours", signs, &Digest::of(b"x"), 6),
    ] {
        let mut content = content.clone();
        sign_in_bundle(&mut content, dir, key, says, about);
        let verify = format!("--verify-key DIR/{}.pub", if key == "other" { "ours" } else { key });
        let said = bake(content, &verify, code);
        assert!(code == 0 || said.contains("none of its 1 signatures"), "{said}");
    }
    let refused = bake(content.clone(), "--verify-key DIR/ours.pub", 6);
    assert!(refused.contains(&format!("{target} is not admitted: it has no signature")), "{refused}");
    let refused = bake(signed("other", &target), "--verify-key DIR/ours.pub", 6);
    assert!(refused.contains("none of its 1 signatures is by one of the 1 keys for it"), "{refused}");
    // A signature of something else.
    let refused = bake(signed("ours", &Digest::of(b"x")), "--verify-key DIR/ours.pub", 6);
    assert!(refused.contains("none of its 1 signatures"), "{refused}");
    // Among what refers to it: behind a list of parts that nobody needs to look at, one that is gone, and one that is no JSON.
    let mut listed = signed("ours", &target);
    let cosigns = "application/vnd.dev.cosign.simplesigning.v1+json";
    let entry = |referrer: &Descriptor, kind: Option<&str>| {
        let mut entry = json!(referrer);
        entry["artifactType"] = json!(kind);
        entry
    };
    let key = ("app".to_owned(), format!("{}.sig", target.as_tag()));
    let signature = listed.tags.remove(&key).unwrap();
    let signature =
        Descriptor::new(media_type::OCI_MANIFEST, signature.clone(), listed.blobs[&signature].1.len() as u64);
    let gone = |data: &[u8]| Descriptor::new(media_type::OCI_MANIFEST, Digest::of(data), 4);
    let broken = listed.add(media_type::OCI_MANIFEST, "{\"br");
    let entries = [
        entry(&gone(b"sbom"), Some("application/spdx+json")),
        entry(&gone(b"gone"), None),
        entry(&broken, Some(cosigns)),
        entry(&signature, Some(cosigns)),
    ];
    for (count, code) in [(4, 0), (3, 3), (1, 6)] {
        let mut listed = listed.clone();
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries[..count]});
        let index = listed.add_json(media_type::OCI_INDEX, &index);
        tag(&mut listed, &target.as_tag(), index.digest);
        bake(listed, "--verify-key DIR/ours.pub", code);
    }
    // A registry whose name is written in another way is the same.
    let registry = TestRegistry::start(content.clone());
    let name = registry.reference("app:1").replace("127.0.0.1", "LOCALHOST");
    let verify = format!("--plain-http --verify-key localhost:*/app:1={}/ours.pub", dir.display());
    prebake(&dir.join("root"), &format!("{BAKE} {verify} {name}")).expect(6);
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
