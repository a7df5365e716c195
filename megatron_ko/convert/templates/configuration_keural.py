"""Configuration of Keural: Mixtral's network in which each layer has a window of attention, or none."""

from transformers import PreTrainedConfig


class KeuralConfig(PreTrainedConfig):
    """Fields have the names and meanings of MixtralConfig.

    Attributes:
        layer_types: for each layer "sliding_attention" or "full_attention".
        sliding_window: tokens that a layer of sliding attention sees, the present one among them.
    """

    model_type = "keural"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - a field must not have a type here
    default_theta = 500000.0

    vocab_size: int = 131074
    hidden_size: int = 4096
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    attention_dropout: float = 0.0
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.0
    sliding_window: int | None = 513
    layer_types: list[str] | None = None
    rope_parameters: dict | None = None

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            kinds = ("sliding_attention", "full_attention")
            self.layer_types = [kinds[number % 2] for number in range(self.num_hidden_layers)]
        super().__post_init__(**kwargs)
