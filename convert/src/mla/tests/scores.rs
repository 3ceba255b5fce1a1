//! Score least squares against the loss it names.

use super::super::score_ls::{ScoreProblem, add_scaled, product};
use super::super::student::Side;
use super::*;

#[test]
fn score_least_squares_lowers_the_loss_it_names() {
    let noise = &mut Noise(10);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 32, noise));
    let options = Options {
        score_fits: Vec::new(),
        ..Options::new(10, 8)
    };
    let (mut mla, _) = convert(&g, &l, &h, &options);
    let windows: Vec<usize> = (0..32).collect();
    let problem = |train: &[usize], held_out: &[usize]| {
        let (train, held_out) = (train.to_vec(), held_out.to_vec());
        ScoreProblem::new(&g, &l, &h, &h, &[1.0; 4], train, held_out)
    };
    let same = problem(&windows, &windows);
    for side in [Side::Key, Side::Query] {
        let before = same.held_out_loss(&mla);
        let fit = same.fit(&mut mla, side, 8).unwrap();
        assert!((fit.before - before).abs() < 1e-12);
        assert!(
            fit.after < 0.95 * before && fit.steps == 8,
            "{side:?}: {fit:?}"
        );
        assert!((same.held_out_loss(&mla) - fit.after).abs() < 1e-9);
    }
    // Two windows cannot teach the others anything, so the others keep every step out.
    let (few, others) = (problem(&windows[..2], &windows[2..]), mla.clone());
    let fit = few.fit(&mut mla, Side::Key, 8).unwrap();
    assert_eq!((fit.steps, fit.before), (0, fit.after));
    assert_eq!(mla.kb, others.kb);
}

/// The slopes conjugate gradients follow, against differences of the loss itself.
#[test]
fn the_gradient_of_the_score_loss_is_its_slope() {
    let noise = &mut Noise(11);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 2, noise));
    let (mla, _) = convert(&g, &l, &h, &plain(6, 4));
    let problem = ScoreProblem::new(
        &g,
        &l,
        &h,
        &h,
        &[0.5, 1.0, 1.5, 1.0],
        vec![0, 1],
        vec![0, 1],
    );
    let (rebuilt, _) = rebuild(&g, &l, &h, &plain(9, 0));
    for side in [Side::Key, Side::Query] {
        slope_agrees(&problem, &mla, side, noise);
        slope_agrees(&problem, &rebuilt, side, noise);
    }
}

fn slope_agrees<S: Student>(problem: &ScoreProblem<'_>, layer: &S, side: Side, noise: &mut Noise) {
    let at = layer.weights(side).unwrap();
    let random =
        |part: &Mat<f64>| Mat::from_fn(part.nrows(), part.ncols(), |_, _| f64::from(noise.next()));
    let along: Vec<Mat<f64>> = at.iter().map(random).collect();
    let loss = |step: f64| {
        let (mut moved, mut weights) = (layer.clone(), at.clone());
        add_scaled(&mut weights, &along, step);
        moved.store(side, &weights);
        problem.held_out_loss(&moved)
    };
    let still = problem.turned(
        layer,
        if side == Side::Key {
            Side::Query
        } else {
            Side::Key
        },
    );
    let (ahead, behind) = (loss(1e-2), loss(-1e-2));
    let slope = product(&problem.gradient(layer, side, &still, &at, true), &along);
    let want = (ahead - behind) / 2e-2;
    assert!(
        (slope - want).abs() < 1e-3 * want.abs(),
        "{side:?}: {slope} {want}"
    );
    let curve = product(
        &problem.gradient(layer, side, &still, &along, false),
        &along,
    );
    let want = (ahead + behind - 2.0 * loss(0.0)) / 1e-4;
    assert!(
        (curve - want).abs() < 1e-2 * want.abs(),
        "{side:?}: {curve} {want}"
    );
}
