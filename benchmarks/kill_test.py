"""Kill runs at random moments, run two at once, and compare with a run that nothing disturbed.

    python benchmarks/kill_test.py --kills 200 --pairs 20

Works on the tiny project of the tests. Each kill is a SIGKILL, at a random moment, of one process
of a run or of all of them, of `snakemake` or of `dvc repro`. At the end the same command must
complete to the same bytes, no temporary file may be left, and DVC's cache may hold no foreign name.
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
    """Read the command line, and end with status 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = make_project(Path(folder, "undisturbed"))
        begun = time.monotonic()
        undisturbed.snakemake(RESULT)
        seconds = time.monotonic() - begun
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        disturbed = undisturbed.copy_to(Path(folder, "disturbed"))
        kill_runs(disturbed, asked.kills, seconds, random.Random(asked.seed))
        run_pairs(disturbed, asked.pairs)
        problems = differences(undisturbed, disturbed)
    print("\n".join(problems) or "nothing lost, nothing left over, nothing foreign")
    sys.exit(bool(problems))


def kill_runs(project: Project, kills: int, seconds: float, chance: random.Random) -> Counter:
    """Kill runs at moments of the first `seconds` of each; how many by what was killed."""
    done: Counter = Counter()
    while sum(done.values()) < kills:
        engine = chance.choice(list(COMMANDS))
        run = start(project, engine)
        try:
            run.wait(timeout=chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            done[f"{engine}, {kill_some(run, chance)}"] += 1
            print(dict(done), flush=True)
            # A run of which one process was killed ends by itself, and kills nobody else's.
            run.wait(timeout=1200)
        else:
            # Completed before its time: all is to be made again.
            project.run("rm", "-rf", *MADE)
    return done


def run_pairs(project: Project, pairs: int) -> None:
    """Start two runs at once, from nothing; both must succeed.

    Every fifth pair is one of `snakemake` and `dvc repro`, which takes longer.
    """
    for number in range(pairs):
        project.run("rm", "-rf", *MADE)
        second = "dvc" if number % 5 == 4 else "snakemake"
        both = [start(project, engine) for engine in ("snakemake", second)]
        statuses = [run.wait(timeout=2400) for run in both]
        print(f"pair {number + 1}, snakemake and {second}: {statuses}", flush=True)
        if any(statuses):
            raise SystemExit(f"pair {number + 1} ended with {statuses}: {logs(project)}")


def differences(expected: Project, found: Project) -> list[str]:
    """What the same commands leave in `found` that an undisturbed run does not, after all."""
    for engine in COMMANDS:
        if start(found, engine).wait(timeout=2400):
            return [f"the last {engine} failed: {logs(found)}"]
    whole, disturbed = expected.files(), found.files()
    problems = [f"{name}: missing" for name in whole.keys() - disturbed.keys()]
    problems += [f"{name}: left over" for name in disturbed.keys() - whole.keys()]
    problems += [
        f"{n}: differs" for n in whole.keys() & disturbed.keys() if whole[n] != disturbed[n]
    ]
    for path in found.folder.rglob("*"):
        if path.name.startswith(FOREIGN) and ".dvc" not in path.parts:
            problems.append(f"{path}: a temporary file")
    return sorted(problems) + foreign_in_cache(found)


def foreign_in_cache(project: Project) -> list[str]:
    """Names in the folders of DVC's cache that no folder of the project holds."""
    known = {path.name for path in project.folder.rglob("*") if path.is_file()}
    listed = project.folder.glob(".dvc/cache/files/md5/*/*.dir")
    names = {
        Path(entry["relpath"]).name for path in listed for entry in json.loads(path.read_text())
    }
    return [f"{name}: foreign in the cache" for name in sorted(names - known)]


def start(project: Project, engine: str) -> subprocess.Popen:
    """Start a run in a session of its own, whose output goes to a file."""
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
    """The ends of what the runs printed."""
    ends = (path.read_text()[-2000:] for path in project.folder.glob("*.log"))
    return "\n".join(ends)


if __name__ == "__main__":
    main()
