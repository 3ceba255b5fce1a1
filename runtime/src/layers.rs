//! The decoder taken apart: one window from layer to layer, for whoever looks between them.
//!
//! Owns no arithmetic: the steps are those of [`Decoder::hidden`] in the same order and with the
//! same results, bit for bit. Carrying many windows through one layer before the next reads each
//! layer's weights once, however many windows there are.

use crate::Error;
use crate::decoder::{CHUNK_TOKENS, Decoder};
use crate::rope::Positions;

impl Decoder {
    /// The embedded rows `[t, hidden]` of a window that begins at position 0.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.check(tokens, &self.new_cache())?;
        Ok(self.embedded(tokens))
    }

    /// Takes the residual stream `[t, hidden]` of a window that begins at position 0 through
    /// layer `index`.
    ///
    /// Panics where there is no such layer.
    pub fn layer(&self, index: usize, x_td: &mut [f32]) {
        let hidden = self.spec.hidden;
        let mut cache = self.new_cache();
        for (chunk, x_td) in x_td.chunks_mut(CHUNK_TOKENS * hidden).enumerate() {
            let positions = Positions::new(&self.rope, chunk * CHUNK_TOKENS, x_td.len() / hidden);
            self.layers[index].forward(x_td, hidden, cache.layer(index), &positions);
        }
    }

    /// Takes the residual stream `[t, hidden]` after the last layer through the final norm.
    pub fn finish(&self, x_td: &mut [f32]) {
        self.final_norm.apply(x_td);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Model, spec};
    use crate::{Decoder, Error};

    #[test]
    fn layer_by_layer_gives_the_same_bits_as_in_one_go() {
        let decoder = Decoder::load(&Model::random(spec())).unwrap();
        let tokens: Vec<u32> = (0..140).map(|i| (i * 17 + 3) % 50).collect();
        let mut x_td = decoder.embed(&tokens).unwrap();
        for index in 0..decoder.spec().layers.len() {
            decoder.layer(index, &mut x_td);
        }
        decoder.finish(&mut x_td);
        assert!(x_td == decoder.hidden(&tokens, &mut decoder.new_cache()).unwrap());
        assert!(matches!(decoder.embed(&[]), Err(Error::NoTokens)));
        assert!(matches!(
            decoder.embed(&[50]),
            Err(Error::TokenRange { .. })
        ));
    }
}
