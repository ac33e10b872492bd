//! A link for `benches/link`: passes connections on, with a round trip of 50 ms and 20 MB/s for each.
//!
//! `link LISTEN TARGET [MILLISECONDS [BYTES_PER_SECOND]]`. Bytes come half a round trip later than they were sent, and a
//! connection's first ones a whole one more, for its handshake. Slow start is not imitated.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

/// Chunks under way in one direction: more than the link holds.
const UNDER_WAY: usize = 64;
const CHUNK: usize = 32 << 10;

fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration, rate: u32, opened: Instant) {
    let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    thread::spawn(move || {
        let mut paid = Instant::now();
        for (arrived, chunk) in receiver {
            let cost = Duration::from_secs(1) * u32::try_from(chunk.len()).unwrap() / rate;
            paid = paid.max(arrived) + cost;
            thread::sleep((paid.max(opened + 2 * delay) + delay).saturating_duration_since(Instant::now()));
            if to.write_all(&chunk).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    loop {
        let mut chunk = vec![0; CHUNK];
        match from.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                chunk.truncate(n);
                if sender.send((Instant::now(), chunk)).is_err() {
                    return;
                }
            }
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |n: usize, default: u32| args.get(n).map_or(default, |text| text.parse().unwrap());
    let (delay, rate) = (Duration::from_millis(number(3, 50).into()) / 2, number(4, 20_000_000));
    let target = args[2].clone();
    for client in TcpListener::bind(&args[1]).unwrap().incoming() {
        let (client, server) = (client.unwrap(), TcpStream::connect(&target).unwrap());
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let opened = Instant::now();
        let (to_server, to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || pass(client, to_server, delay, rate, opened));
        thread::spawn(move || pass(server, to_client, delay, rate, opened));
    }
}
