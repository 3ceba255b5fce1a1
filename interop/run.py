"""Loads what `neuroconv export` writes in the engines it was written for, and writes docs/interop.md.

    interop/setup && target/interop/venv/bin/python interop/run.py [--only NAME]

Small models of every family are made with transformers from a fixed seed, with the tokenizer of the
fixture model; latent attention comes from converting the fixture model itself. Each is exported dense, in
8 and 4 bits and ternary. A cell is green where the engine's figures are those that neuroconv has for the
same weights:

- transformers: no key missing or unexpected, logits of 128 tokens within 1e-4 of the largest (f32), and
  the same 32 tokens by greedy decoding;
- llama.cpp: perplexity by `llama-perplexity`, whose kernels round activations to 8 bits where weights are
  packed, so 2 % are allowed there and 0.1 % else.

The process ends with an error if a cell is neither green nor refused with a reason.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np

# One of the forms would otherwise be compiled first, which takes longer than all of this.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "interop"
NEUROCONV = ROOT / "target" / "release" / "neuroconv"
LOGITS = ROOT / "target" / "release" / "examples" / "logits"
FABLE = ROOT / "fixtures" / "models" / "fable-2m"
EVAL = ROOT / "fixtures" / "texts" / "eval.txt"
CALIB = ROOT / "fixtures" / "texts" / "calib.txt"
SEED = 7
CTX, CHUNKS = 256, 8
GREEDY = 32
WEIGHTS = ["dense", "int8", "int4", "ternary"]
MEASURE = ["--text", str(EVAL), "--protocol", "llamacpp-512", "--ctx", str(CTX),
           "--max-eval-tokens", str(CTX * CHUNKS)]
LLAMA_CPP = HOME / "llama.cpp" / "bin"


def neuroconv(*args, codes=(0,)):
    """Standard output of the program, which must end with one of `codes`."""
    done = subprocess.run([NEUROCONV, *map(str, args)], capture_output=True, text=True)
    if done.returncode not in codes:
        sys.exit(f"neuroconv {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr}")
    return done


# The models.

FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
}


def make_family(name, folder):
    """A model of seeded random weights, three layers, with the fixture's tokenizer."""
    import torch
    import transformers

    kind, extra = FAMILIES[name]
    config = getattr(transformers, kind)(
        vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
        rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=2, pad_token_id=None, dtype="float32", **extra)
    seed = SEED + list(FAMILIES).index(name)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and "bias" not in parameter_name:
                parameter.copy_(1 + 0.1 * noise)
            elif "embed" in parameter_name:
                parameter.copy_(noise)
            else:
                parameter.copy_(0.1 * noise)
    model.save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(FABLE / file, folder / file)


def convert(model, weights, out, latent):
    """An artifact, or the checkpoint itself where nothing is converted."""
    common = ["-o", out, "--overwrite", "--allow-quality-loss", "-q", "--text", EVAL, "--ctx", CTX,
              "--max-eval-tokens", 4 * CTX]
    if latent:
        kind = {"dense": "keep"}.get(weights, weights)
        neuroconv("mla", model, "--rank", 64, "--rope-dim", 32, "--stock-rope", "--force",
                  "--weights", kind, "--calib", CALIB, *common)
        return out
    if weights == "dense":
        return model
    method = [] if weights == "int8" else ["--method", "rtn"]
    # Groups that blocks of three levels can hold.
    method += ["--group-size", 256] if weights == "ternary" else []
    neuroconv(weights, model, *method, *common)
    return out


# What the engines say.

def tokens_of(model):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return tokenizer.encode(EVAL.read_text()[:4000], add_special_tokens=False).ids[:128]


def our_logits(model, tokens, work):
    (work / "tokens.json").write_text(json.dumps(tokens))
    subprocess.run([LOGITS, model, work / "tokens.json", work / "logits.bin"], check=True)
    return np.fromfile(work / "logits.bin", dtype="<f4").reshape(len(tokens), -1)


def in_transformers(folder, model, work, dtype="float32"):
    """Largest difference of logits as a share of the largest logit, and greedy agreement."""
    import torch
    import transformers

    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True)
    wrong = {key: sorted(value) for key, value in info.items() if value}
    if wrong:
        return f"keys: {wrong}", False
    loaded.eval()
    tokens = tokens_of(model)
    ours = our_logits(model, tokens, work)
    with torch.no_grad():
        theirs = loaded(torch.tensor([tokens])).logits[0].float().numpy()
        prompt = tokens[:32]
        out = loaded.generate(torch.tensor([prompt]), max_new_tokens=GREEDY, do_sample=False,
                              pad_token_id=0, eos_token_id=None)
    off = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    step = list(prompt)
    agreed = 0
    for token in out[0, len(prompt):].tolist():
        best = int(our_logits(model, step, work)[-1].argmax())
        if best != token:
            break
        step.append(token)
        agreed += 1
    # Near ties may fall either way where arithmetic differs in the last bit.
    ok = off <= 1e-4 and agreed == GREEDY
    return f"{off:.1e}, greedy {agreed}/{GREEDY}", ok


def bf16_noise(model, work):
    """What rounding every weight to bf16 does to the logits in transformers, as a share of the largest."""
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokens = torch.tensor([tokens_of(model)])
    with torch.no_grad():
        exact = loaded(tokens).logits
        rounded = loaded.to(torch.bfloat16).to(torch.float32)(tokens).logits
    return float((exact - rounded).abs().max() / exact.abs().max())


def in_llama_cpp(file, ours, packed):
    command = [LLAMA_CPP / "llama-perplexity", "-m", file, "-f", EVAL, "-c", str(CTX), "--chunks",
               str(CHUNKS), "-b", str(CTX), "-t", "2"]
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return f"did not load: {(done.stderr or done.stdout).strip().splitlines()[-1]}", False
        # Its last lines sometimes stay in a buffer when it ends: asked again then.
        found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
        if found:
            theirs = float(found[1])
            off = theirs / ours - 1
            return f"{theirs:.4f} for {ours:.4f} ({off:+.1e})", abs(off) <= (0.02 if packed else 0.001)
    return "ended twenty times without a result", False


def readers(folder, file):
    """The readers of other projects accept every file and card."""
    from huggingface_hub import ModelCard
    from safetensors import safe_open

    for weights in sorted(folder.glob("*.safetensors")):
        with safe_open(weights, "np") as opened:
            assert len(list(opened.keys())) > 0
    ModelCard.load(folder / "README.md").data.to_dict()
    import gguf

    reader = gguf.GGUFReader(file)
    assert len(reader.tensors) > 0 and reader.get_field("general.architecture")


def cell(engine, model, weights, work, latent):
    """One cell of the table: its text, and whether it is in order."""
    form = "hf" if engine == "transformers" else "gguf"
    out = work / ("export" if form == "hf" else "export.gguf")
    args = ["export", model, "--to", form, "--dtype", "f32", "-o", out, "--overwrite", "--json",
            "--calib", CALIB, *MEASURE]
    done = neuroconv(*args, codes=(0, 5))
    if done.returncode == 5:
        reason = re.search(r"^error: (.*)$", done.stderr, re.M)[1]
        return f"refused: {reason}", True, None
    outcome = json.loads(done.stdout)
    if engine == "transformers":
        text, ok = in_transformers(out, model, work)
    else:
        text, ok = in_llama_cpp(out, outcome["comparison"]["ppl"], weights != "dense")
    if not outcome["exact"]:
        text += f"; fitted, {outcome['comparison']['kld_mean']:.1e} nats from the model"
    return text, ok, out


def exported(model, form, out, *args):
    """The outcome of an export, which must succeed."""
    return json.loads(neuroconv(
        "export", model, "--to", form, "-o", out, "--overwrite", "--json", "--calib", CALIB, *MEASURE,
        *args).stdout)


def gptq_weights(folder):
    """The matrices of a GPTQ folder by the published layout: (code - (zero + 1)) * scale."""
    from safetensors.numpy import load_file

    stored = load_file(folder / "model.safetensors")
    bits = json.loads((folder / "config.json").read_text())["quantization_config"]["bits"]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    mask = np.uint32(2**bits - 1)
    for name in [n for n in stored if n.endswith(".qweight")]:
        base = name.removesuffix("qweight")
        words = stored[name].view(np.uint32)
        codes = (words[:, None, :] >> shifts[None, :, None] & mask).reshape(-1, words.shape[1])
        zeros = stored[base + "qzeros"].view(np.uint32)
        zeros = (zeros[:, :, None] >> shifts & mask).reshape(zeros.shape[0], -1) + 1
        group = stored[base + "g_idx"]
        scales = stored[base + "scales"].astype(np.float32)
        w = (codes.astype(np.float32) - zeros.astype(np.float32)[group]) * scales[group]
        yield base + "weight", w.T


def other_forms(work):
    """Forms beside those of the table: name, what was found, whether it is in order."""
    from safetensors.numpy import load_file

    for family in FAMILIES:
        exported(work / family, "hf", work / "bf16", "--dtype", "bf16")
        text, _ = in_transformers(work / "bf16", work / family, work)
        off, noise = float(text.split(",")[0]), bf16_noise(work / family, work)
        yield f"{family}, bf16", "transformers", f"{off:.1e}; bf16 alone {noise:.1e}", off <= 1.5 * noise

    latent = work / "MLA-of-llama-dense" / "artifact"
    exported(latent, "hf", work / "youtu", "--dtype", "f32", "--latent-class", "youtu")
    yield "MLA as youtu", "transformers", *in_transformers(work / "youtu", latent, work)

    int4 = work / "llama-int4" / "artifact"
    exported(int4, "hf", work / "gptq", "--dtype", "f32", "--weights", "gptq")
    exported(int4, "hf", work / "numbers", "--dtype", "f32", "--weights", "dense")
    numbers = load_file(work / "numbers" / "model.safetensors")
    off = max(float(np.abs(w - numbers[name]).max()) for name, w in gptq_weights(work / "gptq"))
    yield "llama, GPTQ", "numpy by its layout", f"weights differ by {off:.1e}", off <= 1e-6

    make_three_levels(work / "llama", work / "three-levels")
    neuroconv("ternary", work / "three-levels", "-o", work / "lossless", "--overwrite", "--text", EVAL,
              "--ctx", CTX, "--max-eval-tokens", 4 * CTX, "-q", "--allow-quality-loss")
    exported(work / "lossless", "hf", work / "bitnet", "--dtype", "f32", "--weights", "bitnet")
    exported(work / "lossless", "hf", work / "plain", "--dtype", "f32", "--weights", "dense")
    off = bitnet_difference(work / "bitnet", work / "plain", tokens_of(work / "lossless"))
    yield ("three levels, one scale each, as BitNet", "transformers",
           f"{off:.1e} from the dense model with activations rounded to 8 bits alike", off <= 1e-4)

    ternary = work / "llama-ternary" / "artifact"
    neuroconv("int4", work / "llama", "-o", work / "int4-256", "--overwrite", "--text", EVAL, "--ctx", CTX,
              "--max-eval-tokens", 4 * CTX, "-q", "--allow-quality-loss", "--method", "rtn",
              "--group-size", 256)
    for name, model, args in [("TQ1_0", ternary, ["--ternary-type", "tq1_0"]),
                              ("Q2_0", ternary, ["--ternary-type", "q2_0"]),
                              ("Q4_K", work / "int4-256", ["--q4-k"])]:
        outcome = exported(model, "gguf", work / "form.gguf", "--dtype", "f32", *args)
        found = in_llama_cpp(work / "form.gguf", outcome["comparison"]["ppl"], True)
        yield f"llama, {name}", "llama.cpp", *found

    exported(FABLE, "gguf", work / "fable.gguf", "--dtype", "f32")
    prompt = "Once there was"
    ours = neuroconv("generate", work / "fable.gguf", "-p", prompt, "-n", GREEDY).stdout
    theirs = subprocess.run([LLAMA_CPP / "llama-simple", "-m", work / "fable.gguf", "-n", str(GREEDY),
                             prompt], capture_output=True, text=True).stdout
    text = theirs[theirs.find(prompt):].strip()
    same = len(ours.strip()) > 40 and text.replace("<|endoftext|>", "").startswith(ours.strip()[:80])
    yield "the fixture, greedy", "llama.cpp", repr(text[:60]), same


def bitnet_difference(folder, dense, tokens):
    """Largest difference of logits between a BitNet folder and the dense model it stands for, whose inputs
    of packed matrices are rounded as that form does, as a share of the largest logit."""
    import torch
    import transformers

    packed = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = transformers.AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()

    def rounded(_, inputs):
        x = inputs[0]
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return ((x * scale).round().clamp(-128, 127) / scale,)

    for name, module in plain.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(rounded)
    with torch.no_grad():
        ours, theirs = (model(torch.tensor([tokens])).logits for model in (plain, packed))
    return float((ours - theirs).abs().max() / ours.abs().max())


def make_three_levels(source, folder):
    """A checkpoint whose matrices have three levels and one scale each."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                # A power of two times three levels is exact in every element type.
                parameter.copy_(torch.clamp(torch.round(parameter / 0.1), -1, 1) * 0.125)
    model.save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(FABLE / file, folder / file)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one family")
    only = parser.parse_args().only
    work = HOME / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows, bad = [], []
    for family in [*FAMILIES, "MLA of llama"]:
        if only and only != family:
            continue
        latent = family not in FAMILIES
        source = FABLE if latent else work / family
        if not latent:
            make_family(family, source)
        for weights in WEIGHTS:
            here = work / f"{family.replace(' ', '-')}-{weights}"
            here.mkdir()
            model = convert(source, weights, here / "artifact", latent)
            texts, outs = [], []
            for engine in ["transformers", "llamacpp"]:
                text, ok, out = cell(engine, model, weights, here, latent)
                print(f"{family} {weights} {engine}: {text}{'' if ok else '  FAILED'}", flush=True)
                texts.append(text if ok else f"**failed**: {text}")
                outs.append(out)
                if not ok:
                    bad.append((family, weights, engine, text))
            if all(outs):
                readers(*outs)
            rows.append((family, weights, *texts))
    forms = []
    for name, engine, text, ok in [] if only else other_forms(work):
        print(f"{name}, {engine}: {text}{'' if ok else '  FAILED'}", flush=True)
        forms.append((name, engine, text if ok else f"**failed**: {text}"))
        if not ok:
            bad.append((name, engine, text))
    if not only:
        write(rows, forms)
    if bad:
        sys.exit(f"{len(bad)} cells failed: {bad}")


def write(rows, forms):
    import compressed_tensors
    import torch
    import transformers

    lines = [
        "# What other engines make of exports", "",
        "Written by `just interop`: every form of every family, loaded by the engine it was written for,",
        "against neuroconv's own figures for the same weights. See `interop/run.py` for what is compared.",
        "", f"transformers {transformers.__version__}, torch {torch.__version__}, compressed-tensors "
        f"{compressed_tensors.__version__}; llama.cpp as carried by llama-cpp-python 0.3.36. vLLM and SGLang: "
        "not run.", "",
        "transformers: largest difference of logits (share of the largest logit), tokens of greedy decoding "
        "that agree. llama.cpp: its perplexity for ours, and how far apart they are.", "",
        "| model | weights | transformers | llama.cpp |", "|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "## Other forms", "", "| export | by | found |", "|---|---|---|"]
    lines += [f"| {' | '.join(form)} |" for form in forms]
    (ROOT / "docs" / "interop.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
