//! The other forms a layer can take: normed sources, rebuilt keys, no calibration, a turned latent.

use super::super::attention::exp;
use super::super::options::rank_for;
use super::super::remix::mixing;
use super::super::weight_only::weight_only;
use super::*;

#[test]
fn normed_sources_are_exact_at_full_rank() {
    let noise = &mut Noise(20);
    for (heads, kv_heads) in [(4, 2), (6, 3)] {
        let g = geometry(heads, kv_heads, 8);
        let l = layer(&g, true, noise);
        let (l, h) = (normed(&g, l, noise), residual(&g, 4, noise));
        let n = g.key_width();
        for rope in [0, 4, 8] {
            let (mla, _) = convert(&g, &l, &h, &plain(2 * n - rope, rope));
            let found = difference(&g, &l, &mla, &h, 0.0);
            assert!(found < 5e-5, "{kv_heads} key heads, rope {rope}: {found}");
        }
        // All rotations kept, at real positions, with every refit on.
        let (mla, _) = convert(&g, &l, &h, &Options::new(n, n));
        assert!(difference(&g, &l, &mla, &h, 1.0) < 2e-3);
    }
}

#[test]
fn rebuilt_keys_are_exact_at_full_rank() {
    let noise = &mut Noise(21);
    let g = geometry(4, 2, 8);
    let h = residual(&g, 16, noise);
    for norms in [false, true] {
        let l = layer(&g, true, noise);
        let l = if norms { normed(&g, l, noise) } else { l };
        let (exact, found) = rebuild(&g, &l, &h, &plain(99, 0));
        assert_eq!((found.rank, found.rank_asked), (32, Some(99)));
        let found = difference(&g, &l, &exact, &h, 1.0);
        assert!(found < 5e-5, "norms {norms}: {found}");
        let mut last = f64::INFINITY;
        for rank in [4, 10, 16, 24] {
            let (_, found) = rebuild(&g, &l, &h, &Options::new(rank, 0));
            assert!(found.output_error < last, "rank {rank}: {found:?}");
            last = found.output_error;
        }
    }
}

#[test]
fn weights_alone_are_exact_where_nothing_is_lost() {
    let noise = &mut Noise(22);
    let g = geometry(4, 2, 8);
    let h = residual(&g, 2, noise);
    for norms in [false, true] {
        let l = layer(&g, true, noise);
        let l = if norms { normed(&g, l, noise) } else { l };
        let n = g.key_width();
        let (Converted::Mla(mla), found) = weight_only(&g, &l, &plain(n, n)).unwrap() else {
            panic!("asked for latent attention");
        };
        assert!(found.weight_only && found.rotation_loss_left < 1e-6);
        assert!(difference(&g, &l, &mla, &h, 1.0) < 5e-5);
        let options = Options {
            mode: Mode::Latent,
            ..plain(2 * n, 0)
        };
        let (Converted::Latent(rebuilt), _) = weight_only(&g, &l, &options).unwrap() else {
            panic!("asked for rebuilt keys");
        };
        assert!(difference(&g, &l, &rebuilt, &h, 1.0) < 5e-5);
    }
}

#[test]
fn a_turned_latent_computes_the_same_without_outliers() {
    let noise = &mut Noise(23);
    let g = geometry(4, 2, 8);
    let mut l = layer(&g, true, noise);
    // Inputs of very different sizes, as real ones have.
    let sizes = l.attn_norm.iter_mut().enumerate();
    sizes.for_each(|(i, gain)| *gain *= 0.8_f32.powi(i as i32));
    let (l, h) = (normed(&g, l, noise), residual(&g, 16, noise));
    for rank in [8, 12] {
        let turn = mixing(rank).unwrap();
        let still = &turn * turn.transpose() - Mat::<f32>::identity(rank, rank);
        assert!(still.norm_max() < 1e-5);
        let of = |remix: bool, norms: bool| {
            let mut l = l.clone();
            if !norms {
                l.attention.qk_norm = None;
            }
            let options = Options {
                remix,
                ..Options::new(rank, 4)
            };
            let layer = convert(&g, &l, &h, &options).0;
            let x = l.attention_input(&g, h.window(0));
            let phases = Phases::new(&layer.inv_freq, TOKENS);
            (layer.forward(&phases, x.as_ref()), layer.latent(x.as_ref()))
        };
        for norms in [false, true] {
            let ((want, plain), (found, turned)) = (of(false, norms), of(true, norms));
            assert!((&want - &found).norm_max() < 1e-4 * want.norm_max());
            let peak = |c: &Mat<f32>| {
                let energy: Vec<f32> = (0..rank).map(|i| c.row(i).squared_norm_l2()).collect();
                let sum: f32 = energy.iter().sum();
                energy.into_iter().fold(0.0, f32::max) * rank as f32 / sum
            };
            assert!(peak(&turned) < 0.6 * peak(&plain), "rank {rank}");
        }
    }
}

#[test]
fn the_partial_layer_shares_the_split_and_loses_rotations_only() {
    let noise = &mut Noise(24);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 8, noise));
    let options = Options {
        partial_rope: true,
        best_constant: false,
        ..Options::new(6, 4)
    };
    let (mla, found) = convert(&g, &l, &h, &options);
    let partial = found.partial.unwrap();
    assert_eq!(partial.inv_freq, mla.inv_freq);
    assert_eq!(partial.rank() + partial.rope(), 2 * g.key_width());
    assert!(difference(&g, &l, &*partial, &h, 0.0) < 5e-5);
    assert!(difference(&g, &l, &*partial, &h, 1.0) > 1e-3);
}

#[test]
fn windowed_layers_see_their_window() {
    let noise = &mut Noise(25);
    let mut g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 1, noise));
    let phases = Phases::new(&g.inv_freq, TOKENS);
    let x = l.attention_input(&g, h.window(0));
    let all = l.attention.forward(&g, &phases, x.as_ref());
    g.window = Some(5);
    let windowed = l.attention.forward(&g, &phases, x.as_ref());
    assert!((all.subcols(0, 5) - windowed.subcols(0, 5)).norm_max() < 1e-6);
    // A later query is the same as at the end of a text that starts with its window.
    let phases = Phases::new(&g.inv_freq, 5);
    g.window = None;
    let short = l.attention.forward(&g, &phases, x.subcols(7, 5));
    assert!((short.col(4) - windowed.col(11)).norm_max() < 1e-5);
}

#[test]
fn energy_names_the_rank_that_keeps_a_share() {
    let energy = [0.5, 0.75, 0.9, 1.0];
    for (share, rank) in [(0.1, 1), (0.75, 2), (0.8, 3), (0.9, 3), (1.0, 4)] {
        assert_eq!(rank_for(&energy, share), rank);
    }
}

#[test]
fn the_exponential_is_the_library_s() {
    for i in -8600..8700 {
        let x = i as f32 / 100.0;
        assert!((exp(x) / x.exp() - 1.0).abs() < 3e-7, "{x}");
    }
    assert!(exp(f32::NEG_INFINITY) < 1e-37);
}
