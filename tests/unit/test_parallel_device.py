"""What packages find when they look around on import: no question to CUDA, one cuDNN, no CUDA kernels on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from isolated import isolated

from megatron_ko.machine import device

CUDA_BUILD = torch.backends.cuda.is_built()
FORK = """
import os
import megatron_ko.train.setup, megatron_ko.convert.hf_export, megatron_ko.eval.generate  # all that commands import
from megatron_ko.parallel.platform import get_platform
get_platform().device_count
import torch
torch.cuda.is_available()
child = os.fork()
if child == 0:
    os._exit(torch._C._cuda_isInBadFork())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not CUDA_BUILD, reason="PyTorch is built without CUDA here: `make test-py312` has one with it")
@pytest.mark.parametrize("wanted", ["", "cpu"])
def test_ranks_can_be_forked_after_all_imports(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGATRON_KO_DEVICE", wanted)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if torch.cuda.is_available() and not wanted:
        pytest.skip("ranks are not forked on CUDA")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


HIDDEN = """
import gc, sys
import megatron_ko.parallel
import torch
assert "torch._inductor.compile_fx" not in sys.modules  # half of the time that an import takes
assert torch.compile.__module__ == "torch" and gc.isenabled()
from megatron.core.optimizer import clip_grads
from megatron.core.utils import local_multi_tensor_applier
assert clip_grads.multi_tensor_applier is local_multi_tensor_applier
for name in ("transformer_engine", "transformer_engine_torch"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        print("hidden")
"""


def test_an_installed_transformer_engine_is_not_there_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformer_engine", "transformer_engine_torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MEGATRON_KO_DEVICE", "cpu")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", HIDDEN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["hidden"] * 2


def chosen_cudnn(site: str, own: str | None) -> str | None:
    import os

    os.environ.pop("CUDNN_HOME", None)
    if own is not None:
        os.environ["CUDNN_HOME"] = own
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        del sys.modules[name]
    sys.path.insert(0, site)
    device._use_cudnn_of_pytorch()
    return os.environ.get("CUDNN_HOME")


def test_transformer_engine_is_pointed_to_the_cudnn_of_pytorch(tmp_path: Path) -> None:
    library = tmp_path / "nvidia/cudnn"
    library.mkdir(parents=True)
    assert isolated(chosen_cudnn, str(tmp_path), None) == str(library)
    assert isolated(chosen_cudnn, str(tmp_path), "/opt/cudnn") == "/opt/cudnn"  # what the user says stays
