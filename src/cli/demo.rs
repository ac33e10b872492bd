//! `prebake demo`: the whole road, without a network.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use prebake::bake::{Policies, Request, Wanted};
use prebake::fixture::{Content, DEMO, Server, Spec};
use prebake::kind::Kind;
use prebake::metadata::{DEFAULT_LOCK_TIMEOUT, K8S_NAMESPACE};
use prebake::oci::{Platform, Reference};
use prebake::root::CONTAINERD_ROOT;
use prebake::spec::Policy;

use super::output::{self, OutputArgs};
use super::{Failed, RootArgs, bake, check, exit_code_of, progress};

/// Marks a folder as one that a demo made, and that the next may replace.
const MARK: &str = ".prebake-demo";
/// The image that prints a line.
const RUNNABLE: &str = "demo/hello:1.0";

const EXAMPLES: &str = "\
Examples:
  prebake demo                    into ./prebake-demo
  prebake demo /tmp/somewhere
As root, the images are unpacked too. The last lines say how a containerd is started on what was made.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DemoArgs {
    /// Where; an earlier demo there is replaced
    #[arg(default_value = "prebake-demo")]
    dir: PathBuf,
}

pub(super) fn run(args: &DemoArgs) -> Result<u8, Failed> {
    prepare(&args.dir)?;
    let output = OutputArgs { json: false, quiet: false };
    let spec = Spec::parse(DEMO).map_err(internal)?;
    let content = Content::build(&spec).map_err(internal)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(internal)?;
    let server = runtime
        .block_on(Server::start(Ipv4Addr::LOCALHOST, Arc::new(move |request| content.answer(request))))
        .map_err(internal)?;
    let references: Vec<Reference> = spec
        .image
        .iter()
        .map(|image| format!("{}/{}", server.name(), image.name).parse().map_err(internal))
        .collect::<Result<_, _>>()?;

    output::say(format!("baking {} images from an embedded registry at {}\n", references.len(), server.name()));
    let root = RootArgs {
        root: args.dir.clone(),
        containerd_root: CONTAINERD_ROOT.into(),
        lock_timeout: DEFAULT_LOCK_TIMEOUT.as_secs(),
    };
    // As root, and where the file system can do it.
    let unpacks = prebake::snapshot::check(&root.root()).is_ok();
    let images = references.into_iter().map(|reference| Wanted::new(reference, K8S_NAMESPACE, platform())).collect();
    let request = Request {
        policies: Policies { default: if unpacks { Policy::Unpack } else { Policy::Fetch }, ..Policies::default() },
        ..Request::new(root.root(), images)
    };
    let (report, signal) = bake::go(request, progress::listener(output))?;
    bake::summarise(&report, None, output);
    let code = signal.map_or_else(|| exit_code_of(&report.images), |signal| 128 + signal);
    if code != 0 {
        return Ok(code);
    }

    output::say("\nchecking it as containerd would need it");
    let code = check::run(&check::CheckArgs::of(root.clone(), output))?;

    output::say("\nwhat was made");
    tree(&args.dir, 0);

    output::say("\nwhat containerd will list");
    let listed = root.waiting(false, |wait| prebake::care::images(&root.root(), None, wait)).map_err(Failed::new)?;
    let rows: Vec<Vec<String>> = listed
        .iter()
        .filter(|image| !image.name.starts_with("sha256:"))
        .map(|image| vec![image.name.clone(), image.size.map_or(String::new(), output::bytes)])
        .collect();
    output::table(&rows);

    let dir = fs::canonicalize(&args.dir).map_err(internal)?;
    let (dir, image) = (dir.display(), format!("{}/{RUNNABLE}", server.name()));
    output::say(format!(
        "\nto start containerd on it (as root, where containerd and runc are installed):\n  \
         containerd --root {dir}/{CONTAINERD_ROOT} --state {dir}/run --address {dir}/containerd.sock &\n  \
         ctr --address {dir}/containerd.sock --namespace {K8S_NAMESPACE} images ls\n  \
         ctr --address {dir}/containerd.sock --namespace {K8S_NAMESPACE} run --rm {image} demo"
    ));
    Ok(code)
}

/// This machine's platform if the demo's programs can be made for it.
fn platform() -> Platform {
    match std::env::consts::ARCH {
        "aarch64" => Platform::new("linux", "arm64", ""),
        _ => Platform::new("linux", "amd64", ""),
    }
}

/// Makes an empty folder; replaces an earlier demo, and nothing else.
fn prepare(dir: &Path) -> Result<(), Failed> {
    let failed = |error: std::io::Error| Failed {
        kind: Kind::from(&error),
        message: format!("preparing {} failed: {error}", dir.display()),
    };
    let empty = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(failed(error)),
    };
    if !empty {
        if !dir.join(MARK).exists() {
            return Err(Failed::usage(format!(
                "{} is there and no earlier demo made it; name another folder",
                dir.display()
            )));
        }
        fs::remove_dir_all(dir).map_err(failed)?;
    }
    fs::create_dir_all(dir).map_err(failed)?;
    fs::write(dir.join(MARK), "made by `prebake demo`, which replaces it\n").map_err(failed)
}

/// Directories and files below `dir`, long listings cut.
fn tree(dir: &Path, depth: usize) {
    const SHOWN: usize = 4;
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    let hidden = entries.len().saturating_sub(SHOWN);
    for entry in entries.iter().take(SHOWN) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            output::say(format!("{:indent$}{name}/", "", indent = depth * 2));
            tree(&entry.path(), depth + 1);
        } else {
            output::say(format!("{:indent$}{name}  {}", "", output::bytes(meta.len()), indent = depth * 2));
        }
    }
    if hidden > 0 {
        output::say(format!("{:indent$}… and {hidden} more", "", indent = depth * 2));
    }
}

fn internal(error: impl std::error::Error) -> Failed {
    Failed { kind: Kind::Io, message: format!("the demo failed: {}", prebake::kind::chain(&error)) }
}
