//! Puts weights together: projections, split and latent become a layer.

use faer::Mat;

use super::error::Error;
use super::layer::{Encoder, MlaAttention};
use super::linalg::{mul, narrow, par_mul, wide};
use super::moments::Affine;
use super::rebuilt::LatentAttention;
use super::reduce::{Metric, Reduced, ReducedRank, value_metric};
use super::slots::Split;
use super::source::{Geometry, SourceAttention, SourceLayer};
use super::student::Student;
use super::teacher::TeacherStats;

/// Some outputs of a map.
pub fn rows(map: &Affine, start: usize, count: usize) -> Affine {
    Affine {
        weight: map.weight.subrows(start, count).to_owned(),
        bias: map.bias[start..start + count].to_vec(),
    }
}

/// The source's queries, keys and values.
pub fn plain_projection(source: &SourceLayer) -> Affine {
    Affine {
        weight: wide(source.attention.qkv.as_ref()),
        bias: source
            .attention
            .qkv_bias
            .iter()
            .map(|&b| f64::from(b))
            .collect(),
    }
}

/// The source's output projection, the mean of the values (which the latent leaves out) in its bias.
pub fn plain_output(g: &Geometry, source: &SourceLayer, value_mean: &[f64]) -> Affine {
    let of_head = |i: usize| value_mean[i / g.head_dim / g.group() * g.head_dim + i % g.head_dim];
    let values: Vec<f64> = (0..g.query_width()).map(of_head).collect();
    let mut output = Affine {
        weight: wide(source.attention.o.as_ref()),
        bias: source
            .attention
            .o_bias
            .iter()
            .map(|&b| f64::from(b))
            .collect(),
    };
    output.bias = output.at(&values);
    output
}

/// Queries and the rotated key by the projections `qkv`; the latent is empty.
pub fn rotated_part(
    g: &Geometry,
    source: &SourceLayer,
    split: &Split,
    qkv: &Affine,
) -> MlaAttention {
    let (hd, d, n, rope) = (
        g.query_width(),
        g.head_dim,
        g.key_width(),
        2 * split.slots.len(),
    );
    let key_map = split.rotated_key(g);
    let encoder = if let Some((q_gain, k_gain)) = &source.attention.qk_norm {
        let mut q_rope_map = Mat::zeros(g.heads * rope, d);
        for h in 0..g.heads {
            let map = narrow(split.rotated_query(g, h).as_ref());
            q_rope_map.subrows_mut(h * rope, rope).copy_from(&map);
        }
        let (q, k, v) = (rows(qkv, 0, hd), rows(qkv, hd, n), rows(qkv, hd + n, n));
        let mut kv_a = Mat::zeros(rope, 2 * n);
        kv_a.subcols_mut(0, n).copy_from(narrow(key_map.as_ref()));
        Encoder::Normed {
            q: narrow(q.weight.as_ref()),
            q_bias: small(&q.bias),
            q_norm: q_gain.iter().map(|&gain| gain * g.scale() as f32).collect(),
            q_rope_map,
            k: narrow(k.weight.as_ref()),
            k_bias: small(&k.bias),
            k_norm: k_gain.clone(),
            v: narrow(v.weight.as_ref()),
            v_bias: small(&v.bias),
            kv_a,
            kv_a_bias: vec![0.0; rope],
            norm_eps: g.norm_eps,
        }
    } else {
        let mut q = rows(qkv, 0, hd);
        q.weight *= g.scale();
        q.bias.iter_mut().for_each(|b| *b *= g.scale());
        let mut q_rope = Mat::zeros(g.heads * rope, g.hidden);
        let mut q_rope_bias = Vec::with_capacity(g.heads * rope);
        for h in 0..g.heads {
            let turned = rows(&q, h * d, d).then(split.rotated_query(g, h).as_ref());
            q_rope
                .subrows_mut(h * rope, rope)
                .copy_from(narrow(turned.weight.as_ref()));
            q_rope_bias.extend(small(&turned.bias));
        }
        let k_rope = rows(qkv, hd, n).then(key_map.as_ref());
        Encoder::Linear {
            q_nope: narrow(q.weight.as_ref()),
            q_nope_bias: small(&q.bias),
            q_rope,
            q_rope_bias,
            k_rope: narrow(k_rope.weight.as_ref()),
            k_rope_bias: small(&k_rope.bias),
            kv_a: Mat::zeros(0, g.hidden),
            kv_a_bias: Vec::new(),
        }
    };
    MlaAttention {
        heads: g.heads,
        inv_freq: split.inv_freq(g),
        encoder,
        kb: Mat::zeros(hd, 0),
        vb: Mat::zeros(hd, 0),
        o: Mat::zeros(0, 0),
        o_bias: Vec::new(),
    }
}

/// `base` with a latent; `unrotated` maps all keys to the unrotated key of each head.
pub fn with_latent(
    g: &Geometry,
    base: &MlaAttention,
    unrotated: &[Mat<f64>],
    latent: &Reduced,
) -> MlaAttention {
    let (n, d, rank) = (g.key_width(), g.head_dim, latent.encode.nrows());
    let mut out = base.clone();
    let (mut kb, mut vb) = (
        Mat::zeros(g.query_width(), rank),
        Mat::zeros(g.query_width(), rank),
    );
    for (h, unrotated) in unrotated.iter().enumerate() {
        let key = par_mul(unrotated.as_ref(), latent.decode.subrows(0, n));
        kb.subrows_mut(h * d, d).copy_from(narrow(key.as_ref()));
        let value = latent.decode.subrows(n + h / g.group() * d, d);
        vb.subrows_mut(h * d, d).copy_from(narrow(value));
    }
    (out.kb, out.vb) = (kb, vb);
    let (encode, bias) = (narrow(latent.encode.as_ref()), small(&latent.encode_bias));
    match &mut out.encoder {
        Encoder::Linear {
            kv_a, kv_a_bias, ..
        } => (*kv_a, *kv_a_bias) = (encode, bias),
        Encoder::Normed {
            kv_a, kv_a_bias, ..
        } => {
            let rotated = kv_a
                .subrows(kv_a.nrows() - base.rope(), base.rope())
                .to_owned();
            *kv_a = Mat::zeros(rank + base.rope(), 2 * n);
            kv_a.subrows_mut(0, rank).copy_from(&encode);
            kv_a.subrows_mut(rank, base.rope()).copy_from(&rotated);
            *kv_a_bias = bias;
            kv_a_bias.resize(rank + base.rope(), 0.0);
        }
    }
    out
}

/// `base` with a latent of full rank and the source's output projection: what is lost is the
/// rotation alone. `encoded` is the map to `[k; v]` with mean and covariance of what it reads.
pub fn full_rank(
    g: &Geometry,
    source: &SourceLayer,
    stats: &TeacherStats,
    base: &MlaAttention,
    unrotated: &[Mat<f64>],
    encoded: (Affine, Vec<f64>, Mat<f64>),
) -> Result<MlaAttention, Error> {
    let (n, (z, mean, covariance)) = (g.key_width(), encoded);
    let means = z.at(&mean);
    let metric = Metric {
        keys: unrotated_metric(g, stats, unrotated),
        whole_keys: whole_metric(g, stats),
        values: value_metric(g, &source.attention),
    };
    let problem = ReducedRank::new(z, mean, covariance.as_ref(), &metric)?;
    let mut layer = with_latent(
        g,
        base,
        unrotated,
        &problem.solve(2 * n - base.rope(), 1.0)?,
    );
    let output = plain_output(g, source, &means[n..]);
    layer.set_output(narrow(output.weight.as_ref()), small(&output.bias));
    Ok(layer)
}

/// What errors of the keys cost that have lost their rotation: `Σ_h τ_h M_hᵀ E[q qᵀ] M_h`.
pub fn unrotated_metric(g: &Geometry, stats: &TeacherStats, unrotated: &[Mat<f64>]) -> Mat<f64> {
    let (n, d) = (g.key_width(), g.head_dim);
    let mut metric = Mat::<f64>::zeros(n, n);
    for (h, tau) in stats.head_weights().iter().enumerate() {
        let q = &stats.query_moment[h];
        let q = Mat::from_fn(d, d, |i, j| q[(i, j)] * tau / stats.tokens as f64);
        let m = unrotated[h].as_ref();
        metric += par_mul(m.transpose(), mul(q.as_ref(), m).as_ref());
    }
    metric
}

/// What errors of all keys cost while none has lost its rotation.
pub fn whole_metric(g: &Geometry, stats: &TeacherStats) -> Mat<f64> {
    let (n, d) = (g.key_width(), g.head_dim);
    let mut metric = Mat::<f64>::zeros(n, n);
    for (h, tau) in stats.head_weights().iter().enumerate() {
        let own = h / g.group() * d;
        let mut block = metric.submatrix_mut(own, own, d, d);
        block += faer::Scale(tau / stats.tokens as f64) * &stats.query_moment[h];
    }
    metric
}

/// What errors of rebuilt keys cost: the queries' moments as the rotation turns them over the
/// distances of attention, one block per key head. Errors before a norm of the keys pass through its
/// gain and the mean size of the keys.
pub fn rotated_metric(g: &Geometry, attention: &SourceAttention, stats: &TeacherStats) -> Mat<f64> {
    let (n, d) = (g.key_width(), g.head_dim);
    let mut metric = Mat::<f64>::zeros(n, n);
    for (h, tau) in stats.head_weights().iter().enumerate() {
        let (j, turned) = (h / g.group(), stats.turned_query_moment(g, h));
        let gain = |i: usize| {
            attention
                .qk_norm
                .as_ref()
                .map_or(1.0, |(_, k)| f64::from(k[i]))
        };
        let scale = tau / stats.tokens as f64 / stats.key_square(j);
        let mut block = metric.submatrix_mut(j * d, j * d, d, d);
        block += Mat::from_fn(d, d, |a, b| turned[(a, b)] * scale * gain(a) * gain(b));
    }
    metric
}

/// Queries by the projections `qkv`; the latent is empty.
pub fn rebuilt_part(g: &Geometry, source: &SourceLayer, qkv: &Affine) -> LatentAttention {
    let q = rows(qkv, 0, g.query_width());
    let norm = source.attention.qk_norm.clone();
    LatentAttention {
        heads: g.heads,
        kv_heads: g.kv_heads,
        inv_freq: g.inv_freq.clone(),
        q: narrow(q.weight.as_ref()),
        q_bias: small(&q.bias),
        q_norm: norm.as_ref().map(|(q, _)| q.clone()),
        kv_a: Mat::zeros(0, g.hidden),
        kv_a_bias: Vec::new(),
        kb: Mat::zeros(g.key_width(), 0),
        k_bias: Vec::new(),
        k_norm: norm.map(|(_, k)| k),
        vb: Mat::zeros(g.key_width(), 0),
        o: Mat::zeros(0, 0),
        o_bias: Vec::new(),
        norm_eps: g.norm_eps,
    }
}

/// `base` with a latent; `means` are those of `[k; v]`.
pub fn with_rebuilt(
    g: &Geometry,
    base: &LatentAttention,
    means: &[f64],
    latent: &Reduced,
) -> LatentAttention {
    let n = g.key_width();
    LatentAttention {
        kv_a: narrow(latent.encode.as_ref()),
        kv_a_bias: small(&latent.encode_bias),
        kb: narrow(latent.decode.subrows(0, n)),
        k_bias: small(&means[..n]),
        vb: narrow(latent.decode.subrows(n, n)),
        ..base.clone()
    }
}

/// `values` in single precision.
pub fn small(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}
