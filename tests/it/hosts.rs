//! `hosts.toml`: which hosts are asked for what, in which order.

use std::fs;
use std::path::Path;

use hyper::Request;
use hyper::body::Incoming;
use prebake::fixture::full;
use prebake::registry::HostsDirs;
use serde_json::Value;

use crate::answers::text;
use crate::support::content::demo;
use crate::support::prebake::{Run, prebake};
use crate::support::registry::{TestRegistry, respond};

const HELLO: &str = "registry.invalid/demo/hello:1.0";

/// `DIR/NAME/hosts.toml`.
fn write(dir: &Path, name: &str, toml: &str) {
    fs::create_dir_all(dir.join(name)).unwrap();
    fs::write(dir.join(name).join("hosts.toml"), toml).unwrap();
}

fn bake(root: &Path, dir: &Path, more: &str) -> Run {
    prebake(root, &format!("bake --tries 3 --platform linux/amd64 --hosts-dir {} {more}", dir.display()))
}

/// A registry that remembers whole requests.
fn watched(check: impl Fn(&Request<Incoming>) -> bool + Send + Sync + 'static) -> TestRegistry {
    TestRegistry::faulty(demo(), move |request| (!check(request)).then(|| text(418, "")))
}

#[test]
fn a_mirror_is_told_whom_it_stands_for() {
    let mirror = watched(|request| {
        request.uri().query() == Some("ns=registry.invalid")
            && request.headers().get("x-team").is_some_and(|v| v == "a b")
    });
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let toml =
        format!("[host.\"http://{}\"]\n[host.\"http://{}\".header]\nx-team = \"a b\"\n", mirror.name(), mirror.name());
    write(dir.path(), "registry.invalid", &toml);
    bake(root.path(), dir.path(), HELLO).expect(0);
    let names = prebake(root.path(), "images --json").expect(0).stdout;
    assert!(names.contains("\"registry.invalid/demo/hello:1.0\""), "{names}");
    // Its own name needs no telling.
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plain = watched(|request| request.uri().query().is_none());
    write(dir.path(), &plain.name().replace(':', "_"), "");
    bake(root.path(), dir.path(), &plain.reference("demo/hello:1.0")).expect(0);
}

#[test]
fn mirrors_in_their_order_and_then_the_server() {
    let blind = TestRegistry::faulty(demo(), |_| Some(text(404, "")));
    let broken = TestRegistry::faulty(demo(), |_| Some(text(500, "")));
    let server = TestRegistry::start(demo());
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let toml = format!(
        "server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n",
        server.name(),
        broken.name(),
        blind.name()
    );
    write(dir.path(), "registry.invalid", &toml);
    bake(root.path(), dir.path(), HELLO).expect(0);
    // Layers come at the same time, in any order.
    let [first, second, last] = [&broken, &blind, &server].map(|host| {
        let mut asked = host.asked();
        asked.sort_unstable();
        asked
    });
    assert_eq!((&first, &second), (&last, &last));
    assert_eq!(last.len(), 5, "an index, a manifest, a config and two layers: {last:?}");
    prebake(root.path(), "check").expect(0);
}

#[test]
fn capabilities_say_who_is_asked_for_what() {
    let blobs = TestRegistry::start(demo());
    let tags = TestRegistry::start(demo());
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let toml = format!(
        "server = \"http://{}\"\n[host.\"{}\"]\nskip_verify = true\ncapabilities = [\"Pull\"]\n[host.\"http://{}\"]\ncapabilities = [\"push\"]",
        tags.name(),
        format_args!("http://{}", blobs.name()),
        "127.0.0.1:1",
    );
    write(dir.path(), "registry.invalid", &toml);
    bake(root.path(), dir.path(), HELLO).expect(0);
    assert_eq!(tags.asked(), ["GET /v2/demo/hello/manifests/1.0"]);
    assert_eq!(blobs.asked().len(), 4);
    // Nobody who may be asked.
    let toml = format!("server = \"http://{}\"\ncapabilities = [\"pull\"]\n", tags.name());
    write(dir.path(), "registry.invalid", &toml);
    let run = bake(tempfile::tempdir().unwrap().path(), dir.path(), HELLO).expect(3);
    assert!(run.stderr.contains("no host of registry.invalid may be asked for that"), "{}", run.stderr);
    assert!(tags.asked().is_empty());
}

#[test]
fn paths_of_hosts() {
    for (path, override_path, asked) in [
        ("", false, "/v2/demo/hello/"),
        ("/us", false, "/us/v2/demo/hello/"),
        ("/v2/us/", true, "/v2/us/demo/hello/"),
        ("/proxy/v2", false, "/proxy/v2/demo/hello/"),
        ("", true, "/demo/hello/"),
    ] {
        let content = demo();
        let host = TestRegistry::faulty(demo(), move |request| {
            let path = request.uri().path().strip_prefix(asked)?;
            let request = Request::get(format!("/v2/demo/hello/{path}")).body(()).unwrap();
            Some(content.answer(&request))
        });
        let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let toml = format!("server = \"http://{}{path}\"\noverride_path = {override_path}\n", host.name());
        write(dir.path(), "registry.invalid", &toml);
        bake(root.path(), dir.path(), HELLO).expect(0);
        assert!(host.asked().iter().all(|request| request.starts_with(&format!("GET {asked}"))));
    }
}

#[test]
fn the_directory_that_counts() {
    let server = TestRegistry::start(demo());
    let right = format!("server = \"http://{}\"\n", server.name());
    let wrong = "server = \"http://127.0.0.1:1\"\n";
    let hello = "registry.invalid:5000/demo/hello:1.0";
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let both = format!("--hosts-dir {}:{} {hello}", one.path().display(), two.path().display());
    // Each is preferred to the one before.
    for (dir, name) in
        [(&two, "_default"), (&one, "_default"), (&one, "registry.invalid:5000"), (&one, "registry.invalid_5000_")]
    {
        write(dir.path(), name, &right);
        let root = tempfile::tempdir().unwrap();
        prebake(root.path(), &format!("bake --platform linux/amd64 {both}")).expect(0);
        write(dir.path(), name, wrong);
        prebake(root.path(), &format!("bake --tries 1 --platform linux/amd64 {both}")).expect(1);
    }
    // The root's own, by a link that leads somewhere else outside.
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc/containerd")).unwrap();
    std::os::unix::fs::symlink("/srv/certs.d", root.path().join("etc/containerd/certs.d")).unwrap();
    write(&root.path().join("srv/certs.d"), "registry.invalid", &right);
    prebake(root.path(), &format!("bake --platform linux/amd64 {HELLO}")).expect(0);
}

#[test]
fn what_containerd_ignores_in_silence_is_an_error() {
    for (toml, line, word) in [
        ("server = \"https://a\"\n[host.\"https://b\"\n", 2, "invalid"),
        (
            "[host.\"https://b\"]\ncapabilities = [\"pull\", \"teleport\"]\n",
            2,
            "host.\"https://b\".capabilities: unknown capability \"teleport\"",
        ),
        ("\n\nskip_verify = \"yes\"\n", 3, "skip_verify is not true or false"),
        ("[host.\"https://b\"]\nca = 3\n", 2, "host.\"https://b\".ca is not an array"),
        ("[host.\"https://b\"]\nclient = [[\"a\", \"b\", \"c\"]]\n", 2, "a pair is [certificate, key]"),
        ("[host.\"https://b\"]\ndial_timeout = \"soon\"\n", 2, "\"soon\" is no duration"),
        ("[host.\"ftp://b\"]\n", 1, "is not the URL of a host"),
        ("[host.\"https://u:p@b\"]\n", 1, "it may have a host, a port and a path"),
        ("[host.\"https://b\".header]\n\"a b\" = \"c\"\n", 2, "cannot be the name of a header"),
        ("server = 5\n", 1, "server is not a string"),
    ] {
        let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(dir.path(), "registry.invalid", toml);
        let run = bake(root.path(), dir.path(), HELLO).expect(2);
        let place = format!("{}/registry.invalid/hosts.toml:{line}: ", dir.path().display());
        assert!(run.stderr.contains(&place), "{toml}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{toml}: {}", run.stderr);
    }
}

/// The file of containerd's own test of its parser, read to the same hosts.
#[test]
fn explained() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "docker.io",
        r#"
server = "https://test-default.registry"
ca = "/etc/path/default"
[header]
  x-custom-1 = "secret-value"

[host."https://mirror.registry"]
  capabilities = ["pull"]
  ca = "/etc/certs/mirror.pem"
  skip_verify = false
  [host."https://mirror.registry".header]
    x-custom-2 = ["value1", "value2"]

[host."https://mirror-bak.registry/us"]
  capabilities = ["pull"]
  skip_verify = true

[host."http://mirror.registry"]
  capabilities = ["pull"]

[host."https://test-1.registry"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["/etc/certs/test-1-ca.pem", "special.pem"]
  client = [["/etc/certs/client.cert", "/etc/certs/client.key"],["/etc/certs/client.pem", ""]]

[host."https://test-2.registry"]
  client = "client.pem"

[host."https://noncompliantmirror.registry/v2/namespaceprefix"]
  capabilities = ["pull"]
  override_path = true

[host."https://noprefixnoncompliant.registry"]
  override_path = true

[host."https://onlyheader.registry".header]
  x-custom-1 = "justaheader"

[host."https://dial-timeout.registry"]
  dial_timeout = "3s"
"#,
    );
    let hosts = HostsDirs(vec![dir.path().to_owned()]).hosts("docker.io", false).unwrap();
    let urls: Vec<&str> = hosts.iter().map(prebake::registry::Host::url).collect();
    assert_eq!(
        urls,
        [
            "https://mirror.registry/v2/",
            "https://mirror-bak.registry/us/v2/",
            "http://mirror.registry/v2/",
            "https://test-1.registry/v2/",
            "https://test-2.registry/v2/",
            "https://noncompliantmirror.registry/v2/namespaceprefix/",
            "https://noprefixnoncompliant.registry/",
            "https://onlyheader.registry/v2/",
            "https://dial-timeout.registry/v2/",
            "https://test-default.registry/v2/",
        ]
    );
    let explain = format!("registry explain --hosts-dir {} docker.io/library/nginx", dir.path().display());
    let words: Vec<&str> = explain.split(' ').collect();
    let run: Run = crate::support::prebake::command().args(&words).output().unwrap().into();
    let out = run.expect(0).stdout;
    for part in [
        "docker.io/library/nginx:latest\n1. https://mirror.registry/v2/\n   asked for    manifests and blobs by digest\n",
        &format!("because of   {}/docker.io/hosts.toml:7: host.\"https://mirror.registry\"", dir.path().display()),
        "with         ca /etc/certs/mirror.pem",
        "with         header x-custom-2",
        "with         certificate not verified",
        "with         connects within 3s",
        "told         ns=docker.io",
        "credentials  none",
        &format!("client certificate {}/docker.io/client.pem", dir.path().display()),
        "10. https://test-default.registry/v2/\n   asked for    tags, manifests and blobs by digest, referrers\n",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    assert!(!out.contains("secret-value") && !out.contains("value1"), "{out}");
    let run: Run = crate::support::prebake::command().args(&words).arg("--json").output().unwrap().into();
    let first: Value = serde_json::from_str(run.expect(0).stdout.lines().next().unwrap()).unwrap();
    assert_eq!(first["capabilities"]["resolve"], false);
    assert_eq!(first["mirror"], true);
}

#[test]
fn without_a_file() {
    let none = HostsDirs::default();
    for (registry, plain, url) in [
        ("docker.io", false, "https://registry-1.docker.io/v2/"),
        ("r.example:5000", false, "https://r.example:5000/v2/"),
        ("r.example", true, "http://r.example/v2/"),
        ("localhost:5000", false, "http://localhost:5000/v2/"),
        ("localhost", false, "https://localhost/v2/"),
        ("localhost:443", false, "https://localhost/v2/"),
        ("localhost:80", false, "http://localhost/v2/"),
        ("[::1]:5000", false, "http://[::1]:5000/v2/"),
        ("[0:0::1]:5000", false, "http://[::1]:5000/v2/"),
        ("R.Example:443", false, "https://r.example/v2/"),
    ] {
        let hosts = none.hosts(registry, plain).unwrap();
        assert_eq!(hosts.iter().map(prebake::registry::Host::url).collect::<Vec<_>>(), [url], "{registry}");
        // However a URL puts it, its name is as it was written.
        let name = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        assert_eq!((hosts[0].authority(), hosts[0].is_mirror_of(registry)), (name, false));
    }
    // Where both are possible TLS is tried first: another port, or none, of HTTP with settings for TLS.
    let dir = tempfile::tempdir().unwrap();
    for (server, first) in [
        ("http://r.example", true),
        ("http://r.example:5000/x", true),
        ("http://r.example:80", false),
        ("https://r.example", false),
        ("R.Example:443", false),
    ] {
        write(dir.path(), "r.example", &format!("server = \"{server}\"\nskip_verify = false\ndial_timeout = \"\"\n"));
        let hosts = HostsDirs(vec![dir.path().to_owned()]).hosts("r.example", false).unwrap();
        assert_eq!(hosts[0].settings().contains(&"https if it speaks it; else http".to_owned()), first, "{server}");
    }
    let hosts = HostsDirs(vec![dir.path().to_owned()]).hosts("r.example", false).unwrap();
    assert!(hosts[0].authority() == "R.Example:443" && hosts[0].is_mirror_of("r.example"));
    // Docker's layout of certificates.
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("r.example")).unwrap();
    for name in ["own.crt", "me.cert", "me.key", "readme"] {
        fs::write(dir.path().join("r.example").join(name), "").unwrap();
    }
    let hosts = HostsDirs(vec![dir.path().to_owned()]).hosts("r.example", false).unwrap();
    let at = dir.path().join("r.example");
    let settings = [
        format!("ca {}", at.join("own.crt").display()),
        format!("client certificate {}", at.join("me.cert").display()),
    ];
    assert_eq!(hosts[0].settings(), settings);
    // Certificates that are none.
    let root = tempfile::tempdir().unwrap();
    let run = bake(root.path(), dir.path(), "r.example/a:1").expect(2);
    assert!(run.stderr.contains("own.crt cannot be used: there is no certificate in it"), "{}", run.stderr);
}

#[test]
fn a_redirect_takes_no_header_of_the_host_along() {
    let cdn = watched(|request| {
        !request.headers().contains_key("x-secret") && !request.headers().contains_key("authorization")
    });
    let to = format!("http://{}", cdn.name());
    let registry = TestRegistry::faulty(demo(), move |request| {
        assert_eq!(request.headers()["x-secret"], "s");
        let path = request.uri().path();
        path.contains("/blobs/").then(|| respond(307, &[("location", &format!("{to}{path}?signature=1"))], full("")))
    });
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let toml = format!("server = \"http://{}\"\n[header]\nx-secret = \"s\"\n", registry.name());
    write(dir.path(), "registry.invalid", &toml);
    bake(root.path(), dir.path(), HELLO).expect(0);
    assert_eq!(cdn.asked().len(), 3);
}

#[test]
fn a_mirror_that_wants_patience_is_asked_last_and_not_forgotten() {
    let times = std::sync::atomic::AtomicUsize::new(0);
    let mirror = TestRegistry::faulty(demo(), move |_| {
        let second = times.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1;
        second.then(|| respond(429, &[("retry-after", "1")], full("")))
    });
    let server = TestRegistry::faulty(demo(), |_| Some(text(404, "")));
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let toml = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.name(), mirror.name());
    write(dir.path(), "registry.invalid", &toml);
    bake(root.path(), dir.path(), HELLO).expect(0);
    assert!(!server.asked().is_empty());
}

#[test]
fn names_that_no_url_can_have() {
    let root = tempfile::tempdir().unwrap();
    for name in ["app.123/x", "1.2.3.999/x:1"] {
        let run = prebake(root.path(), &format!("bake {name}")).expect(2);
        assert!(run.stderr.contains("is no host: "), "{}", run.stderr);
    }
}
