//! Those who unpack images, and the comparison of two of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::cri;
use crate::peers::{Containerd, run};
use crate::snapshots::Snapshots;
use crate::stack::Image;
use crate::support::prebake::{containerd_root, prebake};
use crate::support::registry::TestRegistry;
use crate::tree::{self, EPOCH, Now};

pub enum Side {
    Containerd(Containerd, PathBuf),
    Prebake(PathBuf),
}

impl Side {
    /// A release of containerd on a new root in `dir`.
    pub fn containerd(release: &'static str, dir: &Path) -> Self {
        let dir = dir.join(format!("containerd-{release}"));
        let root = dir.join("root");
        fs::create_dir_all(&root).unwrap();
        Self::Containerd(Containerd::start(release, &root, &dir), root)
    }

    /// prebake on a new root in `dir`.
    pub fn prebake(dir: &Path) -> Self {
        let root = dir.join("prebake");
        fs::create_dir_all(&root).unwrap();
        Self::Prebake(root)
    }

    /// Pulls an image and unpacks it; why that did not go.
    fn unpack(&self, reference: &str) -> Result<(), String> {
        match self {
            Self::Containerd(daemon, _) => cri::pull_image(&daemon.socket(), reference),
            Self::Prebake(root) => {
                let run = prebake(root, &format!("bake --unpack --source-date-epoch {EPOCH} {reference}"));
                // What it documents for images it cannot use; all else is a fault of its own.
                assert!([0, 1, 2, 6].contains(&run.code), "{reference}: {run:?}");
                if run.code == 0 { Ok(()) } else { Err(run.stderr) }
            }
        }
    }

    /// containerd's directory.
    pub fn root(&self) -> PathBuf {
        match self {
            Self::Containerd(_, root) => root.clone(),
            Self::Prebake(root) => containerd_root(root),
        }
    }
}

/// What two sides made of an image.
pub struct Outcome {
    pub left: Result<(), String>,
    pub right: Result<(), String>,
    /// How they differ, where both took it or only one did.
    pub differences: Vec<String>,
}

pub struct Pair {
    left: Side,
    right: Side,
    start: SystemTime,
    work: PathBuf,
}

impl Pair {
    pub fn new(left: Side, right: Side, work: &Path) -> Self {
        Self { left, right, start: SystemTime::now(), work: work.to_owned() }
    }

    pub fn right(&self) -> &Side {
        &self.right
    }

    /// Has both unpack an image and compares what they made; with `merged`, also what a container would see.
    pub fn judge(&self, image: &Image, merged: bool) -> Outcome {
        let registry = TestRegistry::start(image.content.clone());
        let (repository, tag) = image.content.tags.keys().next().unwrap();
        let reference = registry.reference(&format!("{repository}:{tag}"));
        let (left, right) = (self.left.unpack(&reference), self.right.unpack(&reference));
        let differences = match (&left, &right) {
            (Ok(()), Ok(())) => self.compare(image, merged),
            (Err(_), Err(_)) => Vec::new(),
            (left, right) => vec![format!("accepted: {left:?} | {right:?}")],
        };
        Outcome { left, right, differences }
    }

    fn compare(&self, image: &Image, merged: bool) -> Vec<String> {
        let left = Snapshots::read(&self.left.root(), image);
        let right = Snapshots::read(&self.right.root(), image);
        let mut found = Vec::new();
        let keys: BTreeSet<&String> = left.said.keys().chain(right.said.keys()).collect();
        for key in keys {
            let (left, right) = (left.said.get(key), right.said.get(key));
            if left != right {
                found.push(format!("{key}: {left:?} | {right:?}"));
            }
        }
        if left.dirs.len() != image.layers.len() || right.dirs.len() != image.layers.len() {
            found.push(format!("snapshots: {} | {} of {}", left.dirs.len(), right.dirs.len(), image.layers.len()));
            return found;
        }
        let fs = |dirs: &[PathBuf]| dirs.iter().map(|dir| tree::read(&dir.join("fs"))).collect::<Vec<_>>();
        let mut trees = [fs(&left.dirs), fs(&right.dirs)];
        for (side, (trees, snapshots)) in ["left", "right"].iter().zip(trees.iter().zip([&left, &right])) {
            for (i, (tree, recorded)) in trees.iter().zip(&snapshots.usages).enumerate() {
                let (inodes, bytes, slack) = tree::usage(tree);
                if recorded.0 != inodes || recorded.1.abs_diff(bytes) > slack {
                    found.push(format!("layer {i}: usage on the {side}: {inodes} {bytes}, recorded: {recorded:?}"));
                }
            }
        }
        if merged {
            trees[0].push(tree::read(&Mount::overlay(&self.work.join("left"), &left.dirs).0));
            trees[1].push(tree::read(&Mount::overlay(&self.work.join("right"), &right.dirs).0));
        }
        // Also what was read just now.
        let now = Now::since(self.start);
        for (i, (left, right)) in trees[0].iter().zip(&trees[1]).enumerate() {
            let name = if i == image.layers.len() { "merged".to_owned() } else { format!("layer {i}") };
            found.extend(tree::differences(left, right, &now).into_iter().map(|line| format!("{name}: {line}")));
        }
        found
    }
}

/// A read-only mount of snapshots on each other, as a container has it.
struct Mount(PathBuf);

impl Mount {
    fn overlay(dir: &Path, snapshots: &[PathBuf]) -> Self {
        let (at, empty) = (dir.join("at"), dir.join("empty"));
        fs::create_dir_all(&at).unwrap();
        // One lower directory alone is no overlay.
        fs::create_dir_all(&empty).unwrap();
        let lower: Vec<String> = snapshots.iter().rev().map(|dir| dir.join("fs").display().to_string()).collect();
        let options = format!("ro,index=off,lowerdir={}:{}", lower.join(":"), empty.display());
        run(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&at));
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}
