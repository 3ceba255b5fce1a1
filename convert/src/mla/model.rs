//! Converts every layer of a model, feeding each with the activations of the converted ones.
//!
//! Two residual streams are carried through the layers, the teacher's and the student's; one
//! layer's weights are held at a time.

use neuroconv_recipes::{Role, TensorId};
use neuroconv_runtime::WeightSource;

use super::activations::Activations;
use super::convert::{Diagnostics, Options, Streams, convert_layer};
use super::error::Error;
use super::layer::MlaAttention;
use super::load;
use super::rotary::Phases;
use super::source::{Geometry, SourceLayer};

/// Converts all layers on the given windows of calibration text, which must be equally long, and
/// hands each layer on as it is done.
pub fn convert_model(
    source: &dyn WeightSource,
    windows: &[Vec<u32>],
    options: &Options,
    mut done: impl FnMut(usize, MlaAttention, Diagnostics) -> Result<(), Error>,
) -> Result<(), Error> {
    let spec = source.spec();
    let geometries = (0..spec.layers.len())
        .map(|i| load::geometry(spec, i))
        .collect::<Result<Vec<_>, _>>()?;
    let table = load::vector(source, TensorId::model(Role::Embed))?;
    let mut teacher = Activations::embed(&table, spec.hidden, windows);
    drop(table);
    let mut student = teacher.clone();
    for (i, g) in geometries.iter().enumerate() {
        let layer = load::layer(source, i)?;
        let phases = Phases::new(&g.inv_freq, teacher.window_len());
        let mut after = teacher.clone();
        attend(g, &layer, &mut after, |x| {
            layer.attention.forward(g, &phases, x)
        })?;
        let streams = Streams {
            teacher: &teacher,
            teacher_after: &after,
            student: &student,
        };
        let (mla, diagnostics) = convert_layer(g, &layer, &streams, options)?;
        let phases = Phases::new(&mla.inv_freq, student.window_len());
        attend(g, &layer, &mut student, |x| mla.forward(&phases, x))?;
        teacher = after;
        feed_forward(g, &layer, &mut teacher)?;
        feed_forward(g, &layer, &mut student)?;
        done(i, mla, diagnostics)?;
    }
    Ok(())
}

/// Adds an attention block's output to the residual stream before it.
pub fn attend(
    g: &Geometry,
    layer: &SourceLayer,
    h: &mut Activations,
    block: impl Fn(faer::MatRef<'_, f32>) -> faer::Mat<f32> + Sync,
) -> Result<(), Error> {
    h.for_each(|_, mut h_dt| {
        h_dt += block(layer.attention_input(g, h_dt.as_ref()).as_ref());
        Ok(())
    })
}

/// Adds the feed-forward block's output to the residual stream before it.
pub fn feed_forward(g: &Geometry, layer: &SourceLayer, h: &mut Activations) -> Result<(), Error> {
    h.for_each(|_, mut h_dt| {
        h_dt += layer.feed_forward(g, h_dt.as_ref());
        Ok(())
    })
}
