//! `prebake lock`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use prebake::bake::{Moved, Outcome, Request, Wanted, lock_images, moved};
use prebake::bundle::{MirrorRequest, lock as lock_mirror};
use prebake::oci::{Digest, Reference};
use prebake::spec::{Lock, Shard, Share};
use serde_json::json;

use super::bake::{self, FetchArgs};
use super::output::{self, OutputArgs};
use super::shard::ShardArgs;
use super::{Failed, exit_code_of, progress, wanted};

const EXAMPLES: &str = "\
Examples:
  prebake lock -f bake.toml                                 every name anew, into bake.lock
  prebake lock -f bake.toml --update docker.io/library/nginx:1.27
  prebake lock -f bake.toml --check                         1 when a tag has moved
  prebake bake -f bake.toml --locked
  prebake lock -f bake.toml --shard 2/4                     a quarter of the names, into bake.lock.2-of-4
  prebake lock -f bake.toml --merge bake.lock.*-of-4        all four into bake.lock";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LockArgs {
    #[command(flatten)]
    pub(super) fetch: FetchArgs,
    /// Only what this name leads to, and what is not locked yet
    #[arg(long, value_name = "NAME", conflicts_with_all = ["check", "shard"])]
    update: Vec<Reference>,
    /// Change nothing; 1 when a name leads to something else than when it was locked, or is not locked
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    shard: ShardArgs,
    /// Ask nobody: put these locks, of all shards, together
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["check", "update", "shard"])]
    merge: Vec<PathBuf>,
}

pub(super) fn run(mut args: LockArgs) -> Result<u8, Failed> {
    let output = args.fetch.output;
    let mut path = args.fetch.wanted.lock_path()?;
    args.fetch.wanted.default_root = Some(".".into());
    if let Some(shard) = args.shard.shard {
        path.as_mut_os_string().push(format!(".{}-of-{}", shard.index(), shard.of()));
    }
    let before = known(&path)?;
    let mut request = args.fetch.request(None)?;
    if !args.merge.is_empty() {
        return finish(&path, &before, &merge(&request, &args.merge)?, &[], output);
    }
    if let Some(shard) = args.shard.shard {
        keep_own(&mut request, shard);
    }
    if args.check {
        return check(request, &before, output);
    }
    let names: Vec<String> = args.update.iter().map(Reference::to_string).collect();
    for name in &names {
        if request.images.iter().all(|image| image.reference.to_string() != *name) {
            return Err(Failed::usage(format!("--update {name}: no such image is asked for")));
        }
    }
    let mut after = Lock::default();
    if !names.is_empty() {
        for image in &request.images {
            let name = image.reference.to_string();
            let kept = before.images.get(&name).filter(|locked| {
                let has = |platform: &_| locked.platforms.contains_key(&ToString::to_string(platform));
                !names.contains(&name) && image.platforms.iter().all(has)
            });
            after.images.extend(kept.map(|locked| (name, locked.clone())));
        }
        request.images.retain(|image| !after.images.contains_key(&image.reference.to_string()));
    }
    let listener = progress::listener(OutputArgs { quiet: true, ..output });
    let ((images, failed), signal) = bake::interruptible(async |cancel| lock_images(request, listener, cancel).await)?;
    if let Some(signal) = signal {
        return Ok(128 + signal);
    }
    after.images.extend(images.into_iter().map(|(name, image)| (name, Arc::new(image))));
    finish(&path, &before, &after, &failed, output)
}

/// `prebake mirror --lock`.
pub(super) fn mirror(path: &Path, request: MirrorRequest, output: OutputArgs) -> Result<u8, Failed> {
    let before = known(path)?;
    let listener = progress::listener(OutputArgs { quiet: true, ..output });
    let ((images, failed), signal) = bake::interruptible(async |cancel| lock_mirror(request, listener, cancel).await)?;
    if let Some(signal) = signal {
        return Ok(128 + signal);
    }
    let after = Lock { images: images.into_iter().map(|(name, image)| (name, Arc::new(image))).collect() };
    finish(path, &before, &after, &failed, output)
}

/// The lock that is there, if one is.
fn known(path: &Path) -> Result<Lock, Failed> {
    if path.exists() { read(path) } else { Ok(Lock::default()) }
}

/// Writes a lock that has everything, and tells what is new in it.
fn finish(path: &Path, before: &Lock, after: &Lock, failed: &[Outcome], output: OutputArgs) -> Result<u8, Failed> {
    if !failed.is_empty() {
        tell_failures(failed, output);
        output::tell(format!("{} is as it was", path.display()));
        return Ok(exit_code_of(failed));
    }
    output::write_file(path, &after.to_string())?;
    tell_changes(path, before, after, output);
    Ok(0)
}

/// Leaves a shard's names: split as blobs are, each as large as the others.
fn keep_own(request: &mut Request, shard: Shard) {
    let key = |image: &Wanted| Digest::of(image.reference.to_string().as_bytes());
    let keys: Vec<Digest> = request.images.iter().map(key).collect();
    let share = Share::new(shard, keys.iter().map(|key| (key, 1)));
    request.images.retain(|image| share.has(&key(image)));
}

/// All that shards locked, together; they may not contradict each other, and have to have everything.
fn merge(request: &Request, files: &[PathBuf]) -> Result<Lock, Failed> {
    let (mut all, mut wrong) = (Lock::default(), Vec::new());
    let mut from: BTreeMap<String, &Path> = BTreeMap::new();
    for path in files {
        for (name, image) in read(path)?.images {
            let other = from.entry(name.clone()).or_insert(path);
            let known = all.images.entry(name.clone()).or_insert_with(|| image.clone());
            if *known != image {
                let (other, path) = (other.display(), path.display());
                wrong.push(format!(
                    "{name} is {} in {other} and {} in {path}",
                    known.target.digest, image.target.digest
                ));
            }
        }
    }
    for image in &request.images {
        let name = image.reference.to_string();
        let locked = all.images.get(&name);
        for platform in &image.platforms {
            if locked.is_none_or(|locked| !locked.platforms.contains_key(&platform.to_string())) {
                wrong.push(format!(
                    "{name} for {platform} is in none of them; `prebake lock --shard` makes those of each shard"
                ));
            }
        }
    }
    let asked: BTreeSet<String> = request.images.iter().map(|image| image.reference.to_string()).collect();
    all.images.retain(|name, _| asked.contains(name));
    if wrong.is_empty() { Ok(all) } else { Err(Failed::usage(wrong.join("\n"))) }
}

/// Where the lock is: where it is said to be, or beside the first file.
pub(super) fn path(said: Option<&Path>, files: &[PathBuf]) -> Result<PathBuf, Failed> {
    let beside = || Some(files.iter().find(|path| *path != Path::new("-"))?.with_extension("lock"));
    let path = said.map(Path::to_owned).or_else(beside);
    path.ok_or_else(|| Failed::usage("no lock: --lock-file names one, or --file what it is beside"))
}

pub(super) fn read(path: &Path) -> Result<Lock, Failed> {
    Lock::parse(&wanted::text(path)?, &path.display().to_string()).map_err(Failed::new)
}

fn tell_failures(failed: &[Outcome], output: OutputArgs) {
    if output.json {
        output::say_json_lines(failed.iter().map(output::outcome));
    } else {
        output::failures(failed);
    }
}

fn tell_changes(path: &Path, before: &Lock, after: &Lock, output: OutputArgs) {
    let moved: Vec<Moved> = after
        .images
        .iter()
        .filter_map(|(name, image)| {
            let (from, to) = (before.images.get(name)?.target.digest.clone(), image.target.digest.clone());
            (from != to).then(|| Moved { name: name.clone(), from, to })
        })
        .collect();
    let added = after.images.keys().filter(|name| !before.images.contains_key(*name)).count();
    let removed = before.images.keys().filter(|name| !after.images.contains_key(*name)).count();
    if output.json {
        tell_moved(&moved, output);
        output::say_json(&json!({"event": "lock", "file": path, "images": after.images.len(), "added": added,
            "moved": moved.len(), "removed": removed}));
    } else if !output.quiet {
        tell_moved(&moved, output);
        let (images, moved) = (after.images.len(), moved.len());
        output::say(format!("{}: {images} images; {added} added, {moved} moved, {removed} removed", path.display()));
    }
}

fn tell_moved(moved: &[Moved], output: OutputArgs) {
    for Moved { name, from, to } in moved {
        if output.json {
            output::say_json(&json!({"image": name, "from": from, "to": to}));
        } else {
            output::say(format!("moved: {name}: from {from} to {to}"));
        }
    }
}

fn check(mut request: Request, lock: &Lock, output: OutputArgs) -> Result<u8, Failed> {
    let mut missing = 0;
    for image in &mut request.images {
        let name = image.reference.to_string();
        image.locked = lock.images.get(&name).cloned();
        if image.locked.is_none() {
            missing += 1;
            if output.json {
                output::say_json(&json!({"image": name, "from": null, "to": null}));
            } else {
                output::say(format!("not locked: {name}"));
            }
        }
    }
    let listener = progress::listener(OutputArgs { quiet: true, ..output });
    let ((moved, failed), signal) = bake::interruptible(async |cancel| moved(request, listener, cancel).await)?;
    if let Some(signal) = signal {
        return Ok(128 + signal);
    }
    tell_moved(&moved, output);
    tell_failures(&failed, output);
    match (moved.len() + missing, exit_code_of(&failed)) {
        (0, code) => Ok(code),
        (_, _) => Ok(1),
    }
}
