//! Streamed statistics against their definitions.

use faer::{MatRef, c64};

use super::super::attention::causal_softmax;
use super::super::linalg::mul;
use super::super::moments::Moments;
use super::super::score_fit::{PairFit, accumulate, key_features};
use super::super::teacher::TeacherStats;
use super::*;

/// One head over one window, and the fit of its pairs.
struct OneHead {
    q: Mat<f32>,
    k: Mat<f32>,
    a: Mat<f32>,
    inv_freq: Vec<f64>,
    fits: Vec<PairFit>,
}

fn one_head(noise: &mut Noise) -> OneHead {
    let inv_freq = vec![1.0, 0.3, 0.01];
    let (q, k) = (noise.matrix(6, TOKENS, 1.0), noise.matrix(6, TOKENS, 1.0));
    let mut a = noise.matrix(TOKENS, TOKENS, 1.0);
    causal_softmax(a.as_mut(), 0, None);
    let phases = Phases::new(&inv_freq, TOKENS);
    let mut fits = vec![PairFit::default(); 3];
    accumulate(
        &mut fits,
        key_features(k.as_ref(), &phases).as_ref(),
        a.as_ref(),
        q.as_ref(),
        &phases,
    );
    OneHead {
        q,
        k,
        a,
        inv_freq,
        fits,
    }
}

#[test]
fn the_fitted_loss_is_the_variance_of_the_score_error() {
    let noise = &mut Noise(7);
    let OneHead {
        q,
        k,
        a,
        inv_freq,
        fits,
    } = one_head(noise);
    let pair =
        |m: &Mat<f32>, l: usize, t: usize| c64::new(f64::from(m[(l, t)]), f64::from(m[(l + 3, t)]));
    let brute = |l: usize, phi: c64| -> f64 {
        let error = |t: usize, s: usize| {
            let turn = c64::from_polar(1.0, -inv_freq[l] * (t as f64 - s as f64));
            (pair(&q, l, t).conj() * pair(&k, l, s) * (turn - phi)).re
        };
        let of_query = |t: usize| {
            let weight = |s: usize| f64::from(a[(s, t)]);
            let mean: f64 = (0..=t).map(|s| weight(s) * error(t, s)).sum();
            (0..=t)
                .map(|s| weight(s) * (error(t, s) - mean).powi(2))
                .sum::<f64>()
        };
        (0..TOKENS).map(of_query).sum::<f64>()
    };
    for (l, fit) in fits.iter().enumerate() {
        let best = fit.best();
        for phi in [
            c64::new(0.0, 0.0),
            c64::new(1.0, 0.0),
            c64::new(0.3, -0.7),
            best,
        ] {
            let (want, found) = (brute(l, phi), fit.loss(phi));
            assert!(
                (want - found).abs() < 1e-4 * (1.0 + want),
                "pair {l} at {phi}: {want} {found}"
            );
        }
        for step in [
            c64::new(0.05, 0.0),
            c64::new(0.0, 0.05),
            c64::new(-0.03, 0.04),
        ] {
            assert!(brute(l, best) < brute(l, best + step));
        }
    }
}

#[test]
fn streamed_moments_are_the_direct_ones() {
    let noise = &mut Noise(8);
    let (x, y) = (noise.matrix(5, 60, 1.0), noise.matrix(3, 60, 1.0));
    let mut moments = Moments::zeros(5, 3);
    for start in (0..60).step_by(20) {
        moments.add_block(x.subcols(start, 20), y.subcols(start, 20));
    }
    let outer = |a: MatRef<'_, f32>, b: MatRef<'_, f32>| mul(a, b.transpose());
    let close = |a: &Mat<f64>, b: Mat<f32>| {
        for j in 0..b.ncols() {
            for i in 0..b.nrows() {
                assert!((a[(i, j)] - f64::from(b[(i, j)])).abs() < 1e-4);
            }
        }
    };
    close(&moments.xx, outer(x.as_ref(), x.as_ref()));
    close(&moments.yx, outer(y.as_ref(), x.as_ref()));
    // A regression that explains everything, and its error from the moments alone.
    let w = noise.matrix(3, 5, 1.0);
    let y = Mat::from_fn(3, 60, |i, t| {
        (0..5).map(|j| w[(i, j)] * x[(j, t)]).sum::<f32>() + 2.0
    });
    let mut moments = Moments::zeros(5, 3);
    moments.add_block(x.as_ref(), y.as_ref());
    let map = moments.ridge(1e-9).unwrap();
    close(&map.weight, w);
    assert!(map.bias.iter().all(|b| (b - 2.0).abs() < 1e-4));
}

#[test]
fn streamed_teacher_statistics_are_the_sum_over_windows() {
    let noise = &mut Noise(9);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 3, noise));
    let all = TeacherStats::gather(&g, &l, &h, &[0, 1, 2]);
    let parts: Vec<TeacherStats> = (0..3)
        .map(|w| TeacherStats::gather(&g, &l, &h, &[w]))
        .collect();
    assert_eq!(all.tokens, 3 * TOKENS);
    for head in 0..4 {
        let sum: f64 = parts.iter().map(|p| p.sensitivity[head]).sum();
        assert!((all.sensitivity[head] - sum).abs() < 1e-9 * sum);
        let sum: f64 = parts.iter().map(|p| p.fits[head][1].energy).sum();
        assert!((all.fits[head][1].energy - sum).abs() < 1e-9 * sum);
    }
    // The sensitivity against its definition in the residual stream.
    let phases = Phases::new(&g.inv_freq, TOKENS);
    let x = l.attention_input(&g, h.window(0));
    let p = l.attention.project(&g, x.as_ref());
    let a = p.rotated(&phases).weights(&g, 3);
    let vo = mul(l.attention.o.subcols(3 * 8, 8), p.value(&g, 3));
    let mean = mul(vo.as_ref(), a.as_ref());
    let mut want = 0.0;
    for t in 0..TOKENS {
        for s in 0..=t {
            let far: f32 = (0..g.hidden)
                .map(|i| (vo[(i, s)] - mean[(i, t)]).powi(2))
                .sum();
            want += f64::from(a[(s, t)] * far);
        }
    }
    assert!((parts[0].sensitivity[3] - want).abs() < 1e-3 * want);
}
