//! How images become repositories.

use prebake::fixture::Content;
use prebake::oci::media_type;
use serde_json::json;

use super::REGISTRY;
use super::ask::Answer;
use crate::answers::text;
use crate::support::content::{app, artifact, build, target};
use crate::support::prebake::prebake;
use crate::support::registry::TestRegistry;
use crate::support::served::{Served, write_layout};

fn image(seed: u32) -> Content {
    build(&format!(
        "[layer.l]\nfiles = [{{ path = \"f\", text = \"{seed}\" }}]\n\
         [[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n"
    ))
}

/// A layout of images under these names.
fn layout(names: &[&str]) -> (tempfile::TempDir, Served, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Content::default();
    let mut manifests = Vec::new();
    for (n, name) in (0..).zip(names) {
        let content = image(n);
        let digest = target(&content);
        let mut entry =
            json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": content.blobs[&digest].1.len()});
        if !name.is_empty() {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        manifests.push(entry);
        all.blobs.extend(content.blobs);
    }
    write_layout(&all, "", &[], dir.path());
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    std::fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    let digests = manifests.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()).collect();
    let served = Served::start(&format!("--layout {}", dir.path().display()));
    (dir, served, digests)
}

fn digest(answer: &Answer) -> Option<&str> {
    answer.header("docker-content-digest")
}

#[test]
fn with_and_without_the_registry() {
    let names = [
        "registry.example/team/app:1",
        "other.example:5000/team/app:1",
        "nginx:1",
        "1.0",
        "",
        "[fd00::1]:80/six:1",
        "REG/up:1",
    ];
    let (_dir, served, digests) = layout(&names);
    for (path, query, n) in [
        ("team/app/manifests/1", "?ns=registry.example", Some(0)),
        ("team/app/manifests/1", "?ns=other.example:5000", Some(1)),
        ("team/app/manifests/1", "?ns=other.example%3A5000", Some(1)),
        ("team/app/manifests/1", "?ns=docker.io", None),
        // Without a word of the registry, the first in the order of their names.
        ("team/app/manifests/1", "", Some(1)),
        ("registry.example/team/app/manifests/1", "", Some(0)),
        ("registry.example/team/app/manifests/1", "?ns=127.0.0.1:5000", Some(0)),
        ("other.example_5000/team/app/manifests/1", "", Some(1)),
        ("library/nginx/manifests/1", "", Some(2)),
        ("library/nginx/manifests/1", "?ns=docker.io", Some(2)),
        ("docker.io/library/nginx/manifests/1", "", Some(2)),
        ("nginx/manifests/1", "", None),
        ("local/manifests/1.0", "", Some(3)),
        ("local/manifests/1", "", None),
        ("six/manifests/1", "?ns=[fd00::1]:80", Some(5)),
        ("up/manifests/1", "", Some(6)),
        ("reg/up/manifests/1", "", Some(6)),
    ] {
        let answer = served.get(&format!("/v2/{path}{query}"));
        assert_eq!(digest(&answer), n.map(|n: usize| digests[n].as_str()), "{path}{query}");
        assert_eq!(answer.status, if n.is_some() { 200 } else { 404 });
    }
    // By digest, from each repository that has it, and from no other.
    for (name, n, status) in [("team/app", 0, 200), ("team/app", 1, 200), ("local", 4, 200), ("local", 0, 404)] {
        assert_eq!(served.get(&format!("/v2/{name}/manifests/{}", digests[n])).status, status, "{name} {n}");
    }
    let status = |query: &str| served.get(&format!("/v2/team/app/manifests/{}{query}", digests[0])).status;
    assert_eq!((status("?ns=registry.example"), status("?ns=other.example:5000")), (200, 404));
    // Each repository once, and by the longer name where the shorter one means several.
    let list = |query: &str| {
        let answer = served.get(&format!("/v2/_catalog{query}"));
        let names: Vec<String> = serde_json::from_value(answer.json()["repositories"].clone()).unwrap();
        (names, answer.header("link").map(str::to_owned))
    };
    let all = ["library/nginx", "local", "other.example_5000/team/app", "registry.example/team/app", "six", "up"];
    assert_eq!(list(""), (all.map(str::to_owned).to_vec(), None));
    let (first, link) = list("?n=4");
    assert_eq!(first, all[..4]);
    assert_eq!(link.as_deref(), Some("</v2/_catalog?n=4&last=registry.example/team/app>; rel=\"next\""));
    assert_eq!(list("?n=4&last=registry.example/team/app"), (all[4..].iter().map(ToString::to_string).collect(), None));
    assert_eq!(served.get("/v2/team/app/tags/list?ns=registry.example").json()["tags"], json!(["1"]));
}

#[test]
fn many_tags_come_in_pages() {
    let mut content = app();
    let top = target(&content);
    for n in 0..990 {
        content.tags.insert(("app".to_owned(), format!("v{n:04}")), top.clone());
    }
    let dir = tempfile::tempdir().unwrap();
    write_layout(&content, REGISTRY, &[], dir.path());
    let served = Served::start(&format!("--quiet --layout {}", dir.path().display()));
    let (mut path, mut tags) = ("/v2/app/tags/list?n=100".to_owned(), Vec::new());
    loop {
        let answer = served.get(&path);
        tags.extend(serde_json::from_value::<Vec<String>>(answer.json()["tags"].clone()).unwrap());
        let Some(link) = answer.header("link") else { break };
        path = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
    }
    assert_eq!(tags.len(), 991);
    assert!(tags.windows(2).all(|two| two[0] < two[1]));
}

#[test]
fn what_labels_keep_is_found() {
    const SBOM: &str = "application/spdx+json";
    let mut content = app();
    let top = target(&content);
    let sbom = artifact(&mut content, SBOM, "{\"sbom\": 1}", &json!({}), Some(&top));
    let mut entry = json!(sbom);
    entry["artifactType"] = json!(SBOM);
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
    let (of_top, path) = (list.to_string(), format!("/referrers/{top}"));
    let registry = TestRegistry::faulty(content, move |request| {
        let asked = request.uri().path();
        let known = asked.ends_with(&path).then(|| text(200, &of_top));
        known.or_else(|| asked.contains("/referrers/").then(|| text(404, "")))
    });
    let root = tempfile::tempdir().unwrap();
    let bake = format!("bake --platform linux/amd64 --referrers={SBOM} {}", registry.reference("app:1"));
    prebake(root.path(), &bake).expect(0);
    let served = Served::start(&format!("--root {}", root.path().display()));
    let answer = served.get(&format!("/v2/app/referrers/{top}"));
    assert_eq!(answer.json()["manifests"][0]["digest"], sbom.digest.as_str(), "{}", answer.json());
    assert_eq!(answer.json()["manifests"][0]["artifactType"], SBOM);
    assert_eq!(served.get(&format!("/v2/app/manifests/{}", sbom.digest)).status, 200);

    // An image that is known by its digest alone.
    let root = tempfile::tempdir().unwrap();
    prebake(root.path(), &format!("bake --platform linux/amd64 {}/app@{top}", registry.name())).expect(0);
    let served = Served::start(&format!("--root {}", root.path().display()));
    assert_eq!(served.get(&format!("/v2/app/manifests/{top}")).status, 200);
    assert_eq!(served.get("/v2/app/tags/list").json()["tags"], json!([]));
}
