"""What trains here and cannot leave: networks that a family's class in transformers refuses."""

from megatron_ko.config.model import ModelConfig


def export_warning(model: ModelConfig) -> str | None:
    """Why `convert hf-export` will refuse the network; None: nothing is known against it.

    LlamaConfig of transformers 5 refuses these widths although it has a head_dim. Those of Mixtral and Qwen3, and
    KeuralConfig, take any head_dim.
    """
    if model.family != "llama" or model.hidden_size % model.num_attention_heads == 0:
        return None
    return (
        f"warning: hf-export will refuse this network: transformers' LlamaConfig wants a hidden_size that is a "
        f"multiple of num_attention_heads, not {model.hidden_size} and {model.num_attention_heads}, whatever "
        "head_dim is; family qwen3 has no such rule"
    )
