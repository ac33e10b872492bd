//! Real servers of object stores, each with one bucket.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use ring::hmac;

use crate::peers::{self, Daemon, free_address, run, wait_for};
use crate::relay::{Asked, Deed, Relay};

/// The bucket's name, or the container's.
const BUCKET: &str = "bakes";
/// The only user of the servers that know any.
const USER: &str = "baker";
const SECRET: &str = "bread-and-butter";
/// Azurite's account and key, which Microsoft publishes.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// moto's, of S3: all in memory, and it believes whoever asks.
    Moto,
    /// s3s-fs, of S3: a folder; it knows users, and takes any bucket for one that is there.
    S3sFs,
    /// Azurite, of Azure Blob Storage: it knows users.
    Azurite,
    /// moto's once more, asked as Google Cloud Storage is: Google made its XML API after S3's, and a relay puts the one condition
    /// that it words otherwise in S3's words. What there is of servers of Google's own kind has too little of that API:
    /// gcp-storage-emulator (2026.7.19) knows no `HEAD`, list, removal and parts, and answers without `ETag` and `Last-Modified`;
    /// fake-gcs-server (1.54.0) takes neither objects nor parts by it.
    MotoForGoogle,
}

/// A server that ends when it is dropped.
pub struct Store {
    _daemon: Daemon,
    relay: Option<Relay>,
    kind: Kind,
    address: String,
    data: PathBuf,
}

impl Store {
    pub fn start(kind: Kind, work: &Path) -> Self {
        let data = work.join("store");
        fs::create_dir_all(&data).unwrap();
        let address = free_address();
        let (host, port) = address.split_once(':').unwrap();
        let server = |path: &str| Command::new(peers::dir().join(path));
        let mut command = match kind {
            Kind::Moto | Kind::MotoForGoogle => server("moto/bin/moto_server"),
            Kind::S3sFs => server("s3s-fs/bin/s3s-fs"),
            Kind::Azurite => server("azurite/node_modules/.bin/azurite-blob"),
        };
        match kind {
            Kind::Moto | Kind::MotoForGoogle => command.args(["-H", host, "-p", port]),
            Kind::S3sFs => {
                command.args(["--host", host, "--port", port, "--access-key", USER, "--secret-key", SECRET]).arg(&data)
            }
            Kind::Azurite => command
                .args(["--blobHost", host, "--blobPort", port, "--silent", "--disableTelemetry", "--location"])
                .arg(&data),
        };
        let log = work.join("store.log");
        let daemon = Daemon::start(&mut command, &log);
        wait_for("a server of a store", &log, || std::net::TcpStream::connect(&address).is_ok());
        let in_words_of_s3 = |_: &Asked| Deed::Header("x-goog-if-generation-match", "if-none-match: *");
        let relay = (kind == Kind::MotoForGoogle).then(|| Relay::start(&address, in_words_of_s3));
        let store = Self { _daemon: daemon, relay, kind, address, data };
        match kind {
            Kind::Moto | Kind::MotoForGoogle => drop(store.curl("", "", &["-X", "PUT"])),
            Kind::S3sFs => fs::create_dir(store.data.join(BUCKET)).unwrap(),
            Kind::Azurite => drop(store.curl("", "restype=container", &["-X", "PUT", "-d", ""])),
        }
        store
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        self.relay.as_ref().map_or(&self.address, Relay::address)
    }

    /// The URL of a cache in it.
    pub fn cache(&self, prefix: &str) -> String {
        let scheme = match self.kind {
            Kind::Moto | Kind::S3sFs => "s3",
            Kind::Azurite => "az",
            Kind::MotoForGoogle => "gs",
        };
        format!("{scheme}://{BUCKET}/{prefix}")
    }

    /// Stores something under a key, over what is there.
    pub fn overwrite(&self, key: &str, bytes: &[u8]) {
        if self.kind == Kind::S3sFs {
            return fs::write(self.data.join(BUCKET).join(key), bytes).unwrap();
        }
        let file = self.data.join("overwritten");
        fs::write(&file, bytes).unwrap();
        self.curl(key, "", &["-T", file.to_str().unwrap(), "-H", "x-ms-blob-type: BlockBlob"]);
    }

    /// What is stored under keys that begin so: a thousand of them at most.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let (query, tag) = match self.kind {
            Kind::Moto | Kind::MotoForGoogle => ("list-type=2", "<Key>"),
            Kind::Azurite => ("restype=container&comp=list", "<Name>"),
            Kind::S3sFs => {
                let bucket = self.data.join(BUCKET);
                let found = run(Command::new("find").arg(&bucket).args(["-type", "f", "-printf", "%P\n"]));
                return found.lines().filter(|key| key.starts_with(prefix)).map(str::to_owned).collect();
            }
        };
        let listed = self.curl("", &format!("{query}&prefix={prefix}"), &[]);
        listed.split(tag).skip(1).map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
    }

    /// Makes everything that is stored some days older.
    pub fn age(&self, days: u32) {
        assert_eq!(self.kind, Kind::S3sFs);
        let ago = format!("{days} days ago");
        run(Command::new("find").arg(&self.data).args(["-type", "f", "-exec", "touch", "-d", &ago, "{}", "+"]));
    }

    /// Asks the server itself, as somebody who may do everything.
    fn curl(&self, key: &str, query: &str, arguments: &[&str]) -> String {
        let url = match self.kind {
            Kind::Azurite => format!("http://{}/{ACCOUNT}/{BUCKET}/{key}?{query}&{}", self.address, shared_access()),
            _ => format!("http://{}/{BUCKET}/{key}?{query}", self.address),
        };
        let options = ["--silent", "--show-error", "--fail", "--max-time", "30"];
        run(Command::new("curl").args(options).args(arguments).arg(url))
    }
}

/// Tells a command how a server at an address is reached, whichever it is, as the clouds' own tools are told.
pub fn reaches<'c>(command: &'c mut Command, address: &str) -> &'c mut Command {
    let url = format!("http://{address}");
    command
        .envs([("AWS_ENDPOINT", &*url), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "eu-central-1")])
        .envs([("AWS_ACCESS_KEY_ID", USER), ("AWS_SECRET_ACCESS_KEY", SECRET)])
        .envs([("AZURE_STORAGE_ENDPOINT", &*format!("{url}/{ACCOUNT}")), ("AZURE_ALLOW_HTTP", "true")])
        .envs([("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT), ("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)])
        .envs([("GOOGLE_BASE_URL", &*url), ("GOOGLE_BEARER_TOKEN", USER)])
}

/// The query by which Azure lets somebody do everything, for a long time.
fn shared_access() -> String {
    let [permissions, services, types, expiry, version] = ["rwdlac", "b", "sco", "2099-01-01", "2019-12-12"];
    let what = format!("{ACCOUNT}\n{permissions}\n{services}\n{types}\n\n{expiry}\n\n\n{version}\n");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(ACCOUNT_KEY).unwrap());
    let signature = BASE64.encode(hmac::sign(&key, what.as_bytes()));
    let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("sv={version}&ss={services}&srt={types}&sp={permissions}&se={expiry}&sig={signature}")
}
