use neuroconv_convert::mla::*;
use neuroconv_convert::mla::{activations::*, model::*, rotary::Phases, linalg, load, score_ls::Side};
use neuroconv_runtime::{open_source, WeightSource, TextTokenizer};
use neuroconv_recipes::{Role, TensorId};
use rayon::prelude::*;
use std::time::Instant;

fn windows(path: &str, tok: &TextTokenizer, ctx: usize, n: usize) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(path).unwrap();
    let cut: String = text.chars().take(n * 8 + 1000).collect();
    let ids = tok.encode_plain(&cut).unwrap();
    ids.chunks_exact(ctx).take(n / ctx).map(<[u32]>::to_vec).collect()
}
fn eval(src: &dyn WeightSource, win: &[Vec<u32>], mla: Option<&[MlaAttention]>) -> Vec<Vec<f64>> {
    let spec = src.spec();
    let table = load::vector(src, TensorId::model(Role::Embed)).unwrap();
    let mut h = Activations::embed(&table, spec.hidden, win);
    for i in 0..spec.layers.len() {
        let g = load::geometry(spec, i).unwrap();
        let l = load::layer(src, i).unwrap();
        match mla { None => { let p = Phases::new(&g.inv_freq, h.window_len()); attend(&g, &l, &mut h, |x| l.attention.forward(&g, &p, x)).unwrap() }
            Some(m) => { let p = Phases::new(&m[i].inv_freq, h.window_len()); attend(&g, &l, &mut h, |x| m[i].forward(&p, x)).unwrap() } }
        feed_forward(&g, &l, &mut h).unwrap();
    }
    let norm = load::vector(src, TensorId::model(Role::FinalNorm)).unwrap();
    let head = if spec.tied { table } else { load::vector(src, TensorId::model(Role::Head)).unwrap() };
    let head = faer::MatRef::from_row_major_slice(&head, spec.vocab, spec.hidden);
    (0..h.windows()).into_par_iter().map(|w| {
        let x = rms_norm(h.window(w), &norm, spec.norm_eps);
        let lg = linalg::mul(head, x.as_ref());
        (0..win[w].len()-1).map(|t| { let c = lg.col_as_slice(t); let m = c.iter().copied().fold(f32::MIN, f32::max);
            let s: f64 = c.iter().map(|v| ((v-m) as f64).exp()).sum(); s.ln() + m as f64 - c[win[w][t+1] as usize] as f64 }).collect()
    }).collect()
}
fn ppl(n: &[Vec<f64>]) -> f64 { let k: usize = n.iter().map(Vec::len).sum(); (n.iter().flatten().sum::<f64>() / k as f64).exp() }

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let data = &a[1];
    let src = open_source(std::path::Path::new(&a[2])).unwrap();
    let tok = TextTokenizer::open(src.tokenizer_dir()).unwrap();
    let ctx: usize = std::env::var("CTX").ok().map_or(256, |v| v.parse().unwrap());
    let cctx: usize = std::env::var("CCTX").ok().map_or(ctx, |v| v.parse().unwrap());
    let ncal: usize = std::env::var("CALIB").ok().map_or(32768, |v| v.parse().unwrap());
    let cal = windows(&format!("{data}/calib_books.txt"), &tok, cctx, ncal);
    let texts: Vec<_> = ["sherlock.txt", "wikitext2_test.txt"].iter().map(|t| windows(&format!("{data}/{t}"), &tok, ctx, 40960)).collect();
    let base: Vec<_> = texts.iter().map(|t| eval(&src, t, None)).collect();
    println!("base {:.4} {:.4}  ({} {} windows)", ppl(&base[0]), ppl(&base[1]), texts[0].len(), texts[1].len());
    for c in &a[3..] {
        let p: Vec<&str> = c.split(',').collect();
        let mut o = Options::new(p[1].parse().unwrap(), p[0].parse().unwrap());
        for k in &p[2..] {
            if *k == "stock" { o.table = Table::Stock }
            else if let Some(v) = k.strip_prefix("ls=") {
                o.score_fits = v.split('/').filter(|s| !s.is_empty()).map(|s| (if s.starts_with('k') { Side::Key } else { Side::Query }, s[1..].parse().unwrap())).collect();
            } else if let Some(v) = k.strip_prefix("ridge=") { o.ridge = v.parse().unwrap() }
            else if let Some(v) = k.strip_prefix("aw=") { o.attention_windows = v.parse().unwrap() }
            else if *k == "exact" { o.refit_input = false; o.refit_output = false; o.best_constant = false; o.score_fits.clear(); }
            else { panic!("{k}") }
        }
        let t0 = Instant::now();
        let mut m = Vec::new();
        let verbose = std::env::var("V").is_ok();
        convert_model(&src, &cal, &o, |i, l, d| { if verbose { println!("  layer {i}: bal {} energy {:.4} err {:.5} left {:.4} ls {:?}", d.balance, d.energy, d.output_error, d.rotation_loss_left,
            d.score_fits.iter().map(|f| format!("{:.4}->{:.4} ({})", f.before, f.after, f.steps)).collect::<Vec<_>>()); } m.push(l); Ok(()) }).unwrap();
        let dt = t0.elapsed().as_secs_f64();
        print!("{c}: {dt:.1}s ");
        for (t, b) in texts.iter().zip(&base) { let e = eval(&src, t, Some(&m)); print!(" ppl {:.4} ratio {:.4}", ppl(&e), ppl(&e)/ppl(b)); }
        println!();
    }
}
