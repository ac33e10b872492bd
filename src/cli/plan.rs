//! `prebake plan`.

use clap::Args;
use prebake::bake::{Estimate, Plan, Planned, Request, plan};
use serde_json::json;

use super::bake::{self, BakeArgs};
use super::output::{self, OutputArgs};
use super::sync::Sync;
use super::{Failed, exit_code, exit_code_of_all, progress};

const EXAMPLES: &str = "\
Examples:
  prebake plan -f bake.toml
  prebake plan --root ./chroot --unpack-under 150MiB --file images.txt
  prebake plan -f bake.toml --locked --sync
  prebake plan -f bake.toml --json | jq 'select(.image) | {image, policy, because_of}'
Sizes with a ~ are estimated: what layers unpack to is known of those that are unpacked, of those without compression, and
of those with zstd that are here and say so.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    bake: BakeArgs,
}

impl PlanArgs {
    pub(super) fn json(&self) -> bool {
        self.bake.fetch.output.json
    }
}

pub(super) fn run(args: PlanArgs) -> Result<u8, Failed> {
    let out = args.bake.fetch.output;
    let sync = args.bake.sync;
    let request = bake::request(args.bake)?;
    let sync = sync.then(|| Sync::to(&request.root, request.lock_timeout, &request.images));
    show(request, sync, out)
}

/// Shows what a bake would do.
pub(super) fn show(request: Request, sync: Option<Sync>, out: OutputArgs) -> Result<u8, Failed> {
    let policies = request.policies.clone();
    let listener = progress::listener(OutputArgs { quiet: true, ..out });
    let (plan, signal) = bake::interruptible(async |cancel| plan(request, listener, cancel).await)?;
    if let Some(signal) = signal {
        return Ok(128 + signal);
    }
    let refused = plan.check(&policies).err().map(Failed::new);
    if !out.json {
        list(&plan);
    }
    let freed = sync.map(|sync| sync.tell(&plan, out)).transpose()?;
    if out.json {
        as_json(&plan, refused.as_ref(), freed.unwrap_or(0));
    } else {
        add_up(&plan, freed);
    }
    let Some(refused) = refused else {
        return Ok(exit_code_of_all(plan.images.iter().map(|image| image.failure.as_ref())));
    };
    if !out.json {
        output::tell(format!("refused: {}", refused.message));
    }
    Ok(exit_code(refused.kind))
}

fn size(estimate: Estimate) -> String {
    let mark = if estimate.guessed { "~" } else { "" };
    format!("{mark}{}", output::bytes(estimate.bytes))
}

fn list(plan: &Plan) {
    let head = ["image", "policy", "because of", "compressed", "unpacked", "shared", "there"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for image in &plan.images {
        let Some(choice) = image.choice else { continue };
        let pin = if choice.pin { ", pinned" } else { "" };
        rows.push(vec![
            image.name.clone(),
            format!("{}{pin}", choice.policy),
            choice.reason.to_string(),
            output::bytes(image.compressed),
            size(image.unpacked),
            output::bytes(image.shared),
            output::bytes(image.present),
        ]);
    }
    output::table(&rows);
    for Planned { name, failure, .. } in &plan.images {
        if let Some(failure) = failure {
            output::tell(format!("refused: {name}: {}", failure.message));
        }
    }
}

fn add_up(plan: &Plan, freed: Option<u64>) {
    let mark = if plan.snapshots.guessed { "~" } else { "" };
    let (free, growth) = (plan.space.free, plan.growth());
    output::say(format!("\nto fetch          {}", output::bytes(plan.fetch)));
    output::say(format!("content store     +{}", output::bytes(plan.store)));
    output::say(format!("snapshots         +{}", size(plan.snapshots)));
    let (when, after) = match freed {
        None => ("at peak, and then ", String::new()),
        Some(freed) => ("at peak           ", format!("; then up to {} less", output::bytes(freed))),
    };
    output::say(format!(
        "{when}{mark}{} more than the {} that the root's images take now{after}",
        output::bytes(growth),
        output::bytes(plan.used)
    ));
    let left =
        free.checked_sub(growth).map_or("too little".to_owned(), |left| format!("{mark}{} left", output::bytes(left)));
    output::say(format!("free              {}: {left}", output::bytes(free)));
    let free = plan.space.free_inodes.map_or("uncounted".to_owned(), |free| free.to_string());
    output::say(format!("inodes            {mark}{} of {free} free", plan.inodes));
}

fn as_json(plan: &Plan, refused: Option<&Failed>, freed: u64) {
    output::say_json_lines(plan.images.iter().map(|image| {
        let platforms: Vec<String> = image.platforms.iter().map(ToString::to_string).collect();
        json!({"image": image.name, "namespace": image.namespace, "platforms": platforms, "digest": image.digest,
            "policy": image.choice.map(|choice| choice.policy),
            "because_of": image.choice.map(|choice| choice.reason.to_string()),
            "pinned": image.choice.is_some_and(|choice| choice.pin),
            "compressed": image.compressed, "unpacked": image.unpacked.bytes, "unpacked_is_estimated": image.unpacked.guessed,
            "shared": image.shared, "present": image.present,
            "refused": image.failure.as_ref().map(|failure| &failure.message)})
    }));
    output::say_json(
        &json!({"event": "plan", "fetch": plan.fetch, "store": plan.store, "snapshots": plan.snapshots.bytes,
        "snapshots_are_estimated": plan.snapshots.guessed, "peak": plan.growth(), "freed_by_sync": freed, "inodes": plan.inodes, "used": plan.used,
        "free": plan.space.free, "free_inodes": plan.space.free_inodes,
        "refused": refused.map(|refused| &refused.message)}),
    );
}
