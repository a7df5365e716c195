"""Runs one rank of a training: builds everything, resumes, trains, and reports how it ended."""

import gc
from typing import Any

import numpy as np
import torch

from megatron_ko import log
from megatron_ko.artifacts import checkpoints
from megatron_ko.config import RunConfig, check_world, dump, raise_problems
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.data.training.batch import Collator
from megatron_ko.data.training.feed import ReadAhead, SampleFeed
from megatron_ko.data.training.origins import Reading
from megatron_ko.data.training.pretrain import Datasets, References, build_datasets
from megatron_ko.data.training.preview import DataPreview, load_fitting_tokenizer
from megatron_ko.errors import EXIT_DONE, EXIT_REQUEUE
from megatron_ko.models.adapter import attach_adapters
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.specs import uses_transformer_engine
from megatron_ko.objectives import build_objective
from megatron_ko.parallel.collectives import barrier, broadcast_object
from megatron_ko.parallel.groups import Groups, destroy, initialise
from megatron_ko.parallel.platform import get_platform
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.plan.flops import flops_per_token
from megatron_ko.storage.files import write_atomic
from megatron_ko.train.best import describe, is_done
from megatron_ko.train.checkpoint import Checkpointer
from megatron_ko.train.console import make_console
from megatron_ko.train.engine import build_engine
from megatron_ko.train.evaluate import Evaluator
from megatron_ko.train.exclusive import lock_run_dir
from megatron_ko.train.lineage import identify, layout_of, write_lineage
from megatron_ko.train.loop import train
from megatron_ko.train.metrics import MetricStore, Rates, rewind
from megatron_ko.train.newest import find_newest, verify
from megatron_ko.train.out_of_memory import explaining_out_of_memory
from megatron_ko.train.profiler import StepProfiler
from megatron_ko.train.reference import ReferencePass, is_missing
from megatron_ko.train.resilience.signals import StopSignals
from megatron_ko.train.resume import check_bound
from megatron_ko.train.routing import StarvationWatch, record_interval
from megatron_ko.train.run import RESOLVED, Run
from megatron_ko.train.sinks import Sink, TensorBoardSink, WandbSink
from megatron_ko.train.start import load_start
from megatron_ko.train.state import TrainState
from megatron_ko.train.state_parts import OptimizerState, Weights
from megatron_ko.train.summary import describe_sources, summarise, tokens_per_step

_log = log.get_logger(__name__)
_NO_REFERENCES: References = {}


def main(config: RunConfig, from_step: int | None = None) -> int:
    """Train one rank's part of a run; the default process group must exist.

    Args:
        config: the resolved configuration.
        from_step: the step whose checkpoint the run goes back to; None: the newest one.

    Returns:
        0 if the run is complete, 75 if it was stopped on request and can be continued.

    Raises:
        KoError: a problem that the user can fix.
    """
    signals = StopSignals()
    signals.install()
    groups = initialise(config.parallel, config.resilience.timeout_s)
    log.configure(groups.rank, config.logging.level)
    raise_problems(check_world(config, groups.world_size), f"{groups.world_size} ranks")
    lock_run_dir(config.run.dir, groups.rank == 0)
    if from_step is None and finished(config, groups):
        destroy()
        return EXIT_DONE
    with explaining_out_of_memory(config.run.dir / "memory", groups.rank, config.logging.memory_history):
        complete = _build_and_train(config, groups, signals, from_step)
    barrier()
    destroy()
    return EXIT_DONE if complete else EXIT_REQUEUE


def _build_and_train(config: RunConfig, groups: Groups, signals: StopSignals, from_step: int | None) -> bool:
    """Whether the run has reached its last step."""
    run = build_run(config, groups, signals, from_step)
    # All current objects live as long as the run. Without this, the garbage collections that megatron-core triggers in
    # every save would scan a million objects of imported modules.
    gc.freeze()
    try:
        complete = train(run)
    finally:
        run.feed.close()
        run.profiler.close()
        run.metrics.close()
    if len(run.state.source_tokens) > 1:
        _log.info(describe_sources(run.state.source_tokens))
    again = "start again to continue" if config.checkpoint.interval else "nothing was saved"
    ended = (
        describe(run.state, config.training) if complete else f"stopped on request; {again} at step {run.state.step}"
    )
    _log.info(ended)
    return complete


def finished(config: RunConfig, groups: Groups) -> bool:
    """Whether the newest checkpoint is a complete one of the end of the run. A collective.

    Raises:
        ConfigError: it is, but belongs to another model.
    """
    folder = config.run.dir / "checkpoints"
    steps: list[int] = broadcast_object(checkpoints.steps_in(folder))  # another rank may not see the folder yet
    if not steps or (steps[0] < config.training.steps and config.training.early_stopping is None):
        return False
    manifest, problems = verify(folder / checkpoints.name_of(steps[0]), groups)
    if manifest is None or problems or not is_done(TrainState.from_dict(manifest.state), config.training):
        return False
    check_bound(config, manifest)
    _log.info("%s is done: step %d of %d", config.run.dir, steps[0], config.training.steps)
    return True


def build_run(config: RunConfig, groups: Groups, signals: StopSignals, from_step: int | None = None) -> Run:
    """Build model, optimizer, data and metrics, restore the newest checkpoint, and print what will run."""
    platform = get_platform()
    first = groups.rank == 0
    if first:
        config.run.dir.mkdir(parents=True, exist_ok=True)
        for name in checkpoints.remove_leftovers(config.run.dir / "checkpoints"):
            _log.info("removed files left over from an interrupted save: %s", name)
    tokenizer = load_fitting_tokenizer(config)
    newest = find_newest(config.run.dir / "checkpoints", groups, from_step)
    datasets = _datasets(config, tokenizer, newest.manifest if newest else None)
    seed_everything(config.run.seed, groups)
    refers = config.objective.needs_reference and is_missing(config, datasets.shards, tokenizer)
    chunks = _build_chunks(config, groups, tokenizer, starts=newest is None or refers, again=newest is not None)
    engine = build_engine(config, chunks, groups, build_objective(config.objective, groups))
    identity = identify(config, tokenizer.fingerprint)
    weights = Weights(engine.model, gathers_late=config.parallel.overlap_param_gather)
    parts = (weights, OptimizerState(engine.optimizer, engine.model))
    collate = Collator(
        document_start=tokenizer.eod if config.data.document_mask else None,
        cp_rank=groups.cp_rank,
        cp_size=groups.cp_size,
    )
    if config.objective.needs_reference:
        asked = ReferencePass(config, engine, tokenizer, collate)
        references = asked.of_all(datasets.shards, same=newest is None)
        datasets = _datasets(config, tokenizer, newest.manifest if newest else None, references)
    checkpointer = Checkpointer(config, groups, parts, identity)
    if config.checkpoint.interval:
        checkpointer.check_room()
    restored = checkpointer.restore(newest) if newest else None
    state = restored.state if restored else TrainState()
    _open_ledger(state, datasets)
    if first:
        if from_step is not None:
            for name in checkpoints.set_aside(config.run.dir / "checkpoints", from_step):
                _log.info("set aside: checkpoints/%s/%s", checkpoints.SET_ASIDE, name)
        _announce(config, groups, chunks, DataPreview(datasets.epochs))
        session = {
            "layout": layout_of(config, groups.world_size),
            "device": platform.device_name,
            "resumed_from_step": state.step,
        }
        write_atomic(config.run.dir / RESOLVED, dump(config).encode())
        write_lineage(config, identity, datasets.corpus, session, datasets.epochs)
    evaluator = None
    if datasets.valid is not None:
        token_bytes = np.zeros(config.model.vocab_size, dtype=np.int64)
        token_bytes[: tokenizer.vocab_size] = tokenizer.token_bytes()
        evaluator = Evaluator(
            engine, datasets.valid, config.eval.samples, config.training, collate, torch.from_numpy(token_bytes)
        )
    feed = SampleFeed(
        datasets.train,
        before=reading_of(state) or Reading(state.samples, datasets.train.count_by_dataset(range(state.samples))),
        global_batch=config.training.global_batch_size,
        micro_batch=config.training.micro_batch_size,
        dp_rank=groups.dp_rank,
        dp_size=groups.dp_size,
        collate=collate,
    )
    return Run(
        config=config,
        engine=engine,
        feed=ReadAhead(feed, platform.device, steps=config.training.steps - state.step),
        evaluator=evaluator,
        state=state,
        starvation=StarvationWatch(config.model.moe.starved_load if config.model.moe else 0.0),
        metrics=_metrics(config, groups, state, restored.metrics if restored else {}),
        checkpoint=checkpointer,
        signals=signals,
        profiler=StepProfiler(config.run.dir / "profile", config.logging.profile if first else None),
    )


def _build_chunks(
    config: RunConfig, groups: Groups, tokenizer: Tokenizer, starts: bool, again: bool
) -> list[torch.nn.Module]:
    """This rank's model chunks, with the weights of the start if the run starts, or goes on and needs them."""
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    if config.checkpoint.start_from and (starts or config.adapter):
        load_start(config, chunks, tokenizer, again)
    if config.adapter is not None:
        attach_adapters(chunks, config.adapter, groups, config.run.seed)
    return chunks


def _datasets(
    config: RunConfig,
    tokenizer: Tokenizer,
    newest: checkpoints.Manifest | None,
    references: References = _NO_REFERENCES,
) -> Datasets:
    """Data for what was read until the newest checkpoint, at any batch size, and for the remaining steps."""
    done, read = (newest.step, newest.samples) if newest else (0, 0)
    wanted = read + (config.training.steps - done) * config.training.global_batch_size
    before = reading_of(TrainState.from_dict(newest.state)) if newest else None
    sizes, kind = (wanted, config.eval.samples, 0), config.objective.kind
    return build_datasets(config.data, tokenizer, sizes, config.run.seed, before, kind, references)


def reading_of(state: TrainState) -> Reading | None:
    """How much was read of each dataset; checkpoints of earlier versions do not contain it."""
    position = state.position
    return Reading(position["samples"], position["read"]) if "read" in position else None


def _open_ledger(state: TrainState, datasets: Datasets) -> None:
    """Count every source from now on, in addition to the counts in the checkpoint."""
    if state.tokens and not state.source_tokens:
        _log.warning("the checkpoint does not tell how much was read of each source: counted from step %d", state.step)
    state.source_tokens = {**dict.fromkeys(datasets.train.sources, 0), **state.source_tokens}


def _metrics(config: RunConfig, groups: Groups, state: TrainState, positions: dict[str, int]) -> MetricStore:
    """The metric store of this rank, with everything after the restored step removed."""
    per_step = tokens_per_step(config)
    flops = flops_per_token(config.model, config.data.sequence_length)
    peak = get_platform().peak_flops(config.precision.dtype)
    rates = Rates(per_step, flops, groups.world_size, peak)
    if groups.rank != 0:
        return MetricStore(None, [], rates)
    directory = config.run.dir / "metrics"
    directory.mkdir(parents=True, exist_ok=True)
    if cut := rewind(directory, positions):
        _log.info("%d metric lines after step %d moved to superseded.jsonl", cut, state.step)
    sinks: list[Sink] = []
    if config.logging.tensorboard:
        sinks.append(TensorBoardSink(directory / "tensorboard", state.step))
    if config.logging.wandb_project:
        plain: dict[str, Any] = config.model_dump(mode="json")
        sinks.append(WandbSink(config.logging.wandb_project, config.run.name, plain, directory))
    if config.logging.console:
        left = config.training.steps - state.step
        total = state.tokens + per_step * left if config.objective.kind == "lm" else None
        sinks.append(make_console(config.training.steps, total))
    return MetricStore(directory, sinks, rates, record_interval(config.training.steps) if config.model.moe else 0)


def _announce(config: RunConfig, groups: Groups, chunks: list[torch.nn.Module], data: DataPreview) -> None:
    platform = get_platform()
    for line in [*summarise(config, groups.world_size), data.line()]:
        _log.info(line)
    if warning := data.warning():
        _log.warning(warning)
    built = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
    layers = "transformer_engine" if uses_transformer_engine(config.precision.layer_backend) else "portable"
    device = f"{platform.device_name} ({platform.backend}), {layers} layers"
    _log.info("device      %s, %s parameters on rank 0", device, f"{built:,}")
