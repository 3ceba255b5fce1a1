# Everything CI runs.
check:
    .ci/run

# The tests alone.
test:
    cargo test --release --workspace

# The HTML report in a browser; installs Chromium where it is missing. Screenshots: target/tmp.
browser:
    command -v "${CHROMIUM:-chromium}" >/dev/null || { s=$([ "$(id -u)" = 0 ] || echo sudo); $s apt-get update -q; $s apt-get install -y -q --no-install-recommends chromium; }
    cargo test --release --locked -p neuroconv --features browser --test browser

# The exports of the fixture model against their stored baseline.
gate:
    .ci/gate

# Exports of every family in the engines they are for; writes docs/interop.md. Needs Python, CMake and a
# C++ compiler.
interop:
    interop/setup
    cargo build --release
    cargo build --release --workspace --example logits
    target/interop/venv/bin/python interop/run.py

# The hub of the tests, and the caches, against the official Python client.
interop-hub:
    interop/setup
    cargo build --release
    cargo build --release --workspace --bin hub
    target/interop/venv/bin/python interop/hub.py

# The main job on the built-in model.
demo:
    cargo run --release -- demo

# Formats the sources.
fmt:
    cargo fmt --all

# Makes the golden logits anew; needs Python.
golden:
    python3 -m venv target/golden-venv
    target/golden-venv/bin/pip install -r fixtures/generate/requirements.txt
    target/golden-venv/bin/python fixtures/generate/golden.py

# Trains the fixture model anew (about half an hour).
train:
    cargo run --release -p neuroconv-fixtures --features train --bin train

# Times every kernel on the layers of a 1.1B model.
bench:
    cargo bench -p neuroconv-kernels

# Instructions per function of a fixed generation, by callgrind, which knows no AVX-512.
instructions:
    cargo build --release
    NEUROCONV_ISA=avx2 valgrind --tool=callgrind --callgrind-out-file=target/callgrind.out \
        target/release/neuroconv generate fixtures/models/fable-2m -p "the" -n 32 --threads 1 -q
    callgrind_annotate --threshold=95 target/callgrind.out

# Lines of Rust per crate.
size:
    @for d in src recipes runtime/src runtime/format runtime/kernels quant convert verify fixtures; do printf '%-18s ' $d; find $d -name '*.rs' -print0 | xargs -0 cat | wc -l; done

# The best model at each size against llama.cpp's types, drawn into docs/front.svg; prints the table
# of docs/quality.md. The rows of llama.cpp belong to one model: another needs a CSV of its own.
front model calib text:
    cargo build --release
    for bits in 2.5 3 3.5 4.5 5 6 7 8.1; do \
        target/release/neuroconv int4 "{{model}}" --target-bpw $bits --calib "{{calib}}" --text "{{text}}" --ctx 256 \
            --max-eval-tokens 40960 --all-tokens --allow-quality-loss --smoke off --overwrite \
            --report-dir target/front/$bits -o target/front/$bits/artifact >/dev/null || exit 1; \
    done
    cargo run --release -p neuroconv-verify --example front -- docs/front.svg docs/llama.cpp.csv target/front/*/report.json
