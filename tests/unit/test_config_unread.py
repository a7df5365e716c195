"""An option that nothing would read is refused, and accepted as soon as its reader is there."""

from pathlib import Path

import pytest
from refusals import RUN, problems

from megatron_ko.config import load_config
from megatron_ko.config.checks.unread import READERS

EXPERTS = "model.family=mixtral model.moe.num_experts=4 model.moe.top_k=2"
FP8 = "precision.recipe=fp8_current"
START = "checkpoint.start_from=earlier"

# An option, what it needs besides its reader, and the reader.
OPTIONS = [
    ("parallel.sequence_parallel=true", "", "parallel.tensor=2"),
    ("parallel.context_exchange=p2p", "", "parallel.context=2"),
    ("parallel.virtual_pipeline=2", "", "parallel.pipeline=2"),
    ("parallel.first_stage_layers=2", "", "parallel.pipeline=2"),
    ("parallel.last_stage_layers=2", "", "parallel.pipeline=2"),
    ("parallel.embedding_as_layer=true", "model.num_layers=5", "parallel.pipeline=2"),
    ("parallel.loss_as_layer=true", "model.num_layers=5", "parallel.pipeline=2"),
    ("parallel.expert=2", "", EXPERTS),
    ("parallel.expert_tensor=2", "", EXPERTS),
    ("parallel.dispatcher=allgather", "", EXPERTS),
    (
        "model.moe.expert_bias_update_rate=0.1",
        f"{EXPERTS} model.moe.score=sigmoid",
        "model.moe.expert_bias=true",
    ),
    ("precision.fp8_format=hybrid", "", FP8),
    ("precision.fp8_weights=true", "", FP8),
    ("precision.mxfp8.emulate=true", "", "precision.recipe=mxfp8"),
    ("precision.mxfp8.scale_rounding=down", "precision.recipe=mxfp8", "precision.mxfp8.emulate=true"),
    ("precision.initial_loss_scale=2.0", "", "precision.dtype=fp16"),
    ("precision.min_loss_scale=2.0", "", "precision.dtype=fp16"),
    ("precision.loss_scale_window=2", "", "precision.dtype=fp16"),
    ("precision.loss_scale_hysteresis=3", "", "precision.dtype=fp16"),
    ("optim.decay_steps=2", "", "optim.schedule=wsd"),
    ("optim.min_lr_ratio=0.2", "optim.schedule=constant", "optim.schedule=cosine"),
    ("checkpoint.start_best=true", "", "checkpoint.start_from=earlier"),
    ("objective.neftune_alpha=5.0", "", "objective.kind=sft"),
    ("objective.neftune_seed=1", "objective.kind=sft", "objective.neftune_alpha=5.0"),
    ("data.filler=text", "", "objective.kind=sft"),
    ("objective.losses={hinge: 1.0}", f"objective.kind=orpo {START}", "objective.kind=dpo"),
    ("objective.label_smoothing=0.1", f"objective.kind=orpo {START}", "objective.kind=dpo"),
    ("objective.good_weight=2.0", f"objective.kind=dpo {START}", "objective.kind=kto"),
    ("objective.bad_weight=2.0", f"objective.kind=dpo {START}", "objective.kind=kto"),
    ("objective.gamma=0.7", f"objective.kind=dpo {START}", "objective.kind=simpo"),
    ("objective.sft_weight=1.0", "objective.kind=orpo", "objective.kind=cpo"),
    ("objective.beta=0.2", "", "objective.kind=orpo"),
    ("training.recompute_modules=[mlp]", "", "training.recompute=selective"),
    ("training.recompute_layers=1", "", "training.recompute=full"),
]


@pytest.mark.parametrize(("option", "beside", "reader"), OPTIONS)
def test_an_option_needs_its_reader(tmp_path: Path, option: str, beside: str, reader: str) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(RUN)
    path = option.partition("=")[0]
    load_config(run_file, beside.split())
    text = problems(run_file, *beside.split(), option)
    assert text.startswith("1 problem") and f"  {path}\n" in text
    assert "the default: it is only used with" in text and "remove it, or " in text
    load_config(run_file, [*beside.split(), *reader.split(), option])


def test_every_row_of_the_table_is_tested() -> None:
    known = {option for reader in READERS for option in reader.options}
    assert known == {option.partition("=")[0] for option, _, _ in OPTIONS}
