"""Converts a model in units on a Ray cluster, then merges them.

    python deploy/convert_ray.py --units 8 -- ternary MODEL -o OUT --calib none --text FILE

Everything after `--` is a `neuroconv` conversion as it would run on one machine. MODEL, OUT and the
texts lie on storage that all machines share under the same paths. A unit that fails is tried again
wherever there is room; a unit that is finished is not done twice, so the same program goes on after a
crash of the whole cluster.
"""

import argparse
import subprocess
import sys

import ray
from ray.util import get_node_ip_address


def run(program, arguments):
    """Runs the program; what it says on its way goes to this process's standard error."""
    done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{program} {' '.join(arguments)}` ended with {done.returncode}")
    return done.stdout.strip().splitlines()[-1]


@ray.remote(max_retries=3, retry_exceptions=True)
def convert_unit(program, conversion, index, units, threads):
    """One unit; gives its folder and the machine that made it."""
    arguments = [*conversion, "--unit", f"{index}/{units}", "--threads", str(threads)]
    folder = run(program, arguments)
    return folder, get_node_ip_address(), ray.get_runtime_context().get_worker_id()


def parse(words):
    parser = argparse.ArgumentParser(description="Converts a model in units on a Ray cluster.")
    parser.add_argument("--units", type=int, required=True, help="parts to split into")
    parser.add_argument("--threads", type=int, default=1, help="cores of each unit")
    parser.add_argument("--address", help="the cluster [default: one on this machine]")
    parser.add_argument("--program", default="neuroconv", help="path of neuroconv on all machines")
    parser.add_argument("--keep-units", action="store_true", help="leave out the merge")
    parser.add_argument("conversion", nargs=argparse.REMAINDER, help="-- COMMAND MODEL -o OUT ...")
    args = parser.parse_args(words)
    args.conversion = [word for word in args.conversion if word != "--"]
    if len(args.conversion) < 2 or not {"-o", "--output"} & set(args.conversion):
        parser.error("after `--`: a conversion with `-o`, as in `-- ternary MODEL -o OUT`")
    return args


def merge_arguments(conversion):
    """The flags that a merge shares with the conversion: where, and what is measured."""
    taking = {"-o", "--output", "--text", "--ctx", "--max-eval-tokens", "--protocol", "--report",
              "--max-ppl-ratio", "--max-kld", "--min-top1", "--max-memory", "--report-dir"}
    alone = {"--allow-quality-loss", "--overwrite", "--all-tokens", "--allow-requantize", "--json"}
    words = iter(conversion[1:])
    model = next(word for word in conversion[1:] if not word.startswith("-"))
    kept = ["merge", model]
    for word in words:
        name = word.split("=", 1)[0]
        if name in alone or (name in taking and "=" in word):
            kept.append(word)
        elif name in taking:
            kept += [word, next(words)]
    return kept


def main(words):
    args = parse(words)
    ray.init(address=args.address, log_to_driver=True)
    task = convert_unit.options(num_cpus=args.threads)
    waiting = [
        task.remote(args.program, args.conversion, index, args.units, args.threads)
        for index in range(1, args.units + 1)
    ]
    while waiting:
        (done,), waiting = ray.wait(waiting)
        folder, machine, worker = ray.get(done)
        print(f"{folder} by worker {worker[:8]} on {machine}", file=sys.stderr)
    if args.keep_units:
        return
    print(run(args.program, merge_arguments(args.conversion)))


if __name__ == "__main__":
    main(sys.argv[1:])
