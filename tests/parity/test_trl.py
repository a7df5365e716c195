"""Losses and gradients of whole models against trl and transformers, which see the documents one by one, padded."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import Outcome, collect_from_ranks, merge, micro_batches, relative_difference, tiny_config, train_rank
from oracle import renamed, to_transformers
from torch import Tensor
from torch.nn import functional
from trl import DPOTrainer

from megatron_ko.config import RunConfig
from megatron_ko.parallel.groups import initialise

MOE = {"num_experts": 4, "top_k": 2, "aux_loss": "none"}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"family": "qwen3", "norm_eps": 1e-6},
    "mixtral": {"family": "mixtral", "moe": MOE},
}


class _LogProbabilities(torch.nn.Module):
    """A model of transformers as trl calls it: log-probabilities of the labels, 0 where there is none."""

    is_gradient_checkpointing = False

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: object) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1].float()
        wanted = labels[:, 1:]
        found = logits.log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1)
        found = torch.where(wanted < 0, 0.0, found)
        nothing = torch.zeros_like(found)
        return SimpleNamespace(log_probs=found, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def documents_of(config: RunConfig) -> list[dict[str, Any]]:
    """The documents of the first global batch: ids, which of them are trained, verdict, and reference."""
    groups = initialise(config.parallel, timeout_s=60)
    found = []
    for batch in micro_batches(config, groups, 0):
        answers = batch.answers
        assert answers is not None and answers.reference is not None
        for number, verdict in enumerate(answers.verdicts.tolist()):
            place = (answers.of_token.flatten() == number).nonzero().flatten()
            if verdict:
                tokens, labels = batch.tokens.flatten()[place], batch.labels.flatten()[place]
                trained = torch.cat([torch.zeros(1), batch.loss_mask.flatten()[place]]).long()
                ids = torch.cat([tokens, labels[-1:]])
                found.append({"ids": ids, "trained": trained, "reference": float(answers.reference[number])})
    return found


def padded(documents: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows [n, t] as trl's collator makes them."""
    longest = max(len(one["ids"]) for one in documents)

    def rows(name: str) -> Tensor:
        return torch.stack([functional.pad(one[name], (0, longest - len(one[name]))) for one in documents])

    there = [functional.pad(torch.ones(len(one["ids"]), dtype=torch.long), (0, longest - len(one["ids"])))
             for one in documents]  # fmt: skip
    return {"input_ids": rows("ids"), "completion_mask": rows("trained"), "attention_mask": torch.stack(there)}


def ours(family: str, objective: dict[str, Any]) -> tuple[RunConfig, Outcome, torch.nn.Module, list[dict[str, Any]]]:
    model = {"init_std": 0.1, "num_layers": 2, **FAMILIES[family]}
    optim, training = {"clip_grad": 0.0}, {"micro_batch_size": 1}
    config = tiny_config(model=model, objective=objective, optim=optim, training=training)
    outcome = merge(collect_from_ranks(train_rank, 1, config, 1))
    (documents,) = collect_from_ranks(documents_of, 1, config)
    return config, outcome, to_transformers(config.model, outcome.weights), documents


def compare(config: RunConfig, outcome: Outcome, peer: torch.nn.Module, loss: Tensor) -> None:
    assert outcome.losses[0] == pytest.approx(float(loss), abs=1e-5)
    loss.backward()
    gradients = renamed(config.model, outcome.gradients)
    for name, parameter in peer.named_parameters():
        assert parameter.grad is not None
        assert relative_difference(gradients[name], parameter.grad) < 1e-4, name


@pytest.mark.parametrize("family", FAMILIES)
def test_dpo_of_packed_pairs_is_that_of_trl(family: str) -> None:
    config, outcome, peer, documents = ours(family, {"kind": "dpo", "beta": 0.2})
    good, bad = documents[0::2], documents[1::2]
    batch = {**padded([*good, *bad]), "ref_chosen_logps": torch.tensor([one["reference"] for one in good]),
             "ref_rejected_logps": torch.tensor([one["reference"] for one in bad])}  # fmt: skip
    identity = lambda value: value  # noqa: E731
    trainer = SimpleNamespace(
        model=_LogProbabilities(peer), ref_model=None, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0], beta=0.2, label_smoothing=0.0,
        use_weighting=False, _metrics={"train": defaultdict(list), "eval": defaultdict(list)}, _total_train_tokens=0,
        _tp_size=1,
        accelerator=SimpleNamespace(device="cpu", gather=identity, gather_for_metrics=identity),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
    )  # fmt: skip
    compare(config, outcome, peer, DPOTrainer._compute_loss(trainer, trainer.model, batch, False))


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_of_packed_rows_is_that_of_transformers(family: str) -> None:
    config, outcome, peer, documents = ours(family, {"kind": "sft"})
    batch = padded(documents)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    logits = peer(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    compare(config, outcome, peer, loss)
