//! Clients of all speeds, and the end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use prebake::oci::{Algorithm, Digest, Hasher, media_type};

use super::ask::Answer;
use crate::support::content::build;
use crate::support::served::{Served, write_layout};

const SIZE: u64 = 8_000_000;
/// What the kernel may hold of an answer on its way is less than this.
const LONG: u64 = 40_000_000;

struct Large {
    served: Served,
    path: String,
    digest: Digest,
    size: u64,
    _dir: tempfile::TempDir,
}

/// A server of one large layer.
fn large(size: u64, arguments: &str) -> Large {
    let content = build(&format!(
        "[layer.l]\ncompression = \"none\"\nfiles = [{{ path = \"f\", random = {size} }}]\n\
         [[image]]\nname = \"app:1\"\nplatforms = [\"linux/amd64\"]\nlayers = [\"l\"]\n"
    ));
    let dir = tempfile::tempdir().unwrap();
    write_layout(&content, "registry.example/", &[], dir.path());
    let layer = content.blobs.iter().find(|(_, (kind, _))| media_type::is_layer(kind)).unwrap();
    let (digest, size) = (layer.0.clone(), layer.1.1.len() as u64);
    let served = Served::start(&format!("--layout {} {arguments}", dir.path().display()));
    Large { served, path: format!("/v2/app/blobs/{digest}"), digest, size, _dir: dir }
}

impl Large {
    /// A connection on which the blob was asked for.
    fn ask(&self) -> TcpStream {
        let mut stream = self.served.connect();
        write!(stream, "GET {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", self.path).unwrap();
        stream
    }

    /// Reads the rest of an answer of which some is here.
    fn finish(&self, mut stream: TcpStream, mut start: Vec<u8>) {
        while !start.windows(4).any(|four| four == b"\r\n\r\n") {
            let mut more = [0; 4096];
            let n = stream.read(&mut more).unwrap();
            assert!(n > 0);
            start.extend(&more[..n]);
        }
        let answer = Answer::parse(&start);
        assert_eq!(answer.status, 200);
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&answer.body);
        let mut size = answer.body.len() as u64;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = stream.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            size += n as u64;
            hasher.update(&buffer[..n]);
        }
        assert_eq!((size, hasher.finish()), (self.size, self.digest.clone()));
    }

    fn open_connections(&self) -> u64 {
        let text = String::from_utf8(self.served.get("/metrics").body).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("prebake_serve_connections "));
        line.unwrap().parse().unwrap()
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_hundred_at_once_in_little_memory() {
    const CLIENTS: usize = 200;
    let large = large(SIZE, "--quiet");
    let all_are_served = Barrier::new(CLIENTS);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut stream = large.ask();
                let mut start = vec![0; 1000];
                stream.read_exact(&mut start).unwrap();
                all_are_served.wait();
                large.finish(stream, start);
            });
        }
    });
    let peak = large.served.status("VmHWM");
    assert!(peak < 64 << 10, "{peak} KiB at the peak");
    // Threads do not grow with clients: those that answer, those that read, the log's, and the first.
    let threads = large.served.status("Threads");
    assert!(threads < 32, "{threads} threads");
}

#[test]
fn who_is_slow_costs_nobody_anything() {
    let large = large(LONG, "--quiet");
    let fast = |count: usize| {
        let begun = Instant::now();
        (0..count).for_each(|_| large.finish(large.ask(), Vec::new()));
        begun.elapsed()
    };
    fast(1);
    let alone = fast(3);
    // Some say nothing, some stop in the middle of a head, some read a little and then no more: more than there are large buffers.
    let mut others = Vec::new();
    for n in 0..300 {
        others.push(match n % 3 {
            0 => large.served.connect(),
            1 => {
                let mut stream = large.served.connect();
                stream.write_all(b"GET /v2/ HTTP/1.1\r\nhos").unwrap();
                stream
            }
            _ => {
                let mut stream = large.ask();
                stream.read_exact(&mut vec![0; 700_000]).unwrap();
                stream
            }
        });
    }
    let beside = fast(3);
    assert!(beside < alone * 4 + Duration::from_secs(1), "{beside:?} beside slow ones, {alone:?} alone");
    let peak = large.served.status("VmHWM");
    assert!(peak < 64 << 10, "{peak} KiB at the peak");
    drop(others);
    wait_until("connections stay open", || large.open_connections() == 1);
}

#[test]
fn who_takes_nothing_is_given_up() {
    let large = large(LONG, "--stall-timeout 1");
    let stalled = large.ask();
    // Slow, and yet never silent for a second: this one is served to its end.
    let mut slow = large.ask();
    let mut start = vec![0; 100];
    slow.read_exact(&mut start).unwrap();
    let mut piece = vec![0; (large.size / 16) as usize];
    for _ in 0..12 {
        slow.read_exact(&mut piece).unwrap();
        std::thread::sleep(Duration::from_millis(250));
    }
    wait_until("it was not given up", || large.open_connections() <= 2);
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    let head = start.windows(4).position(|four| four == b"\r\n\r\n");
    assert!(head.is_none() && rest.len() as u64 > large.size / 8);
    drop(stalled);
    let log = large.served.stop();
    let cut: Vec<&str> = log.lines().filter(|line| line.contains(" cut off")).collect();
    assert!(cut.len() == 1 && cut[0].contains("/v2/app/blobs/sha256:"), "{log}");
}

#[test]
fn what_is_under_way_is_finished_first() {
    let mut large = large(LONG, "");
    let mut running = large.ask();
    let mut start = vec![0; 1000];
    running.read_exact(&mut start).unwrap();
    let idle = {
        let mut stream = large.served.connect();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
        stream
    };
    let half_open = large.served.connect();
    let begun = Instant::now();
    large.served.signal("-INT");
    wait_until("it still accepts", || TcpStream::connect(large.served.name()).is_err());
    assert_eq!(large.served.child.try_wait().unwrap(), None);
    large.finish(running, start);
    // Who asks for nothing is not waited for.
    assert_eq!(large.served.child.wait().unwrap().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop((idle, half_open));
}

#[test]
fn an_end_is_not_put_off_for_ever() {
    let mut large = large(LONG, "");
    let mut stalled = large.ask();
    stalled.read_exact(&mut [0; 1000]).unwrap();
    let begun = Instant::now();
    large.served.signal("-TERM");
    assert_eq!(large.served.child.wait().unwrap().code(), Some(0));
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn a_connection_serves_many_requests() {
    let large = large(SIZE, "--quiet");
    let mut stream = large.served.connect();
    for _ in 0..3 {
        write!(stream, "GET {} HTTP/1.1\r\nhost: x\r\nrange: bytes=5-99\r\n\r\n", large.path).unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") || Answer::parse(&answer).body.len() < 95 {
            let mut piece = [0; 512];
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0);
            answer.extend(&piece[..n]);
        }
        assert_eq!(Answer::parse(&answer).status, 206);
    }
}
