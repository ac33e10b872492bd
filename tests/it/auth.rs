//! Credentials: asked for only when the registry asks, exchanged once, renewed when refused.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prebake::fixture::full;

use crate::answers::{header, text};
use crate::support::content::demo;
use crate::support::prebake::{Run, command, prebake};
use crate::support::registry::{TestRegistry, respond};

/// `user:secret` in base64.
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

fn config(dir: &Path, registry: &str, auth: &str) {
    std::fs::write(dir.join("config.json"), format!(r#"{{"auths": {{"{registry}": {{"auth": "{auth}"}}}}}}"#)).unwrap();
}

fn bake(root: &Path, config: &Path, reference: &str) -> Run {
    let mut command: Command = command();
    command.env("DOCKER_CONFIG", config).args(["bake", "--platform", "linux/amd64", "--root"]).arg(root).arg(reference);
    command.output().unwrap().into()
}

#[test]
fn basic() {
    let registry = TestRegistry::faulty(demo(), |request| {
        (header(request, "authorization") != BASIC)
            .then(|| respond(401, &[("www-authenticate", "Basic realm=\"r\"")], full("")))
    });
    let (root, docker) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let reference = registry.reference("demo/hello:1.0");
    config(docker.path(), &registry.name(), "dXNlcjp3cm9uZw==");
    let run = bake(root.path(), docker.path(), &reference).expect(4);
    assert!(run.stderr.contains("as \"user\" with the credentials in /"), "{}", run.stderr);
    config(docker.path(), &registry.name(), "dXNlcjpzZWNyZXQ=");
    bake(root.path(), docker.path(), &reference).expect(0);
}

#[test]
fn bearer_tokens_are_exchanged_once_and_renewed() {
    // Tokens are good for three requests each.
    let tokens = Arc::new(AtomicUsize::new(0));
    let uses = Arc::new(AtomicUsize::new(0));
    let (count, used) = (tokens.clone(), uses.clone());
    let registry = TestRegistry::faulty(demo(), move |request| {
        if request.uri().path() == "/token" {
            if header(request, "authorization") != BASIC {
                return Some(text(401, "{}"));
            }
            assert!(
                request.uri().query().unwrap().contains("scope=repository%3Ademo%2Fhello%3Apull"),
                "{:?}",
                request.uri()
            );
            used.store(0, Ordering::SeqCst);
            let n = count.fetch_add(1, Ordering::SeqCst) + 1;
            return Some(text(200, &format!(r#"{{"token":"t{n}"}}"#)));
        }
        let current = format!("Bearer t{}", count.load(Ordering::SeqCst));
        if header(request, "authorization") == current && used.fetch_add(1, Ordering::SeqCst) < 3 {
            return None;
        }
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", header(request, "host"));
        Some(respond(401, &[("www-authenticate", &challenge)], full("")))
    });
    let (root, docker) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    config(docker.path(), &registry.name(), "dXNlcjpzZWNyZXQ=");
    bake(root.path(), docker.path(), &registry.reference("demo/hello:1.0")).expect(0);
    // hello has five blobs: an index, a manifest, a config and two layers.
    assert_eq!(tokens.load(Ordering::SeqCst), 2);
    prebake(root.path(), "check").expect(0);
}

#[test]
fn wrong_credentials_for_a_token() {
    let registry = TestRegistry::faulty(demo(), |request| {
        if request.uri().path() == "/token" {
            return Some(text(401, "{}"));
        }
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", header(request, "host"));
        Some(respond(401, &[("www-authenticate", &challenge)], full("")))
    });
    let root = tempfile::tempdir().unwrap();
    let run = bake(root.path(), root.path(), &registry.reference("demo/hello:1.0")).expect(4);
    assert!(run.stderr.contains("gives no token (401)"), "{}", run.stderr);
}

#[test]
fn a_registry_that_asks_for_nothing_gets_nothing() {
    let registry = TestRegistry::faulty(demo(), |request| {
        assert_eq!(header(request, "authorization"), "");
        None
    });
    let (root, docker) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    config(docker.path(), &registry.name(), "dXNlcjpzZWNyZXQ=");
    bake(root.path(), docker.path(), &registry.reference("demo/hello:1.0")).expect(0);
    assert!(registry.asked().iter().all(|request| request != "GET /v2/"));
}

#[test]
fn a_broken_config_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    let run = bake(dir.path(), dir.path(), "localhost:1/a").expect(2);
    assert!(run.stderr.contains("is not a Docker config.json"), "{}", run.stderr);
}
