"""`megatron-ko train`, many times in one process: a line of JSON a run on standard input, and one as the answer.

Starting Python, PyTorch, megatron-core and CUDA takes 10 to 15 seconds on a GPU machine, a small run takes one or two.
"""

import gc
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import typer

from gpu.workers import READY
from megatron_ko.cli.train import train as train_verb
from megatron_ko.errors import KoError
from megatron_ko.parallel.groups import destroy


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    replies.write(READY)
    replies.flush()
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        with output_to(Path(request["log"])):
            code = train(Path(request["run_file"]), request["words"])
        answer = {"code": code, "seconds": time.perf_counter() - started}
        print(json.dumps(answer), file=replies, flush=True)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Everything that this process prints goes to a file, the libraries' messages too."""
    with path.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    yield
    sys.stdout.flush()
    sys.stderr.flush()


def train(run_file: Path, words: Sequence[str]) -> int:
    """Run the verb as the only rank of a world that a cluster has started, and leave the process as it was."""
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": free_port()}
    os.environ.update({name: str(value) for name, value in alone.items()}, MASTER_ADDR="127.0.0.1")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        train_verb(run_file, list(words))
    except typer.Exit as ending:
        return ending.exit_code
    except KoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        forget()
    return 0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def forget() -> None:
    """Drop what a run leaves in its process: groups, the states of fp8, compiled code, and the model itself."""
    destroy()
    if dist.is_initialized():  # it failed
        dist.destroy_process_group()
    if "transformer_engine.pytorch" in sys.modules and torch.cuda.is_initialized():
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

        FP8GlobalStateManager.reset()
    torch._dynamo.reset()
    gc.unfreeze()  # training freezes what exists
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
