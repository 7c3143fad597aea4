"""Kill runs at random moments, start two runs at once, and compare with an undisturbed run.

    python benchmarks/kill_test.py --kills 200 --pairs 20

Uses the tiny project of the tests. Each kill sends SIGKILL at a random moment to one process or to
all processes of a run of `snakemake` or `dvc repro`. At the end, the same command must complete and
give the same bytes, no temporary files may be left, and DVC's cache may contain no foreign files.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from projects import RESULT, Project, environment, make_project

COMMANDS = {
    "snakemake": ["snakemake", "--cores", "2", RESULT],
    "dvc": ["dvc", "repro", "summarize@resnet20-tucker"],
}
MADE = ("build", "models", "results")
FOREIGN = (".lowrank-", ".tmp", ".partial")


def main() -> None:
    """Run the tests of the command line, and end with status 1 if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = make_project(Path(folder, "undisturbed"))
        begin = time.monotonic()
        undisturbed.snakemake(RESULT)
        seconds = time.monotonic() - begin
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        disturbed = undisturbed.copy_to(Path(folder, "disturbed"))
        kill_runs(disturbed, options.kills, seconds, random.Random(options.seed))
        run_pairs(disturbed, options.pairs)
        problems = differences(undisturbed, disturbed)
    print("\n".join(problems) or "no missing, leftover or foreign files")
    sys.exit(bool(problems))


def kill_runs(project: Project, kills: int, seconds: float, chance: random.Random) -> Counter:
    """Kill runs at random moments within `seconds`, and count the kills by what was killed."""
    done: Counter = Counter()
    while sum(done.values()) < kills:
        engine = chance.choice(list(COMMANDS))
        run = start(project, engine)
        try:
            run.wait(timeout=chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            done[f"{engine}, {kill_some(run, chance)}"] += 1
            print(dict(done), flush=True)
            # If only one process was killed, the run ends by itself.
            run.wait(timeout=1200)
        else:
            # The run completed before the kill, so its outputs are removed for the next run.
            project.run("rm", "-rf", *MADE)
    return done


def run_pairs(project: Project, pairs: int) -> None:
    """Start pairs of runs at the same time from scratch. Both must succeed.

    Every fifth pair is `snakemake` and `dvc repro`, which takes longer than two `snakemake`.
    """
    for number in range(pairs):
        project.run("rm", "-rf", *MADE)
        second = "dvc" if number % 5 == 4 else "snakemake"
        both = [start(project, engine) for engine in ("snakemake", second)]
        statuses = [run.wait(timeout=2400) for run in both]
        print(f"pair {number + 1}, snakemake and {second}: {statuses}", flush=True)
        if any(statuses):
            raise SystemExit(f"pair {number + 1} ended with {statuses}: {logs(project)}")


def differences(expected: Project, actual: Project) -> list[str]:
    """Complete both commands in `actual`, and return its differences to an undisturbed run."""
    for engine in COMMANDS:
        if start(actual, engine).wait(timeout=2400):
            return [f"the last {engine} failed: {logs(actual)}"]
    undisturbed, disturbed = expected.files(), actual.files()
    problems = [f"{name}: missing" for name in undisturbed.keys() - disturbed.keys()]
    problems += [f"{name}: left over" for name in disturbed.keys() - undisturbed.keys()]
    problems += [
        f"{name}: differs"
        for name in undisturbed.keys() & disturbed.keys()
        if undisturbed[name] != disturbed[name]
    ]
    for path in actual.folder.rglob("*"):
        if path.name.startswith(FOREIGN) and ".dvc" not in path.parts:
            problems.append(f"{path}: a temporary file")
    return sorted(problems) + foreign_in_cache(actual)


def foreign_in_cache(project: Project) -> list[str]:
    """Return names in the folders of DVC's cache that do not exist in the project."""
    known = {path.name for path in project.folder.rglob("*") if path.is_file()}
    listed = project.folder.glob(".dvc/cache/files/md5/*/*.dir")
    names = {
        Path(entry["relpath"]).name for path in listed for entry in json.loads(path.read_text())
    }
    return [f"{name}: foreign in the cache" for name in sorted(names - known)]


def start(project: Project, engine: str) -> subprocess.Popen:
    """Start a run in its own session. Its output is written to a file."""
    with (project.folder / f"{engine}.log").open("a") as log:
        return subprocess.Popen(
            COMMANDS[engine],
            cwd=project.folder,
            env=environment() | {"PYTHONPATH": str(project.folder / "src")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_some(run: subprocess.Popen, chance: random.Random) -> str:
    """Kill the whole run or one of its processes."""
    if chance.random() < 0.5:
        os.killpg(run.pid, signal.SIGKILL)
        return "all of it"
    try:
        processes = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        chance.choice(processes).kill()
    except psutil.NoSuchProcess:
        pass
    return "one process"


def logs(project: Project) -> str:
    """Return the last lines that the runs printed."""
    ends = (path.read_text()[-2000:] for path in project.folder.glob("*.log"))
    return "\n".join(ends)


if __name__ == "__main__":
    main()
