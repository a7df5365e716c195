"""The peers of ``benchmarks/train_step.py``: a hand-written PyTorch loop, and the Trainer of transformers.

Both read the same sequences as ``megatron-ko train`` and compute the same network in fp32. Each prints one JSON object:
the seconds of every step, and the loss of the first and of the last one.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from megatron_ko.config import ModelConfig, RunConfig, load_config
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.training.feed import SampleFeed
from megatron_ko.data.training.pretrain import build_datasets
from megatron_ko.train.schedule import lr_at


class Layer(nn.Module):
    """One decoder layer: grouped-query attention and SwiGLU, each behind RMSNorm."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.width = model.num_attention_heads, model.query_groups, model.kv_channels
        hidden, attended = model.hidden_size, self.heads * self.width
        self.norm1 = nn.RMSNorm(hidden, eps=model.norm_eps)
        self.norm2 = nn.RMSNorm(hidden, eps=model.norm_eps)
        self.qkv = nn.Linear(hidden, attended + 2 * self.groups * self.width, bias=False)
        self.out = nn.Linear(attended, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * model.ffn_hidden_size, bias=False)
        self.down = nn.Linear(model.ffn_hidden_size, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        b, s, _ = x.shape
        sizes = [self.heads * self.width, self.groups * self.width, self.groups * self.width]
        q, k, v = (
            part.view(b, s, -1, self.width).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(sizes, dim=-1)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = self.heads != self.groups
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.out(attended.transpose(1, 2).reshape(b, s, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on [b, n, s, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Llama(nn.Module):
    """The network of a run, as short as it can be written."""

    def __init__(self, model: ModelConfig, length: int) -> None:
        super().__init__()
        rows = model.padded_vocab_size(1)
        self.embedding = nn.Embedding(rows, model.hidden_size)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.num_layers))
        self.norm = nn.RMSNorm(model.hidden_size, eps=model.norm_eps)
        self.head = nn.Linear(model.hidden_size, rows, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=model.init_std)
        if model.tie_embeddings:
            self.head.weight = self.embedding.weight
        frequencies = model.rope.theta ** -(torch.arange(0, model.kv_channels, 2) / model.kv_channels)
        angles = torch.outer(torch.arange(length), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """[b, s] -> logits [b, s, v]."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.head(self.norm(x))


def run_by_hand(config: RunConfig, batches: SampleFeed) -> tuple[list[float], list[float]]:
    """The loop that one would write without a framework."""
    optim, steps = config.optim, config.training.steps
    model = Llama(config.model, config.data.sequence_length)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    seconds, losses = [], []
    for step in range(steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, optim, steps)
        micro_batches, total = batches.next().batches, 0.0
        for batch in micro_batches:
            logits = model(batch.tokens)
            loss = functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()) / len(micro_batches)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(total)
    return seconds, losses


class Sequences(torch.utils.data.Dataset):
    """The training sequences in the shape that transformers wants."""

    def __init__(self, batches: SampleFeed, steps: int) -> None:
        self.rows = [row for _ in range(steps) for batch in batches.next().batches for row in batch.tokens]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def run_trainer(config: RunConfig, batches: SampleFeed) -> tuple[list[float], list[float]]:
    """transformers' Trainer on LlamaForCausalLM with PyTorch attention, everything optional switched off."""
    import transformers
    from peer_models import transformers_model

    transformers.logging.set_verbosity_error()
    optim, training, model = config.optim, config.training, config.model
    network = transformers_model(model.model_copy(update={"vocab_size": model.padded_vocab_size(1)}))
    clock = _Clock(transformers)
    arguments = transformers.TrainingArguments(
        output_dir=str(config.run.dir / "trainer"),
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.global_batch_size // training.micro_batch_size,
        max_steps=training.steps,
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        max_grad_norm=optim.clip_grad,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        optim="adamw_torch_fused",
    )

    class InOrder(transformers.Trainer):
        """The sequences in the order in which the others read them."""

        def _get_train_sampler(self, *args: object) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(
        model=network,
        args=arguments,
        train_dataset=Sequences(batches, training.steps),
        callbacks=[clock.callback],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.seconds, losses


class _Clock:
    """Times the Trainer's steps from its own callbacks, data loading between the steps included."""

    def __init__(self, transformers: object) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()
        outer = self

        class Callback(transformers.TrainerCallback):  # type: ignore[attr-defined, misc]
            def on_train_begin(self, *args: object, **kwargs: object) -> None:
                outer._last = time.perf_counter()

            def on_step_end(self, *args: object, **kwargs: object) -> None:
                now = time.perf_counter()
                outer.seconds.append(now - outer._last)
                outer._last = now

        self.callback = Callback()


def main() -> None:
    """``peers.py hand|trainer RUN.yaml THREADS [OVERRIDE...]``."""
    kind, run_file, threads, *overrides = sys.argv[1:]
    torch.set_num_threads(int(threads))
    config = load_config(Path(run_file), overrides)
    torch.manual_seed(config.run.seed)
    size = config.training.global_batch_size
    wanted = (config.training.steps * size, config.eval.samples, 0)
    datasets = build_datasets(config.data, load_tokenizer(config.data.tokenizer), wanted, config.run.seed)
    batches = SampleFeed(
        datasets.train,
        global_batch=size,
        micro_batch=config.training.micro_batch_size,
        dp_rank=0,
        dp_size=1,
    )
    seconds, losses = {"hand": run_by_hand, "trainer": run_trainer}[kind](config, batches)
    print(json.dumps({"seconds": seconds, "first": losses[0], "last": losses[-1]}))


if __name__ == "__main__":
    main()
