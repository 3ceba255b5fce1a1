//! The paths for x86-64.
//!
//! An entry point may run only where its instruction set was detected. All of them are reachable
//! only by way of [`crate::Isa`], which is the proof of that. Inside, unsafe code is limited to
//! loads whose bounds the checked lengths of [`crate::PackedView`] and [`crate::Activations`] give.
#![cfg_attr(
    not(test),
    expect(
        clippy::wildcard_imports,
        reason = "each path names a few dozen intrinsics"
    )
)]
#![expect(
    clippy::needless_range_loop,
    reason = "loops over registers, with one index for several arrays"
)]
#![expect(
    unsafe_code,
    reason = "loads, and calls of functions with target features"
)]

pub(crate) mod avx2;
pub(crate) mod avx2_dense;
pub(crate) mod avx512_dense;
pub(crate) mod avx512vnni;
pub(crate) mod avxvnni;

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use crate::activations::Activations;
use crate::layout::Codes;
use crate::packed::{Panel, SCALE_BYTES};

/// Bits of a code as a constant, so that each kind gets code of its own.
const TERNARY: usize = Codes::Ternary.bits();
const INT4: usize = Codes::Int4.bits();
const INT8: usize = Codes::Int8.bits();

/// How far ahead, in bytes, a single row asks for codes.
const AHEAD: usize = 8192;

/// Asks for codes that a single row will come to: the processor's own prefetching stops at page boundaries.
/// Zen 3, on AVX2, wants to be asked for every unit, which reads ternary codes half as fast again as once
/// per group. Zen 4, on AVX-512, is kept from its work by that: `int4` came a fifth slower than not asking
/// at all, and a third faster asked once per group.
fn ask_ahead(codes: *const u8) {
    // SAFETY: every x86-64 has the instruction, and it takes any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD).cast()) };
}

/// What the sum of the codes of group `g` of row `t` counts as; only shifts ask for it.
#[inline]
fn sum_for_shifts(p: &Panel<'_>, a: &Activations, t: usize, g: usize) -> i32 {
    if p.shifts.is_some() { a.sum(t, g) } else { 0 }
}

/// What unchecked loads rely on: `rows` rows of activations from `t0` on exist, and they and the
/// planes of the panel have the same groups. Panics otherwise.
fn check_bounds(kind: Codes, panel: &Panel<'_>, a: &Activations, t0: usize, rows: usize) {
    let groups = a.groups();
    assert!(
        panel.group == a.group() && panel.group.is_multiple_of(32),
        "groups of weights and activations"
    );
    assert!(
        panel.codes.len() == groups * kind.block_bytes(panel.group),
        "codes of a panel"
    );
    assert!(
        panel.scales.len() == groups * SCALE_BYTES,
        "scales of a panel"
    );
    assert!(
        panel
            .shifts
            .is_none_or(|shifts| shifts.len() == groups * SCALE_BYTES),
        "shifts of a panel"
    );
    assert!(rows > 0 && t0 + rows <= a.rows(), "rows of activations");
}
