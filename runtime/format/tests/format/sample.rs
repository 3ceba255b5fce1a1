//! A small artifact with every codec in it.

use neuroconv_format::manifest::{
    DroppedRecord, FileRecord, Manifest, PartRecord, RecipeRecord, RewriteRecord, SCHEMA_VERSION,
    SizeRecord, SourceRecord, TensorCodec, TensorRecord, ToolRecord, VerdictRecord, VerdictStatus,
};
use neuroconv_format::{
    Codec, Columns, Corrections, DType, DenseTensor, LowRank, PackedLayout, PackedTensor, PartKind,
    PlannedTensor, SafetensorsLayout,
};

use crate::build::Dir;
use crate::packed::pack;

/// The weight file of the sample.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// An artifact in memory, to be changed before it is written.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) manifest: Manifest,
    pub(crate) weights: Vec<u8>,
}

struct Stored {
    codec: TensorCodec,
    shape: Vec<usize>,
    layout: Option<PackedLayout>,
    bytes: Vec<u8>,
    corrections: Corrections,
}

fn packed(codec: Codec, rows: usize, cols: usize, shift: bool) -> Stored {
    let layout = PackedLayout::new(codec, rows, cols, 32, shift).unwrap();
    let (low, high) = codec.levels();
    let level = |row, col| low + (7 * row + 3 * col) as i32 % (high - low + 1);
    let bytes = pack(
        &layout,
        level,
        |row, group| (1 + row + group) as f32 / 64.0,
        -0.25,
    );
    Stored {
        codec: codec.into(),
        shape: vec![rows, cols],
        layout: Some(layout),
        bytes,
        corrections: Corrections::default(),
    }
}

/// Halves of small numbers.
fn halves(shape: [usize; 2]) -> DenseTensor {
    let bytes: Vec<u8> = (0..shape[0] * shape[1])
        .flat_map(|i| [(i % 251) as u8, 0x2c])
        .collect();
    DenseTensor {
        dtype: DType::F16,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    }
}

/// Four-bit codes with a correction of rank 2 and three dense columns apart.
fn corrected() -> Stored {
    let (rows, cols) = (17, 32);
    let mut stored = packed(Codec::Int4, rows, cols, true);
    let indexes = vec![0, 9, 31];
    zero_columns(&mut stored, &indexes);
    let columns = Columns::dense(indexes, halves([rows, 3]));
    stored.corrections = Corrections {
        low_rank: Some(LowRank {
            a: halves([2, cols]),
            b: halves([rows, 2]),
        }),
        columns: Some(columns),
    };
    stored
}

/// Ternary codes with two packed columns apart.
fn packed_columns() -> Stored {
    let (rows, cols) = (16, 40);
    let mut stored = packed(Codec::Ternary, rows, cols, false);
    let indexes = vec![3, 39];
    zero_columns(&mut stored, &indexes);
    let values = packed(Codec::Int8, rows, 2, false);
    let values = PackedTensor::new(values.layout.unwrap(), values.bytes);
    stored.corrections.columns = Some(Columns::packed(indexes, values));
    stored
}

fn zero_columns(stored: &mut Stored, indexes: &[u32]) {
    let layout = stored.layout.unwrap();
    for row in 0..layout.rows() {
        for &col in indexes {
            let (byte, bit) = layout.code_at(row, col as usize);
            let mask = u8::MAX >> (8 - layout.codec().bits()) << bit;
            let zero = layout.codec().zero_byte();
            stored.bytes[byte] = stored.bytes[byte] & !mask | zero & mask;
        }
    }
}

fn dense(codec: TensorCodec, shape: &[usize]) -> Stored {
    let size = codec.dtype().size();
    let elements = shape.iter().product::<usize>();
    let bytes = (0..elements * size).map(|i| (i % 60) as u8).collect();
    Stored {
        codec,
        shape: shape.to_vec(),
        layout: None,
        bytes,
        corrections: Corrections::default(),
    }
}

impl Sample {
    pub(crate) fn new() -> Self {
        let tensors = [
            ("embed", packed(Codec::Int8, 20, 40, false)),
            ("blk.0.attn_norm", dense(TensorCodec::F32, &[40])),
            ("blk.0.attn_q", packed(Codec::Ternary, 16, 32, false)),
            ("blk.0.attn_k", packed(Codec::Int4, 33, 32, true)),
            ("blk.0.attn_o", packed(Codec::Ternary, 20, 40, false)),
            ("blk.0.mlp_up", corrected()),
            ("blk.0.mlp_gate", packed_columns()),
            ("final_norm", dense(TensorCodec::Bf16, &[8, 4])),
            ("head", dense(TensorCodec::F16, &[3])),
        ];
        let planned = tensors.iter().flat_map(|(name, stored)| {
            let codes = PlannedTensor {
                name: (*name).to_owned(),
                dtype: stored.codec.dtype(),
                shape: stored
                    .layout
                    .map_or(stored.shape.clone(), |layout| vec![layout.size_bytes()]),
            };
            let parts = stored.corrections.parts().unwrap();
            let parts = parts.into_iter().map(|(part, _)| part.entry(name));
            [codes].into_iter().chain(parts)
        });
        let layout = SafetensorsLayout::new(planned.collect()).unwrap();
        let mut weights = layout.header_bytes();
        weights.resize(layout.file_size() as usize, 0);
        let mut records = Vec::new();
        for (name, stored) in tensors {
            let range = layout.range(name).unwrap();
            weights[range.start as usize..range.end as usize].copy_from_slice(&stored.bytes);
            let mut record = record(name, &stored, range.start);
            for (part, bytes) in stored.corrections.parts().unwrap() {
                let range = layout.range(&part.name(name)).unwrap();
                weights[range.start as usize..range.end as usize].copy_from_slice(&bytes);
                let hash = blake3::hash(&bytes).to_hex().to_string();
                record.parts.push(PartRecord::new(&part, range.start, hash));
            }
            record.bits_per_weight = bits_per_weight(&record);
            records.push(record);
        }
        Sample {
            manifest: manifest(records, weights.len()),
            weights,
        }
    }

    /// The record of the tensor `name`.
    pub(crate) fn record(&mut self, name: &str) -> &mut TensorRecord {
        self.manifest
            .tensors
            .iter_mut()
            .find(|record| record.name == name)
            .unwrap()
    }

    /// The record of the part of the tensor `name` that is of this kind.
    pub(crate) fn part(&mut self, name: &str, kind: PartKind) -> &mut PartRecord {
        let parts = &mut self.record(name).parts;
        parts.iter_mut().find(|part| part.kind == kind).unwrap()
    }

    /// The bytes of a part in the weight file.
    pub(crate) fn part_bytes(&mut self, name: &str, kind: PartKind) -> &mut [u8] {
        let part = self.part(name, kind);
        let range = part.offset as usize..(part.offset + part.size) as usize;
        &mut self.weights[range]
    }

    /// The bytes of the tensor `name` in the weight file.
    pub(crate) fn bytes(&mut self, name: &str) -> &mut [u8] {
        let record = self.record(name);
        let range = record.offset as usize..(record.offset + record.size) as usize;
        &mut self.weights[range]
    }

    /// Replaces text in the header of the weight file, whose padding makes up for the length.
    pub(crate) fn replace_in_header(&mut self, from: &str, to: &str) {
        let end = 8 + u64::from_le_bytes(*self.weights.first_chunk().unwrap()) as usize;
        let header = str::from_utf8(&self.weights[8..end]).unwrap();
        assert!(header.contains(from), "{from}");
        let changed = header.replacen(from, to, 1);
        let padded = format!("{:1$}", changed.trim_end(), end - 8);
        assert_eq!(padded.len(), end - 8);
        self.weights[8..end].copy_from_slice(padded.as_bytes());
    }

    pub(crate) fn write(&self, dir: &Dir) {
        dir.write(
            "a/neuroconv/manifest.json",
            self.manifest.to_json().unwrap(),
        );
        dir.write("a/model.safetensors", &self.weights);
    }
}

fn record(name: &str, stored: &Stored, offset: u64) -> TensorRecord {
    TensorRecord {
        name: name.to_owned(),
        role: name.rsplit('.').next().unwrap_or(name).to_owned(),
        source: format!("model.{name}.weight"),
        codec: stored.codec,
        shape: stored.shape.clone(),
        group: stored.layout.map(|layout| layout.group()),
        shift: stored.layout.is_some_and(|layout| layout.shift()),
        activation_bits: None,
        file: WEIGHTS.to_owned(),
        offset,
        size: stored.bytes.len() as u64,
        blake3: blake3::hash(&stored.bytes).to_hex().to_string(),
        bits_per_weight: 0.0,
        parts: Vec::new(),
        rel_mse: Some(0.25),
        zeros: None,
        entropy_bits: Some(1.5),
        output_error: None,
        reason: "a sample".to_owned(),
    }
}

/// What the sizes of a record come to.
pub(crate) fn bits_per_weight(record: &TensorRecord) -> f64 {
    record.stored_bytes() as f64 * 8.0 / record.shape.iter().product::<usize>() as f64
}

fn manifest(tensors: Vec<TensorRecord>, weights_bytes: usize) -> Manifest {
    let sha256 = "00".repeat(32);
    Manifest {
        schema_version: SCHEMA_VERSION,
        tool: ToolRecord {
            name: "neuroconv".into(),
            version: "0.1.0".into(),
        },
        source: SourceRecord {
            id: "org/name".into(),
            commit: Some("0123abcd".into()),
            arch: "llama".into(),
            params: 2600,
            dtype: "BF16".into(),
            files: vec![FileRecord {
                path: WEIGHTS.into(),
                size: 10,
                sha256: sha256.clone(),
            }],
        },
        recipe: RecipeRecord {
            name: "ternary".into(),
            sha256: sha256.clone(),
        },
        model: serde_json::json!({"arch": "llama", "hidden": 40}),
        rewrites: RewriteRecord::default(),
        tensors,
        dropped: vec![DroppedRecord {
            source: "x".into(),
            reason: "not used".into(),
        }],
        size: SizeRecord {
            weights_bytes: weights_bytes as u64,
            bits_per_weight: 9.5,
        },
        verdict: VerdictRecord {
            status: VerdictStatus::Unverified,
            report_sha256: None,
            waived: Vec::new(),
        },
    }
}
