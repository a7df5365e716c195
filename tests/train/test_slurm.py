"""The batch script of a cluster with real ranks: only ``srun`` and ``scontrol`` are small stand-ins."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE
from train_runs import ROOT, NewRun, Run

# Starts the tasks with what Slurm tells them, hands them USR1 as `--signal` does, and exits with the largest code.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
step = dict(SLURM_NTASKS=2, SLURM_STEP_ID=0, SLURM_STEP_NODELIST="127.0.0.1", SLURM_STEP_TASKS_PER_NODE="2")
names = [dict(SLURM_PROCID=rank, SLURM_LOCALID=rank, **step) for rank in range(2)]
tasks = [subprocess.Popen(words, env=os.environ | {{k: str(v) for k, v in name.items()}}) for name in names]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
open(os.environ["SRUN_PID"], "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$REQUEUED"
"""
MEGATRON_KO = f"""#!/usr/bin/env bash
exec {sys.executable} -W ignore -m megatron_ko.cli.main "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch job on one node."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "megatron-ko": MEGATRON_KO}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SRUN_PID": str(tmp_path / "srun.pid"),
        "REQUEUED": str(tmp_path / "requeued"),
        "MEGATRON_KO_DEVICE": "cpu",
    }


def submit(run: Run, cluster: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["bash", str(ROOT / "launch/train.sbatch"), str(run.config), *run.words()], env=cluster)


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_is_queued_again_and_continues(new_run: NewRun, cluster: dict[str, str]) -> None:
    settings = ("parallel.pipeline=2", "training.steps=30", "checkpoint.interval=100", "eval.interval=0")
    control, run = new_run("control", *settings), new_run("run", *settings)
    assert control.train().returncode == 0
    job = submit(run, cluster)
    deadline = time.monotonic() + PATIENCE
    while job.poll() is None and run.last_step() < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(int(Path(cluster["SRUN_PID"]).read_text()), signal.SIGUSR1)
    assert job.wait(PATIENCE) == 75 and run.last_step() < 30
    assert Path(cluster["REQUEUED"]).read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"
    assert submit(run, cluster).wait(PATIENCE) == 0
    assert run.losses() == control.losses()
    assert Path(cluster["REQUEUED"]).read_text().count("\n") == 1


def test_a_job_without_a_run_is_told_how_to_start(cluster: dict[str, str]) -> None:
    done = subprocess.run(["bash", str(ROOT / "launch/train.sbatch")], env=cluster, capture_output=True, text=True)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
