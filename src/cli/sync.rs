//! What `--sync` removes: images of the root that are not named.

use std::collections::BTreeMap;
use std::time::Duration;

use prebake::bake::{Plan, Wanted};
use prebake::care::{self, Collect, KeptNames, Prune, Pruned, Which};
use prebake::metadata::K8S_NAMESPACE;
use prebake::root::Root;
use serde_json::{Value, json};

use super::output::{self, OutputArgs};
use super::{Failed, prune, waiting};

/// A sync of a root.
pub(super) struct Sync {
    root: Root,
    lock_timeout: Duration,
    kept: BTreeMap<String, KeptNames>,
}

impl Sync {
    /// To these images.
    pub(super) fn to(root: &Root, lock_timeout: Duration, images: &[Wanted]) -> Self {
        let mut kept: BTreeMap<String, KeptNames> = BTreeMap::new();
        for image in images {
            let names = std::iter::once(&image.reference).chain(&image.names);
            kept.entry(image.namespace.clone()).or_default().extend(names.map(|name| (name.to_string(), None)));
        }
        Self { root: root.clone(), lock_timeout, kept }
    }

    fn go(self, dry_run: bool, output: OutputArgs) -> Result<(Pruned, Prune), Failed> {
        // The namespaces are those of the images.
        let collect = Collect { dry_run, ..Collect::default() };
        let request = Prune { which: Which::AllBut(self.kept), namespace: K8S_NAMESPACE.to_owned(), collect };
        let quiet = output.quiet || output.json;
        let pruned = waiting(self.lock_timeout, quiet, |wait| care::prune(&self.root, &request, wait));
        Ok((pruned.map_err(Failed::new)?, request))
    }

    /// Removes what is not named, and tells of it.
    pub(super) fn execute(self, output: OutputArgs) -> Result<(), Failed> {
        let (pruned, request) = self.go(false, output)?;
        if output.json {
            output::say_json(&event(&pruned));
        } else {
            prune::show(&pruned, &request, output.quiet);
        }
        Ok(())
    }

    /// Tells what would be removed after this plan; bytes that would be free then, at most.
    pub(super) fn tell(mut self, plan: &Plan, output: OutputArgs) -> Result<u64, Failed> {
        for image in &plan.images {
            if let Some(target) = self.kept.get_mut(&image.namespace).and_then(|names| names.get_mut(&image.name)) {
                target.clone_from(&image.digest);
            }
        }
        if !self.root.path().is_dir() {
            return Ok(0);
        }
        let (pruned, request) = self.go(true, output)?;
        if output.json {
            output::say_json(&event(&pruned));
        } else {
            prune::show(&pruned, &request, output.quiet);
        }
        Ok(pruned.collected.bytes)
    }
}

fn event(pruned: &Pruned) -> Value {
    let mut event = json!(pruned);
    event["event"] = json!("synced");
    event
}
