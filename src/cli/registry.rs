//! How registries are talked to, and `prebake registry explain`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use prebake::oci::Reference;
use prebake::registry::{
    DEFAULT_PER_HOST, DEFAULT_STALL_TIMEOUT, DEFAULT_TRIES, HOSTS_DIR, Host, HostsDirs, Keychain, Manners, Options,
    Plugins,
};
use prebake::root::{CONTAINERD_ROOT, Root};
use prebake::spec::{Registries, SharedCache, parse_size};
use serde_json::json;

use super::cache::CacheArgs;
use super::wanted::{Asked, NamesArgs};
use super::{Failed, output};

/// Requests under way at one host, at most.
const MAX_PER_HOST: u8 = 64;

const EXAMPLES: &str = "\
Examples:
  prebake registry explain docker.io/library/nginx:1.27
  prebake registry explain --root ./chroot registry.example:5000/team/app
  prebake registry explain --hosts-dir ./certs.d --json docker.io/library/nginx";

/// Who we are to registries, and who they are.
#[derive(Args, Clone)]
#[command(next_help_heading = "Registries")]
pub(super) struct AccessArgs {
    /// Credentials for the registry of all images; others can see them in the list of processes, --creds-file hides them
    #[arg(long, value_name = "USER:PASSWORD", env = "PREBAKE_CREDS", hide_env_values = true)]
    creds: Option<String>,
    /// A file of credentials, one `REGISTRY USER:PASSWORD` a line
    #[arg(long, value_name = "FILE")]
    creds_file: Option<PathBuf>,
    /// Configuration of kubelet's credential provider plugins
    #[arg(long, value_name = "FILE", requires = "image_credential_provider_bin_dir")]
    image_credential_provider_config: Option<PathBuf>,
    /// Where those plugins are
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    image_credential_provider_bin_dir: Option<PathBuf>,
    /// Directory of hosts.toml files, as containerd is told of them; several are separated by colons [default:
    /// etc/containerd/certs.d in the root, else the same on this machine]
    #[arg(long, value_name = "DIR", value_delimiter = ':')]
    hosts_dir: Vec<PathBuf>,
    /// Certificates (PEM) to trust besides the machine's own
    #[arg(long, value_name = "FILE")]
    ca_file: Vec<PathBuf>,
    /// Plain HTTP to every registry that no hosts.toml is about; loopback registries need no flag
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

/// How much is asked of registries, and how often.
#[derive(Args, Clone)]
#[command(next_help_heading = "Registries")]
pub(super) struct MannersArgs {
    /// Tries of a request, or of a transfer since it last came on, before an image fails
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TRIES, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
    /// Seconds that a connection may be silent, or as good as, before it is given up for another one
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_STALL_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    stall_timeout: u64,
    /// Requests under way at one host, at most [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_PER_HOST)))]
    per_host: Option<u8>,
    /// Requests to one host in a second, at most
    #[arg(long, value_name = "RATE", value_parser = rate)]
    max_requests_per_second: Option<f64>,
    /// Bytes a second, at most, of all images together
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    bandwidth_limit: Option<u64>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err("it must be more than 0".to_owned()) }
}

fn bandwidth(text: &str) -> Result<u64, String> {
    parse_size(text).and_then(|rate| if rate > 0 { Ok(rate) } else { Err("it must be more than 0".to_owned()) })
}

/// What goes along with images.
#[derive(Args)]
pub(super) struct ReferrersArgs {
    /// Take along what refers to the images: signatures, SBOMs, attestations; all, or those of a media or artifact type
    #[arg(long, value_name = "TYPE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    referrers: Vec<String>,
}

impl ReferrersArgs {
    /// Of which types, or of any where none is named; `None`: nothing.
    pub(super) fn types(&self) -> Option<Vec<String>> {
        // Where all are wanted, those of some type are.
        let all = self.referrers.iter().any(String::is_empty);
        (!self.referrers.is_empty()).then(|| if all { Vec::new() } else { self.referrers.clone() })
    }
}

impl AccessArgs {
    /// What to talk to the registries of these images with.
    pub(super) fn options(&self, manners: &MannersArgs, root: &Root, asked: &Asked) -> Result<Options, Failed> {
        let references: Vec<&Reference> = asked.images.iter().map(|image| &image.reference).collect();
        let mut options = self.options_for(manners, root, &asked.spec.registries, &references)?;
        options.cache = self.cache.options(&asked.spec.cache)?;
        Ok(options)
    }

    /// As [`Self::options`], for images of these names.
    pub(super) fn options_for(
        &self,
        manners: &MannersArgs,
        root: &Root,
        said: &Registries,
        references: &[&Reference],
    ) -> Result<Options, Failed> {
        Ok(Options {
            plain_http: self.plain_http,
            keychain: self.keychain(references)?,
            hosts: self.hosts(root, said.hosts_dir.as_ref())?,
            ca_files: self.ca_file.clone(),
            cache: self.cache.options(&SharedCache::default())?,
            manners: Manners {
                tries: manners.tries,
                stall_timeout: Duration::from_secs(manners.stall_timeout),
                per_host: manners.per_host.or(said.per_host).unwrap_or(DEFAULT_PER_HOST).clamp(1, MAX_PER_HOST).into(),
                requests_a_second: manners.max_requests_per_second.or(said.requests_per_second),
                bandwidth: manners.bandwidth_limit.or(said.bandwidth),
            },
        })
    }

    fn keychain(&self, references: &[&Reference]) -> Result<Keychain, Failed> {
        let mut keychain = Keychain::default();
        if let Some(pair) = &self.creds {
            let mut registries: Vec<&str> = references.iter().map(|reference| reference.registry()).collect();
            registries.sort_unstable();
            registries.dedup();
            let [registry] = registries[..] else {
                return Err(Failed::usage(format!(
                    "--creds are for one registry, and the images are of {}; use --creds-file",
                    registries.join(", ")
                )));
            };
            keychain.give(registry, pair, "--creds").map_err(Failed::new)?;
        }
        if let Some(path) = &self.creds_file {
            keychain.give_file(path).map_err(Failed::new)?;
        }
        keychain.add_files().map_err(Failed::new)?;
        if let (Some(config), Some(bin_dir)) =
            (&self.image_credential_provider_config, &self.image_credential_provider_bin_dir)
        {
            keychain.add_plugins(Plugins::read(config, bin_dir).map_err(Failed::new)?);
        }
        Ok(keychain)
    }

    fn hosts(&self, root: &Root, said: Option<&PathBuf>) -> Result<HostsDirs, Failed> {
        if !self.hosts_dir.is_empty() {
            return Ok(HostsDirs(self.hosts_dir.clone()));
        }
        if let Some(dir) = said {
            return Ok(HostsDirs(vec![dir.clone()]));
        }
        let own = root.dir(Path::new(HOSTS_DIR)).map_err(Failed::new)?;
        Ok(HostsDirs(vec![own.unwrap_or_else(|| PathBuf::from(HOSTS_DIR))]))
    }
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RegistryArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show which hosts would be asked for an image, in which order, with whose credentials, and why; asks nobody
    Explain(ExplainArgs),
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
struct ExplainArgs {
    #[command(flatten)]
    names: NamesArgs,
    /// The root whose etc/containerd/certs.d counts
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    access: AccessArgs,
    /// As JSON, one object a host
    #[arg(long)]
    json: bool,
}

impl RegistryArgs {
    pub(super) fn json(&self) -> bool {
        let Command::Explain(args) = &self.command;
        args.json
    }
}

pub(super) fn run(args: &RegistryArgs) -> Result<u8, Failed> {
    let Command::Explain(args) = &args.command;
    let root = Root::new(&args.root, CONTAINERD_ROOT);
    let references = args.names.references()?;
    let keychain = args.access.keychain(&references.iter().collect::<Vec<_>>())?;
    let dirs = args.access.hosts(&root, None)?;
    for (i, reference) in references.iter().enumerate() {
        let hosts = dirs.hosts(reference.registry(), args.access.plain_http).map_err(Failed::new)?;
        if args.json {
            output::say_json_lines(hosts.iter().map(|host| as_json(reference, host, &keychain)));
            continue;
        }
        if i > 0 {
            output::say("");
        }
        output::say(reference.to_string());
        for (n, host) in hosts.iter().enumerate() {
            output::say(format!("{}. {}", n + 1, host.url()));
            for (name, value) in in_words(reference, host, &keychain) {
                output::say(format!("   {name:<12} {value}"));
            }
        }
    }
    Ok(0)
}

/// What a host may be asked for.
fn asked_for(host: &Host) -> Vec<&'static str> {
    let may = host.capabilities;
    let all = [
        (may.pull && may.resolve, "tags"),
        (may.pull, "manifests and blobs by digest"),
        (may.pull && may.referrers, "referrers"),
    ];
    all.into_iter().filter(|(may, _)| *may).map(|(_, what)| what).collect()
}

fn in_words(reference: &Reference, host: &Host, keychain: &Keychain) -> Vec<(&'static str, String)> {
    let asked_for = asked_for(host);
    let asked_for = if asked_for.is_empty() { "nothing".to_owned() } else { asked_for.join(", ") };
    let mut all = vec![("asked for", asked_for), ("because of", host.why.clone())];
    all.extend(host.settings().into_iter().map(|setting| ("with", setting)));
    if host.is_mirror_of(reference.registry()) {
        all.push(("told", format!("ns={}", reference.registry())));
    }
    let looks = keychain.explain(host.authority(), reference.repository());
    if looks.is_empty() {
        all.push(("credentials", "none".to_owned()));
    }
    all.extend(looks.into_iter().map(|look| {
        let who = look.who.unwrap_or_else(|| "as it says when the host asks".to_owned());
        ("credentials", format!("{who}, from {}", look.from))
    }));
    all
}

fn as_json(reference: &Reference, host: &Host, keychain: &Keychain) -> serde_json::Value {
    json!({"image": reference.to_string(), "url": host.url(), "capabilities": host.capabilities, "because_of": host.why,
        "settings": host.settings(), "mirror": host.is_mirror_of(reference.registry()),
        "credentials": keychain.explain(host.authority(), reference.repository())})
}
