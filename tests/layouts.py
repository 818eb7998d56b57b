"""What is to be found in well-known model types: the names of their layers, and of the modules in a layer."""

from __future__ import annotations

Roles = dict[str, tuple[str, ...]]


def _roles(**names: str) -> Roles:
    """Role -> names relative to a layer, in one string with spaces; names that a layer lacks are passed over."""
    return {role: tuple(paths.split()) for role, paths in names.items()}


_BERT = _roles(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    cross_query="crossattention.self.query",
    cross_key="crossattention.self.key",
    cross_value="crossattention.self.value",
    cross_attention_output="crossattention.output.dense",
    cross_attention_norm="crossattention.output.LayerNorm",
    intermediate="intermediate.dense",
    output="output.dense",
    output_norm="output.LayerNorm",
)
_DEBERTA_V2 = _BERT | _roles(  # pos_*_proj exist only with share_att_key=False
    query="attention.self.query_proj attention.self.pos_query_proj",
    key="attention.self.key_proj attention.self.pos_key_proj",
    value="attention.self.value_proj",
)
_DISTILBERT = _roles(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    intermediate="ffn.lin1",
    output="ffn.lin2",
    output_norm="output_layer_norm",
)
_MPNET = _BERT | _roles(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
)
_MODERNBERT = _roles(  # attn_norm of layer 0 is an Identity
    query="attn.Wqkv",
    key="attn.Wqkv",
    value="attn.Wqkv",
    attention_output="attn.Wo",
    attention_norm="attn_norm",
    intermediate="mlp.Wi",
    output="mlp.Wo",
    output_norm="mlp_norm",
)
_GPT2 = _roles(
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    attention_output="attn.c_proj",
    attention_norm="ln_1 ln_cross_attn",
    cross_query="crossattention.q_attn",
    cross_key="crossattention.c_attn",
    cross_value="crossattention.c_attn",
    cross_attention_output="crossattention.c_proj",
    intermediate="mlp.c_fc",
    output="mlp.c_proj",
    output_norm="ln_2",
)
_BART = _roles(
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.out_proj",
    attention_norm="self_attn_layer_norm",
    cross_query="encoder_attn.q_proj",
    cross_key="encoder_attn.k_proj",
    cross_value="encoder_attn.v_proj",
    cross_attention_output="encoder_attn.out_proj",
    cross_attention_norm="encoder_attn_layer_norm",
    intermediate="fc1",
    output="fc2",
    output_norm="final_layer_norm",
)
_LLAMA = _roles(
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    attention_norm="input_layernorm",
    intermediate="mlp.gate_proj mlp.up_proj",
    output="mlp.down_proj",
    output_norm="post_attention_layernorm",  # stands before the feed-forward, in spite of its name
)
_GEMMA2 = _LLAMA | _roles(
    attention_norm="input_layernorm post_attention_layernorm",
    output_norm="pre_feedforward_layernorm post_feedforward_layernorm",
)
_PHI = _LLAMA | _roles(
    attention_output="self_attn.dense",
    intermediate="mlp.fc1",
    output="mlp.fc2",
    output_norm="",  # attention and feed-forward run side by side on one norm
)
_PHI3 = _LLAMA | _roles(
    query="self_attn.qkv_proj",
    key="self_attn.qkv_proj",
    value="self_attn.qkv_proj",
    intermediate="mlp.gate_up_proj",
)
_T5_FEED_FORWARD = "DenseReluDense.wi DenseReluDense.wi_0 DenseReluDense.wi_1"
_T5_ENCODER = _roles(
    query="layer.0.SelfAttention.q",
    key="layer.0.SelfAttention.k",
    value="layer.0.SelfAttention.v",
    attention_output="layer.0.SelfAttention.o",
    attention_norm="layer.0.layer_norm",
    intermediate=" ".join(f"layer.1.{name}" for name in _T5_FEED_FORWARD.split()),
    output="layer.1.DenseReluDense.wo",
    output_norm="layer.1.layer_norm",
)
_T5_DECODER = _roles(
    query="layer.0.SelfAttention.q",
    key="layer.0.SelfAttention.k",
    value="layer.0.SelfAttention.v",
    attention_output="layer.0.SelfAttention.o",
    attention_norm="layer.0.layer_norm",
    cross_query="layer.1.EncDecAttention.q",
    cross_key="layer.1.EncDecAttention.k",
    cross_value="layer.1.EncDecAttention.v",
    cross_attention_output="layer.1.EncDecAttention.o",
    cross_attention_norm="layer.1.layer_norm",
    intermediate=" ".join(f"layer.2.{name}" for name in _T5_FEED_FORWARD.split()),
    output="layer.2.DenseReluDense.wo",
    output_norm="layer.2.layer_norm",
)
_VIT = _roles(
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    attention_output="attention.o_proj",
    attention_norm="layernorm_before",
    intermediate="mlp.fc1",
    output="mlp.fc2",
    output_norm="layernorm_after",
)

_BERT_STACK = (("encoder", "encoder.layer", _BERT),)
_LLAMA_STACK = (("layers", "layers", _LLAMA),)

LAYOUTS: dict[str, tuple[tuple[str, str, Roles], ...]] = {
    # model type: (name of the stack, its list of layers relative to the base, roles relative to a layer), ...
    "bert": _BERT_STACK,
    "roberta": _BERT_STACK,
    "xlm-roberta": _BERT_STACK,
    "camembert": _BERT_STACK,
    "electra": _BERT_STACK,
    "distilbert": (("encoder", "transformer.layer", _DISTILBERT),),
    "mpnet": (("encoder", "encoder.layer", _MPNET),),
    "deberta-v2": (("encoder", "encoder.layer", _DEBERTA_V2),),
    "modernbert": (("encoder", "layers", _MODERNBERT),),
    "gpt2": (("layers", "h", _GPT2),),
    "opt": (("decoder", "decoder.layers", _BART),),
    "llama": _LLAMA_STACK,
    "qwen2": _LLAMA_STACK,
    "qwen3": _LLAMA_STACK,
    "mistral": _LLAMA_STACK,
    "gemma": _LLAMA_STACK,
    "gemma2": (("layers", "layers", _GEMMA2),),
    "gemma3_text": (("layers", "layers", _GEMMA2),),
    "phi": (("layers", "layers", _PHI),),
    "phi3": (("layers", "layers", _PHI3),),
    "t5": (("encoder", "encoder.block", _T5_ENCODER), ("decoder", "decoder.block", _T5_DECODER)),
    "bart": (("encoder", "encoder.layers", _BART), ("decoder", "decoder.layers", _BART)),
    "vit": (("encoder", "layers", _VIT),),
}
