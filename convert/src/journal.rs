//! The journal of a conversion: one line per tensor whose bytes are safely on disk.
//!
//! Owns the line format and the reading of what a killed run left behind. A line is the JSON
//! of a [`Record`], a space, the first 16 hex digits of the BLAKE3 of that JSON, a line feed.
//! Does not know whether a record still tells the truth about the weights: whoever resumes
//! hashes the listed ranges again.

use std::io::Write as _;
use std::path::Path;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Hex digits of the checksum at the end of a line.
const CHECK_DIGITS: usize = 16;

/// One finished tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Name in the artifact, as [`neuroconv_recipes::TensorId`] displays.
    pub(crate) name: String,
    /// First byte in the weights file.
    pub(crate) offset: u64,
    /// Stored bytes.
    pub(crate) size: u64,
    /// BLAKE3 of the stored bytes, 64 hex digits.
    pub(crate) blake3: String,
    /// How well the stored values fit, where anything was rounded.
    pub(crate) stats: Option<Stats>,
    /// What the tensor carries beside its codes.
    #[serde(default)]
    pub(crate) parts: Vec<PartBytes>,
}

/// One finished part of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartBytes {
    /// First byte in the weights file.
    pub(crate) offset: u64,
    /// Stored bytes.
    pub(crate) size: u64,
    /// BLAKE3 of the stored bytes, 64 hex digits.
    pub(crate) blake3: String,
}

/// Fit of one tensor. Kept as the bits of the doubles: a resumed run must write the very same
/// manifest as one that was never interrupted, and decimal text does not promise that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stats {
    rel_mse: u64,
    zeros: Option<u64>,
    entropy_bits: Option<u64>,
    output_error: Option<u64>,
}

impl Stats {
    /// Packs the numbers; `zeros` and `entropy_bits` exist for packed tensors only.
    pub(crate) fn new(rel_mse: f64, zeros: Option<f64>, entropy_bits: Option<f64>) -> Self {
        Stats {
            rel_mse: rel_mse.to_bits(),
            zeros: zeros.map(f64::to_bits),
            entropy_bits: entropy_bits.map(f64::to_bits),
            output_error: None,
        }
    }

    /// The same with what rounding cost in outputs.
    pub(crate) fn with_output_error(self, output_error: Option<f64>) -> Self {
        Stats {
            output_error: output_error.map(f64::to_bits),
            ..self
        }
    }

    /// Mean squared error over mean square of the source.
    pub(crate) fn rel_mse(self) -> f64 {
        f64::from_bits(self.rel_mse)
    }

    /// Share of weights stored as zero.
    pub(crate) fn zeros(self) -> Option<f64> {
        self.zeros.map(f64::from_bits)
    }

    /// Error of the outputs relative to their energy.
    pub(crate) fn output_error(self) -> Option<f64> {
        self.output_error.map(f64::from_bits)
    }

    /// Entropy of the codes in bits per weight.
    pub(crate) fn entropy_bits(self) -> Option<f64> {
        self.entropy_bits.map(f64::from_bits)
    }
}

impl Record {
    /// The line of this record, line feed included.
    fn to_line(&self) -> String {
        let json = serde_json::to_string(self).expect("a record has string keys only");
        let check = checksum(&json);
        format!("{json} {check}\n")
    }

    /// Reads a line without its line feed; `None` when it is not whole.
    fn from_line(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (json, check) = line.rsplit_once(' ')?;
        (checksum(json) == check).then(|| serde_json::from_str(json).ok())?
    }
}

fn checksum(json: &str) -> String {
    let mut hex = blake3::hash(json.as_bytes()).to_hex().to_string();
    hex.truncate(CHECK_DIGITS);
    hex
}

/// The records at the start of `bytes` up to the first line that is torn or damaged, and the
/// number of bytes they take.
fn parse(bytes: &[u8]) -> (Vec<Record>, usize) {
    let mut records = Vec::new();
    let mut good = 0;
    while let Some(length) = bytes[good..].iter().position(|&b| b == b'\n') {
        let Some(record) = Record::from_line(&bytes[good..good + length]) else {
            break;
        };
        records.push(record);
        good += length + 1;
    }
    (records, good)
}

/// An open journal, at its end.
#[derive(Debug)]
pub(crate) struct Journal {
    file: fs_err::File,
}

impl Journal {
    /// Opens or creates the journal at `path` and returns what it holds, in the order written.
    /// Whatever follows the first damaged line is cut off.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Record>), Error> {
        let mut options = fs_err::OpenOptions::new();
        options
            .append(true)
            .create(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(path)?;
        let (records, good) = parse(&fs_err::read(path)?);
        file.set_len(good as u64)?;
        file.sync_all()?;
        Ok((Journal { file }, records))
    }

    /// Appends `records` and returns once they are on disk. The bytes they speak of must be
    /// there before.
    pub(crate) fn append(&mut self, records: &[Record]) -> Result<(), Error> {
        let lines: String = records.iter().map(Record::to_line).collect();
        self.file.write_all(lines.as_bytes())?;
        self.file.sync_data()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(name: &str, offset: u64) -> Record {
        Record {
            name: name.to_owned(),
            offset,
            size: 64,
            blake3: "ab".repeat(32),
            stats: Some(Stats::new(0.1 + 0.2, Some(1.0 / 3.0), None)),
            parts: vec![PartBytes {
                offset: offset + 64,
                size: 128,
                blake3: "cd".repeat(32),
            }],
        }
    }

    fn lines(records: &[Record]) -> Vec<u8> {
        records
            .iter()
            .map(Record::to_line)
            .collect::<String>()
            .into_bytes()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            name in ".*", offset: u64, size: u64, blake3 in "[0-9a-f]{64}",
            stats in proptest::option::of((any::<f64>(), any::<Option<f64>>(), any::<Option<f64>>())),
        ) {
            let stats = stats.map(|(mse, zeros, entropy)| Stats::new(mse, zeros, entropy));
            let written = Record { name, offset, size, blake3, stats, parts: Vec::new() };
            let bytes = lines(&[written.clone(), record("b", 1)]);
            prop_assert_eq!(parse(&bytes), (vec![written, record("b", 1)], bytes.len()));
        }

        #[test]
        fn any_damage_cuts_the_journal_there(at in 0usize..1000, flip in 1u8..=255) {
            let records = [record("a", 0), record("b", 64), record("c", 128)];
            let mut bytes = lines(&records);
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let line = lines(&records[..1]).len();
            let intact = [0, line, line + lines(&records[1..2]).len()]
                .into_iter().rposition(|start| start <= at).unwrap();
            let (read, good) = parse(&bytes);
            prop_assert_eq!(&read[..], &records[..intact]);
            prop_assert_eq!(good, lines(&records[..intact]).len());
        }
    }

    #[test]
    fn a_torn_tail_is_cut_and_the_journal_goes_on() {
        let whole = lines(&[record("a", 0), record("b", 64)]);
        for cut in 0..=whole.len() {
            let complete = whole[..cut].split(|&b| b == b'\n').count() - 1;
            assert_eq!(parse(&whole[..cut]).0.len(), complete, "cut at {cut}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs_err::write(&path, &whole[..whole.len() - 3]).unwrap();
        let (mut journal, read) = Journal::open(&path).unwrap();
        assert_eq!(read, [record("a", 0)]);
        journal.append(&[record("c", 128)]).unwrap();
        let (_, again) = Journal::open(&path).unwrap();
        assert_eq!(again, [record("a", 0), record("c", 128)]);
    }
}
