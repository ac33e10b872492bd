//! A campaign of damages: each to a copy of a root, found by `check`, mended by `repair`, and then no longer found.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::prebake::bake::{Lost, refetch};
use ::prebake::care::{self, Check, Finding, Missing, Repair, RepairReport, Severity};
use ::prebake::metadata::Wait;
use ::prebake::registry::{Manners, Options};
use ::prebake::root::{CONTAINERD_ROOT, Root as At};

use super::damage::{DAMAGES, Damage, Made, Root};

/// Most bytes of a layer.
const LIMIT: u64 = 1 << 30;

/// How many damages: as many as `PREBAKE_DAMAGES` says, or the default; `all` of each.
pub fn wanted(default: usize) -> usize {
    match std::env::var("PREBAKE_DAMAGES") {
        Ok(text) if text == "all" => usize::MAX,
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}

/// A copy of a root. In this process: one that is made by another would hold locks for a moment.
pub fn copy(from: &Path, to: &Path) {
    let meta = fs::symlink_metadata(from).unwrap();
    let kind = meta.file_type();
    if kind.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
    } else if kind.is_symlink() {
        symlink(fs::read_link(from).unwrap(), to).unwrap();
    } else if kind.is_file() {
        fs::copy(from, to).unwrap();
    } else {
        let mode = rustix::fs::Mode::from_raw_mode(meta.mode());
        let kind = rustix::fs::FileType::from_raw_mode(meta.mode());
        rustix::fs::mknodat(rustix::fs::CWD, to, kind, mode, meta.rdev()).unwrap();
    }
    lchown(to, Some(meta.uid()), Some(meta.gid())).unwrap();
    if !kind.is_symlink() {
        fs::set_permissions(to, meta.permissions()).unwrap();
    }
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(from, &mut names[..]).unwrap_or(0);
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(from, name, &mut value[..]).unwrap();
        rustix::fs::lsetxattr(to, name, &value[..len], rustix::fs::XattrFlags::empty()).unwrap();
    }
    let time = rustix::fs::Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, to, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn waiting<R>(f: impl FnOnce(&Wait<'_>) -> R) -> R {
    f(&Wait { timeout: Duration::from_secs(5), tell: &|_| {}, stop: &AtomicBool::new(false) })
}

/// What a check finds that is to be mended.
pub fn check(root: &Path, contents: bool) -> Vec<Finding> {
    let options = Check { quick: false, snapshots: contents.then_some(LIMIT) };
    let at = At::new(root, CONTAINERD_ROOT);
    let report = waiting(|wait| care::check(&at, &options, &|_, _| {}, wait)).unwrap();
    report.findings.into_iter().filter(|finding| finding.severity != Severity::Info).collect()
}

/// Repairs, with blobs from the registries that the root itself tells of.
pub fn repair(root: &Path, options: &Repair) -> RepairReport {
    let at = At::new(root, CONTAINERD_ROOT);
    let mut fetch = |missing: &[Missing]| {
        let manners = Manners { tries: 2, ..Manners::default() };
        let registry = Options { manners, ..Options::default() };
        let lost: Vec<Lost> = missing
            .iter()
            .map(|Missing { descriptor, references }| Lost {
                descriptor: descriptor.clone(),
                references: references.clone(),
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(refetch(&at, &lost, registry, Arc::new(()))).unwrap()
    };
    waiting(|wait| care::repair(&at, options, &mut fetch, &|_, _| {}, wait)).unwrap()
}

/// Names and targets of all images, and digests of all blobs.
fn holdings(root: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let at = At::new(root, CONTAINERD_ROOT);
    let images = waiting(|wait| care::images(&at, Some("k8s.io"), wait)).unwrap();
    let images =
        images.into_iter().map(|image| format!("{} {} {:?}", image.name, image.digest, image.policy)).collect();
    let blobs = fs::read_dir(super::prebake::blobs_dir(root)).unwrap();
    (images, blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
}

/// A root that damages are done to copies of.
pub struct Base {
    pub root: std::path::PathBuf,
    pub made: Made,
}

/// What a campaign came to.
#[derive(Default)]
pub struct Tally {
    pub damages: usize,
    pub failures: Vec<String>,
}

/// Does damages to copies of roots in `work`, and hands each mended root to `judge`. Only one thread, if that starts processes:
/// those have locks of the others for a moment.
pub fn run(
    bases: &[Base],
    work: &Path,
    threads: usize,
    wanted: usize,
    judge: &(dyn Fn(&Base, &Path) -> Result<(), String> + Sync),
) -> Tally {
    ::prebake::install_tls();
    let sound: Vec<_> = bases
        .iter()
        .map(|base| {
            let contents = base.made.unpacked;
            let found = check(&base.root, contents);
            assert!(found.is_empty(), "{} is sound, and check says {found:#?}", base.made.name);
            holdings(&base.root)
        })
        .collect();
    let mut cases: Vec<(usize, &Damage, u64)> = Vec::new();
    for seed in 0..2 {
        for (i, damage) in DAMAGES.iter().enumerate() {
            // Another root for each kind, so that a few of them are of all.
            for at in 0..bases.len() {
                cases.push(((at + i) % bases.len(), damage, seed * 1000 + i as u64));
            }
        }
    }
    // A stride that meets every kind before any for the second time.
    let count = cases.len();
    let order = (0..bases.len()).flat_map(|at| (0..count / bases.len()).map(move |n| n * bases.len() + at));
    let only = std::env::var("PREBAKE_DAMAGE").ok();
    let todo = Mutex::new(order.filter(|n| only.as_ref().is_none_or(|only| cases[*n].1.name == only)));
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (todo, tally, cases, sound) = (&todo, &tally, &cases, &sound);
            scope.spawn(move || {
                loop {
                    if tally.lock().unwrap_or_else(PoisonError::into_inner).damages >= wanted {
                        return;
                    }
                    let Some(n) = todo.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
                    let (base, damage, seed) = cases[n];
                    let root = work.join(format!("damaged-{thread}"));
                    let _ = fs::remove_dir_all(&root);
                    copy(&bases[base].root, &root);
                    let one = || one(&bases[base], damage, seed, &root, &sound[base], judge);
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(one));
                    let result = result.unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned();
                        Some(Err(format!("{} {}: panicked: {text:?}", bases[base].made.name, damage.name)))
                    });
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        None => {}
                        Some(Ok(())) => tally.damages += 1,
                        Some(Err(failure)) => {
                            tally.damages += 1;
                            tally.failures.push(failure);
                        }
                    }
                }
            });
        }
    });
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One damage; `None` when the root has nothing that it could be done to.
fn one(
    base: &Base,
    damage: &Damage,
    seed: u64,
    root: &Path,
    (images, blobs): &(BTreeSet<String>, BTreeSet<String>),
    judge: &(dyn Fn(&Base, &Path) -> Result<(), String> + Sync),
) -> Option<Result<(), String>> {
    let place = damage.harm(&Root { path: root, made: base.made }, seed)?;
    let what = format!("{}: {} ({place}, seed {seed})", base.made.name, damage.name);
    let found = check(root, damage.contents);
    if found.is_empty() {
        return Some(Err(format!("{what}: not found")));
    }
    let lines = |found: &[Finding]| {
        let lines = found.iter().map(|one| format!("  {:?} {}: {}", one.severity, one.object, one.problem));
        lines.collect::<Vec<_>>().join("\n")
    };
    let options = Repair { snapshots: damage.contents, max_unpacked: LIMIT, ..Repair::default() };
    let report = repair(root, &options);
    let mended = || {
        let did = report.mended.iter().map(|one| format!("  did {}: {}", one.object, one.done));
        let failed = report.failed.iter().map(|one| format!("  failed {}: {}", one.object, one.done));
        did.chain(failed).collect::<Vec<_>>().join("\n")
    };
    let found = lines(&found);
    if !report.is_sound() {
        let remaining = lines(&report.remaining);
        return Some(Err(format!("{what}: not mended\nfound\n{found}\n{}\nremains\n{remaining}", mended())));
    }
    let left = check(root, base.made.unpacked);
    if !left.is_empty() {
        let left = lines(&left);
        return Some(Err(format!("{what}: still found\nfound\n{found}\n{}\nremains\n{left}", mended())));
    }
    let now = holdings(root);
    if now.0 != *images || now.1 != *blobs {
        let lost: Vec<_> = images.difference(&now.0).chain(blobs.difference(&now.1)).collect();
        let new: Vec<_> = now.0.difference(images).chain(now.1.difference(blobs)).collect();
        return Some(Err(format!(
            "{what}: other images or blobs than before\n{}\nlost {lost:#?}\nnew {new:#?}",
            mended()
        )));
    }
    Some(judge(base, root).map_err(|why| format!("{what}: {why}\n{}", mended())))
}
