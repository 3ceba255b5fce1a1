//! Where the conversion is exact, and how it falls with the rank.

use super::super::student::Side;
use super::*;

#[test]
fn full_rank_is_exact_where_nothing_turns() {
    for (heads, kv_heads, head_dim, biased) in [(4, 4, 8, false), (6, 2, 8, true), (4, 1, 16, true)]
    {
        let noise = &mut Noise(1);
        let g = geometry(heads, kv_heads, head_dim);
        let (l, h) = (layer(&g, biased, noise), residual(&g, 4, noise));
        for rope in [0, 4, 8] {
            let (mla, _) = convert(&g, &l, &h, &plain(2 * g.key_width() - rope, rope));
            let found = difference(&g, &l, &mla, &h, 0.0);
            assert!(
                found < 2e-5,
                "{heads}/{kv_heads} heads of {head_dim}, rope {rope}: {found}"
            );
        }
    }
}

#[test]
fn keeping_every_rotation_is_exact_at_any_unitary_mix() {
    let noise = &mut Noise(2);
    for biased in [false, true] {
        let g = geometry(6, 3, 8);
        let (l, h) = (layer(&g, biased, noise), residual(&g, 4, noise));
        let n = g.key_width();
        let (mla, _) = convert(&g, &l, &h, &plain(n, n));
        assert_eq!(mla.rope(), n);
        let found = difference(&g, &l, &mla, &h, 1.0);
        assert!(found < 2e-5, "{found}");
        // With all refits on there is nothing to repair, so they change nothing.
        let (mla, _) = convert(&g, &l, &h, &Options::new(n, n));
        let found = difference(&g, &l, &mla, &h, 1.0);
        assert!(found < 2e-3, "{found}");
    }
}

#[test]
fn one_key_head_keeps_its_rotation_exactly() {
    let noise = &mut Noise(3);
    let g = geometry(4, 1, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 4, noise));
    let (mla, d) = convert(&g, &l, &h, &plain(8, 8));
    assert_eq!(mla.rank(), 8);
    assert!(d.rotation_loss_left < 1e-6);
    let found = difference(&g, &l, &mla, &h, 1.0);
    assert!(found < 2e-5, "{found}");
}

/// Keys whose heads are complex multiples of one key, pair by pair, need one slot per pair.
#[test]
fn planted_rank_one_keys_are_exact() {
    let noise = &mut Noise(4);
    let g = geometry(6, 3, 8);
    let mut l = layer(&g, false, noise);
    let (hd, d, pairs) = (g.query_width(), g.head_dim, g.pairs());
    let first = l.attention.qkv.subrows(hd, d).to_owned();
    for j in 1..g.kv_heads {
        for p in 0..pairs {
            let (re, im) = (noise.next(), noise.next());
            for c in 0..g.hidden {
                let (a, b) = (first[(p, c)], first[(p + pairs, c)]);
                l.attention.qkv[(hd + j * d + p, c)] = re * a - im * b;
                l.attention.qkv[(hd + j * d + p + pairs, c)] = re * b + im * a;
            }
        }
    }
    let h = residual(&g, 4, noise);
    // All rotation in `head_dim` channels; the latent needs no more than the values.
    let (mla, found) = convert(&g, &l, &h, &plain(g.key_width(), d));
    assert!(
        found.rotation_loss_left < 1e-5,
        "{}",
        found.rotation_loss_left
    );
    let found = difference(&g, &l, &mla, &h, 1.0);
    assert!(found < 5e-5, "{found}");
}

#[test]
fn a_larger_rank_is_never_worse() {
    let noise = &mut Noise(5);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 16, noise));
    let mut last = (f64::INFINITY, 0.0);
    for rank in [2, 6, 12, 18, 24] {
        let options = Options {
            balances: vec![1.0],
            score_fits: Vec::new(),
            ..Options::new(rank, 8)
        };
        let (_, d) = convert(&g, &l, &h, &options);
        assert!(
            d.output_error < last.0 && d.energy_kept() > last.1,
            "rank {rank}: {d:?} after {last:?}"
        );
        last = (d.output_error, d.energy_kept());
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let noise = &mut Noise(6);
    let g = geometry(4, 2, 8);
    let (l, h) = (layer(&g, true, noise), residual(&g, 16, noise));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| convert(&g, &l, &h, &Options::new(6, 4)).0)
    };
    let (one, three) = (run(1), run(3));
    for side in [Side::Key, Side::Query] {
        assert_eq!(one.weights(side), three.weights(side));
    }
    let x = l.attention_input(&g, h.window(0));
    assert_eq!(one.latent(x.as_ref()), three.latent(x.as_ref()));
    assert_eq!(one.o, three.o);
}
