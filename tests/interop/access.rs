//! Real servers as production has them: docker-registry with passwords, tokens and TLS, as a pull-through cache, and behind
//! an nginx that limits, cuts, redirects, and knows no ranges.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::prebake::fixture::{Server, full};
use ::prebake::oci::{Digest, media_type};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::peers::{Containerd, Nginx, RELEASES, Registry, run};
use crate::support::content::{build, demo};

use crate::support::prebake::{Run, command, containerd_root, prebake, start};
use crate::support::registry::respond;

/// `user:secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2b$04$V/ooTt0.J3dQYPus7N9kO.RuVX09EF3CZq.1Eu2U.UNG6ZIRllvBC\n";
const HELLO: &str = "registry.invalid/demo/hello:1.0";

/// Two layers, one of them large enough for parts.
const LARGE: &str = "[layer.a]\nfiles = [{ path = \"a\", random = 30000000 }]\n[layer.b]\nfiles = [{ path = \"b\", random = 3000000 }]\n[[image]]\nname = \"large:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"a\", \"b\"]\n";

pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// An authority, a server's certificate for loopback, and a client's; two servers that vouch for themselves, one of them
    /// for another address.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let openssl = |args: &str| run(Command::new("openssl").current_dir(dir).args(args.split_whitespace()));
        let key =
            |name: &str| openssl(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"));
        key("ca");
        openssl("req -x509 -new -key ca.key -subj /CN=ours -days 2 -out ca.crt");
        for (name, extension) in [
            ("server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth"),
            ("client", "extendedKeyUsage=clientAuth"),
        ] {
            key(name);
            fs::write(dir.join("extensions"), extension).unwrap();
            openssl(&format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"));
            openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}.cert"
            ));
        }
        for (name, address) in [("alone", "127.0.0.1"), ("elsewhere", "127.0.0.9")] {
            key(name);
            openssl(&format!(
                "req -x509 -new -key {name}.key -subj /CN={name} -addext subjectAltName=IP:{address} -days 2 -out {name}.cert"
            ));
        }
        Self { dir: dir.to_owned() }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// docker-registry's settings of HTTP.
    fn tls(&self, name: &str, clients: bool) -> String {
        let clients = if clients { format!(", clientcas: [{}]", self.path("ca.crt")) } else { String::new() };
        let [certificate, key] = ["cert", "key"].map(|kind| self.path(&format!("{name}.{kind}")));
        format!(", tls: {{certificate: {certificate}, key: {key}{clients}}}")
    }
}

fn hosts(dir: &Path, toml: &str) {
    fs::create_dir_all(dir.join("registry.invalid")).unwrap();
    fs::write(dir.join("registry.invalid/hosts.toml"), toml).unwrap();
}

fn bake(dir: &Path, root: &str, more: &str) -> Run {
    let root = dir.join(root);
    let _ = fs::remove_dir_all(&root);
    let run =
        prebake(&root, &format!("bake --platform linux/amd64 --hosts-dir {} {more}", dir.join("certs.d").display()));
    if run.code == 0 {
        prebake(&root, "check").expect(0);
    }
    run
}

#[test]
fn passwords_and_tls_of_our_own_as_containerd_does_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pki = Pki::new(&dir.join("pki"));
    let plain = Registry::start(&dir.join("plain"));
    plain.push(&demo());
    fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", dir.join("htpasswd").display());
    let secure = plain.beside(&dir.join("secure"), &pki.tls("server", true), &auth);
    let server = format!("server = \"https://{}\"\n", secure.name());
    let certs = dir.join("certs.d");
    fs::write(dir.join("creds"), format!("{} user:secret\n", secure.name())).unwrap();
    let creds = format!("--creds-file {}", dir.join("creds").display());
    let client = format!("client = [[\"{}\", \"{}\"]]\n", pki.path("client.cert"), pki.path("client.key"));
    let ca = format!("ca = \"{}\"\n", pki.path("ca.crt"));

    let mut containerd = Containerd::start("2.1.9", &containerd_root(&dir.join("peer")), &dir.join("work"));
    let agree = |toml: &str, flags: &str, code: i32, word: &str| {
        hosts(&certs, toml);
        let run = bake(dir, "root", &format!("{flags} {HELLO}")).expect(code);
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
        if !flags.contains("--ca-file") {
            // The same file, the same answer.
            let user = if flags.contains("creds") { "--user user:secret" } else { "" };
            let pull =
                format!("images pull --local --platform linux/amd64 --hosts-dir {} {user} {HELLO}", certs.display());
            let peer = containerd.ctr_command().args(pull.split_whitespace()).output().unwrap();
            assert_eq!(peer.status.success(), code == 0, "{toml}: {}", String::from_utf8_lossy(&peer.stderr));
            let _ = containerd.ctr_command().args(["images", "rm", "--sync", HELLO]).output();
            containerd.collect_garbage();
        }
    };
    agree(&format!("{server}{client}"), &creds, 1, "ertificate");
    agree(&format!("{server}{ca}"), &creds, 1, "ertificate");
    agree(&format!("{server}{ca}{client}"), "", 4, "to anonymous users");
    agree(&format!("{server}{ca}{client}"), &creds, 0, "");
    agree(&format!("{server}skip_verify = true\n{client}"), &creds, 0, "");
    agree(&format!("{server}{client}"), &format!("{creds} --ca-file {}", pki.path("ca.crt")), 0, "");
    // As openssl makes them, these could sign others, and are trusted by themselves.
    for (name, code) in [("alone", 0), ("elsewhere", 1)] {
        let registry = plain.beside(&dir.join(name), &pki.tls(name, false), "");
        let server = format!("server = \"https://{}\"\n", registry.name());
        let own = format!("ca = \"{}\"\n", pki.path(&format!("{name}.cert")));
        agree(&format!("{server}{own}"), "", code, if code == 0 { "" } else { "ertificate" });
        agree(&format!("{server}{ca}"), "", 1, "ertificate");
        agree(&server, &format!("--ca-file {}", pki.path(&format!("{name}.cert"))), code, "");
    }
    containerd.stop();
    drop(containerd);
    // A machine without certificates, as a chroot: the bundled ones do not know our authority, and its own file helps; so
    // does a machine that knows it.
    hosts(&certs, &format!("{server}{client}"));
    let own = ["--ca-file".to_owned(), pki.path("ca.crt")];
    for (file, more, code) in [("/nonexistent", &[][..], 1), ("/nonexistent", &own, 0), (&*pki.path("ca.crt"), &[], 0)]
    {
        let mut bare = command();
        bare.env("SSL_CERT_FILE", file).env("SSL_CERT_DIR", "/nonexistent");
        bare.args(["bake", "--platform", "linux/amd64", "--root"])
            .arg(dir.join(format!("bare{code}{}", more.len())))
            .arg("--hosts-dir")
            .arg(&certs);
        let run: Run = bare.args(creds.split(' ')).args(more).arg(HELLO).output().unwrap().into();
        assert!(
            code == 0 || run.stderr.contains("UnknownIssuer") && run.stderr.contains("--ca-file"),
            "{}",
            run.stderr
        );
        run.expect(code);
    }

    // Loopback by its name: TLS without being told, as containerd does, and the certificate is not looked at.
    let open = plain.beside(&dir.join("open"), &pki.tls("server", false), &auth);
    let creds = format!("{} user:secret\n", open.name());
    fs::write(dir.join("creds"), creds).unwrap();
    bake(dir, "root", &format!("--creds-file {} {}/demo/hello:1.0", dir.join("creds").display(), open.name()))
        .expect(0);
    // Docker's layout of certificates.
    let own = certs.join(secure.name());
    fs::create_dir_all(&own).unwrap();
    for (from, to) in [("ca.crt", "own.crt"), ("client.cert", "me.cert"), ("client.key", "me.key")] {
        fs::copy(pki.dir.join(from), own.join(to)).unwrap();
    }
    fs::write(dir.join("creds"), format!("{} user:secret\n", secure.name())).unwrap();
    bake(dir, "root", &format!("--creds-file {} {}/demo/hello:1.0", dir.join("creds").display(), secure.name()))
        .expect(0);
}

/// A token server as docker-registry expects it: ES256, its certificate along.
fn token_server(pki: &Arc<Pki>, runtime: &tokio::runtime::Runtime, asked: Arc<Mutex<Vec<String>>>) -> Server {
    let pki = pki.clone();
    let handler = move |request: &hyper::Request<hyper::body::Incoming>| {
        let given = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        asked.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
        if given != Some(format!("Basic {}", STANDARD.encode("user:secret"))) {
            return respond(401, &[], full(r#"{"errors":[{"code":"DENIED","message":"who are you?"}]}"#));
        }
        let pem = fs::read_to_string(pki.dir.join("server.cert")).unwrap();
        let der: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [der]});
        let access = json!([{"type": "repository", "name": "demo/hello", "actions": ["pull"]}]);
        let claims = json!({"iss": "issuer", "sub": "user", "aud": "service", "exp": now + 60, "nbf": now - 10, "iat": now - 10,
            "jti": format!("{now}"), "access": access});
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        fs::write(pki.dir.join("signed"), &signed).unwrap();
        let sign = "dgst -sha256 -sign server.key -out signature signed";
        run(Command::new("openssl").current_dir(&pki.dir).args(sign.split(' ')));
        let raw = raw_signature(&fs::read(pki.dir.join("signature")).unwrap());
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(raw));
        respond(200, &[], full(json!({"token": token, "expires_in": 60}).to_string()))
    };
    runtime.block_on(Server::start(std::net::Ipv4Addr::LOCALHOST, Arc::new(handler))).unwrap()
}

/// The two numbers of a DER signature, 32 bytes each.
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut raw = Vec::new();
    for _ in 0..2 {
        let (number, more) = rest[2..].split_at(usize::from(rest[1]));
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        raw.extend(std::iter::repeat_n(0, 32 - number.len()));
        raw.extend(number);
        rest = more;
    }
    raw
}

#[test]
fn tokens_of_a_real_registry() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pki = Arc::new(Pki::new(&dir.join("pki")));
    let plain = Registry::start(&dir.join("plain"));
    plain.push(&demo());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let tokens = token_server(&pki, &runtime, asked.clone());
    let auth = format!(
        "auth: {{token: {{realm: \"http://{}/token\", service: service, issuer: issuer, rootcertbundle: {}}}}}\n",
        tokens.name(),
        pki.path("ca.crt")
    );
    let registry = plain.beside(&dir.join("tokens"), "", &auth);
    let reference = format!("{}/demo/hello:1.0", registry.name());
    let refused = bake(dir, "root", &format!("--creds user:wrong {reference}")).expect(4);
    assert!(refused.stderr.contains("gives no token (401): who are you?"), "{}", refused.stderr);
    asked.lock().unwrap().clear();
    bake(dir, "root", &format!("--creds user:secret {reference}")).expect(0);
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(asked, ["scope=repository%3Ademo%2Fhello%3Apull&service=service"]);
}

#[test]
fn a_pull_through_cache() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let upstream = Registry::start(&dir.join("upstream"));
    upstream.push(&demo());
    let cache = Registry::serve(
        &dir.join("cache"),
        &dir.join("cache/data"),
        "",
        &format!("proxy: {{remoteurl: \"http://{}\"}}\n", upstream.name()),
    );
    hosts(&dir.join("certs.d"), &format!("server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n", cache.name()));
    bake(dir, "root", HELLO).expect(0);
    let requests = || upstream.log().matches("GET /v2/demo/").count();
    let cold = requests();
    assert!(cold >= 5, "{}", upstream.log());
    bake(dir, "root", HELLO).expect(0);
    // A cache looks whether a tag has moved.
    assert!(requests() - cold <= 1, "{}", upstream.log());
}

#[test]
fn behind_an_nginx_that_knows_no_ranges_and_cuts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let registry = Registry::start(&dir.join("registry"));
    registry.push(&build(LARGE));
    let to = registry.name();
    // Each connection gives 10 MB/s.
    for (name, ranges) in
        [("whole", "proxy_set_header Range \"\"; proxy_set_header If-Range \"\"; max_ranges 0;"), ("parts", "")]
    {
        let nginx = Nginx::start(
            &dir.join(name),
            &format!(
                "server {{ listen ADDRESS; location / {{ proxy_pass http://{to}; proxy_buffering off; proxy_set_header Host $http_host; limit_rate 10m; {ranges} }} }}"
            ),
        );
        let root = dir.join("root");
        let _ = fs::remove_dir_all(&root);
        let reference = format!("{}/large:1", nginx.name());
        let mut child = start(&root, &format!("bake --platform linux/amd64 {reference}"));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(350));
            nginx.cut();
        }
        // Killed as well, and gone on with.
        std::thread::sleep(Duration::from_millis(300));
        child.kill().unwrap();
        child.wait().unwrap();
        prebake(&root, &format!("bake --platform linux/amd64 {reference}")).expect(0);
        prebake(&root, "check").expect(0);
        let access = fs::read_to_string(dir.join(name).join("access")).unwrap();
        assert_eq!(access.contains("\" 206 "), name == "parts", "{access}");
    }
}

#[test]
fn behind_an_nginx_that_limits_and_redirects() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let registry = Registry::start(&dir.join("registry"));
    registry.push(&demo());
    let to = registry.name();
    let nginx = Nginx::start(
        &dir.join("limited"),
        &format!(
            "limit_req_zone $binary_remote_addr zone=z:1m rate=5r/s; limit_req_status 429; server {{ listen ADDRESS; error_page 429 = @busy; location @busy {{ add_header Retry-After 1 always; return 429; }} location / {{ limit_req zone=z burst=2 nodelay; proxy_pass http://{to}; proxy_set_header Host $http_host; }} }}"
        ),
    );
    let all: Vec<String> = ["hello", "zstd", "plain"].map(|name| format!("{}/demo/{name}:1.0", nginx.name())).into();
    let run = bake(dir, "root", &format!("--tries 10 {}", all.join(" "))).expect(0);
    assert!(run.stderr.contains("answered 429; nothing is asked of it for 1.0 s"), "{}", run.stderr);
    let access = fs::read_to_string(dir.join("limited/access")).unwrap();
    let refused = access.matches("\" 429 ").count();
    // Of some twenty requests, six a second: refused are those that were under way together, once each time.
    assert!((1..=30).contains(&refused), "{refused}: {access}");

    fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
    let cdn = Nginx::start(
        &dir.join("cdn"),
        &format!(
            "server {{ listen ADDRESS; location / {{ if ($http_authorization) {{ return 400; }} proxy_pass http://{to}; proxy_set_header Host $http_host; }} }}"
        ),
    );
    let front = Nginx::start(
        &dir.join("front"),
        &format!(
            "server {{ listen ADDRESS; auth_basic r; auth_basic_user_file {}; location ~ /blobs/ {{ return 307 http://{}$request_uri; }} location / {{ proxy_pass http://{to}; proxy_set_header Host $http_host; }} }}",
            dir.join("htpasswd").display(),
            cdn.name()
        ),
    );
    let run = bake(dir, "root", &format!("--creds user:secret {}/demo/hello:1.0", front.name()));
    assert_eq!(run.code, 0, "{}\n{}", run.stderr, fs::read_to_string(dir.join("front/log")).unwrap_or_default());
    assert_eq!(fs::read_to_string(dir.join("cdn/access")).unwrap().lines().count(), 3);
}

#[test]
fn containerd_keeps_what_refers_to_an_image() {
    let mut content = demo();
    let subject = content.tags[&("demo/hello".to_owned(), "1.0".to_owned())].clone();
    let config = content.add(media_type::OCI_CONFIG, "{}");
    let sbom = content.add("application/spdx+json", "{\"sbom\": true}");
    let size = content.blobs[&subject].1.len();
    let artifact = content.add_json(
        media_type::OCI_MANIFEST,
        &json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [sbom],
            "subject": {"mediaType": media_type::OCI_INDEX, "digest": subject, "size": size}}),
    );
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [artifact]});
    let list = content.add_json(media_type::OCI_INDEX, &list);
    content.tags.insert(("demo/hello".to_owned(), subject.as_tag()), list.digest);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let registry = Registry::start(&dir.join("registry"));
    registry.push(&content);
    for release in RELEASES {
        let root = dir.join(release);
        let name = format!("{}/demo/hello:1.0", registry.name());
        prebake(&root, &format!("bake --platform linux/amd64 --referrers {name}")).expect(0);
        let containerd = Containerd::start(release, &containerd_root(&root), &dir.join(format!("work-{release}")));
        containerd.collect_garbage();
        let has = |digest: &Digest| containerd.ctr("content ls -q").contains(digest.as_str());
        for digest in [&artifact.digest, &sbom.digest] {
            assert!(has(digest), "{release}");
        }
        let names = containerd.ctr("images ls -q");
        let names: Vec<&str> = names.lines().collect();
        containerd.ctr(&format!("images rm --sync {}", names.join(" ")));
        assert!(!has(&sbom.digest), "{release}: nothing else keeps it");
    }
}
