//! Real S3 servers, each with one bucket.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::{self, Daemon, free_address, run, wait_for};

/// The bucket's name.
pub const BUCKET: &str = "bakes";
/// s3rver knows one user only.
const USER: &str = "S3RVER";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// moto's: all in memory, and it believes whoever asks.
    Moto,
    /// s3rver: a folder; it knows users, and no conditional writes.
    S3rver,
}

/// A server that ends when it is dropped.
pub struct S3 {
    _daemon: Daemon,
    kind: Kind,
    address: String,
    data: PathBuf,
}

impl S3 {
    pub fn start(kind: Kind, work: &Path) -> Self {
        let data = work.join("s3");
        fs::create_dir_all(&data).unwrap();
        let address = free_address();
        let (host, port) = address.split_once(':').unwrap();
        let mut command = match kind {
            Kind::Moto => Command::new(peers::dir().join("moto/bin/moto_server")),
            Kind::S3rver => Command::new(peers::dir().join("s3rver/node_modules/.bin/s3rver")),
        };
        match kind {
            Kind::Moto => command.args(["-H", host, "-p", port]),
            Kind::S3rver => command
                .args(["-a", host, "-p", port, "--no-vhost-buckets", "--configure-bucket", BUCKET, "-d"])
                .arg(&data),
        };
        let log = work.join("s3.log");
        let daemon = Daemon::start(&mut command, &log);
        wait_for("an S3 server", &log, || std::net::TcpStream::connect(&address).is_ok());
        let server = Self { _daemon: daemon, kind, address, data };
        if kind == Kind::Moto {
            curl(&["-X", "PUT", &server.url("")]);
        }
        server
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn url(&self, key: &str) -> String {
        format!("http://{}/{BUCKET}/{key}", self.address)
    }

    /// Stores something under a key, over what is there.
    pub fn overwrite(&self, key: &str, bytes: &[u8]) {
        let file = self.data.join("overwritten");
        fs::write(&file, bytes).unwrap();
        curl(&["-X", "PUT", "--data-binary", &format!("@{}", file.display()), &self.url(key)]);
    }

    /// What is stored under keys that begin so: a thousand of them at most.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = curl(&[&self.url(&format!("?list-type=2&prefix={prefix}"))]);
        listed.split("<Key>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
    }

    /// Makes everything that is stored some days older.
    pub fn age(&self, days: u32) {
        assert_eq!(self.kind, Kind::S3rver);
        let ago = format!("{days} days ago");
        run(Command::new("find").arg(&self.data).args(["-type", "f", "-exec", "touch", "-d", &ago, "{}", "+"]));
    }
}

/// Tells a command how a server at an address is reached, as the clouds' own tools are told.
pub fn reaches<'c>(command: &'c mut Command, address: &str) -> &'c mut Command {
    command
        .env("AWS_ENDPOINT", format!("http://{address}"))
        .env("AWS_ACCESS_KEY_ID", USER)
        .env("AWS_SECRET_ACCESS_KEY", USER)
        .env("AWS_REGION", "eu-central-1")
        .env("AWS_ALLOW_HTTP", "true")
}

fn curl(arguments: &[&str]) -> String {
    run(Command::new("curl").args(["--silent", "--show-error", "--fail", "--max-time", "30"]).args(arguments))
}
