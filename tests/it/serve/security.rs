//! Who may ask, and what nobody should.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::CertificateDer;

use super::ask::Answer;
use super::{REGISTRY, demo_layout};
use crate::support::content::demo;
use crate::support::prebake::{Run, command};
use crate::support::rng::Rng;
use crate::support::served::{Served, write_layout};

/// An element of ASN.1 in DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let len = content.len();
    let mut out = vec![tag];
    match len {
        0..128 => out.push(u8::try_from(len).unwrap()),
        128..256 => out.extend([0x81, u8::try_from(len).unwrap()]),
        _ => out.extend([0x82, u8::try_from(len >> 8).unwrap(), u8::try_from(len & 255).unwrap()]),
    }
    out.extend(content);
    out
}

/// A certificate for 127.0.0.1 that vouches for itself (RFC 5280), and its key: `cert.pem` and `key.pem`.
fn identity(dir: &Path) -> CertificateDer<'static> {
    const SEQUENCE: u8 = 0x30;
    const ECDSA_SHA256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    const EC_KEY: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    const COMMON_NAME: &[u8] = &[6, 3, 0x55, 4, 3];
    const ALT_NAME: &[u8] = &[6, 3, 0x55, 0x1d, 0x11];
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random).unwrap();
    let algorithm = der(SEQUENCE, &[ECDSA_SHA256]);
    let name = der(SEQUENCE, &[&der(0x31, &[&der(SEQUENCE, &[COMMON_NAME, &der(0x0c, &[b"prebake"])])])]);
    let valid = der(SEQUENCE, &[&der(0x17, &[b"200101000000Z"]), &der(0x17, &[b"490101000000Z"])]);
    let bits = der(3, &[&[0], pair.public_key().as_ref()]);
    let public = der(SEQUENCE, &[&der(SEQUENCE, &[EC_KEY, P256]), &bits]);
    let alternative = der(4, &[&der(SEQUENCE, &[&der(0x87, &[&[127, 0, 0, 1]])])]);
    let extensions = der(0xa3, &[&der(SEQUENCE, &[&der(SEQUENCE, &[ALT_NAME, &alternative])])]);
    let version = der(0xa0, &[&der(2, &[&[2]])]);
    let body = der(SEQUENCE, &[&version, &der(2, &[&[1]]), &algorithm, &name, &valid, &name, &public, &extensions]);
    let signature = pair.sign(&random, &body).unwrap();
    let certificate = der(SEQUENCE, &[&body, &algorithm, &der(3, &[&[0], signature.as_ref()])]);
    for (file, kind, bytes) in [("cert.pem", "CERTIFICATE", &certificate[..]), ("key.pem", "PRIVATE KEY", key.as_ref())]
    {
        let text = BASE64_STANDARD.encode(bytes);
        std::fs::write(dir.join(file), format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")).unwrap();
    }
    certificate.into()
}

fn serve_fails(arguments: &str) -> Run {
    command().arg("serve").args(arguments.split_whitespace()).output().unwrap().into()
}

#[test]
fn tls() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = identity(dir.path());
    let at = dir.path().display();
    let layout = dir.path().join("layout");
    write_layout(&demo(), REGISTRY, &[], &layout);
    let served =
        Served::start(&format!("--layout {} --tls-cert {at}/cert.pem --tls-key {at}/key.pem", layout.display()));
    assert!(served.url.starts_with("https://127.0.0.1:"), "{}", served.url);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let client = rustls::ClientConnection::new(config, "127.0.0.1".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(client, served.connect());
    stream.write_all(b"GET /v2/demo/zstd/manifests/1.0 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(Answer::parse(&answer).status, 200);
    // Who speaks something else, or nothing, is left; a bake beside them is not.
    let half_open = served.connect();
    assert!(!served.say(b"GET /v2/ HTTP/1.1\r\n\r\n").starts_with(b"HTTP"));
    let hosts = dir.path().join("hosts").join(served.name().replace(':', "_") + "_");
    std::fs::create_dir_all(&hosts).unwrap();
    std::fs::write(hosts.join("hosts.toml"), format!("server = \"{}\"\nca = \"{at}/cert.pem\"\n", served.url)).unwrap();
    let mut bake = command();
    bake.args(["bake", "--root"]).arg(dir.path().join("root")).arg("--hosts-dir").arg(dir.path().join("hosts"));
    Run::from(bake.arg(format!("{}/demo/docker:1.0", served.name())).output().unwrap()).expect(0);
    drop(half_open);

    let run = serve_fails(&format!("--layout {} --tls-cert {at}/key.pem --tls-key {at}/key.pem", layout.display()));
    assert!(run.code == 2 && run.stderr.contains("key.pem cannot be used for TLS: "), "{run:?}");
    let run = serve_fails(&format!("--layout {} --tls-cert {at}/cert.pem", layout.display()));
    assert!(run.code == 2 && run.stderr.contains("--tls-key"), "{run:?}");
}

#[test]
fn users() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    write_layout(&demo(), REGISTRY, &[], &layout);
    let file = dir.path().join("users");
    std::fs::write(&file, "# who may ask\nuser:secret\n\nother:with:colons\n").unwrap();
    let arguments = format!("--layout {} --auth-file {}", layout.display(), file.display());
    let served = Served::start(&arguments);
    let ask = |path: &str, pair: &str| {
        served.ask("GET", path, &format!("authorization: Basic {}\r\n", BASE64_STANDARD.encode(pair)))
    };
    for path in ["/v2/", "/v2/demo/zstd/manifests/1.0", "/v2/_catalog", "/metrics", "/nothing"] {
        let answer = served.get(path);
        assert_eq!((answer.status, answer.code().as_str()), (401, "UNAUTHORIZED"), "{path}");
        assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"prebake\""));
    }
    for pair in ["user:secret", "other:with:colons"] {
        assert_eq!(ask("/v2/", pair).status, 200, "{pair}");
    }
    for pair in ["user:secre", "user:secret2", "user:", "user", "", "# who may ask", "other:secret", "User:secret"] {
        assert_eq!(ask("/v2/", pair).status, 401, "{pair}");
    }
    for header in ["Basic", "Basic !!!", "Bearer dXNlcjpzZWNyZXQ=", "dXNlcjpzZWNyZXQ="] {
        assert_eq!(served.ask("GET", "/v2/", &format!("authorization: {header}\r\n")).status, 401, "{header}");
    }
    let bake = |credentials: &str| -> Run {
        let mut bake = command();
        bake.args(["bake", "--creds", credentials, "--root"]).arg(dir.path().join("root"));
        bake.arg(format!("{}/demo/zstd:1.0", served.name())).output().unwrap().into()
    };
    bake("user:wrong").expect(4);
    bake("user:secret").expect(0);
    let log = served.stop();
    assert!(!log.contains("secret"), "{log}");

    for (text, says) in [("user\n", "line 1 of "), ("# nobody\n", "has no USER:PASSWORD line"), (":x\n", "line 1 of ")]
    {
        std::fs::write(&file, text).unwrap();
        let run = serve_fails(&arguments);
        assert!(run.code == 2 && run.stderr.contains(says), "{run:?}");
    }
}

#[test]
fn other_machines_are_not_let_in_by_chance() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    write_layout(&demo(), REGISTRY, &[], &layout);
    let arguments = format!("--layout {} --listen 0.0.0.0:0", layout.display());
    let run = serve_fails(&arguments);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("anyone there could read every image") && run.stderr.contains("--public"), "{run:?}");
    let file = dir.path().join("users");
    std::fs::write(&file, "user:secret\n").unwrap();
    for more in ["--public".to_owned(), format!("--auth-file {}", file.display())] {
        let mut child = command()
            .arg("serve")
            .args(arguments.split(' ').chain(more.split(' ')))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 27];
        child.stdout.take().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line[..], b"listening on http://0.0.0.0", "{more}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // Where another listens already.
    let served = Served::start(&format!("--layout {}", layout.display()));
    let run = serve_fails(&format!("--layout {} --listen {}", layout.display(), served.name()));
    assert!(run.code == 1 && run.stderr.contains("listening on 127.0.0.1:"), "{run:?}");
}

#[test]
fn hostile_requests() {
    let dir = tempfile::tempdir().unwrap();
    let (served, _) = demo_layout(dir.path());
    let status = |request: &[u8]| match served.say(request) {
        answer if answer.is_empty() => 0,
        answer => Answer::parse(&answer).status,
    };
    let get = |path: &str| status(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes());
    let long = "a/".repeat(5 << 20);
    for (path, expected) in [
        ("/v2/../../../../etc/passwd", &[404][..]),
        ("/v2/%2e%2e/%2e%2e/etc/passwd/manifests/1", &[400]),
        ("/v2/..%2f..%2fetc/blobs/sha256:../../../etc/passwd", &[404]),
        ("/v2/demo/zstd/blobs/sha256:..%2f..%2f..%2f..%2fetc%2fpasswd", &[404]),
        ("/v2/demo/zstd/blobs/sha256:%00", &[400]),
        ("/v2/demo/zstd/manifests/%00", &[404]),
        ("/v2/demo/zstd/manifests/..", &[404]),
        ("//v2//demo/zstd/manifests/1.0", &[404]),
        ("/v2/demo/zstd/tags/list?last=%ff&n=1", &[200]),
        ("/v2/demo/zstd/tags/list?n=-1", &[400]),
        ("/v2/demo/zstd/tags/list?ns=%0d%0ax", &[404]),
        ("/v2/demo/zstd/referrers/nothing", &[400]),
        ("/v2/\0", &[400]),
        ("/v2/\u{7f}\u{9b}31m", &[400, 404]),
        (&format!("/v2/{long}"), &[0, 414, 431, 400]),
    ] {
        let shown: String = path.chars().take(80).collect();
        assert!(expected.contains(&get(path)), "{shown:?}: {}", get(path));
    }
    let header =
        |text: &str| status(format!("GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{text}\r\n\r\n").as_bytes());
    assert!([0, 431].contains(&header(&format!("x: {}", "y".repeat(10 << 20)))));
    assert!([0, 431].contains(&header(&"x: y\r\n".repeat(100_000))));
    assert_eq!(header("content-length: -1"), 400);
    assert_eq!(header(&format!("range: bytes={}-", "9".repeat(20_000))), 200);
    assert_eq!(header("authorization: \u{e9}"), 200);
    // A body that nobody asked for, and one of two lengths.
    let push = format!("PUT /v2/demo/zstd/manifests/1.0 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 100 << 20);
    assert_eq!(status(&[push.as_bytes(), &vec![b'x'; 1 << 20]].concat()), 405);
    let two = "POST /v2/x/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n";
    assert!([400, 405].contains(&status(two.as_bytes())));
    for other in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n"]
    {
        assert!([0, 400, 505].contains(&status(other)), "{other:?}");
    }
    // What is nearly a request.
    let mut rng = Rng::new(7);
    let good = b"GET /v2/demo/zstd/manifests/1.0?ns=a&n=1 HTTP/1.1\r\nhost: x\r\nrange: bytes=0-1\r\nconnection: close\r\n\r\n";
    for _ in 0..1500 {
        let mut request = good.to_vec();
        for _ in 0..=rng.below(4) {
            let at = rng.below(request.len() - 4);
            request[at] = u8::try_from(rng.below(256)).unwrap();
        }
        let mut stream = served.connect();
        stream.write_all(&request).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(served.get("/v2/demo/zstd/manifests/1.0").status, 200);
    let peak = served.status("VmHWM");
    assert!(peak < 64 << 10, "{peak} KiB at the peak");
    let log = served.stop();
    assert!(log.is_empty(), "{log}");
}

#[test]
fn help_has_examples() {
    let run: Run = Command::new(env!("CARGO_BIN_EXE_prebake")).args(["serve", "--help"]).output().unwrap().into();
    assert!(run.code == 0 && run.stdout.contains("prebake serve --root ./chroot"), "{run:?}");
}
