"""Checks the hub of the tests, and both caches, against the official Python client.

    interop/setup && target/interop/venv/bin/python interop/hub.py

Serves the fixture model on this machine by the program that the tests use, and then:

1. the Python client fetches it from there, so that the routes are those that real clients ask for;
2. neuroconv takes that cache offline;
3. the Python client takes, without a request, a cache that neuroconv filled;
4. both caches hold the same files, with the same links and the same bytes.

Ends with an error where one of these does not hold.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RELEASE = ROOT / "target" / "release"
FABLE = ROOT / "fixtures" / "models" / "fable-2m"
NAME = "org/fable"
# Not compared: locks, and the tag, whose text each program has in its own words.
OWN = ["CACHEDIR.TAG", ".locks"]


def contents(cache):
    """Every path of a cache with what it is: the target of a link, or the bytes of a file."""
    found = {}
    for path in sorted(cache.rglob("*")):
        name = path.relative_to(cache)
        if name.parts[0] in OWN:
            continue
        if path.is_symlink():
            found[str(name)] = os.readlink(path)
        elif path.is_file():
            found[str(name)] = path.read_bytes()
    return found


def environment(home, **more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    return kept | {"HF_HOME": str(home), **more}


def neuroconv(home, *args, **more):
    """Output of the program, which must succeed."""
    done = subprocess.run([RELEASE / "neuroconv", *args], capture_output=True, text=True, env=environment(home, **more))
    if done.returncode != 0:
        sys.exit(f"neuroconv {' '.join(args)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout + done.stderr


def python_client(home, offline, **more):
    """The folder that the Python client gives for the model, in a process of its own."""
    code = (
        "from huggingface_hub import snapshot_download\n"
        f"print(snapshot_download({NAME!r}, local_files_only={offline}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(home, **more))
    if done.returncode != 0:
        sys.exit(f"the Python client fails:\n{done.stderr}")
    return pathlib.Path(done.stdout.strip())


def same_files(folder):
    """The number of files in a snapshot, all of which must be those of the fixture model."""
    names = sorted(path.name for path in FABLE.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names, folder
    for name in names:
        assert (folder / name).read_bytes() == (FABLE / name).read_bytes(), name
    return len(names)


def main():
    import huggingface_hub

    server = subprocess.Popen([RELEASE / "hub", FABLE, "--name", NAME, "--page", "3"], stdout=subprocess.PIPE, text=True)
    try:
        endpoint, _, commit = server.stdout.readline().split()
        nowhere = "http://127.0.0.1:9"
        generate = ["generate", NAME, "-p", "the", "-n", "4"]
        with tempfile.TemporaryDirectory() as scratch:
            theirs, ours = pathlib.Path(scratch, "theirs"), pathlib.Path(scratch, "ours")
            count = same_files(python_client(theirs, False, HF_ENDPOINT=endpoint))
            print(f"huggingface_hub {huggingface_hub.__version__} fetches {count} files from the hub of the tests")

            said = neuroconv(theirs, *generate, "--offline", HF_ENDPOINT=nowhere)
            assert f"source: hub {NAME}@{commit}" in said, said
            print("neuroconv --offline takes the cache that it wrote")

            neuroconv(ours, *generate, HF_ENDPOINT=endpoint)
            folder = python_client(ours, True, HF_ENDPOINT=nowhere, HF_HUB_OFFLINE="1")
            assert folder.name == commit, folder
            same_files(folder)
            print("with local_files_only it takes the cache that neuroconv wrote")

            a, b = contents(theirs / "hub"), contents(ours / "hub")
            only = sorted(set(a) ^ set(b))
            assert not only, f"in one cache only: {only}"
            differ = [name for name in a if a[name] != b[name]]
            assert not differ, f"different: {differ}"
            print(f"both caches hold the same {len(a)} files and links")
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
