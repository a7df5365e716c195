"""A native model on one rank, without a recipe of training around it: for generation and for proofs."""

from pathlib import Path

import torch

from megatron_ko.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    PrecisionConfig,
    RunConfig,
    RunSection,
    Source,
    TrainingConfig,
)
from megatron_ko.models.build import build_structure
from megatron_ko.models.weights import load_weights
from megatron_ko.parallel.platform import get_platform
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.single import single_world

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def inference_config(model: ModelConfig, dtype: torch.dtype = torch.float32) -> RunConfig:
    """A configuration around a network, for what needs a whole one; its run and its data are nowhere.

    A capacity of experts belongs to training: it would let a text depend on those beside it.
    """
    nowhere = Path("nowhere")
    return RunConfig(
        run=RunSection(dir=nowhere),
        model=model.dropless,
        precision=PrecisionConfig.model_validate({"dtype": _NAMES[dtype], "backend": "portable"}),
        data=DataConfig(tokenizer=nowhere, sources=(Source(prefix=nowhere),), sequence_length=1),
        optim=OptimConfig(lr=1.0),
        training=TrainingConfig(steps=1, global_batch_size=1),
    )


def load_for_inference(config: RunConfig, weights: Path) -> torch.nn.Module:
    """Build the model of a configuration with a layout of one rank, for evaluation, with weights rounded to its type.

    Raises:
        CheckpointError: the folder does not hold the weights of this model.
    """
    groups = single_world()
    seed_everything(config.run.seed, groups)
    chunks = [chunk.to(get_platform().device) for chunk in build_structure(config, groups)]
    load_weights(chunks, weights)
    return chunks[0].eval()
