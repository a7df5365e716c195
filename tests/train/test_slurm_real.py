"""`launch/train.sbatch` and the data verbs on a real Slurm with two nodes, which this test starts."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, running_cluster, wait_for, why_not
from train_runs import ROOT, NewRun, Run

pytestmark = pytest.mark.slow
_SETTINGS = ("checkpoint.interval=50", "eval.interval=0", "training.micro_batch_size=2")  # for four ranks, too
_LONG = ("training.steps=100000", *_SETTINGS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"no real Slurm: {reason}")
    with running_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as made:
        yield made


def submit(cluster: Cluster, run: Run, *options: str, tasks: int = 1) -> str:
    size = ("--nodes=2", f"--ntasks-per-node={tasks}", "--cpus-per-task=1")
    script = (str(ROOT / "launch/train.sbatch"), str(run.config), *run.words())
    return cluster.check("sbatch", "--parsable", *size, *options, *script)


def wait_for_state(cluster: Cluster, job: str, state: str, restarts: int = 0) -> dict[str, str]:
    def reached() -> bool:
        shown = cluster.job(job)
        return shown["JobState"] == state and shown["Restarts"] == str(restarts)

    wait_for(f"{state} of job {job}: {cluster.job(job)}", reached)
    return cluster.job(job)


def queued_again(cluster: Cluster, job: str, restarts: int) -> None:
    """Wait until it is, and start it soon: Slurm would wait for two minutes.

    Not at once, because a node refuses a job that starts in the second in which it ended there.
    """
    wait_for_state(cluster, job, "PENDING", restarts)
    cluster.check("scontrol", "update", f"jobid={job}", "starttime=now+3")


def wait_for_step(cluster: Cluster, job: str, run: Run, step: int) -> None:
    def reached() -> bool:
        assert cluster.job(job)["JobState"] != "FAILED", log_of(cluster, job)
        return run.last_step() >= step

    wait_for(f"step {step}", reached)


def log_of(cluster: Cluster, job: str) -> str:
    return (cluster.folder / f"slurm-megatron-ko-{job}.log").read_text()


def test_a_run_outlives_a_signal_a_requeue_and_a_node(cluster: Cluster, new_run: NewRun) -> None:
    control, run = (new_run(name, "training.steps=240", *_SETTINGS) for name in ("control", "run"))
    job = submit(cluster, run)
    wait_for_step(cluster, job, run, 20)
    cluster.check("scancel", "--signal=USR1", job)
    queued_again(cluster, job, 1)
    assert "step_00000050" not in run.checkpoints and len(run.checkpoints) > 1, "the signal saves, not the interval"
    wait_for_step(cluster, job, run, 60)
    cluster.check("scontrol", "requeue", job)
    queued_again(cluster, job, 2)
    wait_for_step(cluster, job, run, 120)
    cluster.power_off("n2")
    queued_again(cluster, job, 3)
    cluster.power_on("n2")
    assert wait_for_state(cluster, job, "COMPLETED", 3)["ExitCode"] == "0:0", log_of(cluster, job)
    assert control.train("launch.ranks_per_node=2").returncode == 0
    assert run.losses() == control.losses() and len(run.losses()) == 240


def test_a_time_limit_saves_and_queues_again(cluster: Cluster, new_run: NewRun) -> None:
    run = new_run("run", *_LONG, "checkpoint.interval=1000000")
    job = submit(cluster, run, "--time=60", "--signal=USR1@50", tasks=2)
    wait_for_step(cluster, job, run, 5)
    minutes = int(cluster.job(job)["RunTime"].split(":")[1])
    cluster.check("scontrol", "update", f"jobid={job}", f"timelimit={minutes + 2}")
    wait_for_state(cluster, job, "PENDING", 1)
    cluster.check("scancel", job)
    assert "stop requested (SIGUSR1)" in log_of(cluster, job)
    assert f"saved step_{run.last_step():08}" in log_of(cluster, job)


def test_what_a_user_has_to_repair_is_not_tried_again(cluster: Cluster, new_run: NewRun) -> None:
    job = submit(cluster, new_run("run", "data.tokenizer=/nowhere"))
    assert wait_for_state(cluster, job, "FAILED")["ExitCode"] == "2:0"
    assert "no tokenizer at /nowhere" in log_of(cluster, job)


def test_a_killed_rank_ends_the_others(cluster: Cluster, new_run: NewRun) -> None:
    run = new_run("run", *_LONG)
    job = submit(cluster, run)
    wait_for_step(cluster, job, run, 5)
    cluster.tasks(job)[1].send_signal(signal.SIGKILL)
    assert wait_for_state(cluster, job, "FAILED")["ExitCode"] == "137:0"
    assert not cluster.tasks(job)


def test_a_cancelled_job_saves_and_stays_away(cluster: Cluster, new_run: NewRun) -> None:
    run = new_run("run", *_LONG, "checkpoint.interval=1000000")
    job = submit(cluster, run)
    wait_for_step(cluster, job, run, 5)
    cluster.check("scancel", job)
    wait_for("the end of the ranks", lambda: not cluster.tasks(job))
    wait_for_state(cluster, job, "CANCELLED")
    assert f"saved step_{run.last_step():08}" in log_of(cluster, job)


def test_srun_needs_no_address(cluster: Cluster, new_run: NewRun) -> None:
    run = new_run("run", "training.steps=4", "training.global_batch_size=6", "training.micro_batch_size=2")
    train = ("megatron-ko", "train", str(run.config), *run.words())
    done = cluster.run("salloc", "--nodes=2", "--ntasks=3", "srun", *train)
    assert done.returncode == 0 and "data 3 = 3 ranks" in done.stderr, done.stdout + done.stderr


def test_an_array_writes_what_one_process_does(cluster: Cluster, tiny: Path, tmp_path: Path) -> None:
    arguments = f"--input '{ROOT}/demo/corpus/*.jsonl' --tokenizer {tiny}/tokenizer --workers 1"
    share = "--rank $SLURM_ARRAY_TASK_ID --size 3"
    words = f"megatron-ko data preprocess {arguments} --output {tmp_path}/corpus {share}"
    log = f"--output={tmp_path}/%a.log"
    array = cluster.check("sbatch", "--parsable", "--array=0-2", log, "--wrap", words)
    merge = f"megatron-ko data merge --output {tmp_path}/corpus"
    job = cluster.check("sbatch", "--parsable", f"--dependency=afterok:{array}", "--output=/dev/null", "--wrap", merge)
    wait_for_state(cluster, job, "COMPLETED")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"corpus{suffix}").read_bytes() == (tiny / f"corpus{suffix}").read_bytes()
    assert json.loads((tmp_path / "corpus.manifest.json").read_text())["documents"] > 0
