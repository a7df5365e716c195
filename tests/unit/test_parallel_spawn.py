"""Ranks: how they start, how they end, and what is told about it. Real processes on gloo."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from isolated import isolated
from patience import PATIENCE

from megatron_ko.errors import ConfigError, LaunchError
from megatron_ko.machine import place
from megatron_ko.machine.place import Place
from megatron_ko.parallel import cluster, spawn
from megatron_ko.parallel.collectives import all_reduce_sum, barrier, broadcast_object
from megatron_ko.parallel.platform import Platform


def meet(folder: Path) -> None:
    rank = dist.get_rank()
    total = all_reduce_sum(torch.tensor(float(rank)))
    last = dist.get_world_size() - 1
    assert total.item() == sum(range(last + 1))
    assert broadcast_object({"from": rank}, src=last) == {"from": last}
    barrier()
    (folder / str(rank)).write_text(f"{torch.get_num_threads()} {os.environ['LOCAL_RANK']} {os.environ['WORLD_SIZE']}")


@pytest.mark.parametrize(("forked", "size"), [(True, 4), (False, 2)])
def test_ranks_meet_and_exchange(forked: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Platform, "may_fork", forked)
    assert spawn.run_ranks(meet, size, (tmp_path,), threads=1) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(size)] == [f"1 {rank} {size}" for rank in range(size)]


def start_from_a_world() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    spawn.run_ranks(barrier, 1)


def test_a_process_that_is_in_a_world_starts_no_ranks() -> None:
    with pytest.raises(LaunchError, match="from a separate process"):
        isolated(start_from_a_world)


def fail(kind: str, culprit: int) -> int:
    if dist.get_rank() == culprit:
        if kind == "user error":
            raise ConfigError("the value is wrong", got=3, remedy="set it to 4")
        if kind == "crash":
            raise ValueError("a bug")
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))  # the others wait for the culprit
    return 0


@pytest.mark.parametrize(
    ("kind", "culprit", "code", "message"),
    [
        ("user error", 1, 2, "megatron-ko: the value is wrong"),
        ("crash", 2, 1, "ValueError: a bug"),
        ("killed", 0, 137, "rank 0 was killed by SIGKILL"),
    ],
)
def test_a_failing_rank_stops_the_others_and_is_the_one_that_is_told(
    kind: str, culprit: int, code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert spawn.run_ranks(fail, 3, (kind, culprit), threads=1) == code
    assert time.monotonic() - started < PATIENCE / 2
    told = capfd.readouterr().err
    assert told.count(message) == 1
    assert told.count("Traceback") == (kind == "crash")


def all_wrong() -> None:
    raise ConfigError(f"seen by rank {dist.get_rank()}")


@pytest.mark.parametrize(("forked", "size"), [(True, 3), (False, 2)])
def test_an_error_of_all_ranks_is_told_once(
    forked: bool, size: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Platform, "may_fork", forked)
    assert spawn.run_ranks(all_wrong, size, (), threads=1) == 2
    assert capfd.readouterr().err.count("seen by rank") == 1


def stubborn() -> None:
    if dist.get_rank() == 1:
        raise RuntimeError("gone")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(PATIENCE)


def test_a_rank_that_does_not_stop_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert spawn.run_ranks(stubborn, 2, (), threads=1, grace_s=0.5) == 1
    assert time.monotonic() - started < PATIENCE / 2
    assert "RuntimeError: gone" in capfd.readouterr().err


def requeue(folder: Path) -> int:
    rank = dist.get_rank()
    if rank == 1:
        return 75
    time.sleep(0.5)
    (folder / "finished").touch()
    return 75


def test_a_returned_code_lets_the_other_ranks_finish(tmp_path: Path) -> None:
    assert spawn.run_ranks(requeue, 2, (tmp_path,), threads=1) == 75
    assert (tmp_path / "finished").exists()


def wait(folder: Path) -> int:
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda received, frame: stop.append(received))
    (folder / f"pid{dist.get_rank()}").write_text(str(os.getpid()))
    while not stop:
        time.sleep(0.02)
    (folder / f"stopped{dist.get_rank()}").write_text(signal.Signals(stop[0]).name)
    return 75


def start_two(folder: Path) -> None:
    sys.exit(spawn.run_ranks(wait, 2, (folder,), threads=1))


def started(target: Callable[..., None], *args: Any) -> ForkProcess:
    """A process of its own, forked: importing PyTorch again takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def exit_code(process: ForkProcess) -> int | None:
    process.join(PATIENCE)
    return process.exitcode


def start_parent(folder: Path) -> tuple[ForkProcess, list[int]]:
    parent = started(start_two, folder)
    files = [folder / f"pid{rank}" for rank in range(2)]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    return parent, [int(file.read_text()) for file in files]


def until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_passed_on_to_every_rank(number: signal.Signals, tmp_path: Path) -> None:
    parent, _ = start_parent(tmp_path)
    assert parent.pid is not None
    os.kill(parent.pid, number)
    assert exit_code(parent) == 75
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in range(2)] == [number.name] * 2


def test_ranks_die_with_their_parent(tmp_path: Path) -> None:
    parent, pids = start_parent(tmp_path)
    assert all(map(is_running, pids))
    parent.kill()
    parent.join()
    until(lambda: not any(map(is_running, pids)))


def add() -> int:
    total = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(total)
    assert total.item() == 3.0 and place.cluster_world_size() == 2
    return 40 + dist.get_rank()


def join(names: dict[str, object]) -> None:
    os.environ |= {name: str(value) for name, value in names.items()}
    sys.exit(cluster.join_cluster(add, threads=1))


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_joining_a_world_that_a_launcher_started(launcher: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    members = []
    for rank in range(2):
        names = (
            {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
            if launcher == "torchrun"
            else {"SLURM_PROCID": rank, "SLURM_NTASKS": 2, "SLURM_LOCALID": rank, "SLURM_STEP_ID": 0}
        )
        members.append(started(join, {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}))
    assert [exit_code(member) for member in members] == [40, 41]


def test_a_launcher_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.cluster_world_size() is None
    with pytest.raises(LaunchError, match="does not know its world"):
        cluster.join_cluster(meet)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert place.cluster_world_size() == 2
    with pytest.raises(LaunchError, match="MASTER_ADDR"):
        cluster.join_cluster(meet)


def test_a_step_of_slurm_says_who_is_where_and_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"JOB_ID": 70000, "STEP_ID": 2, "STEP_NODELIST": "gpu[007,9]", "STEP_TASKS_PER_NODE": "2,1", "NTASKS": 3}
    for name, value in {**step, "PROCID": 1, "LOCALID": 1, "NTASKS_PER_NODE": 8}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert place.cluster_place() == Place(rank=1, local_rank=1, world_size=3, local_size=2)
    assert place.meeting_point() == {"MASTER_ADDR": "gpu007", "MASTER_PORT": "22202"}
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert place.own_cores() == 1
    monkeypatch.setenv("SLURM_NTASKS", "1")  # an interactive shell on one node
    assert place.cluster_world_size() is None
    monkeypatch.setenv("RANK", "0")  # torchrun as that task
    assert place.own_cores() is None


def test_the_first_name_of_a_list_of_hosts() -> None:
    names = {"a": "a", "a,b": "a", "n[1-3]": "n1", "gpu[007-009,12],m1": "gpu007", "r[2-4]n[01,5]-ib": "r2n01-ib"}
    assert {nodes: place.first_host(nodes) for nodes in names} == names
