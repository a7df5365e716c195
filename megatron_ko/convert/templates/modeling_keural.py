"""Keural for transformers: grouped-query attention, windows that differ between layers, a mixture of experts.

A token is computed by the experts with the largest router logits, weighted by the softmax over these alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .configuration_keural import KeuralConfig

MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class KeuralAttention(nn.Module):
    """Causal attention, over ``sliding_window`` tokens in layers of that kind."""

    def __init__(self, config: KeuralConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask, past: Cache | None, **kwargs) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        heads = (*x.shape[:-1], -1, self.head_dim)
        query, key, value = (part(x).view(heads).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        if past is not None:
            key, value = past.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        window = self.sliding_window
        mixed, _ = attend(
            self, query, key, value, mask, dropout=dropout, scaling=self.scaling, sliding_window=window, **kwargs
        )
        return self.o_proj(mixed.reshape(*x.shape[:-1], -1))


class KeuralExpert(nn.Module):
    """A gated feed-forward layer; the names are Mixtral's: gate w1, down w2, up w3."""

    def __init__(self, config: KeuralConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[t, h] -> [t, h]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class KeuralSparseMoe(nn.Module):
    """Experts and the router, which computes in fp32 as in training."""

    def __init__(self, config: KeuralConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = nn.ModuleList(KeuralExpert(config) for _ in range(config.num_local_experts))

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        tokens = x.reshape(-1, x.shape[-1])
        scores = F.linear(tokens.float(), self.gate.weight.float())  # [t, e]
        best, chosen = scores.topk(self.top_k, dim=-1)  # [t, k]
        weights = best.softmax(dim=-1).to(x.dtype)
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            output.index_add_(0, rows, expert(tokens[rows]) * weights[rows, place, None])
        return output.view_as(x)


class KeuralDecoderLayer(GradientCheckpointingLayer):
    """Attention and experts, each behind a norm and around a residual."""

    def __init__(self, config: KeuralConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = KeuralAttention(config, layer_idx)
        self.block_sparse_moe = KeuralSparseMoe(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, rotation=None, mask=None, past_key_values: Cache | None = None, **kwargs) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, past_key_values, **kwargs)
        return x + self.block_sparse_moe(self.post_attention_layernorm(x))


class KeuralPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the network."""

    config_class = KeuralConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["KeuralDecoderLayer"]  # noqa: RUF012 - transformers' own way to say it
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True


class KeuralModel(KeuralPreTrainedModel):
    """Embedding, layers and the last norm."""

    def __init__(self, config: KeuralConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(KeuralDecoderLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """[b, s] token ids, or [b, s, h] embeddings -> [b, s, h]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not (self.training and self.gradient_checkpointing):
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(x.shape[1], device=x.device) + seen).unsqueeze(0)
        given = {
            "config": self.config,
            "inputs_embeds": x,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        # Generation with a static cache has made them already.
        ready = isinstance(attention_mask, dict)
        masks = attention_mask if ready else {kind: MASKS[kind](**given) for kind in set(self.config.layer_types)}
        rotation = self.rotary_emb(x, position_ids=position_ids)
        hidden = []
        wanted = kwargs.pop("output_hidden_states", None) or self.config.output_hidden_states
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            hidden.append(x)
            x = layer(x, rotation=rotation, mask=masks[kind], past_key_values=past_key_values, **kwargs)
        x = self.norm(x)
        states = (*hidden, x) if wanted else None
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values, hidden_states=states)


class KeuralForCausalLM(KeuralPreTrainedModel, GenerationMixin):
    """The model with its output layer, which is the embedding where they are tied."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: KeuralConfig) -> None:
        super().__init__(config)
        self.model = KeuralModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """[b, s] token ids -> logits [b, s, v]; with labels [b, s], the loss of predicting each from those before."""
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, rows])
        loss = None
        if labels is not None:
            counted = {"num_items_in_batch": kwargs["num_items_in_batch"]} if "num_items_in_batch" in kwargs else {}
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **counted)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
        )
        return output if return_dict in (None, True) else output.to_tuple()
