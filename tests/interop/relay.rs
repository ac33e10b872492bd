//! What stands between a client and an HTTP server, and does to requests and answers what a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// What is done to one request, or to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Pass,
    /// Half of what was asked for comes, then the connection ends.
    Cut,
    /// The server gets the request, and its answer is lost.
    Lose,
    /// The last byte of the answer's body is another one.
    Change,
    /// The server gets the request with this line, or none, in place of the header of this name.
    Header(&'static str, &'static str),
    /// The server gets the request when nobody waits for that any more.
    Hold,
    /// The server gets no request; this status and body are the answer.
    Answer(u16, &'static str),
}

const HOLD: Duration = Duration::from_secs(20);

/// A request's first line and headers.
pub struct Asked {
    pub method: String,
    pub target: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn read(from: &mut impl BufRead) -> Option<Self> {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next()?, words.next()?);
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok()?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
                None if line.trim_end().is_empty() => return Some(Self { method, target, headers }),
                None => headers.push((line.trim_end().trim_end_matches(':').to_owned(), String::new())),
            }
        }
    }
}

/// A server on loopback that hands each request on to another one, each on a connection of its own.
pub struct Relay {
    address: String,
    stop: Arc<AtomicBool>,
}

impl Relay {
    /// `deed` is asked about each request, in the order in which they come.
    pub fn start(server: &str, deed: impl Fn(&Asked) -> Deed + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, server, deed) = (Arc::new(AtomicBool::new(false)), server.to_owned(), Arc::new(deed));
        let ended = stop.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (server, deed) = (server.clone(), deed.clone());
                // A client that ends has no use for an answer.
                thread::spawn(move || client.and_then(|client| relay(client, &server, &*deed)));
            }
        });
        Self { address, stop }
    }

    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
    }
}

fn relay(mut client: TcpStream, server: &str, deed: &dyn Fn(&Asked) -> Deed) -> std::io::Result<()> {
    let mut from = BufReader::new(client.try_clone()?);
    let Some(asked) = Asked::read(&mut from) else { return Ok(()) };
    assert!(asked.header("transfer-encoding").is_none(), "bodies whose length is not said are not relayed");
    let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    let deed = deed(&asked);
    if let Deed::Answer(status, text) = deed {
        let head = format!("HTTP/1.1 {status} As Told\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
        return client.write_all((head + if asked.method == "HEAD" { "" } else { text }).as_bytes());
    }
    if deed == Deed::Hold {
        thread::sleep(HOLD);
    }
    let headers = asked.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("connection"));
    let headers: String = headers
        .map(|(name, value)| match deed {
            Deed::Header(other, "") if name.eq_ignore_ascii_case(other) => String::new(),
            Deed::Header(other, line) if name.eq_ignore_ascii_case(other) => format!("{line}\r\n"),
            _ => format!("{name}: {value}\r\n"),
        })
        .collect();
    let head = format!("{} {} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n", asked.method, asked.target);
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(head.as_bytes())?;
    upstream.write_all(&body)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    let begin = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let is_there = answer.get(8..10) == Some(b" 2");
    match deed {
        Deed::Cut if is_there => answer.truncate(begin + (answer.len() - begin) / 2),
        Deed::Lose => answer.clear(),
        Deed::Change => *answer.last_mut().unwrap() ^= 1,
        Deed::Cut | Deed::Pass | Deed::Hold | Deed::Header(..) | Deed::Answer(..) => {}
    }
    client.write_all(&answer)
}
