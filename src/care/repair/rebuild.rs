//! Snapshots that are gone, damaged, or of which nobody knows where they are: made again from their layers, or recognised by
//! what is in them.

use std::collections::BTreeSet;
use std::fs::File;

use chrono::{DateTime, Utc};

use super::Work;
use super::snapshots::chains;
use super::sources::{Missing, Sources};
use crate::care::Result;
use crate::care::anatomy::Layer;
use crate::care::compare::{self, Again, Differing};
use crate::care::state::State;
use crate::kind::chain;
use crate::layer;
use crate::metadata::{self, KIND_ACTIVE, KIND_COMMITTED, Mend, Snapshot, SnapshotterDb, Stored};
use crate::oci::Digest;
use crate::root::RootError;
use crate::snapshot::{self, OVERLAYFS, Removal, WITH_DIRS};
use crate::times::Times;

const PLUGIN: &str = "io.containerd.snapshotter.v1.overlayfs";

/// A layer's snapshot that `meta.db` names and `metadata.db` does not.
struct Gone {
    row: Snapshot,
    layer: Layer,
    below: Option<String>,
    created: DateTime<Utc>,
}

impl Work<'_, '_> {
    /// Makes snapshots again.
    pub(super) fn rebuild(&mut self) -> Result<()> {
        let state = self.state()?;
        let (gone, others) = gone(&state);
        let broken = broken(&state);
        let places: Vec<_> = compare::places(&state);
        let mut layers: Vec<Layer> = gone.iter().map(|gone| gone.layer.clone()).collect();
        layers.extend(places.iter().filter(|place| broken.contains(&place.id)).map(|place| place.layer.clone()));
        if self.is_dry() {
            for gone in &gone {
                self.did(format!("{OVERLAYFS}/{}", gone.row.name), "to be recognised, or made again from its layer");
            }
            for place in places.iter().filter(|place| broken.contains(&place.id)) {
                self.did(place.object(), "to be made again from its layer");
            }
            return Ok(());
        }
        self.lend(&state, &layers)?;
        let state = self.state()?;
        if !gone.is_empty() {
            self.find(&state, gone)?;
        }
        if !others.is_empty() {
            self.find_others(&others)?;
        }
        self.relink()?;
        let state = self.state()?;
        let broken = self::broken(&state);
        if !broken.is_empty() {
            // Makes the directory of all of them as well.
            snapshot::check(self.root)?;
        }
        if self.options.snapshots || !broken.is_empty() {
            let all = self.options.snapshots;
            let limit = self.options.max_unpacked;
            let compared =
                compare::some(self.root, &state, limit, self.progress, &|place| all || broken.contains(&place.id))?;
            let dirs = snapshot::Dirs::of_root(self.root)?;
            for Differing { place, how, staged, .. } in compared.differing {
                let created = place.stored.created.unwrap_or_default();
                let Some(dirs) = &dirs else { continue };
                dirs.replace(place.id, staged, created, || self.root.sync())?;
                self.did(place.object(), format!("made again from its layer: {}", how.shown.join(", ")));
            }
            for (place, why) in compared.failed {
                self.cannot(place.object(), why);
            }
            for place in compared.discarded {
                let digest = &place.layer.descriptor.digest;
                if let Some(why) = self.unreachable.get(digest).cloned() {
                    self.cannot(place.object(), format!("its layer {digest} was discarded, and cannot be had: {why}"));
                } else if broken.contains(&place.id) {
                    self.cannot(place.object(), format!("its layer {digest} was discarded"));
                }
            }
        }
        self.sweep()
    }

    /// Brings layers that are not here, for as long as this takes.
    fn lend(&mut self, state: &State, layers: &[Layer]) -> Result<()> {
        let sources = Sources::new(state);
        let mut wanted: Vec<Missing> = Vec::new();
        for layer in layers {
            let digest = &layer.descriptor.digest;
            let here = state.files.contains_key(digest) && !self.bad.contains_key(digest);
            if !here
                && !self.unreachable.contains_key(digest)
                && wanted.iter().all(|one| one.descriptor.digest != *digest)
            {
                wanted.push(sources.of(layer.descriptor.clone()));
            }
        }
        let recorded = |digest: &Digest| state.spaces.iter().any(|space| space.recorded(digest));
        let digests = wanted.iter().map(|one| one.descriptor.digest.clone());
        self.temporary.extend(digests.filter(|digest| !recorded(digest)));
        if !wanted.is_empty() {
            self.bring(&wanted)?;
        }
        Ok(())
    }

    /// Finds the directories of layers, or makes them.
    fn find(&mut self, state: &State, gone: Vec<Gone>) -> Result<()> {
        snapshot::check(self.root)?;
        let dir = self.root.make_containerd_dir(PLUGIN, 0o700)?;
        let Some(again) = Again::new(self.root, state, self.options.max_unpacked)? else { return Ok(()) };
        for Gone { row, layer, below, created } in gone {
            let object = format!("{OVERLAYFS}/{}", row.name);
            let mut db = SnapshotterDb::open(&dir)?;
            let records = db.records()?;
            let lowers = ids_below(&records, below.as_deref());
            let Some(lowers) = lowers else {
                self.cannot(object, "what it lies on cannot be made");
                continue;
            };
            let staged = match again.stage(&layer, &lowers, created.timestamp()) {
                Ok(staged) => staged,
                Err(error) => {
                    let digest = &layer.descriptor.digest;
                    let why = self.unreachable.get(digest).cloned().unwrap_or_else(|| chain(&error));
                    self.cannot(object, format!("its layer {digest} cannot be unpacked again: {why}"));
                    continue;
                }
            };
            let (staged, usage) = staged;
            let known: BTreeSet<u64> = records.snapshots.values().filter_map(|stored| stored.id).collect();
            let orphans = orphans(self.root, &known)?;
            let same = |id: &u64| -> Result<bool> {
                let path = again.dirs.fs(*id);
                let Ok(found) = File::open(&path) else { return Ok(false) };
                let made = staged.fs().map_err(|source| RootError::new("opening", &path, source))?;
                let how = layer::differences(&made, &found.into(), Some(created.timestamp()));
                Ok(how.map_err(|source| RootError::new("comparing", &path, source))?.count == 0)
            };
            let mut id = None;
            for orphan in &orphans {
                if same(orphan)? {
                    id = Some(*orphan);
                    break;
                }
            }
            let found = id.is_some();
            let dated = id.and_then(|id| super::snapshots::date_of(&again.dirs.fs(id).with_file_name("")));
            let highest = known.iter().chain(&orphans).copied().max().unwrap_or(0).max(records.sequence.unwrap_or(0));
            let id = id.unwrap_or(highest + 1);
            // Given out before the directory gets its name.
            db.mend(&Mend { sequence: highest.max(id), ..Mend::default() })?;
            if !found {
                again.dirs.replace(id, staged, created, || self.root.sync())?;
            }
            let stored = Stored {
                id: Some(id),
                kind: Some(KIND_COMMITTED),
                parent: below.unwrap_or_default(),
                size: Some(usage.bytes),
                inodes: Some(usage.inodes),
                created: Some(dated.unwrap_or(created)),
            };
            let put = [(row.name.clone(), stored)].into_iter().collect();
            db.mend(&Mend { put, sequence: id, ..Mend::default() })?;
            let how = if found { "recognised by what is in it" } else { "made again from its layer" };
            self.did(object, format!("{how}, as snapshots/{id}"));
        }
        Ok(())
    }

    /// Of snapshots that are no layers, the last one without a directory has the last directory without a record.
    fn find_others(&mut self, others: &[(Snapshot, String)]) -> Result<()> {
        let dir = self.root.make_containerd_dir(PLUGIN, 0o700)?;
        let mut db = SnapshotterDb::open(&dir)?;
        let records = db.records()?;
        let known: BTreeSet<u64> = records.snapshots.values().filter_map(|stored| stored.id).collect();
        let orphans = orphans(self.root, &known)?;
        let lost: Vec<_> = others.iter().filter(|(row, _)| !records.snapshots.contains_key(&row.name)).collect();
        match (&lost[..], orphans.iter().collect::<Vec<_>>().as_slice()) {
            ([(row, parent)], [id]) => {
                let (kind, parent) = (Some(KIND_ACTIVE), parent.clone());
                let stored = Stored { id: Some(**id), kind, parent, size: None, inodes: None, created: None };
                db.mend(&Mend { put: [(row.name.clone(), stored)].into(), sequence: **id, ..Mend::default() })?;
                self.did(
                    format!("{OVERLAYFS}/{}", row.name),
                    format!("given the one directory without a record, snapshots/{id}"),
                );
            }
            (lost, []) => {
                drop(db);
                let rows: Vec<Snapshot> = lost.iter().map(|(row, _)| row.clone()).collect();
                self.write(|tx| rows.iter().try_for_each(|row| metadata::remove_snapshot(tx, row).map(drop)))?;
                for row in rows {
                    self.did(format!("{OVERLAYFS}/{}", row.name), "its record in meta.db dropped: its files are gone");
                }
            }
            (lost, orphans) => {
                for (row, _) in lost {
                    let why = format!("which of {} directories is its cannot be told; they are kept", orphans.len());
                    self.cannot(format!("{OVERLAYFS}/{}", row.name), why);
                }
            }
        }
        Ok(())
    }

    /// Links between ids as records have them.
    fn relink(&mut self) -> Result<()> {
        let Some(dir) = self.root.containerd_dir(PLUGIN)? else { return Ok(()) };
        let state = self.state()?;
        let Some(records) = compare::records(&state) else { return Ok(()) };
        let all = &records.snapshots;
        let link =
            |(name, stored): (&String, &Stored)| Some(((all.get(&stored.parent)?.id?, stored.id?), name.clone()));
        let links: std::collections::BTreeMap<_, _> = all.iter().filter_map(link).collect();
        if links != records.links {
            SnapshotterDb::open(&dir)?.mend(&Mend { links: Some(links), ..Mend::default() })?;
        }
        Ok(())
    }

    /// Removes snapshots and directories that nothing needs, unless one is looked for.
    fn sweep(&mut self) -> Result<()> {
        let state = self.state()?;
        let (gone, others) = gone(&state);
        if self.keep_unknown || !gone.is_empty() || !others.is_empty() {
            return Ok(());
        }
        for snapshotter in state.snapshotters.iter().filter(|one| WITH_DIRS.contains(&one.name.as_str())) {
            let named: BTreeSet<&str> = state
                .snapshots()
                .filter(|row| row.snapshotter == snapshotter.name)
                .map(|row| row.name.as_str())
                .collect();
            let Some(removal) = Removal::all_but(snapshotter, |name| named.contains(name)) else { continue };
            removal.execute(self.root)?;
            for name in removal.names {
                self.did(format!("{}/{name}", snapshotter.name), "removed: nothing needs it");
            }
            for dir in removal.dirs {
                self.did(format!("{}/snapshots/{dir}", snapshotter.name), "removed: it has no record");
            }
        }
        Ok(())
    }
}

/// Snapshots of overlayfs that `meta.db` alone names: of layers, the lowest first; and others, with the names of their parents.
fn gone(state: &State) -> (Vec<Gone>, Vec<(Snapshot, String)>) {
    let none = metadata::SnapshotterRecords::default();
    let records = compare::records(state).unwrap_or(&none);
    let (mut layers, mut others) = (Vec::new(), Vec::new());
    for space in &state.spaces {
        let rows: std::collections::BTreeMap<&str, &Snapshot> = (space.all.snapshots.iter())
            .map(|(row, _)| row)
            .filter(|row| row.snapshotter == OVERLAYFS)
            .map(|row| (row.key.as_str(), row))
            .collect();
        let mut seen = BTreeSet::new();
        let chains = chains(space, state).all;
        let mut times = Times::new(None);
        for (chain, created) in &chains {
            times.add(created.as_deref(), chain.iter().map(|layer| &layer.chain));
        }
        for (chain, _) in chains {
            let mut below = None;
            for layer in chain {
                let Some(row) = rows.get(layer.chain.as_str()) else { break };
                let name = row.name.clone();
                if seen.insert(row.key.clone()) && !records.snapshots.contains_key(&name) {
                    let created = times.part(&layer.chain);
                    layers.push(Gone { row: (*row).clone(), layer, below: below.clone(), created });
                }
                below = Some(name);
            }
        }
        for row in rows.values().filter(|row| !seen.contains(&row.key) && !records.snapshots.contains_key(&row.name)) {
            let parent = rows.get(row.parent.as_str()).map_or(String::new(), |parent| parent.name.clone());
            others.push(((*row).clone(), parent));
        }
    }
    (layers, others)
}

/// Ids of overlayfs whose directories are not what they have to be, or are not there.
fn broken(state: &State) -> BTreeSet<u64> {
    let Some(overlayfs) = state.snapshotters.iter().find(|one| one.name == OVERLAYFS) else { return BTreeSet::new() };
    let ids = compare::records(state).into_iter().flat_map(|records| records.snapshots.values());
    ids.filter_map(|stored| stored.id)
        .filter(|id| overlayfs.broken.contains(id) || !overlayfs.dirs.contains(&id.to_string()))
        .collect()
}

/// Ids from the lowest up to a snapshot; `None` when one of them is not known.
fn ids_below(records: &metadata::SnapshotterRecords, name: Option<&str>) -> Option<Vec<u64>> {
    let mut ids = Vec::new();
    let mut at = name.unwrap_or_default().to_owned();
    while !at.is_empty() && ids.len() <= records.snapshots.len() {
        let stored = records.snapshots.get(&at)?;
        ids.push(stored.id?);
        at.clone_from(&stored.parent);
    }
    ids.reverse();
    Some(ids)
}

/// Directories by ids that no record has.
fn orphans(root: &crate::root::Root, known: &BTreeSet<u64>) -> Result<BTreeSet<u64>> {
    let all = metadata::snapshotters(root)?;
    let dirs = all.into_iter().filter(|one| one.name == OVERLAYFS).flat_map(|one| one.dirs);
    Ok(dirs.filter_map(|dir| dir.parse().ok()).filter(|id| !known.contains(id)).collect())
}
