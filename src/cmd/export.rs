//! `neuroconv export`: a form of a model that another engine loads, compared with the model before it
//! gets its name.

use std::sync::atomic::Ordering;

use neuroconv_convert::export::{
    EngineModel, EngineVerdict, ExportError, Fit, InType, Side, StagedExport, latent_facts,
};
use neuroconv_convert::{Error as ConvertError, Staging};
use neuroconv_format::DType;
use neuroconv_recipes::Mixer;
use neuroconv_runtime::{AsNumbers, TextTokenizer, WeightSource, open_source};
use neuroconv_verify::{RuntimeScorer, compare, windows};

use crate::args::{ExportArgs, FormArg};
use crate::calibration::{self, ENGLISH};
use crate::corpus::{self, Measurement};
use crate::exit::Exit;
use crate::export::{self, Comparison, Outcome};
use crate::hub::{self, Need};
use crate::interrupt;
use crate::pipeline::INTERRUPTED;
use crate::present;
use crate::ui::Ui;

/// Divergence that an engine may have which computes another function, unless the user says.
const MAX_KLD: f64 = 0.1;

pub(crate) fn run(args: &ExportArgs, ui: Ui) -> anyhow::Result<Exit> {
    let engine = export::engine(args)?;
    let model = hub::resolve(&args.model, &args.hub, Need::Weights, ui)?;
    let source = super::open(&model)?;
    let side = Side::of(&source, &model.path).map_err(ConvertError::from)?;
    let facts = latent_facts(&source)?;
    let fit = engine.fit(source.spec(), facts);
    let exact = matches!(fit, Fit::Exact);
    if let Fit::Refused { reason, hint } = fit {
        let refused = ExportError::Refused {
            engine,
            reason,
            hint,
        };
        return Err(ConvertError::from(refused).into());
    }
    let staging = match &args.output {
        Some(output) if !args.dry_run => Some(Staging::open(output, args.overwrite)?),
        _ => None,
    };
    let dtype = export::dtype(args, &source)?;
    let measurement = corpus::measurement(&args.measure, source.spec(), source.tokenizer()?)?;
    let numbers = AsNumbers(&source);
    if staging.is_some() {
        interrupt::watch();
    }
    let interrupted = || INTERRUPTED.load(Ordering::Relaxed);
    let progress = ui.progress();
    let model = if exact || args.dry_run {
        EngineModel::exact(&source, dtype)
    } else {
        let spec = source.spec();
        let text = calibration::calibration(
            &args.calibration,
            ENGLISH,
            spec,
            &measurement.tokenizer,
            &measurement,
            spec.hidden,
        )?;
        text.warnings.iter().for_each(|warning| ui.warn(warning));
        EngineModel::fitted(
            &source,
            engine,
            &text.windows,
            progress.as_ref(),
            &interrupted,
        )
        .map_err(ConvertError::from)?
    };
    let planned =
        export::plan(args, engine, dtype, &source, &model, &side).map_err(ConvertError::from)?;
    planned.notes().iter().for_each(|note| ui.note(note));
    let mut outcome = Outcome {
        form: match args.to {
            FormArg::Hf => "hf",
            FormArg::Gguf => "gguf",
        },
        engine: engine.name(),
        exact,
        bytes: planned.bytes(),
        notes: planned.notes().to_vec(),
        engines: EngineVerdict::all(source.spec(), facts),
        comparison: None,
        waived: false,
        path: None,
    };
    let rows: Vec<Vec<String>> = outcome.engines.iter().map(|e| e.row().to_vec()).collect();
    ui.result(present::table(&["engine", "", "why", "tried"], &rows, &[]));
    ui.result(format!("{} for {engine}", present::bytes(planned.bytes())));
    let Some(staging) = staging else {
        ui.object(&outcome)?;
        return Ok(Exit::Done);
    };
    let staged = planned.stage(staging, progress.as_ref(), &interrupted)?;
    let limit = if exact {
        exactness(dtype)
    } else {
        args.max_kld.unwrap_or(MAX_KLD)
    };
    let comparison = compare_with(&numbers, &model, &staged, &measurement, (dtype, limit), ui)?;
    show(&comparison, ui);
    let pass = comparison.pass;
    outcome.waived = !pass && !exact && args.allow_quality_loss;
    outcome.comparison = Some(comparison);
    if !pass && !outcome.waived {
        ui.object(&outcome)?;
        return Ok(refuse(exact, ui));
    }
    if args.to == FormArg::Hf {
        let title = args.output.as_ref().and_then(|path| path.file_name());
        let title = title.unwrap_or_default().to_string_lossy();
        let card = export::card(&title, &side, &outcome).render();
        staged.describe(&side, &card, &serde_json::to_value(&outcome)?)?;
    }
    let path = staged.emit()?.display().to_string();
    outcome.path = Some(path.clone());
    ui.object(&outcome)?;
    ui.result(path);
    Ok(Exit::Done)
}

/// How far an export may be from its model, in nats, where the engine computes the same function: what
/// the rounding of plain numbers alone can do.
const fn exactness(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-7,
        DType::F16 => 1e-4,
        DType::BF16 | DType::U8 => 5e-3,
    }
}

/// Measures the model against what was written, read back; latent attention in the form of other engines
/// is no checkpoint that is read here, and is measured as it was before it was written, rounded to `dtype`.
fn compare_with(
    numbers: &AsNumbers<'_>,
    model: &EngineModel<'_>,
    staged: &StagedExport,
    measurement: &Measurement,
    (dtype, limit): (DType, f64),
    ui: Ui,
) -> anyhow::Result<Comparison> {
    let latent = |mixer: &Mixer| !matches!(mixer, Mixer::Attention(_));
    let read_back = !numbers
        .spec()
        .layers
        .iter()
        .any(|layer| latent(&layer.mixer));
    let written = read_back.then(|| open_source(staged.path())).transpose()?;
    let tokens_equal = match &written {
        Some(source) => {
            let tokens = |tokenizer: &TextTokenizer| tokenizer.encode_plain(ENGLISH.text);
            tokens(&source.tokenizer()?)? == tokens(&measurement.tokenizer)?
        }
        None => true,
    };
    let rounded = InType::new(model.model(), dtype);
    let written: &dyn WeightSource = match &written {
        Some(source) => source,
        None => &rounded,
    };
    let written = AsNumbers(written);
    let (base, export) = (RuntimeScorer::new(numbers)?, RuntimeScorer::new(&written)?);
    let Measurement {
        texts,
        protocol,
        ctx,
        max_tokens,
        ..
    } = measurement;
    let text = &texts[0];
    let windows = windows(text, *protocol, *ctx, Some(*max_tokens))?;
    let metrics = compare::metrics(&base, &export, &windows, ui.progress().as_ref())?;
    let kld_mean = metrics.kld_mean.value;
    Ok(Comparison {
        text: text.name.clone(),
        tokens: metrics.eval_tokens,
        read_back,
        tokens_equal,
        ppl_model: metrics.ppl_base.value,
        ppl: metrics.ppl.value,
        kld_mean,
        kld_max: metrics.kld_max,
        top1: metrics.top1.value,
        max_kld: limit,
        pass: kld_mean <= limit && tokens_equal,
    })
}

fn show(c: &Comparison, ui: Ui) {
    ui.result(format!(
        "on {} tokens of {}, {}: perplexity {} -> {}, mean divergence {:.2e} nats (at most {:.0e}), same top token {:.2} %",
        c.tokens,
        c.text,
        if c.read_back { "files read back" } else { "weights before writing" },
        present::number(c.ppl_model),
        present::number(c.ppl),
        c.kld_mean,
        c.max_kld,
        100.0 * c.top1,
    ));
    if !c.tokens_equal {
        ui.warn(
            "what was written cuts the built-in text into other tokens than the model's tokenizer",
        );
    }
}

/// What an export that is too far from its model means.
fn refuse(exact: bool, ui: Ui) -> Exit {
    if exact {
        ui.warn("refused: what was written is not what the model computes; nothing was kept");
        return Exit::Parity;
    }
    ui.warn(
        "refused: the engine's function is too far from the model's; nothing was kept. More calibration \
         text (--calib, --calib-tokens) comes nearer; --max-kld or --allow-quality-loss accept the loss",
    );
    Exit::Refused
}
