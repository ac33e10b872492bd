//! `prebake why`.

use clap::Args;
use prebake::care::{self, Release, Way, Why};

use super::{Failed, RootArgs, output};

const EXAMPLES: &str = "\
Examples:
  prebake why --root ./chroot sha256:0a1b2c3d4e5f
  prebake why --root ./chroot docker.io/library/nginx:1.27
  prebake why --root ./chroot 17                      # the snapshot in snapshots/17
What nothing keeps is removed when containerd next collects garbage; `prebake gc` does it now.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct WhyArgs {
    /// An image's name, a digest or its first digits, a snapshot's key or number, the id of a container or lease
    #[arg(value_name = "WHAT")]
    what: String,
    #[command(flatten)]
    root: RootArgs,
    /// By the rules of this release of containerd, such as 1.7 or 2.1
    #[arg(long, value_name = "RELEASE")]
    containerd: Option<Release>,
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &WhyArgs) -> Result<u8, Failed> {
    let root = args.root.existing()?;
    let found = args.root.waiting(args.json, |wait| care::why(&root, &args.what, args.containerd, wait));
    let found = found.map_err(Failed::new)?;
    if args.json {
        output::say_json_lines(&found);
    } else {
        found.iter().for_each(show);
    }
    Ok(0)
}

fn show(why: &Why) {
    let namespace = why.namespace.as_ref().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    output::say(format!("{} {}{namespace}", why.kind, why.name));
    // Names of one image keep the same, in the same way.
    let mut ways: Vec<(&Way, Vec<&str>)> = Vec::new();
    for way in &why.kept {
        let name = way.steps.first().map_or("", |first| &first.name);
        let same = |(other, _): &&mut (&Way, Vec<&str>)| {
            let behind = |way: &Way| (way.because, way.steps.first().map(|first| (first.kind, first.by.clone())));
            behind(other) == behind(way) && other.steps.get(1..) == way.steps.get(1..)
        };
        match ways.iter_mut().find(same) {
            Some((_, names)) => names.push(name),
            None => ways.push((way, vec![name])),
        }
    }
    for (way, names) in ways {
        let Some(first) = way.steps.first() else {
            output::say(format!("  kept for its own sake: {}", way.because));
            continue;
        };
        output::say(format!("  kept by {} {}: {}", first.kind, names.join(", "), way.because));
        for (i, step) in way.steps.iter().enumerate() {
            let next =
                way.steps.get(i + 1).map_or_else(|| "this".to_owned(), |next| format!("{} {}", next.kind, next.name));
            output::say(format!("    {next}, by {}", step.by));
        }
    }
    for need in &why.needed {
        output::say(format!("  needed: {need}"));
    }
    if why.kept.is_empty() {
        output::say("  nothing keeps it: containerd removes it when it next collects garbage");
    }
}
