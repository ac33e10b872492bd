//! `prebake export`: images of a root, or of another place, as others take them.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use prebake::bundle::{self, Destination, Export};
use prebake::kind::Kind;
use prebake::metadata::K8S_NAMESPACE;
use prebake::oci::{Platform, Reference, glob_matches};
use prebake::source::{Held, Local};
use prebake::spec::{Place, Scheme};
use serde_json::json;

use super::bundle::FormArgs;
use super::output::{self, OutputArgs};
use super::wanted::{self, NamesArgs};
use super::{Failed, bake, progress};

const EXAMPLES: &str = "\
Examples:
  prebake export --root ./chroot -o oci-archive:all.tar                        every image of the root
  prebake export --root ./chroot -o oci:layout 'registry.k8s.io/*'             those whose names fit
  prebake export --root ./chroot -o docker-archive:nginx.tar nginx:1.27        for docker load
  prebake export -f images.txt --root ./chroot -o oci-archive:some.tar --compress zstd
  prebake export -o oci:layout docker-archive:saved.tar                        from another place";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExportArgs {
    /// The root whose images are exported
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// containerd's namespace
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = K8S_NAMESPACE, value_parser = wanted::namespace)]
    namespace: String,
    /// Where to: oci:DIR, oci-archive:FILE, docker-archive:FILE
    #[arg(long, short, value_name = "PLACE")]
    output: String,
    /// Only what is for this machine, whose manifest gets the name; for tools that know no indexes, such as umoci
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    names: NamesArgs,
    #[command(flatten)]
    pub(super) out: OutputArgs,
}

pub(super) fn run(mut args: ExportArgs) -> Result<u8, Failed> {
    let destination = destination(&args)?;
    let images = images(&mut args)?;
    let names: Vec<String> = images.iter().map(|(name, ..)| name.to_string()).collect();
    let export = Export { images, destination, platform: args.platform };
    let listener = progress::listener(args.out);
    let (exported, signal) = bake::interruptible(async |cancel| {
        tokio::select! {
            exported = bundle::export(export, listener) => Ok::<_, bundle::Error>(exported),
            () = cancel => Ok(Err(bundle::Error::Stopped)),
        }
    })?;
    let exported = match (exported, signal) {
        (Err(bundle::Error::Stopped), Some(signal)) => return Ok(128 + signal),
        (exported, _) => exported.map_err(Failed::new)?,
    };
    if args.out.json {
        let files: Vec<_> =
            exported.files.iter().map(|file| json!({"file": file.path, "size": file.size, "sum": file.sum})).collect();
        output::say_json(
            &json!({"event": "exported", "images": names, "blobs": exported.blobs, "bytes": exported.bytes,
            "files": files}),
        );
    } else if !args.out.quiet {
        let (blobs, bytes) = (exported.blobs, output::bytes(exported.bytes));
        output::say(format!("exported {} images in {blobs} blobs, {bytes}, to {}", names.len(), args.output));
    }
    Ok(0)
}

fn destination(args: &ExportArgs) -> Result<Destination, Failed> {
    let place = Place::parse(&args.output).map_err(Failed::usage_of)?;
    let (form, path) = (args.form.form(), |place: &Place| PathBuf::from(&place.rest));
    match place {
        Some(place) if place.scheme == Scheme::Oci => Ok(Destination::Oci(path(&place))),
        Some(place) if place.scheme == Scheme::OciArchive => Ok(Destination::OciArchive(path(&place), form)),
        Some(place) if place.scheme == Scheme::DockerArchive => Ok(Destination::DockerArchive(path(&place), form)),
        _ => Err(Failed::usage(format!(
            "{:?} is no place to export to: oci:DIR, oci-archive:FILE and docker-archive:FILE are; `prebake copy` pushes",
            args.output
        ))),
    }
}

/// Which images: of the root those that are named or whose names fit, and what else is named by its place.
fn images(args: &mut ExportArgs) -> Result<Vec<(Reference, Arc<Local>, Held)>, Failed> {
    let globs = args.names.take_globs();
    let local = args.root.as_ref().map(|root| {
        let place = Place { scheme: Scheme::Containerd, rest: root.display().to_string(), dir: PathBuf::new() };
        Local::containerd(place.to_string(), root, Some(&args.namespace)).map(Arc::new).map_err(Failed::new)
    });
    let local = local.transpose()?;
    let mut all: Vec<(Reference, Arc<Local>, Held)> = Vec::new();
    let mut add = |name: Reference, local: &Arc<Local>, held: Held| {
        if all.iter().all(|(known, ..)| *known != name) {
            all.push((name, local.clone(), held));
        }
    };
    let everything = globs.is_empty() && args.names.is_empty();
    if let Some(local) = &local {
        for held in local.images() {
            let Some(name) = held.reference() else { continue };
            if everything || globs.iter().any(|glob| glob_matches(glob, &name.to_string())) {
                add(name, local, held.clone());
            }
        }
    }
    if !args.names.is_empty() {
        for chosen in args.names.chosen()? {
            match (chosen.from, &local) {
                (Some((local, held)), _) => add(chosen.reference, &local, held),
                (None, Some(local)) => {
                    let held = local.find(&chosen.reference.to_string()).map_err(Failed::new)?.clone();
                    add(chosen.reference, local, held);
                }
                (None, None) => {
                    return Err(Failed::usage(format!(
                        "{} is in no place: --root names the root that has it, and `prebake bundle create` takes images \
                         from registries",
                        chosen.reference
                    )));
                }
            }
        }
    }
    if all.is_empty() {
        return Err(Failed { kind: Kind::NotFound, message: "no image fits".to_owned() });
    }
    Ok(all)
}
