//! Converts every layer of a model, feeding each with the activations of the converted ones.
//!
//! Two residual streams are carried through the layers, the teacher's and the student's; one
//! layer's weights are held at a time.

use std::collections::BTreeMap;

use neuroconv_recipes::{Role, TensorId};
use neuroconv_runtime::WeightSource;

use super::activations::Activations;
use super::convert::convert_layer;
use super::error::Error;
use super::load;
use super::options::{Converted, Diagnostics, Options};
use super::streams::{Streams, attend_as, attend_as_source, feed_forward};
use super::weight_only::weight_only;

/// Converts the layers on the given windows of calibration text, which must be equally long, and
/// hands each on as it is done; without windows, by the weights alone. A layer that cannot be
/// converted is an error unless it is to be kept. Layers that are `known` from an earlier run are
/// taken as they are and not handed on.
pub fn convert_model(
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    options: &Options,
    known: &BTreeMap<usize, Converted>,
    mut done: impl FnMut(usize, Converted, Diagnostics) -> Result<(), Error>,
) -> Result<(), Error> {
    let spec = source.spec();
    // All refusals before any work.
    let converts = |i: usize| !options.keep.contains(&i);
    for i in (0..spec.layers.len()).filter(|&i| converts(i)) {
        load::convertible(spec, i)?;
    }
    if windows.is_empty() {
        for i in (0..spec.layers.len()).filter(|i| !known.contains_key(i)) {
            let (converted, found) = if converts(i) {
                weight_only(&load::geometry(spec, i)?, &load::layer(source, i)?, options)?
            } else {
                (Converted::Kept, Diagnostics::default())
            };
            done(i, converted, found)?;
        }
        return Ok(());
    }
    let table = load::vector(source, TensorId::model(Role::Embed))?;
    check(windows, table.len() / spec.hidden.max(1))?;
    let mut teacher = Activations::embed(&table, spec.hidden, windows);
    drop(table);
    let mut student = teacher.clone();
    for i in 0..spec.layers.len() {
        let (g, layer) = (load::geometry(spec, i)?, load::layer(source, i)?);
        let mut after = teacher.clone();
        attend_as_source(&g, &layer, &mut after);
        let (converted, mut found) = if let Some(converted) = known.get(&i) {
            (converted.clone(), Diagnostics::default())
        } else if converts(i) {
            let streams = Streams {
                teacher: &teacher,
                teacher_after: &after,
                student: &student,
            };
            convert_layer(&g, &layer, &streams, options)?
        } else {
            (Converted::Kept, Diagnostics::default())
        };
        attend_as(&g, &layer, &converted, &mut student);
        teacher = after;
        feed_forward(&g, &layer, &mut teacher);
        feed_forward(&g, &layer, &mut student);
        if !known.contains_key(&i) {
            found.drift = student.relative_error(&teacher);
            done(i, converted, found)?;
        }
    }
    Ok(())
}

/// Windows must be equally long and name rows of the embedding.
fn check(windows: &[Vec<u32>], vocab: usize) -> Result<(), Error> {
    let expected = windows.first().map_or(0, Vec::len);
    for (index, window) in windows.iter().enumerate() {
        let found = window.len();
        if found != expected || found == 0 {
            return Err(Error::WindowLength {
                index,
                found,
                expected,
            });
        }
        if let Some(&token) = window.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::Token { token, vocab });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_windows_are_refused() {
        assert!(check(&[vec![0, 1], vec![2, 3]], 4).is_ok());
        let bad = |windows: &[Vec<u32>]| check(windows, 4).unwrap_err();
        assert!(matches!(
            bad(&[vec![0, 1], vec![2]]),
            Error::WindowLength { index: 1, .. }
        ));
        assert!(matches!(
            bad(&[vec![]]),
            Error::WindowLength {
                index: 0,
                found: 0,
                ..
            }
        ));
        assert!(matches!(
            bad(&[vec![0, 4]]),
            Error::Token { token: 4, vocab: 4 }
        ));
    }
}
