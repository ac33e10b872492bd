//! `prebake serve`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use clap::{ArgGroup, Args};
use prebake::serve::{Access, Error, Identity, Log, Options, STALL_TIMEOUT, Server, Users};
use prebake::source::Local;
use prebake::spec::{Place, Scheme};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::output::{self, OutputArgs};
use super::{Failed, Kind};

pub(super) const EXAMPLES: &str = "\
Examples:
  prebake serve --root ./chroot
  prebake serve --bundle images.bundle --listen 127.0.0.1:0 --json
  prebake serve oci-archive:images.tar.zst --listen 0.0.0.0:5000 --tls-cert cert.pem --tls-key key.pem
  prebake serve --layout ./layout --listen 10.0.0.1:5000 --auth-file users

registry.example/team/app:1 is served as team/app:1 and as registry.example/team/app:1. As a mirror, in containerd's hosts.toml:
  [host.\"http://127.0.0.1:5000\"]
    capabilities = [\"pull\", \"resolve\"]";

/// Threads that read files.
const READERS: usize = 8;
/// Lines of the log that may wait to be written; when nobody takes them, further ones are lost.
const LINES: usize = 4096;
/// Characters of a path that the log repeats.
const SHOWN: usize = 1000;
/// How long what is left may take when all is over.
const END: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("what").required(true).args(["place", "root", "bundle", "layout"])))]
pub(super) struct ServeArgs {
    /// What to serve: oci:DIR, oci-archive:FILE, docker-archive:FILE, containerd:ROOT[:NAMESPACE], bundle:FILE
    #[arg(value_name = "PLACE")]
    place: Option<String>,
    /// Serve the images of a root, as containerd would list them
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Of this namespace [default: k8s.io]
    #[arg(long, value_name = "NAMESPACE", conflicts_with_all = ["place", "bundle", "layout"])]
    namespace: Option<String>,
    /// Serve a bundle
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Serve an OCI layout
    #[arg(long, value_name = "DIR")]
    layout: Option<PathBuf>,
    /// Where to listen; port 0 is any that is free, and told
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,
    /// The certificate (PEM), with those between it and its authority behind it: HTTPS instead of HTTP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Answer these alone: one USER:PASSWORD a line
    #[arg(long, value_name = "FILE")]
    auth_file: Option<PathBuf>,
    /// Let anyone read everything from other machines, without TLS and without a password
    #[arg(long)]
    public: bool,
    /// Seconds after which a client that takes nothing is given up
    #[arg(long, value_name = "SECONDS", hide = true, default_value_t = STALL_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    stall_timeout: u64,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl ServeArgs {
    fn place(&self) -> Result<Place, Failed> {
        let at = |scheme, path: &Path, name: Option<&str>| {
            let path = path.to_str().ok_or_else(|| Failed::usage(format!("{} is no text", path.display())))?;
            let name = name.map_or_else(String::new, |name| format!(":{name}"));
            Ok(Place { scheme, rest: format!("{path}{name}"), dir: PathBuf::new() })
        };
        match (&self.place, &self.root, &self.bundle, &self.layout) {
            (_, Some(root), ..) => at(Scheme::Containerd, root, self.namespace.as_deref()),
            (_, _, Some(bundle), _) => at(Scheme::Bundle, bundle, None),
            (_, _, _, Some(layout)) => at(Scheme::Oci, layout, None),
            (place, ..) => {
                let place = place.as_deref().unwrap_or_default();
                let parsed = Place::parse(place).map_err(|error| Failed::usage(error.to_string()))?;
                parsed.ok_or_else(|| Failed::usage(format!("{place:?} is no place such as oci:DIR or containerd:ROOT")))
            }
        }
    }

    fn options(&self) -> Result<Options, Error> {
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(Identity::read(certificate, key)?),
            _ => None,
        };
        Ok(Options {
            listen: self.listen,
            identity,
            users: self.auth_file.as_deref().map(Users::read).transpose()?,
            public: self.public,
            stall: Duration::from_secs(self.stall_timeout),
        })
    }
}

pub(super) fn run(args: &ServeArgs) -> Result<u8, Failed> {
    let options = args.options().map_err(Failed::new)?;
    let local = Local::open(&args.place()?).map_err(Failed::new)?;
    allow_open_files();
    let io = |error: std::io::Error| Failed { kind: Kind::from(&error), message: format!("starting failed: {error}") };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().max_blocking_threads(READERS).build().map_err(io)?;
    let (lines, written) = write_lines(args.output.json);
    let log = log(args.output, lines);
    runtime.block_on(async {
        // From here on, a signal is a wish to stop.
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt()).map_err(io)?, signal(SignalKind::terminate()).map_err(io)?);
        let server = Server::bind(local, options, log).await.map_err(Failed::new)?;
        let (url, repositories) = (server.url(), server.repositories().len());
        if args.output.json {
            output::say_json(&json!({"event": "listening", "url": url, "repositories": repositories}));
        } else {
            output::say(format!("listening on {url}"));
        }
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        server.run(stop).await;
        Ok(())
    })?;
    runtime.shutdown_timeout(END);
    let _ = written.recv_timeout(END);
    Ok(0)
}

/// Each connection has a socket, and the file that is sent: more than old programs can bear.
fn allow_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused, fewer are served at a time.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Writes lines on a thread of its own: a terminal that stands still stops no request. The second end hears of the end.
fn write_lines(json: bool) -> (SyncSender<String>, Receiver<()>) {
    let (lines, waiting) = mpsc::sync_channel::<String>(LINES);
    let (done, written) = mpsc::channel();
    thread::spawn(move || {
        for line in waiting {
            if json { output::say(line) } else { output::tell(line) }
        }
        let _ = done.send(());
    });
    (lines, written)
}

fn log(output: OutputArgs, lines: SyncSender<String>) -> Log {
    Arc::new(move |access: &Access<'_>| {
        if output.quiet && access.problem.is_none() {
            return;
        }
        let path: String = access.path.chars().take(SHOWN).collect();
        let Access { peer, method, status, bytes, whole, elapsed, problem, .. } = access;
        let seconds = elapsed.as_secs_f64();
        let line = if output.json {
            json!({"event": "request", "peer": peer, "method": method, "path": path, "status": status, "bytes": bytes,
                "whole": whole, "seconds": seconds, "problem": problem})
            .to_string()
        } else {
            let cut = if *whole { "" } else { " cut off" };
            let problem = problem.map_or_else(String::new, |problem| format!(": {problem}"));
            let path = path.escape_debug();
            format!("{peer} \"{method} {path}\" {status} {bytes} {seconds:.3}s{cut}{problem}")
        };
        let _ = lines.try_send(line);
    })
}
