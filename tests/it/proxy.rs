//! Proxies: as the environment names them, with their credentials, and never for loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::channel;

use prebake::fixture::full;

use crate::support::content::demo;
use crate::support::prebake::{Run, command};
use crate::support::registry::{TestRegistry, respond};

fn bake(set: impl FnOnce(&mut Command)) -> Run {
    let root = tempfile::tempdir().unwrap();
    let mut command = command();
    command.args(["bake", "--tries", "1", "--platform", "linux/amd64", "--root"]).arg(root.path());
    set(&mut command);
    command.output().unwrap().into()
}

#[test]
fn plain_http_through_a_proxy() {
    let proxy = TestRegistry::faulty(demo(), |request| {
        let whole = request.uri().to_string().starts_with("http://registry.invalid/v2/");
        let known = request.headers().get("proxy-authorization").is_some_and(|value| value == "Basic dXNlcjpzZWNyZXQ=");
        (!whole || !known).then(|| respond(407, &[], full("")))
    });
    let address = format!("http://user:secret@{}", proxy.name());
    let hello = ["--plain-http", "registry.invalid/demo/hello:1.0"];
    for name in ["HTTP_PROXY", "http_proxy"] {
        bake(|command| {
            command.args(hello).env(name, &address);
        })
        .expect(0);
    }
    let refused = bake(|command| {
        command.args(hello).env("HTTP_PROXY", format!("http://{}", proxy.name()));
    })
    .expect(1);
    assert!(refused.stderr.contains("answered 407"), "{}", refused.stderr);
    proxy.asked();
    bake(|command| {
        command.args(hello).env("HTTP_PROXY", &address).env("NO_PROXY", "other.invalid,registry.invalid");
    })
    .expect(1);
    let own = TestRegistry::start(demo());
    bake(|command| {
        command.arg(own.reference("demo/hello:1.0")).env("HTTP_PROXY", &address).env("HTTPS_PROXY", &address);
    })
    .expect(0);
    assert!(proxy.asked().is_empty());
}

#[test]
fn https_through_a_tunnel() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, heard) = channel();
    // One that refuses: it is enough to see what it is asked for, and that nothing else is tried.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            sender.send(lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>()).unwrap();
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    });
    let refused = bake(|command| {
        command.arg("registry.invalid:8443/demo/hello:1.0").env("HTTPS_PROXY", format!("http://user:secret@{address}"));
    })
    .expect(1);
    assert!(refused.stderr.contains("tunnel") && !refused.stderr.contains("secret"), "{}", refused.stderr);
    let heard = heard.recv().unwrap();
    assert_eq!(heard[0], "CONNECT registry.invalid:8443 HTTP/1.1");
    assert!(
        heard.iter().any(|line| line.eq_ignore_ascii_case("proxy-authorization: Basic dXNlcjpzZWNyZXQ=")),
        "{heard:?}"
    );
}
