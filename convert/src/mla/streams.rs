//! The two residual streams of a conversion, the teacher's and the student's, and how blocks move
//! them on.

use super::activations::Activations;
use super::options::Converted;
use super::rotary::Phases;
use super::source::{Geometry, SourceLayer};
use super::student::Student;

/// The residual streams around one attention block.
pub struct Streams<'a> {
    /// The teacher's before attention.
    pub teacher: &'a Activations,
    /// The teacher's after attention.
    pub teacher_after: &'a Activations,
    /// The student's before attention.
    pub student: &'a Activations,
}

/// Adds the output of a converted attention block to the residual stream before it.
pub fn attend_as(g: &Geometry, layer: &SourceLayer, converted: &Converted, h: &mut Activations) {
    match converted {
        Converted::Mla(a) => {
            let phases = Phases::new(&a.inv_freq, h.window_len());
            attend(g, layer, h, |x| a.forward(&phases, x));
        }
        Converted::Latent(a) => {
            let phases = Phases::new(&a.inv_freq, h.window_len());
            attend(g, layer, h, |x| a.forward(&phases, x));
        }
        Converted::Kept => attend_as_source(g, layer, h),
    }
}

/// Adds the output of the source's attention block to the residual stream before it.
pub fn attend_as_source(g: &Geometry, layer: &SourceLayer, h: &mut Activations) {
    let phases = Phases::new(&g.inv_freq, h.window_len());
    attend(g, layer, h, |x| layer.attention.forward(g, &phases, x));
}

fn attend(
    g: &Geometry,
    layer: &SourceLayer,
    h: &mut Activations,
    block: impl Fn(faer::MatRef<'_, f32>) -> faer::Mat<f32> + Sync,
) {
    h.for_each(|_, mut h_dt| h_dt += block(layer.attention_input(g, h_dt.as_ref()).as_ref()));
}

/// Adds the feed-forward block's output to the residual stream before it.
pub fn feed_forward(g: &Geometry, layer: &SourceLayer, h: &mut Activations) {
    h.for_each(|_, mut h_dt| h_dt += layer.feed_forward(g, h_dt.as_ref()));
}
