"""The configuration of a run: frozen sections, strict loading, checks that report all problems at once."""

from megatron_ko.config.adapter import AdapterConfig
from megatron_ko.config.checkpoint import CheckpointConfig
from megatron_ko.config.data import DataConfig, Source
from megatron_ko.config.evaluation import EvalConfig
from megatron_ko.config.json_schema import run_schema
from megatron_ko.config.launch import LaunchConfig
from megatron_ko.config.load import dump, load_config, load_model_config
from megatron_ko.config.logging import LoggingConfig, ProfileConfig
from megatron_ko.config.model import ModelConfig
from megatron_ko.config.moe import MoeConfig
from megatron_ko.config.objective import ObjectiveConfig
from megatron_ko.config.optim import OptimConfig
from megatron_ko.config.parallel import ParallelConfig
from megatron_ko.config.precision import PrecisionConfig
from megatron_ko.config.problems import Problem, raise_problems
from megatron_ko.config.resilience import ResilienceConfig
from megatron_ko.config.rope import RopeConfig
from megatron_ko.config.run import RunConfig, RunSection
from megatron_ko.config.training import TrainingConfig
from megatron_ko.config.validate import check_world

__all__ = [
    "AdapterConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvalConfig",
    "LaunchConfig",
    "LoggingConfig",
    "ModelConfig",
    "MoeConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "Problem",
    "ProfileConfig",
    "ResilienceConfig",
    "RopeConfig",
    "RunConfig",
    "RunSection",
    "Source",
    "TrainingConfig",
    "check_world",
    "dump",
    "load_config",
    "load_model_config",
    "raise_problems",
    "run_schema",
]
