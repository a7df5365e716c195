"""KeuralForCausalLM, with a modelling file of ours in the folder; plain Mixtral where no window matters."""

from pathlib import Path

from megatron_ko.config import ModelConfig
from megatron_ko.convert.families.base import Family, HfConfig, ModelFields
from megatron_ko.convert.families.mixtral import MIXTRAL, experts_from_hf, experts_to_hf
from megatron_ko.errors import ConvertError

TEMPLATES = Path(__file__).parents[1] / "templates"
_FULL, _SLIDING = "full_attention", "sliding_attention"


def is_mixtral(model: ModelConfig) -> bool:
    """Whether MixtralForCausalLM computes this Keural: all layers have one window, or no window cuts the context."""
    assert model.windows is not None
    longest = model.max_position_embeddings - 1  # earlier tokens that the last one has
    return len({None if window is None or window >= longest else window for window in model.windows}) == 1


def _to_hf(model: ModelConfig) -> HfConfig:
    assert model.windows is not None
    widths = sorted({window for window in model.windows if window is not None})
    if len(widths) > 1:
        raise ConvertError(
            "KeuralForCausalLM has one width of windows",
            got=f"windows of {', '.join(map(str, widths))} tokens",
            expected="the same width in all layers that have a window",
        )
    return {
        **experts_to_hf(model),
        "auto_map": {
            "AutoConfig": "configuration_keural.KeuralConfig",
            "AutoModelForCausalLM": "modeling_keural.KeuralForCausalLM",
        },
        "layer_types": [_FULL if window is None else _SLIDING for window in model.windows],
        # A window of ours counts earlier tokens, theirs the present one too.
        "sliding_window": widths[0] + 1,
    }


def _from_hf(fields: HfConfig) -> ModelFields:
    layers, width = fields["num_hidden_layers"], fields["sliding_window"]
    kinds = fields.get("layer_types") or [(_SLIDING, _FULL)[number % 2] for number in range(layers)]
    if unknown := {*kinds} - {_FULL, _SLIDING}:
        raise ConvertError(
            "layers of an unknown kind", got=f"layer_types {sorted(unknown)}", expected=f"{_FULL}, {_SLIDING}"
        )
    return {
        **experts_from_hf(fields),
        "windows": [None if kind == _FULL else width - 1 for kind in kinds],
    }


KEURAL = Family(
    model_type="keural",
    architecture="KeuralForCausalLM",
    layers=MIXTRAL.layers,
    to_hf=_to_hf,
    from_hf=_from_hf,
    honoured=MIXTRAL.honoured | {"layer_types"},
    code=tuple(sorted(TEMPLATES.glob("*_keural.py"))),
)
