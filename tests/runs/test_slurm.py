"""tools/slurm/job.sh on a real Slurm of one node, which the tests start for themselves where it is installed (slurm-wlm)."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drills.launchers import HELD
from helpers import warm
from helpers.launch import ROOT, run, tiny_config

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
JOB = ROOT / "tools" / "slurm" / "job.sh"
SECONDS = 180  # for what takes some 10 on a quiet machine
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)) or os.geteuid() != 0, reason="Slurm is not installed, or not root"
    ),
]
CONFIG = """
ClusterName=tests
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerParameters=sched_interval=1,sched_min_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """slurm(PROGRAM, ARGUMENT, ..., cwd=FOLDER): what a program of the cluster's prints."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with socket.socket() as one, socket.socket() as other:
        one.bind(("", 0))
        other.bind(("", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    (folder / "slurm.conf").write_text(CONFIG.format(host=socket.gethostname(), folder=folder, ports=ports))
    (folder / "accelerate").write_text(f'#!/bin/sh\nexec {warm.python()} -m accelerate.commands.accelerate_cli "$@"\n')
    (folder / "accelerate").chmod(0o755)
    programs = (warm.python(), folder / "accelerate")  # the jobs' python and accelerate are warm ones
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": os.pathsep.join([*(str(Path(program).parent) for program in programs), os.environ["PATH"]]),
        "PYTHON_EXEC": warm.python(),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }

    def slurm(*command: object, cwd: Path = folder, **variables: str) -> str:
        words = list(map(str, command))
        done = subprocess.run(words, cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    slurm("slurmctld")
    slurm("slurmd")
    try:
        until(lambda: "idle" in slurm("sinfo", "--noheader"), "the node does not become idle")
        yield slurm
    finally:
        slurm("scontrol", "shutdown")


def submit(slurm: Callable[..., str], *arguments: object, cwd: Path, options: tuple[str, ...] = (), **more: str) -> str:
    """The number of a new job."""
    return slurm("sbatch", "--parsable", "--time=20", *options, JOB, *arguments, cwd=cwd, **more).strip()


def ended(slurm: Callable[..., str], job: str, folder: Path) -> str:
    """What a job has printed, once it is out of the queue."""
    until(
        lambda: not slurm("squeue", "--noheader", "--states=PD,R,CG,CF,S", f"--jobs={job}").strip(),
        f"job {job} goes on",
    )
    return "".join(path.read_text() for path in sorted(folder.glob(f"slurm-{job}*.out")))


@pytest.mark.parametrize(("processes", "name", "place"), [(1, "runs/asked", "runs/asked"), (2, "~/mine", "mine")])
def test_a_job_whose_time_is_up_is_saved_queued_again_and_finished(
    cluster: Callable[..., str], tiny: Path, tmp_path: Path, processes: int, name: str, place: str
) -> None:
    """With the weights of a run that was left alone. Slurm's signal goes to the batch script, as --signal=B:USR1@120 has it."""
    given = (tiny_config(tmp_path, tiny), "schedule.epochs=2")
    more = {"PROCESSES": str(processes), "HOME": str(tmp_path)}
    job = submit(cluster, HELD, *given, f"run={name}", cwd=tmp_path, **more)
    asked = tmp_path / place
    metrics = asked / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size, "the training does not begin")
    cluster("scancel", "--batch", "--signal=USR1", job)
    until(
        lambda: "PENDING" in cluster("squeue", "--noheader", "--format=%T", f"--jobs={job}"), "it does not queue again"
    )
    cluster("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would let it wait for two minutes
    said = ended(cluster, job, tmp_path)
    assert f"job {job}: its time is almost up" in said and f"job {job}: saved, it queues again" in said, said
    assert "stopped by the stop file after step" in said and "resumed after step" in said
    record = json.loads((asked / "run.json").read_text())
    assert [session["status"] for session in record["sessions"]] == ["stopped", "finished"]
    assert record["sessions"][0]["environment"]["world_size"] == processes
    run("teacher", *given, "run=calm", cwd=tmp_path, ranks=processes)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (asked, tmp_path / "runs/calm")]
    assert weights[0] == weights[1]


def test_an_array_of_students_from_one_cache(cluster: Callable[..., str], tiny: Path, tmp_path: Path) -> None:
    """The cache is the work of a job, too, which is queued again when its time is up before it is written."""
    run("teacher", tiny_config(tmp_path, tiny), "run=t", "schedule.epochs=1", cwd=tmp_path)
    student = (tiny_config(tmp_path, tiny, "dive", "  tau: 3\n"), "schedule.epochs=1")
    ended(
        cluster, submit(cluster, ROOT / "train/cache_logits.py", *student, "distill.teacher=t", cwd=tmp_path), tmp_path
    )
    students = (*student, "cache.paths=[caches]", "run=s{task}", "seed={task}")
    job = submit(cluster, ROOT / "train/distill.py", *students, cwd=tmp_path, options=("--array=3,5",))
    said = ended(cluster, job, tmp_path)
    results = [json.loads((tmp_path / f"runs/s{seed}/result.json").read_text()) for seed in (3, 5)]
    assert [result["seed"] for result in results] == [3, 5], said


def job(folder: Path, step: str, *arguments: str) -> int:
    """The exit code of a job whose step is the text of a script."""
    for name, text in (("srun", step), ("scancel", "sleep 0.3")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    known = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1"}
    return subprocess.run([JOB, *arguments], env=known, cwd=folder, capture_output=True).returncode


def test_the_code_of_a_step_is_that_of_the_job(tmp_path: Path) -> None:
    """Also of a step that ends at once, and of one that ends while the signal is answered."""
    assert [job(tmp_path, "exit 3", "train/cache_logits.py") for _ in range(40)] == [3] * 40
    asked = 'kill -USR1 "$PPID"\nsleep 0.1\nexit 0'
    assert job(tmp_path, asked, "train/cache_logits.py") == 0  # or the job would be queued again


def test_the_request_of_a_job_is_not_left_for_the_next_one(tmp_path: Path) -> None:
    """A training that dies before it has looked for the file leaves it there."""
    folder = tmp_path / "runs/a"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "running"}')
    asked = 'kill -USR1 "$PPID"\nwhile [ ! -e runs/a/stop ]; do sleep 0.02; done\nexit 9'
    assert job(tmp_path, asked, "train/teacher.py", "run=a") == 9
    assert not (folder / "stop").exists()


def test_what_is_not_understood_is_refused(cluster: Callable[..., str], tmp_path: Path) -> None:
    alone = subprocess.run([JOB, "train/distill.py"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert alone.returncode == 2 and "type: sbatch [OPTIONS] tools/slurm/job.sh" in alone.stderr
    job = submit(cluster, ROOT / "train/distill.py", "x.yaml", cwd=tmp_path)
    assert "error: give run=NAME" in ended(cluster, job, tmp_path)
