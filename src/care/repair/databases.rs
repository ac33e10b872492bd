//! The databases' own structure, and records that cannot be read.

use std::collections::BTreeSet;

use super::Work;
use super::targets::Names;
use crate::care::Result;
use crate::care::state::Meta;
use crate::metadata::{self, Error, Mend, Snapshotter, SnapshotterDb};
use crate::oci::Descriptor;
use crate::snapshot::WITH_DIRS;

impl Work<'_, '_> {
    /// Makes all databases such that they can be read and written. Whether anything of `meta.db` may be lost.
    pub(super) fn databases(&mut self) -> Result<bool> {
        let state = self.state()?;
        let mut lost = state.spaces.is_empty();
        let why = match &state.meta {
            Meta::Absent => None,
            Meta::Damaged(why, _) => Some(why.clone()),
            Meta::Readable(report) if !report.findings.is_empty() => {
                Some(report.findings.iter().map(ToString::to_string).take(3).collect::<Vec<_>>().join(", "))
            }
            Meta::Readable(report) if report.one_meta => Some("only one meta page was valid".to_owned()),
            Meta::Readable(_) => None,
        };
        if let Some(why) = why {
            lost = true;
            let parts = if self.is_dry() { 0 } else { self.meta.rebuild()? };
            let parts = if parts == 0 { String::new() } else { format!("; {parts} parts of it are lost") };
            self.did("meta.db", format!("everything that can be read of it written anew into it ({why}){parts}"));
        }
        for snapshotter in state.snapshotters.iter().filter(|one| WITH_DIRS.contains(&one.name.as_str())) {
            self.snapshotter_db(snapshotter)?;
        }
        Ok(lost)
    }

    fn snapshotter_db(&mut self, snapshotter: &Snapshotter) -> Result<()> {
        let why = match &snapshotter.database {
            Err(error @ Error::Bolt { .. }) => super::words(error),
            Ok(Some(database)) if !database.structure.findings.is_empty() => database.structure.findings[0].to_string(),
            Ok(Some(database)) if database.structure.one_meta => "only one meta page was valid".to_owned(),
            _ => return Ok(()),
        };
        let plugin = format!("io.containerd.snapshotter.v1.{}", snapshotter.name);
        let Some(dir) = self.root.containerd_dir(&plugin)? else { return Ok(()) };
        let mut parts = 0;
        if !self.is_dry() {
            let (mut db, lost) = SnapshotterDb::rebuild(&dir)?;
            parts = lost;
            db.mend(&Mend::default())?;
        }
        let parts = if parts == 0 { String::new() } else { format!("; {parts} parts of it are lost") };
        let object = format!("{}/metadata.db", snapshotter.name);
        self.did(object, format!("everything that can be read of it written anew into it ({why}){parts}"));
        Ok(())
    }

    /// Drops records that cannot be read; images among them get the target that is known of them.
    pub(super) fn malformed(&mut self) -> Result<()> {
        let state = self.state()?;
        if state.spaces.iter().all(|space| space.all.wrong.is_empty()) {
            return Ok(());
        }
        let names = Names::new(&state);
        let mut restored: Vec<(String, String, Descriptor)> = Vec::new();
        let mut dropped = Vec::new();
        if self.is_dry() {
            let wrong = state.spaces.iter().flat_map(|space| &space.all.wrong);
            dropped.extend(wrong.map(|error| (super::words(error), "dropped".to_owned())));
        }
        self.write(|tx| {
            let mut kept = BTreeSet::new();
            for metadata::Malformed { path, what } in metadata::drop_malformed(tx)? {
                for space in &state.spaces {
                    let images = format!("v1/{}/images/", space.name());
                    let name = path.strip_prefix(&images).filter(|name| kept.insert((space.name(), name.to_string())));
                    if let Some((name, target)) = name.and_then(|name| Some((name, names.target(space.name(), name)?)))
                    {
                        restored.push((space.name().to_owned(), name.to_owned(), target));
                    }
                }
                dropped.push((path, format!("dropped: {what}")));
            }
            for (namespace, name, target) in &restored {
                super::targets::put(tx, &state, namespace, name, target)?;
            }
            Ok(())
        })?;
        for (path, done) in dropped {
            self.did(path, done);
        }
        for (namespace, name, target) in restored {
            self.did(format!("{namespace}/images/{name}"), format!("given its target {}", target.digest));
        }
        Ok(())
    }
}
