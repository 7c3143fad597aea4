import subprocess
import sys
from pathlib import Path

import pytest

from lowrank.training.gpu_claim import claim

# A job that claims one of two GPUs, prints its index and keeps it until its input ends.
JOB = """
import sys
from pathlib import Path
from lowrank.training.gpu_claim import claim
print(claim(("a", "b"), 1, Path(sys.argv[1]))[0], flush=True)
sys.stdin.read()
"""


class WaitedError(Exception):
    pass


def waits(_):
    raise WaitedError


@pytest.fixture
def start_job(tmp_path: Path):
    """Return a function that starts a job and returns it with the index of its GPU."""
    jobs = []

    def start():
        command = [sys.executable, "-c", JOB, str(tmp_path)]
        job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        jobs.append(job)
        return job, int(job.stdout.readline())

    yield start
    for job in jobs:
        job.kill()
        job.communicate()


@pytest.mark.seconds
def test_jobs_get_different_gpus(start_job, tmp_path):
    first, index = start_job()
    _, other_index = start_job()
    assert {index, other_index} == {0, 1}
    with pytest.raises(WaitedError):
        claim(("a", "b"), 1, tmp_path, waits)
    first.kill()
    first.wait()
    assert claim(("a", "b"), 1, tmp_path, waits) == [index]


@pytest.mark.seconds
def test_lock_belongs_to_the_gpu_and_not_to_its_index(start_job, tmp_path):
    start_job()
    # A job that sees only the other GPU, as with CUDA_VISIBLE_DEVICES=1.
    assert claim(("b",), 1, tmp_path, waits) == [0]


@pytest.mark.seconds
def test_claims_all_gpus_of_a_run_or_none(start_job, tmp_path):
    job, _ = start_job()
    with pytest.raises(WaitedError):
        claim(("a", "b"), 2, tmp_path, waits)
    # The free one was not kept.
    _, other_index = start_job()
    assert other_index == 1
    job.kill()
    job.wait()


def test_claims_several_gpus(tmp_path):
    assert claim(("a", "b", "c"), 2, tmp_path, waits) == [0, 1]
