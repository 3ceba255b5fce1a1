//! The words that other programs keep levels in.

use half::f16;

use crate::export::matrix::Levels;

/// Halves as single precision.
pub(super) fn floats(halves: &[f16]) -> Vec<f32> {
    halves.iter().map(|half| half.to_f32()).collect()
}

/// Levels counted from the lowest that `bits` hold.
pub(super) fn codes(levels: &[i8], bits: usize) -> Vec<u32> {
    let offset = 1_i32 << (bits - 1);
    levels
        .iter()
        .map(|&level| (i32::from(level) + offset) as u32)
        .collect()
}

/// Codes side by side in words of 32 bits, the first lowest.
pub(super) fn words(codes: &[u32], bits: usize) -> Vec<u8> {
    let word = |codes: &[u32]| {
        let shifted = codes.iter().enumerate().map(|(i, code)| code << (i * bits));
        shifted.fold(0, |word, code| word | code).to_le_bytes()
    };
    codes.chunks(32 / bits).flat_map(word).collect()
}

/// Weights, zeros, scales and groups of columns, all but the last transposed.
pub(super) fn gptq(levels: &Levels, bits: usize, group: usize) -> Vec<Vec<u8>> {
    let (rows, cols, groups) = (levels.rows(), levels.cols, levels.groups());
    let codes = codes(&levels.codes_nk, bits);
    let per_word = 32 / bits;
    let mut weights = Vec::with_capacity(rows * cols * bits / 8);
    for word in 0..cols / per_word {
        for row in 0..rows {
            let start = row * cols + word * per_word;
            weights.extend(words(&codes[start..start + per_word], bits));
        }
    }
    // Version 1 stores what is subtracted less one.
    let zero = (1_u32 << (bits - 1)) - 1;
    let zeros = words(&vec![zero; rows], bits).repeat(groups);
    let places = (0..groups).flat_map(|g| (0..rows).map(move |row| row * groups + g));
    let scales = places
        .flat_map(|at| levels.scales_ng[at].to_le_bytes())
        .collect();
    let index = (0..cols)
        .flat_map(|col| ((col / group) as i32).to_le_bytes())
        .collect();
    vec![weights, zeros, scales, index]
}

/// Four quarters of the rows in one byte, the first lowest.
pub(super) fn bitnet(levels: &Levels) -> Vec<u8> {
    let quarter = levels.codes_nk.len() / 4;
    let code = |at: usize| (levels.codes_nk[at] + 1).cast_unsigned();
    let byte = |at| (0..4).fold(0, |byte, q| byte | code(q * quarter + at) << (2 * q));
    (0..quarter).map(byte).collect()
}
