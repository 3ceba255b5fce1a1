//! The conversion itself: from a plan and a claimed output to a staged artifact.
//!
//! Owns the order of the steps and what a resumed run may take over. The staged artifact is
//! complete but for verdict, reports and card, so the runtime can open and measure it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use neuroconv_format::manifest::Manifest;
use neuroconv_runtime::{Checkpoint, Progress, WeightSource};

use crate::Error;
use crate::calibrated::{RoundedLayers, round_layers};
use crate::emit::StagedArtifact;
use crate::folder;
use crate::job::{JobId, SourceFiles, hash_file};
use crate::journal::{Journal, Record};
use crate::ours;
use crate::pass::{ConvertedLayers, ConvertedModel, convert_attention};
use crate::pipeline::{Pipeline, Task};
use crate::plan::{Plan, PlannedTensor, REPORTS_BYTES};
use crate::staging::{Staging, WorkDir, sync_dir};
use crate::unit::UnitFiles;
use crate::weights::WeightsFile;

/// Carries `plan` out. `calibration` are windows of token ids, equally long, that a conversion of
/// attention and rounding learn from; without any a conversion of attention looks at the weights alone,
/// and a plan that rounds with feedback is refused. Quantization runs on the current rayon pool; its size changes no byte.
///
/// A run that was killed, cancelled or hit a full disk goes on where it stopped when it is
/// started again with the same source, recipe and version. Any other failure removes what was
/// staged.
pub fn execute(
    plan: &Plan,
    source: &Checkpoint,
    calibration: &[Vec<u32>],
    staging: Staging,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<StagedArtifact, Error> {
    convert(plan, source, calibration, &[], staging, progress, cancel)
}

/// The same with the tensors that were rounded by [`crate::unit::convert_unit`] into the folders `units`.
/// What was rounded with calibration text cannot be split, so there is none.
pub fn merge(
    plan: &Plan,
    source: &Checkpoint,
    units: &[PathBuf],
    staging: Staging,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<StagedArtifact, Error> {
    convert(plan, source, &[], units, staging, progress, cancel)
}

fn convert(
    plan: &Plan,
    source: &Checkpoint,
    calibration: &[Vec<u32>],
    units: &[PathBuf],
    staging: Staging,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<StagedArtifact, Error> {
    let total = plan.tensors.len();
    let files = source.files();
    let hashes = SourceFiles::hash(files.folder(), files.all_files()?, progress, cancel)?.ok_or(
        Error::Interrupted {
            staging: None,
            done: 0,
            total,
            unit: "tensors",
        },
    )?;
    let units = match units {
        [] => None,
        folders => Some(UnitFiles::open(plan, &hashes, folders)?),
    };
    let manifest = folder::manifest(plan, &hashes);
    let (work, notes) = staging.enter(&JobId::of(&manifest))?;
    let run = Run {
        plan,
        source,
        calibration,
        units,
        hashes: &hashes,
        staging: &staging,
        work: &work,
        progress,
        cancel,
    };
    match run.fill(manifest) {
        Ok(Filled {
            manifest,
            layers,
            rounded,
            weights_sha256,
            resumed,
        }) => {
            let mut staged = StagedArtifact {
                staging,
                work,
                manifest,
                layers,
                rounded,
                weights_sha256,
                notes,
                resumed,
            };
            let idle = staged.rounded.as_ref().and_then(RoundedLayers::notes);
            staged.notes.extend(idle);
            if resumed > 0 {
                staged.notes.push(format!(
                    "resumed: {resumed} of {total} tensors were done already"
                ));
            }
            Ok(staged)
        }
        Err(error) => {
            if !error.is_resumable() {
                // The first error is the one to tell; a folder that stays is swept up later.
                let _ = work.remove().and_then(|()| sync_dir(staging.parent()));
            }
            Err(error)
        }
    }
}

/// What all steps share.
pub(crate) struct Run<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) source: &'a Checkpoint,
    pub(crate) calibration: &'a [Vec<u32>],
    /// Where tensors come from, if they are rounded already.
    pub(crate) units: Option<UnitFiles>,
    pub(crate) hashes: &'a SourceFiles,
    pub(crate) staging: &'a Staging,
    pub(crate) work: &'a WorkDir,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a AtomicBool,
}

/// What comes of it.
struct Filled {
    manifest: Manifest,
    layers: Option<ConvertedLayers>,
    rounded: Option<RoundedLayers>,
    weights_sha256: String,
    resumed: usize,
}

impl Run<'_> {
    fn fill(&self, mut manifest: Manifest) -> Result<Filled, Error> {
        let artifact = self.work.artifact();
        self.work.clear_except(ours::WEIGHTS)?;
        let layers = self.convert()?;
        let more = self
            .plan
            .disk_bytes
            .saturating_sub(self.plan.weights_bytes)
            .max(REPORTS_BYTES);
        let path = artifact.join(ours::WEIGHTS);
        let weights = WeightsFile::open(path.clone(), self.plan.weights_bytes, more)?;
        let rounded = self.round(layers.as_ref())?;
        let (records, resumed) = self.tensors(&weights, layers.as_ref(), rounded.as_ref())?;
        // Last, so that an unfinished file cannot be taken for a finished one.
        weights.write_at(&self.plan.layout.header_bytes(), 0)?;
        weights.sync()?;
        self.hashes.check_unchanged()?;
        folder::write_side(self.plan, self.source.files(), self.hashes, &artifact)?;
        manifest.tensors = folder::tensor_records(self.plan, &records);
        folder::write_manifest(&manifest, &artifact)?;
        self.progress
            .start("hash weights", self.plan.weights_bytes, "bytes");
        let (weights_sha256, _) = hash_file(&path, self.progress, self.cancel)?
            .ok_or_else(|| self.interrupted(records.len()))?;
        self.progress.finish();
        Ok(Filled {
            manifest,
            layers,
            rounded,
            weights_sha256,
            resumed,
        })
    }

    /// Converts attention where the plan says so.
    fn convert(&self) -> Result<Option<ConvertedLayers>, Error> {
        let convert = |recipe| {
            let (source, spec, dir) = (self.source, &self.plan.spec, self.work.converted());
            let text = self.calibration;
            convert_attention(source, spec, recipe, text, &dir, self.progress, self.cancel)
        };
        self.plan.mla.as_ref().map(convert).transpose()
    }

    /// Rounds the matrices of the layers where calibration text says how.
    fn round(&self, converted: Option<&ConvertedLayers>) -> Result<Option<RoundedLayers>, Error> {
        if !self.plan.learns() && !self.plan.wants_survey() {
            return Ok(None);
        }
        if self.calibration.is_empty() || self.plan.wants_survey() {
            return Err(Error::NoCalibration {
                recipe: self.plan.recipe.clone(),
            });
        }
        let dir = self.work.rounded();
        let round = |source: &dyn WeightSource| {
            let (text, progress) = (self.calibration, self.progress);
            round_layers(source, self.plan, text, &dir, progress, self.cancel)
        };
        match converted {
            Some(layers) => {
                let model = ConvertedModel::new(self.source, &self.plan.spec, layers);
                round(&model).map(Some)
            }
            None => round(&self.plan.rewritten(self.source)).map(Some),
        }
    }

    /// Brings every tensor onto the disk; returns their records and how many were there before.
    pub(crate) fn tensors(
        &self,
        weights: &WeightsFile,
        converted: Option<&ConvertedLayers>,
        rounded: Option<&RoundedLayers>,
    ) -> Result<(BTreeMap<String, Record>, usize), Error> {
        let (mut journal, found) = Journal::open(&self.work.journal())?;
        let mut done: BTreeMap<String, Record> = found
            .into_iter()
            .map(|record| (record.name.clone(), record))
            .collect();
        let params = self.plan.tensors.iter().map(PlannedTensor::elements).sum();
        self.progress.start("quantize", params, "weights");
        let mut tasks = Vec::new();
        for tensor in &self.plan.tensors {
            let name = tensor.id.to_string();
            let range = self.plan.range(&name);
            let parts = self.plan.part_ranges(tensor);
            match done.remove(&name) {
                Some(record) if still_true(&record, &range, &parts, weights)? => {
                    self.progress.advance(tensor.elements());
                    done.insert(name, record);
                }
                _ => tasks.push(Task {
                    tensor,
                    range,
                    parts,
                }),
            }
        }
        done.retain(|name, _| self.plan.tensors.iter().any(|t| t.id.to_string() == *name));
        let resumed = done.len();
        let pipeline = Pipeline {
            source: self.source,
            rewritten: self.plan.rewritten(self.source),
            converted,
            rounded,
            units: self.units.as_ref(),
            weights,
            sync_bytes: self.staging.sync_bytes,
            progress: self.progress,
            cancel: self.cancel,
        };
        for record in pipeline.run(&tasks, &mut journal)? {
            done.insert(record.name.clone(), record);
        }
        if done.len() < self.plan.tensors.len() {
            return Err(self.interrupted(done.len()));
        }
        self.progress.finish();
        Ok((done, resumed))
    }

    fn interrupted(&self, done: usize) -> Error {
        let staging = Some(self.work.path().to_owned());
        Error::Interrupted {
            staging,
            done,
            total: self.plan.tensors.len(),
            unit: "tensors",
        }
    }
}

/// Whether a journal record agrees with the plan and with the bytes on disk.
fn still_true(
    record: &Record,
    range: &Range<u64>,
    parts: &[Range<u64>],
    weights: &WeightsFile,
) -> Result<bool, Error> {
    let same = |offset: u64, size: u64, blake3: &str, range: &Range<u64>| {
        let planned = offset == range.start && size == range.end - range.start;
        Ok::<_, Error>(planned && weights.blake3(range.clone())? == blake3)
    };
    if record.parts.len() != parts.len() {
        return Ok(false);
    }
    for (part, range) in record.parts.iter().zip(parts) {
        if !same(part.offset, part.size, &part.blake3, range)? {
            return Ok(false);
        }
    }
    same(record.offset, record.size, &record.blake3, range)
}
