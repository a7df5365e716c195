"""trl's SFTTrainer for ``benchmarks/packing.py``: ``packing_peers.py packed|padded RUN.yaml THREADS``.

Prints one JSON object: trained tokens a second, without the first steps.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from peer_models import transformers_model
from trl import SFTConfig, SFTTrainer

from megatron_ko.config import load_config
from megatron_ko.data.tokens.marked import MarkedReader

WARM_UP = 2


class Clock(transformers.TrainerCallback):
    """Seconds of every step, data loading included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def main() -> None:
    kind, run_file, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    config = load_config(run_file)
    length, training = config.data.sequence_length, config.training
    model = transformers_model(config.model.model_copy(update={"vocab_size": config.model.padded_vocab_size(1)}))
    marked = MarkedReader(config.data.sources[0].prefix)
    rows = [
        {"input_ids": marked.ids(n).tolist(), "completion_mask": (marked.marks(n) > 0).astype(int).tolist()}
        for n in range(len(marked))
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.data.tokenizer)
    counted: list[int] = []
    arguments = SFTConfig(
        output_dir=str(run_file.parent / "trl"), packing=kind == "packed", max_length=length, padding_free=False,
        pad_to_multiple_of=None if kind == "packed" else length, completion_only_loss=True,
        per_device_train_batch_size=training.global_batch_size, max_steps=training.steps, learning_rate=config.optim.lr,
        lr_scheduler_type="constant", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
        optim="adamw_torch_fused", gradient_checkpointing=False, logging_strategy="no", seed=1,
    )  # fmt: skip
    clock = Clock()
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[clock],
    )  # fmt: skip
    collate = trainer.data_collator

    def counting(examples: list[dict[str, object]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = collate(examples)
        counted.append(int((batch["labels"] != -100).sum()))
        return batch

    trainer.data_collator = counting
    trainer.train()
    steps = range(WARM_UP, training.steps)
    rate = sum(counted[step] for step in steps) / sum(clock.seconds[step] for step in steps)
    print(json.dumps({"trained_tokens_per_s": rate}))


if __name__ == "__main__":
    main()
