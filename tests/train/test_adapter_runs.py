"""Runs that train adapters: what they start with stays as it is, they go on to the bit, and merge into one model."""

import json
import math
from pathlib import Path
from shutil import copytree

import pytest
import torch
from chat_runs import command, overrides
from peft import PeftModel
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from train_runs import NewRun, Run, assert_a_stop_changes_nothing
from transformers import AutoModelForCausalLM

from megatron_ko.convert.native import NativeReader

LORA, DORA = "adapter={rank: 4, alpha: 8.0, dropout: 0.1}", "adapter={kind: dora, rank: 4, alpha: 8.0}"


def words(rows: Path, kind: str, tuned: Run, *more: str) -> list[str]:
    return [*overrides(rows, kind, None), f"checkpoint.start_from={tuned.folder}", *more]


@pytest.fixture(scope="module")
def lora(rows: Path, tiny: Path, tuned: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of DPO that trains adapters of the tuned model."""
    folder = tmp_path_factory.mktemp("lora")
    run = Run(tiny / "tiny.yaml", folder / "run", words(rows, "dpo", tuned, DORA, f"data.cache_dir={folder}/cache"))
    ended = run.train("optim.lr=1.0e-2")
    assert ended.returncode == 0, ended.stderr
    return run


@pytest.mark.parametrize("adapter", [LORA.replace("0.1", "0.0"), DORA], ids=["lora", "dora"])
def test_a_run_starts_as_its_base(adapter: str, rows: Path, tuned: Run, new_run: NewRun) -> None:
    whole, adapted = (
        new_run("whole", *words(rows, "sft", tuned)),
        new_run("adapted", *words(rows, "sft", tuned, adapter)),
    )
    assert whole.train().returncode == 0
    ended = adapted.train()
    assert ended.returncode == 0, ended.stderr
    assert adapted.losses()[0] == whole.losses()[0] and adapted.losses()[1:] != whole.losses()[1:]
    assert adapted.column("loss")[-1] < adapted.column("loss")[0]


@pytest.mark.parametrize(("kind", "adapter", "dtype"), [("sft", LORA, "bf16"), ("dpo", DORA, "fp32")])
def test_a_stop_changes_nothing(
    kind: str, adapter: str, dtype: str, rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path
) -> None:
    chosen = words(rows, kind, tuned, adapter, f"data.cache_dir={tmp_path}/cache", f"precision.dtype={dtype}")
    assert_a_stop_changes_nothing(new_run("whole", *chosen), new_run("stopped", *chosen))


def test_a_checkpoint_holds_adapters_alone(lora: Run) -> None:
    folder = lora.folder / "checkpoints/step_00000012/model"
    assert len(NativeReader(folder).shapes) == 4 * 3
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = [name for name, kind in stored.items() if isinstance(kind, TensorStorageMetadata)]
    assert len(tensors) == 4 * (4 * 3), "adapters, and the optimizer's masters and moments of them"
    assert all(".adapter." in name for name in tensors)


@pytest.mark.parametrize("layout", [(), ("parallel.tensor=2",)], ids=["1", "tp2"])
def test_preferences_begin_at_the_reference(
    layout: tuple[str, ...], rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path
) -> None:
    chosen = words(rows, "dpo", tuned, "adapter={rank: 4}", f"data.cache_dir={tmp_path}/cache", *layout)
    run = new_run("dpo", *chosen)
    ended = run.train("optim.lr=1.0e-2")
    assert ended.returncode == 0, ended.stderr
    assert run.column("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run.column("margin")[0] == pytest.approx(0, abs=1e-5) and run.column("margin")[-1] > 0.05


def test_another_layout_goes_on(lora: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    copytree(lora.folder, folder)
    run = Run(lora.config, folder, lora.overrides)
    ended = run.train("training.steps=14", "parallel.tensor=2", "parallel.sequence_parallel=true", "optim.lr=1.0e-2")
    assert ended.returncode == 0, ended.stderr
    assert run.column("loss")[-1] < 1.2 * lora.column("loss")[-1]


def test_a_run_answers_as_its_merged_model_does(lora: Run, tmp_path: Path) -> None:
    made = command("convert", "merge-adapter", str(lora.folder), str(tmp_path / "merged"), "--json")
    assert made.returncode == 0, made.stderr
    gates = {gate["name"]: gate for gate in json.loads(made.stdout)["gates"]}
    assert all(gate["ok"] and gate["tried"] for gate in gates.values()) and "logits: merged" in gates
    record = json.loads((tmp_path / "merged/lineage.json").read_text(encoding="utf-8"))
    assert [Path(parent["path"]).name for parent in record["parents"]] == ["sft", "run"]
    assert (tmp_path / "merged/tokenizer/chat_template.jinja").is_file()
    sampling = ["--chat", "--json", "--prompt", "1번?", "--max-new-tokens", "40", "--temperature", "0"]
    said = [command("generate", str(folder), *sampling) for folder in (lora.folder, tmp_path / "merged")]
    assert said[0].returncode == 0, said[0].stderr
    texts = [[answer["text"] for answer in json.loads(each.stdout)["completions"]] for each in said]
    assert texts[0] == texts[1]
    again = command("convert", "merge-adapter", str(lora.folder), str(tmp_path / "merged"))
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_what_needs_a_whole_model_says_how_to_make_one(lora: Run, tuned: Run, rows: Path, new_run: NewRun) -> None:
    refused = command("convert", "hf-export", str(lora.folder), str(lora.folder.parent / "hf"))
    assert refused.returncode == 2 and "megatron-ko convert merge-adapter" in refused.stderr
    ended = new_run("next", *overrides(rows, "sft"), f"checkpoint.start_from={lora.folder}").train()
    assert ended.returncode == 2 and "megatron-ko convert merge-adapter" in ended.stderr
    refused = command("convert", "merge-adapter", str(tuned.folder), str(lora.folder.parent / "none"))
    assert refused.returncode == 2 and "there are no adapters" in refused.stderr
    assert command("lineage", "show", str(lora.folder)).returncode == 0


def test_another_base_is_refused(rows: Path, tuned: Run, new_run: NewRun, tmp_path: Path) -> None:
    base = Run(tuned.config, tmp_path / "base", tuned.overrides)
    copytree(tuned.folder, base.folder)
    run = new_run("run", *words(rows, "sft", base, LORA))
    assert run.train().returncode == 0
    assert base.train("training.steps=41", "optim.lr=1.0e-2").returncode == 0
    ended = run.train("training.steps=20")
    assert ended.returncode == 2 and "that this run started with have changed" in ended.stderr
    refused = command("generate", str(run.folder), "--prompt", "1번?")
    assert refused.returncode == 2 and "that this run started with have changed" in refused.stderr


def test_peft_loads_the_adapters_of_a_run(lora: Run, tuned: Run, tmp_path: Path) -> None:
    for words in (
        ("hf-export", str(tuned.folder), str(tmp_path / "base"), "--proof", "quick"),
        ("peft-export", str(lora.folder), str(tmp_path / "peft"), "--base", str(tmp_path / "base")),
        ("merge-adapter", str(lora.folder), str(tmp_path / "merged")),
        ("hf-export", str(tmp_path / "merged"), str(tmp_path / "whole"), "--proof", "quick"),
    ):
        made = command("convert", *words)
        assert made.returncode == 0, made.stderr
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        before = base(tokens).logits
        found = PeftModel.from_pretrained(base, tmp_path / "peft")(tokens).logits
        expected = whole(tokens).logits
    assert float((found - expected).norm() / expected.norm()) < 1e-5 < float((before - expected).norm())
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["base_model_name_or_path"].endswith("base")
    assert (tmp_path / "peft/chat_template.jinja").is_file()


def test_a_run_keeps_its_adapters(lora: Run, tuned: Run) -> None:
    ended = lora.train("adapter.rank=8", "training.steps=20")
    assert ended.returncode == 2 and "adapter.rank: 4 -> 8" in ended.stderr
    ended = Run(tuned.config, tuned.folder, tuned.overrides).train(
        "adapter={rank: 16}", f"checkpoint.start_from={tuned.folder}", "training.steps=50"
    )
    assert ended.returncode == 2 and "adapter.rank: None -> 16" in ended.stderr


def test_groups_of_the_optimizer_name_adapters(rows: Path, tuned: Run, new_run: NewRun) -> None:
    chosen = words(rows, "sft", tuned, LORA, "training.steps=2")
    ended = new_run("b", *chosen, "optim.groups=[{match: '*.adapter.b', lr_factor: 16.0}]").train()
    assert ended.returncode == 0, ended.stderr
    ended = new_run("frozen", *chosen, "optim.groups=[{match: '*.linear_qkv.weight', lr_factor: 2.0}]").train()
    assert ended.returncode == 2 and "matches no parameter" in ended.stderr


def test_experts_go_on_to_the_bit_and_merge(new_run: NewRun, tmp_path: Path) -> None:
    experts = ["model.family=mixtral", "model.moe={num_experts: 4, top_k: 2}", "training.steps=12", "eval.interval=6"]
    base = new_run("base", *experts)
    assert base.train().returncode == 0
    chosen = [*experts, f"checkpoint.start_from={base.folder}", "adapter={rank: 8}", "checkpoint.interval=6"]
    whole, stopped = new_run("whole", *chosen), new_run("stopped", *chosen)
    assert_a_stop_changes_nothing(whole, stopped)
    assert stopped.train("training.steps=14", "parallel.expert=2").returncode == 0
    made = command("convert", "merge-adapter", str(stopped.folder), str(tmp_path / "merged"), "--json")
    assert made.returncode == 0, made.stderr
    assert all(gate["ok"] and gate["tried"] for gate in json.loads(made.stdout)["gates"])
