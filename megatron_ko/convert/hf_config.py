"""Hugging Face's config.json and our model section: a field is honoured, known to be neutral, or refused."""

from megatron_ko.config import ModelConfig, RopeConfig, raise_problems
from megatron_ko.config.checks.model import check_network
from megatron_ko.config.load import build
from megatron_ko.convert.families import FAMILIES, family_of
from megatron_ko.convert.families.base import HfConfig, ModelFields
from megatron_ko.errors import ConvertError

# Fields that change no logit of a model in evaluation mode: names, habits of training, where generation ends.
_NEUTRAL = frozenset(
    [
        "architectures",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "hidden_dropout",
        "initializer_range",
        "max_window_layers",
        "model_type",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "_name_or_path",
        "_attn_implementation",
        "attn_implementation",
        "transformers.js_config",
        "layer_types",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "problem_type",
        "sep_token_id",
        "decoder_start_token_id",
        "tokenizer_class",
        "prefix",
        "task_specific_params",
        "finetuning_task",
    ]
)
_COMMON = frozenset(
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "attention_dropout",
        "tie_word_embeddings",
        "hidden_act",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
    ]
)


def to_hf_config(model: ModelConfig, *, dtype: str, bos: int | None, eos: int | list[int] | None) -> HfConfig:
    """config.json of a model.

    Args:
        model: the network.
        dtype: of the tensors, as transformers names it ("bfloat16").
        bos, eos: ids that generation begins and ends with.

    Raises:
        ConvertError: the class in transformers cannot compute this network.
    """
    family = family_of(model)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,  # as transformers 4 calls it
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.kv_channels,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_eps,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
        "rope_theta": model.rope.theta,
        **_rope_to_hf(model),
        "attention_dropout": model.attention_dropout,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        **family.to_hf(model),
    }


def from_hf_config(fields: HfConfig, where: str) -> ModelConfig:
    """The model section of a config.json.

    Raises:
        ConvertError: another kind of model, or a field that changes what is computed and that we do not compute.
    """
    name = next((name for name, family in FAMILIES.items() if family.model_type == fields.get("model_type")), None)
    if name is None:
        raise ConvertError(
            f"{where} describes a model that is not supported",
            got=f"model_type {fields.get('model_type')!r}",
            expected=f"one of {', '.join(sorted({family.model_type for family in FAMILIES.values()}))}",
        )
    family = FAMILIES[name]
    _refuse_unknown(fields, family.honoured | family.required.keys(), where)
    for key, allowed in {"hidden_act": ("silu",), **family.required}.items():
        if fields.get(key, allowed[0]) not in allowed:
            raise ConvertError(
                f"{where} asks for what this project does not compute",
                got=f"{key}: {fields[key]!r}",
                expected=f"{key}: {allowed[0]!r}",
            )
    try:
        tree = _model_of(fields, name, where)
    except KeyError as error:
        raise ConvertError(f"{where} lacks a field", got=f"no {error}", expected="the network in full") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConvertError(f"{where} has a field of a wrong type", got=str(error)) from None
    model = build(ModelConfig, tree, origin=where)
    raise_problems(list(check_network(model)), where)
    return model


def _model_of(fields: HfConfig, name: str, where: str) -> ModelFields:
    heads = fields["num_attention_heads"]
    rope = _rope_from_hf(fields, where)
    return {
        "family": name,
        "num_layers": fields["num_hidden_layers"],
        "hidden_size": fields["hidden_size"],
        "ffn_hidden_size": fields.get("intermediate_size"),
        "num_attention_heads": heads,
        "num_query_groups": fields.get("num_key_value_heads") or heads,
        "head_dim": fields.get("head_dim") or fields["hidden_size"] // heads,
        "vocab_size": fields["vocab_size"],
        "max_position_embeddings": _longest(fields["max_position_embeddings"], rope),
        "rope": rope,
        "norm_eps": fields.get("rms_norm_eps", 1e-6),
        "tie_embeddings": fields.get("tie_word_embeddings", False),
        "attention_dropout": fields.get("attention_dropout") or 0.0,
        "init_std": fields.get("initializer_range", 0.02),
        **FAMILIES[name].from_hf(fields),
    }


def _longest(context: int, rope: ModelFields) -> int:
    """The stretched context. Some folders give the original one, as transformers wants it for dynamic scaling."""
    scaling = rope.get("scaling") or {}
    original = scaling.get("original_max_position_embeddings") or 0
    return round(original * scaling["factor"]) if 0 < context <= original else context


def _refuse_unknown(fields: HfConfig, honoured: frozenset[str], where: str) -> None:
    unknown = sorted(
        key for key, value in fields.items() if key not in _COMMON | _NEUTRAL | honoured and value is not None
    )
    if unknown:
        raise ConvertError(
            f"{where} has fields that may change what the model computes",
            got=", ".join(f"{key}: {fields[key]!r}" for key in unknown),
            expected="fields whose meaning is known",
            remedy="load it with transformers, dequantise it and save it again"
            if "quantization_config" in unknown
            else "remove them from config.json if they do not matter",
        )


def _rope_to_hf(model: ModelConfig) -> HfConfig:
    scaling = model.rope.scaling
    if scaling is None:
        return {"rope_scaling": None}
    if scaling.type == "ntk":  # a fixed stretch is just a larger base
        width = model.kv_channels
        return {"rope_theta": model.rope.theta * scaling.factor ** (width / (width - 2)), "rope_scaling": None}
    given = scaling.model_dump(exclude_none=True)
    described: HfConfig = {"rope_type": given.pop("type"), **given}
    if scaling.type == "dynamic":  # theirs begins where the context of the model ends
        return {"rope_scaling": described, "max_position_embeddings": described.pop("original_max_position_embeddings")}
    return {"rope_scaling": described}


def _rope_from_hf(fields: HfConfig, where: str) -> ModelFields:
    """Theta and scaling, from transformers 4's two fields or transformers 5's one."""
    old, new = dict(fields.get("rope_scaling") or {}), dict(fields.get("rope_parameters") or {})
    if old and new and old != new:
        raise ConvertError(
            f"{where} describes rotary positions twice", got=f"rope_scaling {old}, rope_parameters {new}",
            expected="one of the two", remedy="remove the one that is wrong",
        )  # fmt: skip
    described = {key: value for key, value in (new or old).items() if value is not None}
    theta = described.pop("rope_theta", None) or fields.get("rope_theta", 10000.0)
    old_name = described.pop("type", None)
    kind = described.pop("rope_type", None) or old_name or "default"
    if kind not in ("default", "linear", "dynamic", "yarn", "llama3") or (kind == "default" and described):
        raise ConvertError(
            f"{where} stretches rotary positions in a way that is not supported",
            got=f"rope_type {kind!r}" + (f" with {described}" if described else ""),
            expected="default without more, linear, dynamic, yarn or llama3",
        )
    if kind == "default":
        return {"theta": float(theta)}
    if kind == "dynamic":  # transformers looks at no other field
        described["original_max_position_embeddings"] = fields["max_position_embeddings"]
    elif kind != "linear":
        described.setdefault("original_max_position_embeddings", fields["max_position_embeddings"])
    rope = {"theta": float(theta), "scaling": {"type": kind, **described}}
    return build(RopeConfig, rope, origin=where).model_dump(mode="json")
