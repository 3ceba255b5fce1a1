//! Everything that this crate accepts and refuses, on files made here byte by byte.

#![cfg(test)]

mod artifact;
mod blocks;
mod build;
mod checkpoint;
mod coverage;
mod differential;
mod document;
mod files;
mod gguf;
mod header;
mod hostile;
mod imatrix;
mod manifest;
mod packed;
mod parts;
mod sample;
mod writer;
