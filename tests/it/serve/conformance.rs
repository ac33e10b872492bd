//! The cases of the distribution specification's conformance suite for pull and content discovery (`conformance/01_pull_test.go`
//! and `03_discovery_test.go`), one by one, and what the specification says besides.

use prebake::fixture::Content;
use prebake::oci::{Descriptor, Digest, media_type};
use serde_json::json;

use crate::support::content::{app, artifact, tag, target};
use crate::support::served::{Served, write_layout};

const KIND: &str = "application/vnd.nhl.peanut.butter.bagel";

/// An image with four tags, and what refers to it: as its config's type, as an artifact, as an index; one refers to what is not here.
struct Suite {
    served: Served,
    content: Content,
    top: Digest,
    referrers: Vec<Descriptor>,
    dangling: Descriptor,
    _dir: tempfile::TempDir,
}

const MISSING: &[u8] = b"a manifest that is nowhere";

fn suite() -> Suite {
    let dir = tempfile::tempdir().unwrap();
    let mut content = app();
    let top = target(&content);
    for name in ["test0", "test1", "Test2", "test3"] {
        tag(&mut content, name, top.clone());
    }
    let mut referrers = vec![
        artifact(&mut content, KIND, "one", &json!({}), Some(&top)),
        artifact(&mut content, "application/x-other", "two", &json!({}), Some(&top)),
    ];
    let subject = |digest: &Digest| json!({"mediaType": media_type::OCI_INDEX, "digest": digest, "size": 9});
    let config = content.add(KIND, "the config says what it is");
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [],
        "subject": subject(&top), "annotations": {"org.opencontainers.conformance.test": "config"}});
    referrers.push(content.add_json(media_type::OCI_MANIFEST, &manifest));
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "artifactType": "application/x-index",
        "manifests": [], "subject": subject(&top)});
    referrers.push(content.add_json(media_type::OCI_INDEX, &index));
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [],
        "subject": subject(&Digest::of(MISSING))});
    let dangling = content.add_json(media_type::OCI_MANIFEST, &manifest);
    let unnamed: Vec<&Digest> = referrers.iter().chain([&dangling]).map(|one| &one.digest).collect();
    write_layout(&content, "registry.example/", &unnamed, dir.path());
    let served = Served::start(&format!("--quiet --layout {}", dir.path().display()));
    Suite { served, content, top, referrers, dangling, _dir: dir }
}

fn dummy() -> Digest {
    Digest::of(b"nothing of the kind")
}

#[test]
fn pull_blobs() {
    let suite = suite();
    let Suite { served, content, .. } = &suite;
    let (digest, (_, bytes)) = content.blobs.iter().find(|(_, (kind, _))| kind == media_type::OCI_CONFIG).unwrap();
    let at = |digest: &Digest| format!("/v2/app/blobs/{digest}");
    let absent = served.ask("HEAD", &at(&dummy()), "");
    assert_eq!((absent.status, absent.body.len()), (404, 0));
    let head = served.ask("HEAD", &at(digest), "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let absent = served.get(&at(&dummy()));
    assert_eq!((absent.status, absent.code().as_str()), (404, "BLOB_UNKNOWN"));
    let whole = served.get(&at(digest));
    assert_eq!((whole.status, &whole.body[..]), (200, &bytes[..]));
    for answer in [head, whole] {
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(answer.header("content-length"), Some(bytes.len().to_string().as_str()));
        assert_eq!(answer.header("etag"), Some(format!("\"{digest}\"").as_str()));
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    }
}

#[test]
fn pull_manifests() {
    let suite = suite();
    let Suite { served, content, top, .. } = &suite;
    let bytes = &content.blobs[top].1;
    let at = |target: &str| format!("/v2/app/manifests/{target}");
    let accept = format!("accept: {}\r\n", media_type::OCI_INDEX);
    for absent in [".INVALID_MANIFEST_NAME", "none", dummy().as_str()] {
        assert_eq!(served.ask("HEAD", &at(absent), &accept).status, 404);
        let answer = served.ask("GET", &at(absent), &accept);
        assert_eq!((answer.status, answer.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    }
    for found in [top.as_str(), "test0", "1"] {
        let head = served.ask("HEAD", &at(found), &accept);
        assert_eq!((head.status, head.body.len()), (200, 0));
        let whole = served.ask("GET", &at(found), &accept);
        assert_eq!((whole.status, &whole.body[..]), (200, &bytes[..]));
        for answer in [head, whole] {
            assert_eq!(answer.header("docker-content-digest"), Some(top.as_str()));
            assert_eq!(answer.header("content-length"), Some(bytes.len().to_string().as_str()));
            assert_eq!(answer.header("etag"), Some(format!("\"{top}\"").as_str()));
            assert_eq!(answer.header("content-type"), Some(media_type::OCI_INDEX));
        }
    }
    // Manifests below an index, by their digests.
    for (digest, (kind, bytes)) in content.blobs.iter().filter(|(_, (kind, _))| media_type::is_manifest(kind)).take(2) {
        let answer = served.get(&format!("/v2/app/manifests/{digest}"));
        if answer.status == 200 {
            assert_eq!((answer.header("content-type"), &answer.body[..]), (Some(kind.as_str()), &bytes[..]));
        }
    }
    // Who has it already.
    let same = served.ask("GET", &at("test0"), &format!("if-none-match: \"{top}\"\r\n"));
    assert_eq!((same.status, same.body.len()), (304, 0));
    assert_eq!(served.ask("GET", &at("test0"), "if-none-match: \"other\"\r\n").status, 200);
}

#[test]
fn errors() {
    let suite = suite();
    let Suite { served, .. } = &suite;
    assert_eq!(served.get("/v2/").status, 200);
    assert_eq!(served.get("/v2/").header("docker-distribution-api-version"), Some("registry/2.0"));
    for (method, path, status, code) in [
        ("PUT", "/v2/app/manifests/sha256:totallywrong", 400, "DIGEST_INVALID"),
        ("PUT", "/v2/app/manifests/1", 405, "UNSUPPORTED"),
        ("DELETE", "/v2/app/manifests/1", 405, "UNSUPPORTED"),
        ("POST", "/v2/app/blobs/uploads/", 405, "UNSUPPORTED"),
        ("PATCH", "/v2/app/blobs/uploads/1", 405, "UNSUPPORTED"),
        (
            "DELETE",
            "/v2/app/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            405,
            "UNSUPPORTED",
        ),
        ("GET", "/v2/app/blobs/sha256:short", 400, "DIGEST_INVALID"),
        ("GET", "/v2/none/manifests/1", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/none/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/APP/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("GET", "/v2/app", 404, "UNSUPPORTED"),
        ("GET", "/", 404, "UNSUPPORTED"),
    ] {
        let answer = served.ask(method, path, "");
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path}");
        let has_message = answer.json()["errors"][0]["message"].as_str().is_some_and(|message| !message.is_empty());
        assert!(has_message, "{method} {path}");
    }
    assert_eq!(served.ask("PUT", "/v2/app/manifests/1", "").header("allow"), Some("GET, HEAD"));
}

#[test]
fn list_tags() {
    let suite = suite();
    let Suite { served, .. } = &suite;
    let list = |query: &str| {
        let answer = served.get(&format!("/v2/app/tags/list{query}"));
        assert_eq!(answer.status, 200);
        let link = answer.header("link").map(str::to_owned);
        assert_eq!(answer.json()["name"], "app");
        (serde_json::from_value::<Vec<String>>(answer.json()["tags"].clone()).unwrap(), link)
    };
    // Letters of both cases together.
    let all = ["1", "test0", "test1", "Test2", "test3"];
    assert_eq!(list(""), (all.map(str::to_owned).to_vec(), None));
    let (half, link) = list("?n=2");
    assert_eq!(half, all[..2]);
    assert_eq!(link.as_deref(), Some("</v2/app/tags/list?n=2&last=test0>; rel=\"next\""));
    assert_eq!(list("?n=2&last=test0").0, all[2..4]);
    assert_eq!(list("?n=2&last=Test2"), (vec!["test3".to_owned()], None));
    assert_eq!(list("?n=5"), (all.map(str::to_owned).to_vec(), None));
    assert_eq!(list("?last=test3"), (Vec::new(), None));
    // Behind one that is not there.
    assert_eq!(list("?last=test00").0, all[2..]);
    assert_eq!(list("?n=0"), (Vec::new(), None));
}

#[test]
fn list_referrers() {
    let suite = suite();
    let Suite { served, top, referrers, dangling, .. } = &suite;
    let list = |subject: &Digest, query: &str| {
        let answer = served.get(&format!("/v2/app/referrers/{subject}{query}"));
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type::OCI_INDEX)));
        let filter = answer.header("oci-filters-applied").map(str::to_owned);
        assert_eq!(answer.json()["schemaVersion"], 2);
        (answer.json()["manifests"].as_array().unwrap().clone(), filter)
    };
    assert_eq!(list(&dummy(), ""), (Vec::new(), None));
    let (all, filter) = list(top, "");
    assert_eq!(filter, None);
    let mut digests: Vec<&str> = all.iter().map(|one| one["digest"].as_str().unwrap()).collect();
    digests.sort_unstable();
    let mut expected: Vec<&str> = referrers.iter().map(|one| one.digest.as_str()).collect();
    expected.sort_unstable();
    assert_eq!(digests, expected);
    for one in &all {
        let n = referrers.iter().position(|referrer| one["digest"] == referrer.digest.as_str()).unwrap();
        let kind = [KIND, "application/x-other", KIND, "application/x-index"][n];
        assert_eq!(one["artifactType"], kind);
        assert_eq!(one["mediaType"], referrers[n].media_type);
        assert_eq!(one["size"], referrers[n].size);
        let annotations = (n == 2).then(|| json!({"org.opencontainers.conformance.test": "config"}));
        assert_eq!(one.get("annotations"), annotations.as_ref());
    }
    let (some, filter) = list(top, &format!("?artifactType={KIND}"));
    assert_eq!((some.len(), filter.as_deref()), (2, Some("artifactType")));
    assert_eq!(list(top, "?artifactType=application%2Fx-index").0.len(), 1);
    assert_eq!(list(top, "?artifactType=none"), (Vec::new(), Some("artifactType".to_owned())));
    // They can be pulled from where their subject is.
    for one in referrers {
        assert_eq!(served.get(&format!("/v2/app/manifests/{}", one.digest)).status, 200);
    }
    // Of what is not here, in the repository of what has no name.
    let answer = served.get(&format!("/v2/local/referrers/{}", Digest::of(MISSING)));
    assert_eq!(answer.json()["manifests"][0]["digest"], dangling.digest.as_str());
    // This endpoint never answers 404.
    assert_eq!(served.get(&format!("/v2/none/referrers/{top}")).status, 200);
}

#[test]
fn ranges() {
    let suite = suite();
    let Suite { served, content, .. } = &suite;
    let (digest, (_, bytes)) = content.blobs.iter().find(|(_, (kind, _))| media_type::is_layer(kind)).unwrap();
    let (size, path) = (bytes.len(), format!("/v2/app/blobs/{digest}"));
    let ask = |headers: &str| served.ask("GET", &path, headers);
    for (range, from, to) in [
        ("0-0".to_owned(), 0, 1),
        ("10-19".to_owned(), 10, 20),
        ("10-".to_owned(), 10, size),
        ("-7".to_owned(), size - 7, size),
        (format!("5-{}", size * 9), 5, size),
    ] {
        let part = ask(&format!("range: bytes={range}\r\n"));
        assert_eq!((part.status, &part.body[..]), (206, &bytes[from..to]), "{range}");
        assert_eq!(part.header("content-range"), Some(format!("bytes {from}-{}/{size}", to - 1).as_str()));
        assert_eq!(part.header("content-length"), Some((to - from).to_string().as_str()));
    }
    for range in [format!("{size}-"), "-0".to_owned(), "999999999999999999999-".to_owned()] {
        let beyond = ask(&format!("range: bytes={range}\r\n"));
        assert_eq!(beyond.status, 416, "{range}");
        assert_eq!(beyond.header("content-range"), Some(format!("bytes */{size}").as_str()));
    }
    let conditions = [(format!("\"{digest}\""), 206), ("\"other\"".to_owned(), 200), (format!("W/\"{digest}\""), 200)];
    for (condition, status) in conditions {
        assert_eq!(ask(&format!("range: bytes=1-2\r\nif-range: {condition}\r\n")).status, status, "{condition}");
    }
    for whole in ["bytes=2-1", "bytes=0-1,4-5", "bytes", "lines=1-2", "bytes=a-b"] {
        let answer = ask(&format!("range: {whole}\r\n"));
        assert_eq!((answer.status, answer.body.len()), (200, size), "{whole}");
    }
    // A range is of a GET.
    assert_eq!(served.ask("HEAD", &path, "range: bytes=0-0\r\n").status, 200);
}
