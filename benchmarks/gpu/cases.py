"""Small runs of every kind, and which of them have to learn alike: data."""

from dataclasses import dataclass

# 4 layers x 256, 512 tokens: large enough for the kernels of Transformer Engine, small enough for a second a run.
RUN = """
run: {{dir: {folder}/run, seed: 3}}
model: {{num_layers: 4, hidden_size: 256, ffn_hidden_size: 768, num_attention_heads: 8, num_query_groups: 2,
        head_dim: 64, vocab_size: 2048, max_position_embeddings: 512}}
data: {{tokenizer: {data}/tokenizer, sources: [{{prefix: {data}/corpus}}], split: [95, 5, 0], sequence_length: 512}}
optim: {{lr: 1.0e-3}}
training: {{steps: 10, global_batch_size: 8, micro_batch_size: 4}}
eval: {{samples: 8}}
checkpoint: {{interval: 0}}
logging: {{console: false, tensorboard: false}}
"""
TOY = (
    "model.hidden_size=64", "model.ffn_hidden_size=128", "model.num_attention_heads=4", "model.head_dim=16",
    "data.sequence_length=64", "training.steps=3", "training.global_batch_size=4", "training.micro_batch_size=2",
    "eval.samples=4",
)  # fmt: skip

FP32, PORTABLE = ("precision.dtype=fp32",), ("precision.backend=portable",)
MOE = (
    "model.family=mixtral", "model.moe.num_experts=8", "model.moe.top_k=2", "model.moe.aux_loss=batch",
    "model.moe.aux_loss_coeff=0.01",
)  # fmt: skip
SEQUENCE_LOSS = (*MOE, "model.moe.aux_loss=sequence", "model.moe.aux_loss_coeff=0.001")
WINDOWS = (
    "model.family=keural", "model.windows=[48,null,48,null]", "model.moe.num_experts=4", "model.moe.top_k=2",
)  # fmt: skip
DOCUMENTS = ("data.document_mask=true",)
QWEN3 = ("model.family=qwen3",)
YARN = (
    "model.rope.scaling.type=yarn", "model.rope.scaling.factor=4.0",
    "model.rope.scaling.original_max_position_embeddings=256",
)  # fmt: skip
CURRENT, DELAYED, BLOCK = (f"precision.recipe={name}" for name in ("fp8_current", "fp8_delayed", "fp8_blockwise"))
EMULATED = ("precision.recipe=mxfp8", "precision.mxfp8.emulate=true", "precision.mxfp8.scale_rounding=up")


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        words: values laid over ``RUN``.
        needs: "engine": Transformer Engine, but runs with portable layers in a rehearsal; "cuda": cannot be rehearsed.
        on_cpu: runs on the CPU of the machine, to be compared with.
    """

    words: tuple[str, ...]
    needs: str = ""
    on_cpu: bool = False


@dataclass(frozen=True)
class Pair:
    """Two cases whose losses may differ by ``tolerance`` of the right one's, in any step."""

    left: str
    right: str
    tolerance: float


CASES = {
    "bf16": Case((), "engine"),
    "bf16 portable": Case(PORTABLE),
    "bf16 cpu": Case(PORTABLE, on_cpu=True),
    "fp32": Case(FP32, "engine"),
    "fp32 portable": Case((*FP32, *PORTABLE)),
    "fp32 cpu": Case((*FP32, *PORTABLE), on_cpu=True),
    "fp16": Case(("precision.dtype=fp16",), "engine"),
    "fp16 portable": Case(("precision.dtype=fp16", *PORTABLE)),
    "fp8 current": Case((CURRENT,), "cuda"),
    "fp8 block": Case((BLOCK,), "cuda"),
    "fp8 delayed": Case((DELAYED,), "cuda"),
    "fp8 weights current": Case((CURRENT, "precision.fp8_weights=true"), "cuda"),
    "moe bf16": Case(MOE, "engine"),
    "moe bf16 portable": Case((*MOE, *PORTABLE)),
    "moe fp32": Case((*MOE, *FP32), "engine"),
    "moe fp32 portable": Case((*MOE, *FP32, *PORTABLE)),
    "moe fp32 cpu": Case((*MOE, *FP32, *PORTABLE), on_cpu=True),
    "moe fp8 current": Case((*MOE, CURRENT), "cuda"),
    "moe fp8 block": Case((*MOE, BLOCK), "cuda"),
    "moe sequence loss bf16": Case(SEQUENCE_LOSS, "engine"),
    "moe sequence loss bf16 portable": Case((*SEQUENCE_LOSS, *PORTABLE)),
    "windows bf16": Case(WINDOWS, "engine"),
    "windows bf16 portable": Case((*WINDOWS, *PORTABLE)),
    "windows fp32 portable": Case((*WINDOWS, *FP32, *PORTABLE)),
    "windows fp32 cpu": Case((*WINDOWS, *FP32, *PORTABLE), on_cpu=True),
    "windows documents bf16": Case((*WINDOWS, *DOCUMENTS), "engine"),
    "windows documents bf16 portable": Case((*WINDOWS, *DOCUMENTS, *PORTABLE)),
    "documents bf16": Case(DOCUMENTS, "engine"),
    "documents bf16 portable": Case((*DOCUMENTS, *PORTABLE)),
    "documents fp32 portable": Case((*DOCUMENTS, *FP32, *PORTABLE)),
    "documents fp32 cpu": Case((*DOCUMENTS, *FP32, *PORTABLE), on_cpu=True),
    "qwen3 bf16": Case(QWEN3, "engine"),
    "qwen3 bf16 portable": Case((*QWEN3, *PORTABLE)),
    "yarn bf16": Case(YARN, "engine"),
    "yarn bf16 portable": Case((*YARN, *PORTABLE)),
    "mxfp8 emulated": Case(EMULATED),
    "moe mxfp8 emulated": Case((*MOE, *EMULATED)),
    "offload half": Case(("optim.offload=0.5",), "cuda"),
    "recompute full": Case(("training.recompute=full",), "engine"),
    "recompute selective": Case(("training.recompute=selective",), "engine"),
    "offload layers": Case(("training.offload_layers=2",), "cuda"),
}
SAME_FP32, SAME_BF16, DEVICES, LOW, EXACT = 1e-4, 2e-2, 1e-3, 2e-2, 1e-3
PAIRS = (
    Pair("fp32", "fp32 portable", SAME_FP32),
    Pair("moe fp32", "moe fp32 portable", SAME_FP32),
    Pair("bf16", "bf16 portable", SAME_BF16),
    Pair("bf16", "fp32", SAME_BF16),
    Pair("fp16", "fp16 portable", SAME_BF16),
    Pair("fp16", "fp32", SAME_BF16),
    Pair("moe bf16", "moe bf16 portable", SAME_BF16),
    Pair("moe sequence loss bf16", "moe sequence loss bf16 portable", SAME_BF16),
    Pair("windows bf16", "windows bf16 portable", SAME_BF16),
    Pair("windows documents bf16", "windows documents bf16 portable", SAME_BF16),
    Pair("documents bf16", "documents bf16 portable", SAME_BF16),
    Pair("documents bf16", "documents fp32 portable", SAME_BF16),
    Pair("qwen3 bf16", "qwen3 bf16 portable", SAME_BF16),
    Pair("yarn bf16", "yarn bf16 portable", SAME_BF16),
    Pair("fp32 portable", "fp32 cpu", DEVICES),
    Pair("moe fp32 portable", "moe fp32 cpu", DEVICES),
    Pair("windows fp32 portable", "windows fp32 cpu", DEVICES),
    Pair("documents fp32 portable", "documents fp32 cpu", DEVICES),
    Pair("bf16 portable", "bf16 cpu", SAME_BF16),
    Pair("fp8 current", "bf16", LOW),
    Pair("fp8 block", "bf16", LOW),
    Pair("fp8 delayed", "bf16", LOW),
    Pair("fp8 weights current", "fp8 current", LOW),
    Pair("moe fp8 current", "moe bf16", LOW),
    Pair("moe fp8 block", "moe bf16", LOW),
    Pair("mxfp8 emulated", "bf16", LOW),
    Pair("moe mxfp8 emulated", "moe bf16", LOW),
    Pair("offload half", "bf16", EXACT),
    Pair("recompute full", "bf16", EXACT),
    Pair("recompute selective", "bf16", EXACT),
    Pair("offload layers", "bf16", EXACT),
)
