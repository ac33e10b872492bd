//! Images on their way to registries that refuse, break off and lie: nothing wrong is completed, and no name leads to a part.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prebake::fixture::{Content, full};
use prebake::oci::{Digest, media_type};
use serde_json::{Value, json};

use crate::answers::{layer_of, text};
use crate::receiver::{Asked, Fault, Manner, Receiver};
use crate::support::content::{app, artifact, build, tag, target};
use crate::support::prebake::{Run, command};
use crate::support::registry::{TestRegistry, respond};

const SBOM: &str = "application/spdx+json";

fn run(arguments: &str) -> Run {
    command().args(arguments.split_whitespace()).output().unwrap().into()
}

/// `app:1` with one layer of that many random bytes.
fn image(size: u32) -> Content {
    build(&format!(
        "[layer.l]\nfiles = [{{ path = \"f\", random = {size} }}]\n[[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n"
    ))
}

fn manner() -> Manner {
    Manner { mounts: true, ..Manner::default() }
}

/// Copies `app:1` to `team/app:1`.
fn copy(from: &TestRegistry, to: &Receiver, more: &str) -> Run {
    run(&format!("copy --tries 4 {more} {} {}", from.reference("app:1"), to.reference("team/app:1")))
}

/// Everything of the image is there, and its name leads to the very bytes.
#[track_caller]
fn is_whole(content: &Content, to: &Receiver) {
    let top = content.tags[&("app".to_owned(), "1".to_owned())].clone();
    assert_eq!(to.document("team/app", "1").unwrap(), content.blobs[&top].1);
    let state = to.state.lock().unwrap();
    for (digest, (_, bytes)) in &content.blobs {
        let key = ("team/app".to_owned(), digest.to_string());
        let got = state.blobs.get(&key).or_else(|| state.documents.get(&key).map(|(_, bytes)| bytes));
        assert_eq!(got, Some(bytes), "{digest}");
    }
}

fn count(asked: &[String], method: &str) -> usize {
    asked.iter().filter(|line| line.starts_with(&format!("{method} "))).count()
}

#[test]
fn all_of_it_and_then_nothing() {
    for absolute in [false, true] {
        let content = app();
        let from = TestRegistry::start(content.clone());
        let to = Receiver::start(Manner { absolute, ..manner() }, |_| None);
        copy(&from, &to, "--dry-run").expect(0);
        let asked = to.asked();
        assert_eq!(count(&asked, "HEAD"), asked.len(), "{asked:?}");
        copy(&from, &to, "").expect(0);
        is_whole(&content, &to);
        let asked = to.asked();
        let name = asked.iter().position(|line| line.starts_with("PUT /v2/team/app/manifests/1?")).unwrap();
        assert_eq!(name, asked.len() - 1, "the name is last: {asked:?}");
        let again = copy(&from, &to, "").expect(0);
        assert!(again.stdout.starts_with("up to date: 1 images;"), "{}", again.stdout);
        let asked = to.asked();
        assert_eq!(count(&asked, "HEAD"), asked.len(), "{asked:?}");
        let json = copy(&from, &to, "--json").expect(0).last_json();
        assert_eq!((&json["event"], &json["images"][0]["up_to_date"]), (&json!("summary"), &json!(true)));
        assert_eq!(json["images"][0]["digest"], target(&content).as_str());
    }
}

#[test]
fn one_request_is_refused_and_chunks_are_not() {
    let content = image(20_000_000);
    for (status, min_chunk) in [(Some(405), None), (Some(400), None), (Some(413), None), (None, Some(9_000_000))] {
        let from = TestRegistry::start(content.clone());
        let to = Receiver::start(Manner { min_chunk, ..manner() }, move |asked| {
            let length = asked.request.headers().get("content-length").map_or("0", |value| value.to_str().unwrap());
            let whole = asked.is("PUT", "/uploads/") && length != "0";
            status.filter(|_| whole).map(|status| Fault::Answer(text(status, "")))
        });
        copy(&from, &to, "").expect(0);
        is_whole(&content, &to);
        let asked = to.asked();
        let patches: Vec<&String> = asked.iter().filter(|line| line.starts_with("PATCH ")).collect();
        let chunk = min_chunk.unwrap_or(8 << 20);
        assert!(patches.iter().any(|line| line.ends_with(&format!(" 0-{}", chunk - 1))), "{patches:?}");
        assert!(patches.iter().any(|line| line.contains(&format!(" {chunk}-"))), "{patches:?}");
    }
}

#[test]
fn an_upload_that_breaks_off_goes_on_or_begins_anew() {
    let content = image(5_000_000);
    let (digest, bytes) = layer_of(&content);
    for knows in [true, false] {
        let cuts = AtomicUsize::new(0);
        let from = TestRegistry::start(content.clone());
        let to = Receiver::start(manner(), move |asked| match asked.request.method().as_str() {
            "PUT" if asked.path.contains("/uploads/") && large(asked) && cuts.fetch_add(1, Ordering::SeqCst) == 0 => {
                Some(Fault::Cut(3_000_000))
            }
            "GET" if asked.path.contains("/uploads/") && !knows => Some(Fault::Answer(text(404, ""))),
            _ => None,
        });
        let run = copy(&from, &to, "").expect(0);
        assert!(run.stderr.contains("again after try 1 of"), "{}", run.stderr);
        assert!(run.stderr.contains(&format!("again: {digest}: the upload broke off")), "{}", run.stderr);
        is_whole(&content, &to);
        let asked = to.asked();
        let rest = format!(" 3000000-{}", bytes.len() - 1);
        assert_eq!(asked.iter().any(|line| line.starts_with("PATCH ") && line.ends_with(&rest)), knows, "{asked:?}");
        // Config, layer, and the layer once more where nobody knows how far it got.
        assert_eq!(count(&asked, "POST"), if knows { 2 } else { 3 }, "{asked:?}");
    }
}

fn large(asked: &Asked<'_>) -> bool {
    asked.request.headers().get("content-length").is_some_and(|length| length.len() >= 7)
}

#[test]
fn a_registry_that_asks_for_patience_gets_it() {
    let content = app();
    let from = TestRegistry::start(content.clone());
    let to = Receiver::start(manner(), |asked| {
        let limited = asked.is("POST", "/uploads/") && asked.number == 1 || asked.is("PUT", "/manifests/1");
        let first = limited && (asked.request.method() == "POST" || asked.number < 6);
        first.then(|| Fault::Answer(respond(429, &[("retry-after", "1")], full(""))))
    });
    let run = run(&format!("copy --tries 20 {} {}", from.reference("app:1"), to.reference("team/app:1"))).expect(0);
    assert!(run.stderr.contains("answered 429; nothing is asked of it for 1.0 s"), "{}", run.stderr);
    is_whole(&content, &to);
}

#[test]
fn whoever_says_that_it_took_something_else_is_not_believed() {
    let content = app();
    let from = TestRegistry::start(content.clone());
    for part in ["/manifests/sha256:", "/manifests/1"] {
        let to = Receiver::start(manner(), move |asked| {
            asked.is("PUT", part).then(|| Fault::Claim(Digest::of(b"something else").to_string()))
        });
        let run = copy(&from, &to, "").expect(6);
        assert!(run.stderr.contains("says that a push of team/app"), "{}", run.stderr);
        if part != "/manifests/1" {
            assert_eq!(to.document("team/app", "1"), None);
        }
    }
}

#[test]
fn wrong_bytes_are_never_completed() {
    let content = image(3_000_000);
    let (digest, bytes) = layer_of(&content);
    let mut wrong = bytes.to_vec();
    wrong[1_000_000] ^= 1;
    let (short, path) = (bytes.slice(..2_000_000), digest.clone());
    for (bad, chunks) in [(wrong.into(), false), (short, false), (bytes.slice(..10), true)] {
        let path = path.clone();
        let from = TestRegistry::faulty(content.clone(), move |request| {
            request.uri().path().ends_with(&path).then(|| respond(200, &[], full(bytes::Bytes::clone(&bad))))
        });
        let to = Receiver::start(Manner { min_chunk: chunks.then_some(1), ..manner() }, |_| None);
        let run = copy(&from, &to, "").expect(6);
        assert!(run.stderr.contains("it was not pushed"), "{}", run.stderr);
        assert!(to.state.lock().unwrap().blobs.keys().all(|(_, blob)| *blob != digest));
        assert_eq!(to.document("team/app", "1"), None);
        let completed = |line: &String| line.starts_with("PUT ") && line.contains(&digest[7..]) && chunks;
        assert!(!to.asked().iter().any(completed));
    }
}

#[test]
fn mounts_where_they_are_to_be_had() {
    let content = app();
    let (layer, _) = layer_of(&content);
    let from = TestRegistry::start(content.clone());
    for (status, mounts) in [(None, true), (None, false), (Some(403), true), (Some(404), true), (Some(405), true)] {
        let to = Receiver::start(Manner { mounts, ..manner() }, move |asked| {
            let is_mount = asked.request.uri().query().is_some_and(|query| query.contains("mount="));
            status.filter(|_| is_mount).map(|status| Fault::Answer(text(status, "")))
        });
        copy(&from, &to, "").expect(0);
        to.asked();
        run(&format!("copy {} {}", to.reference("team/app:1"), to.reference("other/app:1"))).expect(0);
        let asked = to.asked();
        let mount = format!("POST /v2/other/app/blobs/uploads/?mount={}&from=team%2Fapp ", layer.replace(':', "%3A"));
        assert!(asked.contains(&mount), "{asked:?}");
        let puts = asked.iter().filter(|line| line.starts_with("PUT /v2/other/app/blobs/")).count();
        assert_eq!(puts, if mounts && status.is_none() { 0 } else { 3 }, "{asked:?}");
        // A mount that is not to be had is an upload to go on with.
        let begun = asked.iter().filter(|line| line.starts_with("POST ")).count();
        assert_eq!(begun, if status.is_some() { 6 } else { 3 }, "{asked:?}");
        assert_eq!(to.document("other/app", "1"), to.document("team/app", "1"));
    }
}

#[test]
fn a_tag_that_moves_meanwhile_changes_nothing() {
    let (content, mut other) = (app(), app());
    let moved = build(
        "[layer.x]\nfiles = [{ path = \"x\", random = 5 }]\n[[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"x\"]\n",
    );
    other.blobs.extend(moved.blobs.clone());
    other.tags.clone_from(&moved.tags);
    let asked = Arc::new(AtomicUsize::new(0));
    let (first, number) = (content.clone(), asked.clone());
    let from = TestRegistry::faulty(other, move |request| {
        let is_first = request.uri().path().ends_with("/manifests/1") && number.fetch_add(1, Ordering::SeqCst) == 0;
        is_first.then(|| first.answer(request))
    });
    let to = Receiver::start(manner(), |_| None);
    copy(&from, &to, "").expect(0);
    is_whole(&content, &to);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn some_platforms_of_an_image() {
    let content = app();
    let from = TestRegistry::start(content.clone());
    let to = Receiver::start(manner(), |_| None);
    copy(&from, &to, "--platform linux/arm64").expect(0);
    let index: Value = serde_json::from_slice(&content.blobs[&target(&content)].1).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let arm = entries.iter().find(|entry| entry["platform"]["architecture"] == "arm64").unwrap();
    let manifest: Digest = arm["digest"].as_str().unwrap().parse().unwrap();
    assert_eq!(to.document("team/app", "1").unwrap(), content.blobs[&manifest].1);

    let several = |name: &str| {
        let platforms = "--platform linux/arm64,linux/amd64";
        run(&format!("copy {platforms} {} {}", from.reference("app:1"), to.reference(name))).expect(0);
        to.document(name.split(':').next().unwrap(), "1").unwrap()
    };
    let one = several("team/a:1");
    assert_eq!(one, several("team/b:1"));
    let made: Value = serde_json::from_slice(&one).unwrap();
    assert_eq!(made["mediaType"], index["mediaType"]);
    let mut wanted = entries.clone();
    wanted.sort_by_key(|entry| entry["platform"]["architecture"] != "arm64");
    assert_eq!(made["manifests"], json!(wanted));

    let run = copy(&from, &to, "--platform linux/s390x").expect(3);
    assert!(run.stderr.contains("there is none for linux/s390x; there is one for linux/amd64, linux/arm64"));
}

#[test]
fn what_refers_to_an_image_goes_along() {
    let mut content = app();
    let top = target(&content);
    let sbom = artifact(&mut content, SBOM, "{\"sbom\": 1}", &json!({}), Some(&top));
    let about = artifact(&mut content, "application/x-about", "about", &json!({}), Some(&sbom.digest));
    let signature =
        artifact(&mut content, "application/vnd.dev.cosign.simplesigning.v1+json", "signed", &json!({}), None);
    tag(&mut content, &format!("{}.sig", top.as_tag()), signature.digest.clone());
    for (subject, referrer) in [(&top, &sbom), (&sbom.digest, &about)] {
        let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [referrer]});
        let index = content.add_json(media_type::OCI_INDEX, &list);
        tag(&mut content, &subject.as_tag(), index.digest);
    }
    let from = TestRegistry::start(content);
    for referrers in [true, false] {
        let to = Receiver::start(Manner { referrers, ..manner() }, |_| None);
        // Somebody else's is listed there already.
        let mut other = app();
        let own = artifact(&mut other, "application/x-own", "own", &json!({}), Some(&top));
        if !referrers {
            let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [own], "x": 1});
            let document = (media_type::OCI_INDEX.to_owned(), list.to_string().into());
            let mut state = to.state.lock().unwrap();
            let key = |target: &str| ("team/app".to_owned(), target.to_owned());
            state.documents.insert(key(own.digest.as_str()), other.blobs[&own.digest].clone());
            state.documents.insert(key(&top.as_tag()), document);
        }
        copy(&from, &to, &format!("--referrers={SBOM}")).expect(0);
        let has = |digest: &Digest| to.document("team/app", digest.as_str()).is_some();
        assert!(has(&sbom.digest) && !has(&about.digest) && !has(&signature.digest));
        copy(&from, &to, "--referrers").expect(0);
        assert!(has(&about.digest) && to.document("team/app", &format!("{}.sig", top.as_tag())).is_some());
        let list = to.document("team/app", &top.as_tag());
        assert_eq!(list.is_some(), !referrers, "no tag stands in for an API that is there");
        if let Some(list) = list {
            let list: Value = serde_json::from_slice(&list).unwrap();
            let digests: Vec<&str> =
                list["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap()).collect();
            assert_eq!(digests, [own.digest.as_str(), sbom.digest.as_str()]);
            assert_eq!((&list["manifests"][1]["artifactType"], &list["x"]), (&json!(SBOM), &json!(1)));
        }
        to.asked();
        let again = copy(&from, &to, "--referrers").expect(0);
        assert!(again.stdout.starts_with("up to date: "), "{}", again.stdout);
        let asked = to.asked();
        assert_eq!(count(&asked, "HEAD") + count(&asked, "GET"), asked.len(), "{asked:?}");
    }
}

#[test]
fn a_token_is_good_for_pushing() {
    let content = app();
    let from = TestRegistry::start(content.clone());
    let scopes: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let log = scopes.clone();
    let to = Receiver::start(manner(), move |asked| {
        let host = asked.request.headers()["host"].to_str().unwrap();
        if asked.path == "/token" {
            let query = asked.request.uri().query().unwrap().to_owned();
            log.lock().unwrap().push(query);
            return Some(Fault::Answer(text(200, "{\"token\": \"t\", \"expires_in\": 3600}")));
        }
        let signed = asked.request.headers().get("authorization").is_some_and(|value| value == "Bearer t");
        let repository = asked.path.trim_start_matches("/v2/").split("/blobs/").next().unwrap();
        let repository = repository.split("/manifests/").next().unwrap();
        let challenge =
            format!("Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:{repository}:pull\"");
        (!signed).then(|| Fault::Answer(respond(401, &[("www-authenticate", &challenge)], full(""))))
    });
    copy(&from, &to, "").expect(0);
    is_whole(&content, &to);
    assert_eq!(*scopes.lock().unwrap(), ["scope=repository%3Ateam%2Fapp%3Apull%2Cpush&service=s"]);
    scopes.lock().unwrap().clear();
    run(&format!("copy {} {}", to.reference("team/app:1"), to.reference("other/app:1"))).expect(0);
    let mount = "scope=repository%3Aother%2Fapp%3Apull%2Cpush&scope=repository%3Ateam%2Fapp%3Apull&service=s";
    assert!(scopes.lock().unwrap().iter().any(|scope| scope == mount), "{:?}", scopes.lock().unwrap());
}

#[test]
fn whom_hosts_toml_lets_push() {
    let content = app();
    let (from, to) = (TestRegistry::start(content.clone()), Receiver::start(manner(), |_| None));
    let mirror = TestRegistry::start(content.clone());
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("registry.invalid");
    std::fs::create_dir(&certs).unwrap();
    let hosts = |capabilities: &str| {
        let toml = format!(
            "server = \"http://{}\"\ncapabilities = [{capabilities}]\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            to.name(),
            mirror.name()
        );
        std::fs::write(certs.join("hosts.toml"), toml).unwrap();
        run(&format!(
            "copy --hosts-dir {} {} registry.invalid/team/app:1",
            dir.path().display(),
            from.reference("app:1")
        ))
    };
    let refused = hosts("\"pull\"").expect(3);
    assert!(refused.stderr.contains("no host of registry.invalid may be asked for that"), "{}", refused.stderr);
    hosts("\"pull\", \"push\"").expect(0);
    is_whole(&content, &to);
    assert_eq!(mirror.asked(), Vec::<String>::new(), "nothing is asked of who cannot be pushed to");
}

#[test]
fn a_mirror_of_many() {
    let content = app();
    let images = TestRegistry::start(content.clone());
    let from = Receiver::start(manner(), |_| None);
    for name in ["hub/app:1.0", "hub/app:1.1", "hub/app:1.2", "hub/app:2.0", "k8s/pause:3"] {
        run(&format!("copy {} {}", images.reference("app:1"), from.reference(name))).expect(0);
    }
    let stand_in = target(&content).as_tag();
    let document = (media_type::OCI_INDEX.to_owned(), content.blobs[&target(&content)].1.clone());
    from.state.lock().unwrap().documents.insert(("hub/app".to_owned(), stand_in.clone()), document);
    let to = Receiver::start(manner(), |_| None);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mirror.toml");
    let (source, there) = (from.name(), to.name());
    let toml = format!(
        "images = [\n  \"{source}/k8s/pause:3\",\n  \"{source}/k8s/none:1\",\n  {{ repository = \"{source}/hub/app\", tags = [\"1.*\"] }},\n  {{ repository = \"{source}/hub/app\", tags = [\"9.*\"] }},\n]\n[target]\nregistry = \"{there}/all\"\n[[rewrite]]\nmatch = \"{source}/hub/*\"\nto = \"{there}/mirror/*\"\n"
    );
    std::fs::write(&file, &toml).unwrap();
    let mirror = |more: &str| run(&format!("mirror --tries 2 {more} -f {}", file.display()));
    let dry = mirror("--dry-run").expect(1);
    assert!(dry.stdout.contains(&format!("{source}/hub/app:1.1 -> {there}/mirror/app:1.1: ")), "{}", dry.stdout);
    assert!(to.state.lock().unwrap().documents.is_empty());
    let failed = mirror("").expect(1);
    for word in ["has no k8s/none:1", "no tag of", "fits 9.*", "what helps: check name, tag and platform"] {
        assert!(failed.stderr.contains(word), "{word}: {}", failed.stderr);
    }
    assert!(failed.stdout.contains("4 images, 2 failed"), "{}", failed.stdout);
    let tops = [("mirror/app", "1.0"), ("mirror/app", "1.1"), ("mirror/app", "1.2"), ("all/k8s/pause", "3")];
    for (repository, tag) in tops {
        assert_eq!(to.document(repository, tag).unwrap(), content.blobs[&target(&content)].1, "{repository}");
    }
    for tag in ["2.0", &stand_in] {
        assert_eq!(to.document("mirror/app", tag), None);
    }
    // Each blob came once, and went from one repository to the other.
    let asked = to.asked();
    let uploads = asked.iter().filter(|line| line.starts_with("PUT ") && line.contains("/blobs/")).count();
    assert_eq!(uploads, 3, "{asked:?}");
    std::fs::write(&file, toml.replace(&format!("  \"{source}/k8s/none:1\",\n"), "").replace("\"9.*\"", "\"*\""))
        .unwrap();
    mirror("").expect(0);
    assert!(to.document("mirror/app", "2.0").is_some() && to.document("mirror/app", &stand_in).is_none());
    assert!(mirror("").expect(0).stdout.starts_with("up to date: 8 images"));
    let list = dir.path().join("list");
    std::fs::write(&list, format!("{source}/k8s/pause:3\n")).unwrap();
    run(&format!("copy --file {} {there}/listed", list.display())).expect(0);
    assert!(to.document("listed/k8s/pause", "3").is_some());
}

#[test]
fn a_mirror_of_what_was_locked() {
    let mut content = app();
    let top = target(&content);
    let sbom = artifact(&mut content, SBOM, "{}", &json!({}), Some(&top));
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [sbom]});
    let list = content.add_json(media_type::OCI_INDEX, &list).digest;
    tag(&mut content, &top.as_tag(), list);
    let (images, other) = (TestRegistry::start(content), TestRegistry::start(image(5000)));
    let (from, to) = (Receiver::start(manner(), |_| None), Receiver::start(manner(), |_| None));
    let bring = |images: &TestRegistry, name: &str| {
        run(&format!("copy --referrers {} {}", images.reference("app:1"), from.reference(name))).expect(0);
    };
    bring(&images, "app:1.0");
    bring(&images, "app:1.1");
    let dir = tempfile::tempdir().unwrap();
    let (file, lock) = (dir.path().join("mirror.toml"), dir.path().join("mirror.lock"));
    let toml = |more: &str, top: &str| {
        let (from, to) = (from.name(), to.name());
        let all = format!(
            "{top}\nreferrers = true\nimages = [{{ repository = \"{from}/app\", tags = [\"1.*\"] }}{more}]\n\
             target.registry = \"{to}\"\n"
        );
        std::fs::write(&file, all).unwrap();
    };
    let mirror = |more: &str| run(&format!("mirror --tries 2 {more} -f {}", file.display()));
    toml("", "platforms = [\"linux/amd64\"]");
    assert!(mirror("--locked").expect(2).stderr.contains("mirror.lock"));
    assert!(mirror("--lock").expect(0).stdout.contains("2 images; 2 added, 0 moved, 0 removed"));
    toml("", "");
    let more = mirror("--locked").expect(2);
    assert!(more.stderr.contains("was not part of it when it was locked"), "{}", more.stderr);
    mirror("--lock").expect(0);
    let locked = std::fs::read_to_string(&lock).unwrap();
    mirror("--lock").expect(0);
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), locked);
    assert!(to.state.lock().unwrap().documents.is_empty());

    // One tag moves, another one comes, and somebody signs.
    bring(&other, "app:1.0");
    bring(&other, "app:1.2");
    let mut signed = app();
    let later = artifact(&mut signed, "application/x-later", "later", &json!({}), Some(&top));
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [sbom, later]});
    {
        let key = |target: &str| ("app".to_owned(), target.to_owned());
        let mut state = from.state.lock().unwrap();
        state.blobs.extend(signed.blobs.iter().map(|(digest, (_, bytes))| (key(digest.as_str()), bytes.clone())));
        state.documents.insert(key(later.digest.as_str()), signed.blobs[&later.digest].clone());
        state.documents.insert(key(&top.as_tag()), (media_type::OCI_INDEX.to_owned(), list.to_string().into()));
    }
    from.asked();
    for shards in [&[""][..], &["--shard 2/2", "--shard 1/2"]] {
        *to.state.lock().unwrap() = crate::receiver::State::default();
        for shard in shards {
            mirror(&format!("--locked {shard}")).expect(0);
        }
        for tag in ["1.0", "1.1"] {
            assert_eq!(Digest::of(&to.document("app", tag).unwrap()), top, "{tag}");
        }
        let has = |target: &str| to.document("app", target).is_some();
        assert!(has(sbom.digest.as_str()) && !has(later.digest.as_str()) && !has("1.2"));
    }
    let asked = from.asked();
    assert!(asked.iter().all(|line| !line.contains("/tags/") && !line.contains("/manifests/1.")), "{asked:?}");

    toml(&format!(", \"{}/hub:1\"", from.name()), "");
    let lacks = mirror("--locked").expect(2);
    assert!(lacks.stderr.contains(&format!("{}/hub:1 is not in the lock", from.name())), "{}", lacks.stderr);
    toml("", "");
    let said = mirror("--lock").expect(0).stdout;
    assert!(said.contains("3 images; 1 added, 1 moved, 0 removed"), "{said}");
    mirror("--locked").expect(0);
    assert!(to.document("app", "1.2").is_some() && to.document("app", later.digest.as_str()).is_some());
}

#[test]
fn a_mirror_is_stopped_before_it_knows_its_images() {
    for more in ["", "--lock"] {
        let (asked, was_asked) = std::sync::mpsc::channel();
        let (go_on, waits) = std::sync::mpsc::channel::<()>();
        let waits = std::sync::Mutex::new(waits);
        let from = TestRegistry::faulty(app(), move |request| {
            if request.uri().path().contains("/tags/") {
                asked.send(()).unwrap();
                let _ = waits.lock().unwrap().recv();
            }
            None
        });
        let dir = tempfile::tempdir().unwrap();
        let toml = format!(
            "images = [{{ repository = \"{0}/app\", tags = [\"*\"] }}]\ntarget.registry = \"{0}/hub\"\n",
            from.name()
        );
        std::fs::write(dir.path().join("mirror.toml"), toml).unwrap();
        let mut mirror = command();
        mirror.current_dir(dir.path()).args(["mirror", "-f", "mirror.toml"]).args(more.split_whitespace());
        let mirror = mirror.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        was_asked.recv().unwrap();
        let pid = rustix::process::Pid::from_raw(mirror.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let run = Run::from(mirror.wait_with_output().unwrap());
        drop(go_on);
        run.expect(143);
        assert!(!dir.path().join("mirror.lock").exists());
    }
}

#[test]
fn where_nothing_can_be_copied_to() {
    for to in ["oci:dir", "oci-archive:a.tar", "docker-archive:a.tar", "containerd:root", "dir:x", "docker-daemon:a"] {
        let run = run(&format!("copy registry.invalid/app:1 {to}")).expect(2);
        assert!(run.stderr.contains("prebake export"), "{to}: {}", run.stderr);
    }
    run("copy registry.invalid/app:1").expect(2);
    let content = app();
    let from = TestRegistry::start(content.clone());
    let to = Receiver::start(manner(), |_| None);
    let other = to.reference(&format!("team/app@{}", Digest::of(b"other")));
    let refused = run(&format!("copy {} {other}", from.reference("app:1"))).expect(2);
    assert!(refused.stderr.contains("names another image than"), "{}", refused.stderr);
    let own = to.reference(&format!("team/app@{}", target(&content)));
    run(&format!("copy docker://{} docker://{own}", from.reference("app:1"))).expect(0);
    assert!(to.document("team/app", target(&content).as_str()).is_some());
}
