//! Snapshots against the layers they were made of: each layer is unpacked again beside them, and compared path by path.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::Result;
use super::anatomy::{Anatomy, Layer};
use super::finding::{Findings, REPAIR_SNAPSHOTS, Severity};
use super::state::{Space, State};
use crate::kind::chain;
use crate::layer::{self, Buffers, Differences, Job, Onto, Usage};
use crate::metadata::{SnapshotterRecords, Stored};
use crate::root::{Root, RootError};
use crate::snapshot::{self, Dirs, OVERLAYFS, Staged};

/// A layer's snapshot.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) layer: Layer,
    /// Its name in `metadata.db`.
    pub(super) name: String,
    pub(super) id: u64,
    pub(super) stored: Stored,
    /// Ids of those below it, the lowest first.
    pub(super) below: Vec<u64>,
}

impl Place {
    /// As findings name it.
    pub(super) fn object(&self) -> String {
        format!("{OVERLAYFS}/{}", self.name)
    }
}

/// A snapshot that is not what its layer makes, and what the layer makes.
pub(super) struct Differing {
    pub(super) place: Place,
    pub(super) how: Differences,
    pub(super) staged: Staged,
}

/// What a comparison came to.
#[derive(Default)]
pub(super) struct Compared {
    /// Snapshots that are as they should be.
    pub(super) same: u64,
    pub(super) differing: Vec<Differing>,
    /// Those whose layers were discarded.
    pub(super) discarded: Vec<Place>,
    /// Those that cannot be compared, and why.
    pub(super) failed: Vec<(Place, String)>,
}

/// The snapshots of layers that have records everywhere, each once, with those below before those above.
pub(super) fn places(state: &State) -> Vec<Place> {
    let Some(records) = records(state) else { return Vec::new() };
    let mut places = Vec::new();
    let mut seen = HashSet::new();
    for space in &state.spaces {
        let mut targets = HashSet::new();
        for row in space.all.images.iter().filter(|row| targets.insert(&row.target.digest)) {
            let anatomy = Anatomy::new(&state.store, &row.target, &|digest| space.recorded(digest));
            for body in &anatomy.manifests {
                of_chain(space, records, body.layers(), &mut seen, &mut places);
            }
        }
    }
    places
}

/// What the overlayfs snapshotter has.
pub(super) fn records(state: &State) -> Option<&SnapshotterRecords> {
    state.snapshotters.iter().find(|snapshotter| snapshotter.name == OVERLAYFS)?.records()
}

fn of_chain(
    space: &Space,
    records: &SnapshotterRecords,
    layers: Vec<Layer>,
    seen: &mut HashSet<u64>,
    places: &mut Vec<Place>,
) {
    let rows: HashMap<&str, &str> = (space.all.snapshots.iter())
        .filter(|(row, _)| row.snapshotter == OVERLAYFS)
        .map(|(row, _)| (row.key.as_str(), row.name.as_str()))
        .collect();
    let mut below = Vec::new();
    for layer in layers {
        let Some(name) = rows.get(layer.chain.as_str()) else { return };
        let Some(stored) = records.snapshots.get(*name) else { return };
        let Some(id) = stored.id else { return };
        if seen.insert(id) {
            places.push(Place { layer, name: (*name).to_owned(), id, stored: stored.clone(), below: below.clone() });
        }
        below.push(id);
    }
}

/// Unpacks layers again.
pub(super) struct Again<'s> {
    pub(super) state: &'s State,
    pub(super) dirs: Dirs,
    limit: u64,
    buffers: std::sync::Arc<Buffers>,
    /// What lies in the place of snapshots that are to be replaced.
    instead: BTreeMap<u64, PathBuf>,
}

impl<'s> Again<'s> {
    /// `None` where nothing was ever unpacked.
    ///
    /// # Errors
    /// [`super::Error::Snapshot`] also when this process cannot make snapshots.
    pub(super) fn new(root: &Root, state: &'s State, limit: u64) -> Result<Option<Self>> {
        let Some(dirs) = Dirs::of_root(root)? else { return Ok(None) };
        snapshot::check(root)?;
        Ok(Some(Self { state, dirs, limit, buffers: Buffers::new(), instead: BTreeMap::new() }))
    }

    fn path(&self, id: u64) -> PathBuf {
        self.instead.get(&id).cloned().unwrap_or_else(|| self.dirs.fs(id))
    }

    /// Unpacks a layer beside the snapshots, onto those of these ids.
    pub(super) fn stage(&self, layer: &Layer, below: &[u64], time: i64) -> layer::Result<(Staged, Usage)> {
        let name = format!("again-{}-{}", std::process::id(), layer.chain.hex());
        let staged = self.dirs.stage(&name).map_err(layer::Error::Io)?;
        let fs = staged.fs()?;
        let job = Job {
            media_type: &layer.descriptor.media_type,
            diff_id: &layer.diff_id,
            limit: self.limit,
            time,
            buffers: &self.buffers,
            stop: &|| false,
        };
        let lower = |n: usize| -> layer::Result<Option<OwnedFd>> {
            let Some(id) = below.len().checked_sub(n + 1).map(|i| below[i]) else { return Ok(None) };
            Ok(Some(File::open(self.path(id))?.into()))
        };
        let onto = if below.is_empty() { Onto::Nothing } else { Onto::Layers(&lower) };
        let blob = self.state.store.open_blob(&layer.descriptor.digest);
        let blob = blob.map_err(|error| layer::Error::Source(std::io::Error::other(chain(&error))))?;
        layer::unpack(blob, &job, fs.try_clone()?, &onto)?;
        let usage = layer::usage(&fs)?;
        Ok((staged, usage))
    }

    /// Unpacks the layer of a snapshot, and says how what is there differs from it.
    fn compare(&self, place: &Place) -> layer::Result<(Staged, Differences)> {
        let time = place.stored.created.unwrap_or_default();
        let (staged, _) = self.stage(&place.layer, &place.below, time.timestamp())?;
        // prebake dates what no layer has a time for, in whole seconds, and says so in the record; containerd does not.
        let any = (time.timestamp_subsec_nanos() != 0).then(|| time.timestamp());
        let mut how = Differences::default();
        match File::open(self.dirs.fs(place.id)) {
            Ok(found) if found.metadata()?.is_dir() => how = layer::differences(&staged.fs()?, &found.into(), any)?,
            _ => {
                how.count = 1;
                how.shown.push("has no files at all".to_owned());
            }
        }
        Ok((staged, how))
    }
}

/// Compares all snapshots of layers. `progress` hears of layers' bytes.
///
/// # Errors
/// [`super::Error::Snapshot`] when this process cannot make snapshots.
pub(super) fn all(root: &Root, state: &State, limit: u64, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Compared> {
    some(root, state, limit, progress, &|_| true)
}

/// As [`all`], of those that are wanted.
pub(super) fn some(
    root: &Root,
    state: &State,
    limit: u64,
    progress: &(dyn Fn(u64, u64) + Sync),
    wanted: &dyn Fn(&Place) -> bool,
) -> Result<Compared> {
    let mut compared = Compared::default();
    let places: Vec<Place> = places(state).into_iter().filter(wanted).collect();
    if places.is_empty() {
        return Ok(compared);
    }
    let Some(mut again) = Again::new(root, state, limit)? else { return Ok(compared) };
    let total = places.iter().map(|place| place.layer.descriptor.size).sum();
    let mut done = 0;
    for place in places {
        done += place.layer.descriptor.size;
        if state.files.contains_key(&place.layer.descriptor.digest) {
            match again.compare(&place) {
                Ok((_, how)) if how.count == 0 => compared.same += 1,
                Ok((staged, how)) => {
                    again.instead.insert(place.id, staged.fs_path());
                    compared.differing.push(Differing { place, how, staged });
                }
                Err(layer::Error::Io(source)) => {
                    return Err(RootError::new("comparing", &again.dirs.fs(place.id), source).into());
                }
                Err(error) => compared.failed.push((place, chain(&error))),
            }
        } else {
            compared.discarded.push(place);
        }
        progress(done, total);
    }
    Ok(compared)
}

/// Tells of what a comparison came to.
pub(super) fn findings(compared: &Compared, found: &mut Findings) {
    for Differing { place, how, .. } in &compared.differing {
        let more = how.count - how.shown.len() as u64;
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        found.add(
            Severity::Error,
            place.object(),
            format!("is not what its layer makes: {}{more}", how.shown.join(", ")),
            "containers from it see that; containerd never looks",
            REPAIR_SNAPSHOTS,
        );
    }
    for place in &compared.discarded {
        found.add(
            Severity::Info,
            place.object(),
            "has a layer that was discarded, and cannot be compared with it",
            "containerd uses it as it is",
            "prebake repair --restore-layers",
        );
    }
    for (place, why) in &compared.failed {
        found.add(
            Severity::Error,
            place.object(),
            format!("cannot be compared with its layer: {why}"),
            "containerd could not unpack that either",
            super::finding::REPAIR,
        );
    }
}
