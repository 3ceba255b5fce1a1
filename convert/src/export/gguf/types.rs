//! Which ggml type each tensor gets: one that holds its levels as they are, else plain numbers.

use neuroconv_format::gguf::{GgmlType, RowLevels};
use neuroconv_format::{Codec, DType};
use neuroconv_runtime::WeightSource;

use crate::export::ExportError;
use crate::export::foreign::Foreign;
use crate::export::matrix::{elements, plain_levels};

/// How a GGUF file is written.
#[derive(Clone, Copy, Debug)]
pub struct GgufOptions {
    /// Element type of matrices that are plain numbers.
    pub dtype: DType,
    /// Which blocks hold three levels.
    pub ternary: TernaryType,
    /// Whether matrices of four bits in groups of 256 become `Q4_K`, which loses and saves nothing.
    pub q4_k: bool,
    /// Write every matrix as plain numbers.
    pub dense: bool,
}

/// Which blocks hold three levels, where they fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TernaryType {
    /// The smallest that every reader of such files knows.
    #[default]
    Auto,
    /// 1.69 bits per weight, groups of 256 only.
    Tq1,
    /// 2.06 bits per weight, groups of 256 only.
    Tq2,
    /// 2.25 bits per weight, groups of 64 and more; llama.cpp of 2026.
    Q2,
    /// 4.5 bits per weight, any group.
    Q4,
}

/// The type of each tensor; with a note for each matrix whose levels no type holds.
pub(crate) fn choose(
    tensors: &[Foreign],
    model: &dyn WeightSource,
    options: GgufOptions,
) -> Result<(Vec<GgmlType>, Vec<String>), ExportError> {
    let plain = match options.dtype {
        DType::F32 => GgmlType::F32,
        DType::F16 => GgmlType::F16,
        DType::BF16 | DType::U8 => GgmlType::BF16,
    };
    let (mut types, mut notes, mut wide) = (Vec::new(), Vec::new(), 0_usize);
    for tensor in tensors {
        if tensor.shape.len() < 2 {
            types.push(GgmlType::F32);
            continue;
        }
        let stored = tensor.stored().map(|id| model.tensor(id)).transpose()?;
        let levels = stored
            .as_ref()
            .and_then(plain_levels)
            .map(|packed| packed.layout);
        let held = levels.and_then(|layout| {
            let candidates = candidates(layout.codec().levels(), options);
            let holds = |kind: &&GgmlType| {
                kind.holds(
                    layout.cols(),
                    layout.group(),
                    layout.codec().levels(),
                    layout.shift(),
                )
            };
            candidates.iter().find(holds).copied()
        });
        let packed = stored
            .as_ref()
            .is_some_and(|t| matches!(t, neuroconv_format::Tensor::Packed(_)));
        if packed && held.is_none() && !options.dense {
            notes.push(format!(
                "`{}` is written as {}: no block type holds its levels as they are",
                tensor.name,
                plain.name()
            ));
        }
        let ternary = levels.is_some_and(|layout| layout.codec() == Codec::Ternary);
        wide += usize::from(ternary && held == Some(GgmlType::Q4_0));
        types.push(held.filter(|_| !options.dense).unwrap_or(plain));
    }
    if wide > 0 && options.ternary == TernaryType::Auto && !options.dense {
        notes.push(format!(
            "three levels of {wide} matrices are written in four bits: TQ2_0 needs groups of 256 (`ternary \
             --group-size 256`), and llama.cpp of 2026 alone reads `--ternary-type q2_0`"
        ));
    }
    Ok((types, notes))
}

/// The types that may hold levels between two numbers, the one to prefer first.
fn candidates((lowest, highest): (i32, i32), options: GgufOptions) -> &'static [GgmlType] {
    use GgmlType::{Q2_0, Q4_0, Q4_1, Q4_K, Q8_0, TQ1_0, TQ2_0};
    match (lowest, highest) {
        (-1, 1) => match options.ternary {
            TernaryType::Auto | TernaryType::Tq2 => &[TQ2_0, Q4_0, Q4_1],
            TernaryType::Tq1 => &[TQ1_0, Q4_0, Q4_1],
            TernaryType::Q2 => &[Q2_0, Q4_0, Q4_1],
            TernaryType::Q4 => &[Q4_0, Q4_1],
        },
        (-8, 7) if options.q4_k => &[Q4_K, Q4_0, Q4_1],
        (-8, 7) => &[Q4_0, Q4_1],
        _ => &[Q8_0],
    }
}

/// The bytes of a tensor as `kind`.
pub(crate) fn bytes(
    tensor: &Foreign,
    kind: GgmlType,
    model: &dyn WeightSource,
) -> Result<Vec<u8>, ExportError> {
    let too_large = || ExportError::TooLarge {
        tensor: tensor.name.clone(),
        dtype: kind.to_string(),
    };
    let dtype = match kind {
        GgmlType::F32 => Some(DType::F32),
        GgmlType::F16 => Some(DType::F16),
        GgmlType::BF16 => Some(DType::BF16),
        _ => None,
    };
    if let Some(dtype) = dtype {
        return elements(&tensor.numbers(model)?, dtype).ok_or_else(too_large);
    }
    let levels = tensor.levels(model)?.ok_or_else(too_large)?;
    let groups = levels.groups();
    let mut out = Vec::new();
    for (row, of_row) in levels.codes_nk.chunks(levels.cols).enumerate() {
        let of = |plane: &'_ [half::f16]| -> std::ops::Range<usize> {
            if plane.is_empty() {
                0..0
            } else {
                row * groups..(row + 1) * groups
            }
        };
        let row = RowLevels {
            levels: of_row,
            group: levels.group,
            scales: &levels.scales_ng[of(&levels.scales_ng)],
            shifts: &levels.shifts_ng[of(&levels.shifts_ng)],
        };
        if !kind.encode(row, &mut out) {
            return Err(too_large());
        }
    }
    Ok(out)
}
