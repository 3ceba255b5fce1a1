//! Products of packed and dense matrices with activations, one version per instruction set.
//!
//! Owns the meaning of packed bytes ([`layout`]), the quantization of activations and every SIMD
//! path; with the mapping of files, the only unsafe code of the workspace. Knows slices and sizes,
//! neither files nor models nor how weights were fitted.
//!
//! Every instruction set gives the same bits as the scalar path, floating point included: integer
//! sums are exact, and single-precision sums run in one fixed order without fused
//! multiply-adds. So what a model computes depends neither on the processor nor on the number
//! of threads.

mod activations;
mod dense;
mod error;
mod isa;
pub mod layout;
mod matmul;
mod packed;
mod scalar;
mod selftest;
mod stream;
mod tasks;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::{ActivationBits, Activations, quantize_activations};
pub use dense::{DenseSlice, matmul_dense, matmul_dense_on};
pub use error::Error;
pub use isa::{Isa, isa};
pub use layout::Codes;
pub use matmul::{matmul_packed, matmul_packed_all, matmul_packed_on};
pub use packed::PackedView;
pub use stream::stream_read;
