//! What goes through a running containerd: `prebake bootstrap --address`, `prebake bake --address`, and the unit of a first
//! boot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgGroup, Args};
use prebake::bake::{Listener, LiveRequest, Request, bootstrap_live, run_live};
use prebake::bootstrap::live::collect_garbage;
use prebake::bootstrap::unit;
use prebake::metadata::K8S_NAMESPACE;
use prebake::root::{CONTAINERD_ROOT, Root};
use prebake::spec::parse_size;
use serde_json::json;

use super::bake::{Gone, interruptible};
use super::bootstrap::{BootstrapArgs, end};
use super::output::{self, OutputArgs};
use super::{Failed, progress};

/// containerd's own default (containerd `defaults.DefaultAddress`).
const ADDRESS: &str = "/run/containerd/containerd.sock";

#[derive(Args)]
#[command(group = ArgGroup::new("live").args(["address", "install_unit"]).multiple(true))]
pub(super) struct LiveArgs {
    /// The socket of a containerd that runs on the root, which gets to know of everything that was fetched
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// Let that containerd unpack the images
    #[arg(long, requires = "live")]
    unpack: bool,
    /// Let it unpack only images smaller than this (compressed)
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "live", conflicts_with = "unpack")]
    unpack_under: Option<u64>,
    /// Write a systemd unit into the root that does this once, at the first boot, between containerd and kubelet; the root has
    /// to have `prebake` in /usr/local/bin or /usr/bin by then
    #[arg(long)]
    install_unit: bool,
}

/// `None` where no running containerd is asked for.
pub(super) fn bootstrap(args: &BootstrapArgs) -> Result<Option<u8>, Failed> {
    if args.live.install_unit {
        return install(args).map(Some);
    }
    let Some(address) = args.live.address.clone() else { return Ok(None) };
    let request = LiveRequest {
        address,
        root: args.root.existing()?,
        namespace: args.namespace.clone(),
        unpack_under: args.live.unpack_under.or(args.live.unpack.then_some(u64::MAX)),
        lock_timeout: args.root.lock_timeout(),
    };
    let listener = progress::listener(args.output);
    let (report, signal) = interruptible(async |cancel| bootstrap_live(request, listener, cancel).await)?;
    let code = end(args, &report.images);
    Ok(Some(signal.filter(|_| report.cancelled).map_or(code, |signal| 128 + signal)))
}

/// Runs a bake through the containerd at `address`.
pub(super) fn bake(request: Request, address: &Path, listener: Arc<dyn Listener>) -> Gone {
    let (report, signal) = interruptible(async |cancel| run_live(request, address, listener, cancel).await)?;
    let signal = signal.filter(|_| report.cancelled);
    Ok((report, signal))
}

/// Lets the containerd at `address` collect its garbage.
pub(super) fn gc(root: &Root, address: &Path, out: OutputArgs) -> Result<u8, Failed> {
    let before = root.space().map_err(Failed::new)?.free;
    interruptible(async |_| collect_garbage(address, K8S_NAMESPACE).await)?;
    let freed = root.space().map_err(Failed::new)?.free.saturating_sub(before);
    if out.json {
        output::say_json(&json!({"event": "collected", "bytes": freed}));
    } else if !out.quiet {
        output::say(format!("containerd collected; {} freed", output::bytes(freed)));
    }
    Ok(0)
}

fn install(args: &BootstrapArgs) -> Result<u8, Failed> {
    let BootstrapArgs { root, namespace, live, output: out, .. } = args;
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| Failed::usage(format!("{} is not UTF-8", path.display())))
    };
    let mut arguments = vec!["bootstrap".to_owned(), "--root".to_owned(), "/".to_owned(), "--address".to_owned()];
    arguments.push(text(live.address.as_deref().unwrap_or(Path::new(ADDRESS)))?);
    if root.containerd_root != Path::new(CONTAINERD_ROOT) {
        arguments.extend(["--containerd-root".to_owned(), text(&root.containerd_root)?]);
    }
    if namespace != K8S_NAMESPACE {
        arguments.extend(["--namespace".to_owned(), namespace.clone()]);
    }
    arguments.extend(live.unpack.then(|| "--unpack".to_owned()));
    if let Some(size) = live.unpack_under {
        arguments.extend(["--unpack-under".to_owned(), size.to_string()]);
    }
    let path = unit::install(&root.existing()?, &arguments).map_err(Failed::new)?;
    if out.json {
        output::say_json(&json!({"event": "unit", "path": path}));
    } else if !out.quiet {
        output::say(format!("{} runs `prebake {}` at the first boot", path.display(), arguments.join(" ")));
    }
    Ok(0)
}
