//! Tensor by tensor from the checkpoint into the staged weights file: one thread reads ahead,
//! the caller's quantizes, one writes, one waits for the disk.
//!
//! Owns the order read → check → quantize → write → sync → journal. Each stage but the last holds one
//! tensor. All offsets are fixed beforehand, so neither the number of threads nor a resumed
//! start can change a byte.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{ScopedJoinHandle, scope};

use neuroconv_format::{DenseTensor, SharedBytes};
use neuroconv_runtime::{Checkpoint, Progress, Rewritten};

use crate::Error;
use crate::calibrated::{RoundedLayers, RoundedMatrix};
use crate::dense;
use crate::journal::{Journal, PartBytes, Record, Stats};
use crate::outliers;
use crate::pass::ConvertedLayers;
use crate::plan::{PackedPlan, PlannedTensor, Storage};
use crate::unit::{UnitFiles, UnitTensor};
use crate::weights::WeightsFile;

/// One tensor that is still to be done.
pub(crate) struct Task<'a> {
    pub(crate) tensor: &'a PlannedTensor,
    /// Where it lies in the weights file.
    pub(crate) range: Range<u64>,
    /// Where its parts lie.
    pub(crate) parts: Vec<Range<u64>>,
}

/// What a tensor passes through.
pub(crate) struct Pipeline<'a> {
    pub(crate) source: &'a Checkpoint,
    /// Where tensors that exact changes of the graph make are read from.
    pub(crate) rewritten: Rewritten<'a>,
    /// Where tensors that a conversion makes are read from.
    pub(crate) converted: Option<&'a ConvertedLayers>,
    /// Where matrices that were rounded with calibration text are read from.
    pub(crate) rounded: Option<&'a RoundedLayers>,
    /// Where tensors are read from that units rounded.
    pub(crate) units: Option<&'a UnitFiles>,
    pub(crate) weights: &'a WeightsFile,
    pub(crate) sync_bytes: u64,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a AtomicBool,
}

/// A tensor that was read and found finite.
enum Loaded<'a> {
    /// `[rows, cols]` to be quantized.
    Weights(DenseTensor, &'a PackedPlan),
    /// Stored as it is.
    Stored(SharedBytes, Option<Stats>),
    /// Rounded already.
    Rounded(RoundedMatrix),
    /// By a unit.
    OfUnit(UnitTensor),
}

/// A tensor in its final bytes.
struct Finished<'a> {
    task: &'a Task<'a>,
    bytes: SharedBytes,
    parts: Vec<SharedBytes>,
    stats: Option<Stats>,
}

impl Pipeline<'_> {
    /// Does `tasks` and returns the records of those that are on disk: all of them, unless the
    /// run was cancelled.
    pub(crate) fn run(
        &self,
        tasks: &[Task<'_>],
        journal: &mut Journal,
    ) -> Result<Vec<Record>, Error> {
        scope(|scope| {
            let (to_quantize, loaded) = sync_channel(0);
            let (to_write, finished) = sync_channel(0);
            let (to_sync, written) = sync_channel(0);
            let reader = scope.spawn(move || self.read(tasks, &to_quantize));
            let writer = scope.spawn(move || self.write(&finished, &to_sync));
            let syncer = scope.spawn(move || self.sync(written, journal));
            let quantized = self.quantize(loaded, &to_write);
            drop(to_write);
            // A stage whose neighbour is gone just ends; the reason is with the neighbour.
            let records = join(syncer)?;
            join(writer)?;
            quantized?;
            join(reader)?;
            Ok(records)
        })
    }

    fn read<'a>(
        &self,
        tasks: &'a [Task<'a>],
        next: &SyncSender<(&'a Task<'a>, Loaded<'a>)>,
    ) -> Result<(), Error> {
        for task in tasks {
            if self.cancel.load(Ordering::Relaxed) {
                break;
            }
            let PlannedTensor { id, source, .. } = task.tensor;
            if let Some(units) = self.units {
                let tensor = units.read(task.tensor)?;
                if next.send((task, Loaded::OfUnit(tensor))).is_err() {
                    break;
                }
                continue;
            }
            if let Some(layers) = self.rounded.filter(|_| is_rounded(task.tensor)) {
                let matrix = layers.read(task.tensor)?;
                if next.send((task, Loaded::Rounded(matrix))).is_err() {
                    break;
                }
                continue;
            }
            let values = match self.converted.filter(|_| task.tensor.converted) {
                Some(layers) => layers.read(*id)?,
                None if task.tensor.rewritten => self.rewritten.dense(*id)?,
                None => self.source.files().read(source)?,
            };
            dense::check_finite(*id, source, &values)?;
            let loaded = match &task.tensor.storage {
                Storage::Packed(packed) => Loaded::Weights(values, packed),
                Storage::Dense(codec) => {
                    let (bytes, stats) = dense::convert(*id, &values, codec.dtype())?;
                    Loaded::Stored(bytes, stats)
                }
            };
            if next.send((task, loaded)).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn quantize<'a>(
        &self,
        loaded: Receiver<(&'a Task<'a>, Loaded<'a>)>,
        next: &SyncSender<Finished<'a>>,
    ) -> Result<(), Error> {
        for (task, values) in loaded {
            if self.cancel.load(Ordering::Relaxed) {
                break;
            }
            let (bytes, stats, parts) = match values {
                Loaded::Weights(w_nk, packed) => {
                    let id = task.tensor.id;
                    let (tensor, fit) = outliers::round(id, &w_nk, packed)?;
                    let parts = tensor.corrections.parts();
                    let parts = parts.map_err(|source| Error::Layout { tensor: id, source })?;
                    let parts = parts.into_iter().map(|(_, bytes)| bytes).collect();
                    let stats = Stats::new(fit.rel_mse, Some(fit.zeros), Some(fit.entropy_bits));
                    (tensor.bytes, Some(stats), parts)
                }
                Loaded::Stored(bytes, stats) => (bytes, stats, Vec::new()),
                Loaded::Rounded(RoundedMatrix {
                    bytes,
                    parts,
                    stats,
                }) => (bytes, Some(stats), parts),
                Loaded::OfUnit(UnitTensor {
                    bytes,
                    parts,
                    stats,
                }) => (bytes, stats, parts),
            };
            let finished = Finished {
                task,
                bytes,
                parts,
                stats,
            };
            if next.send(finished).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Gives records away in batches, each of which is worth a wait for the disk.
    fn write(
        &self,
        finished: &Receiver<Finished<'_>>,
        next: &SyncSender<Vec<Record>>,
    ) -> Result<(), Error> {
        let mut batch = Vec::new();
        let mut unsynced_bytes = 0;
        for finished in finished {
            let Finished {
                task,
                bytes,
                parts,
                stats,
            } = finished;
            let PartBytes {
                offset,
                size,
                blake3,
            } = self.store(task, &bytes, &task.range)?;
            unsynced_bytes += size;
            let parts = parts.iter().zip(&task.parts);
            let parts = parts.map(|(bytes, range)| self.store(task, bytes, range));
            let parts = parts.collect::<Result<Vec<PartBytes>, Error>>()?;
            batch.push(Record {
                name: task.tensor.id.to_string(),
                offset,
                size,
                blake3,
                stats,
                parts,
            });
            self.progress.advance(task.tensor.elements());
            if unsynced_bytes >= self.sync_bytes {
                unsynced_bytes = 0;
                if next.send(std::mem::take(&mut batch)).is_err() {
                    return Ok(());
                }
            }
        }
        // Where nobody takes it, the one who should have says why.
        let _ = next.send(batch);
        Ok(())
    }

    /// Lets the journal speak of what is on the disk, while more is being written.
    fn sync(
        &self,
        written: Receiver<Vec<Record>>,
        journal: &mut Journal,
    ) -> Result<Vec<Record>, Error> {
        let mut done = Vec::new();
        for batch in written {
            self.weights.sync()?;
            journal.append(&batch)?;
            done.extend(batch);
        }
        Ok(done)
    }
}

impl Pipeline<'_> {
    /// Writes bytes to the range planned for them.
    fn store(&self, task: &Task<'_>, bytes: &[u8], range: &Range<u64>) -> Result<PartBytes, Error> {
        let (size, expected) = (bytes.len() as u64, range.end - range.start);
        if size != expected {
            return Err(Error::UnplannedSize {
                tensor: task.tensor.id,
                expected,
                found: size,
            });
        }
        self.weights.write_at(bytes, range.start)?;
        Ok(PartBytes {
            offset: range.start,
            size,
            blake3: blake3::hash(bytes).to_hex().to_string(),
        })
    }
}

/// Whether a tensor is one of those that are rounded layer by layer.
fn is_rounded(tensor: &PlannedTensor) -> bool {
    tensor.id.layer.is_some() && tensor.packed().is_some()
}

fn join<T>(stage: ScopedJoinHandle<'_, Result<T, Error>>) -> Result<T, Error> {
    stage.join().unwrap_or_else(|panic| resume_unwind(panic))
}
