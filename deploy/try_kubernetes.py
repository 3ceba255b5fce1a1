"""Runs the commands of kubernetes.yaml as its pods would, for `deploy/try`.

The image is this machine, the shared volume a folder: paths below /data become MODEL, OUT and TEXT.
"""

import os
import subprocess
import sys
from pathlib import Path

import yaml

model, out, text = sys.argv[1:]
program = Path(os.environ["NEUROCONV"])
path = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
units, merge = yaml.safe_load_all((Path(__file__).parent / "kubernetes.yaml").read_text())


def container(job):
    (one,) = job["spec"]["template"]["spec"]["containers"]
    return one


def run(job, **more):
    one = container(job)
    env = {entry["name"]: entry["value"] for entry in one["env"]}
    env |= {"MODEL": model, "OUT": out} | more | path
    args = [word.replace("/data/eval.txt", text) for word in one["args"]]
    # A fixture's text is short, and three levels cost a small model much.
    args[-1] += os.environ.get("MORE", "")
    subprocess.run([*one["command"], *args], env=env, check=True, stdout=subprocess.DEVNULL)


completions = units["spec"]["completions"]
declared = {entry["name"]: entry["value"] for entry in container(units)["env"]}
assert declared["UNITS"] == str(completions), "UNITS and completions differ"
count = 3
os.environ["MORE"] = " --smoke off -q"
for index in range(count):
    run(units, JOB_COMPLETION_INDEX=str(index), UNITS=str(count))
os.environ["MORE"] += " --ctx 128 --max-eval-tokens 2048 --allow-quality-loss --report json"
run(merge)
print(f"kubernetes: {count} units")
