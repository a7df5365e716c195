"""LlamaForCausalLM: FRANKENSTALLM, SmolLM2, Bori."""

from megatron_ko.convert.families.base import Family
from megatron_ko.convert.families.common import DENSE

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    layers=DENSE,
    to_hf=lambda model: {"attention_bias": False, "mlp_bias": False},
    required={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_interleaved": (False,),
        "is_llama_config": (True,),
    },
)
