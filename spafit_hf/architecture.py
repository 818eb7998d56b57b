"""Where things are in a model: its layers, and in each layer the sub-layers the paper speaks of.

    BertForSequenceClassification
    ├── bert                               the base
    │   ├── embeddings ── LayerNorm        embeddings, outer_norms
    │   ├── encoder.layer                  a Stack
    │   │   ├── 0                          a Layer: role -> modules
    │   │   │   ├── attention.self.query       query
    │   │   │   ├── attention.self.key         key
    │   │   │   ├── attention.self.value       value
    │   │   │   ├── attention.output.dense     attention_output
    │   │   │   ├── attention.output.LayerNorm attention_norm
    │   │   │   ├── intermediate.dense         intermediate
    │   │   │   ├── output.dense               output
    │   │   │   └── output.LayerNorm           output_norm
    │   │   └── 1 ...
    │   └── pooler.dense                   pooler
    └── classifier                         head

Known model types are read from a table (`LAYOUTS`), others by their structure; what cannot be found is an error that says
how to describe the model by hand (`Architecture.describe`). Nothing here changes a model, and meta tensors are enough.

How a role is meant where a layer is not BERT's:

* gated feed-forward: "intermediate" is gate and up; a decoder with cross attention: the attention roles are self and cross;
* one matrix for query, key and value (GPT-2, ModernBERT, Phi-3): it stands under each of the three;
* norms, before or after the sub-layer: "attention_norm" are those of the attention, "output_norm" those of the feed-forward. Where both
  share one norm (Phi) it is "attention_norm";
* left out on purpose: the norms of single heads (q_norm, k_norm in Qwen3 and Gemma 3); see `Layer.others`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from spafit_hf.strategy import NORM_ROLES, ROLES


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    path: str
    """Its name in the model, such as "bert.encoder.layer.3"."""
    modules: dict[str, tuple[str, ...]]
    """Role -> full names of the modules that play it; every role of `ROLES` is a key, () where the layer has no such norm."""
    others: tuple[str, ...] = ()
    """Linear layers and norms in it that play no role, and so never train: the norms of single heads in Qwen3 and Gemma 3."""

    def names(self, roles: Iterable[str]) -> tuple[str, ...]:
        """Full names of the modules that play any of `roles`, in reading order, each once (a fused matrix plays three)."""
        wanted = set(roles)
        return tuple(dict.fromkeys(name for role in ROLES if role in wanted for name in self.modules[role]))


@dataclass(frozen=True)
class Stack:
    """A run of layers, each feeding the next. A strategy is put on each stack of a model by itself."""

    name: str
    """"encoder", "decoder", or "layers" in models that have only one kind."""
    path: str
    """Name of the list of layers in the model, such as "bert.encoder.layer"."""
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Architecture:
    """Names of all the parts of a model that a strategy can speak of. All are full names for `model.get_submodule`."""

    model_type: str
    """`config.model_type`, such as "bert"."""
    stacks: tuple[Stack, ...]
    """In the order in which the data flows: encoder before decoder."""
    embeddings: str | None = None
    """The embeddings, or the table of word embeddings where they have no module of their own."""
    outer_norms: tuple[str, ...] = ()
    """Norms outside the layers: of the embeddings, after the last layer."""
    pooler: tuple[str, ...] = ()
    """Pretrained linear layers between the last layer and the head (BERT's pooler)."""
    projections: tuple[str, ...] = ()
    """Other pretrained linear layers outside the layers: ELECTRA's embeddings_project, OPT's project_in and project_out."""
    head: tuple[str, ...] = ()
    """The task head, new with the task: ("classifier",), ("score",), ("pre_classifier", "classifier").
    () for a bare encoder and for a language model, whose head is pretrained and must not train."""

    @property
    def num_layers(self) -> int:
        """Number of layers of the first stack."""
        return len(self.stacks[0].layers)

    @classmethod
    def describe(
        cls,
        model: nn.Module,
        *,
        layers: str | Mapping[str, str],
        roles: Mapping[str, str | Iterable[str]],
        head: Iterable[str] | None = None,
        pooler: Iterable[str] | None = None,
        outer_norms: Iterable[str] | None = None,
    ) -> Architecture:
        """The architecture of a model that cannot be found by itself, from what you know about it.

            Architecture.describe(
                model,
                layers="model.blocks",
                roles={
                    "query": "att.q", "key": "att.k", "value": "att.v", "attention_output": "att.o",
                    "intermediate": ("ff.gate", "ff.up"), "output": "ff.down",
                    "attention_norm": "norm_a", "output_norm": "norm_f",
                },
                head=["classifier"],
            )

        Args:
            model: the model, on any device.
            layers: name of the list of layers, or several as {"encoder": name, "decoder": name}.
            roles: role of `ROLES` -> name or names relative to a layer. Norms may be left out.
            head, pooler, outer_norms: names in the model; None: found as for any other model.

        Raises:
            ValueError: for an unknown role, a name that is not in the model, or a role no module plays.
        """
        names = {name for name, _ in model.named_modules()}
        for role in roles:
            if role not in ROLES:
                raise ValueError(f"roles: unknown role {role!r}; allowed are {', '.join(ROLES)}.")
        layout = {role: (paths,) if isinstance(paths, str) else tuple(paths) for role, paths in roles.items()}
        stacks = []
        for stack_name, path in ({"layers": layers} if isinstance(layers, str) else layers).items():
            if path not in names:
                raise ValueError(f"layers: the model has no module {path!r}; see model.named_modules() for the names.")
            stacks.append(_stack(model, stack_name, path, layout, _model_type(model)))
        found = _outside(model, tuple(stacks))
        parts = {"head": head, "pooler": pooler, "outer_norms": outer_norms}
        given = {part: tuple(value) for part, value in parts.items() if value is not None}
        for part, part_names in given.items():
            for name in part_names:
                if name not in names:
                    raise ValueError(
                        f"{part}: the model has no module {name!r}; see model.named_modules() for the names."
                    )
        return cls(
            model_type=found.model_type,
            stacks=found.stacks,
            embeddings=found.embeddings,
            outer_norms=given.get("outer_norms", found.outer_norms),
            pooler=given.get("pooler", found.pooler),
            projections=found.projections,
            head=given.get("head", found.head),
        )


# -- the table --------------------------------------------------------------------------------------------------------

Roles = dict[str, tuple[str, ...]]


def _roles(**names: str) -> Roles:
    """Role -> names relative to a layer, written as one string with spaces; names a layer does not have are passed over."""
    return {role: tuple(paths.split()) for role, paths in names.items()}


_BERT = _roles(
    query="attention.self.query crossattention.self.query",
    key="attention.self.key crossattention.self.key",
    value="attention.self.value crossattention.self.value",
    attention_output="attention.output.dense crossattention.output.dense",
    attention_norm="attention.output.LayerNorm crossattention.output.LayerNorm",
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
    query="attn.c_attn crossattention.q_attn",
    key="attn.c_attn crossattention.c_attn",
    value="attn.c_attn crossattention.c_attn",
    attention_output="attn.c_proj crossattention.c_proj",
    attention_norm="ln_1 ln_cross_attn",
    intermediate="mlp.c_fc",
    output="mlp.c_proj",
    output_norm="ln_2",
)
_BART = _roles(
    query="self_attn.q_proj encoder_attn.q_proj",
    key="self_attn.k_proj encoder_attn.k_proj",
    value="self_attn.v_proj encoder_attn.v_proj",
    attention_output="self_attn.out_proj encoder_attn.out_proj",
    attention_norm="self_attn_layer_norm encoder_attn_layer_norm",
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
    query="layer.0.SelfAttention.q layer.1.EncDecAttention.q",
    key="layer.0.SelfAttention.k layer.1.EncDecAttention.k",
    value="layer.0.SelfAttention.v layer.1.EncDecAttention.v",
    attention_output="layer.0.SelfAttention.o layer.1.EncDecAttention.o",
    attention_norm="layer.0.layer_norm layer.1.layer_norm",
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
"""Model types whose layers are known by name. A stack a class does not have (T5EncoderModel) is passed over."""

REFUSED = {
    "albert": "ALBERT uses one set of weights for all of its layers, so no layer can train apart from the others; "
    "take an encoder with layers of its own, such as BERT, RoBERTa or DeBERTa",
}
"""Model types that have no strata, and why."""

# Modules outside the base that are pretrained all the same. ModernBERT's `head` (dense and norm) is part of its masked
# language model and comes with the checkpoint, as BERT's pooler does: like it, it stays frozen. DeBERTa's ContextPooler
# is not in any pretrained checkpoint (its name is that of no pretrained module): it is new, and trains with the classifier.
_PRETRAINED_OUTSIDE = {"modernbert": ("head",)}

# Poolers that no checkpoint of the model type holds: where a head asks for one (RobertaForMultipleChoice) it is new, too.
_NEW_POOLER = ("roberta", "xlm-roberta", "camembert", "mpnet")

# Heads of models whose class is its own base (T5ForQuestionAnswering), where children cannot tell head from body.
_HEAD_NAMES = ("pre_classifier", "classifier", "classification_head", "qa_outputs", "score")

# Classes whose head came with the pretraining.
_PRETRAINING_CLASS = re.compile(
    r"For(CausalLM|MaskedLM|ConditionalGeneration|PreTraining|NextSentencePrediction|MaskedImageModeling)|LMHead"
)


def find_architecture(model: nn.Module) -> Architecture:
    """Find the parts of a transformers model: by the table of model types, then by structure.

    Args:
        model: any class of a transformers model (XModel, XForSequenceClassification, XForCausalLM ...), on any device, not yet
            wrapped by PEFT.

    Raises:
        ValueError: when the model is wrapped, shares its layers, or its parts cannot be found.
    """
    model_type = _model_type(model)
    if any(kind.__module__.startswith("peft.") for module in model.modules() for kind in type(module).__mro__):
        raise ValueError(
            "the model is wrapped by PEFT already; pass the plain model (model.unload() of a PeftModel gives it back)."
        )
    if model_type in REFUSED:
        raise ValueError(f"model type {model_type!r} has no strata: {REFUSED[model_type]}.")
    stacks = _stacks_by_table(model, model_type) if model_type in LAYOUTS else ()
    return _outside(model, stacks or _stacks_by_structure(model, model_type))


# -- stacks -----------------------------------------------------------------------------------------------------------


def _model_type(model: nn.Module) -> str:
    return str(model.config.model_type) if isinstance(model, PreTrainedModel) else type(model).__name__


def _base(model: nn.Module) -> tuple[str, nn.Module]:
    """The base of a model without its head, and its name; ("", model) where the class is its own base."""
    if isinstance(model, PreTrainedModel):
        base = model.base_model
        for name, module in model.named_modules():
            if module is base:
                return name, module
    return "", model


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _stacks_by_table(model: nn.Module, model_type: str) -> tuple[Stack, ...]:
    """Stacks with the names of the table; () where this release of transformers uses other names than the table's."""
    base_name, base = _base(model)
    names = {name for name, _ in base.named_modules()}
    present = [(name, path, roles) for name, path, roles in LAYOUTS[model_type] if path in names]
    if not all(_fits(base.get_submodule(path), roles) for _, path, roles in present):
        return ()
    return tuple(_stack(model, name, _join(base_name, path), roles, model_type) for name, path, roles in present)


def _fits(layers: nn.Module, roles: Roles) -> bool:
    """Whether the first layer has the names of the table."""
    names = {name for name, _ in next(layers.children(), nn.Module()).named_modules()}
    return all(any(path in names for path in roles[role]) for role in ROLES if role not in NORM_ROLES)


def _stack(model: nn.Module, name: str, path: str, roles: Roles | Sequence[Roles], model_type: str) -> Stack:
    """The stack at `path`, with one table of roles for all of its layers or one for each."""
    blocks = list(model.get_submodule(path).children())
    if not blocks:
        raise ValueError(f"model type {model_type!r}: {path!r} holds no layers.")
    if len({id(block) for block in blocks}) < len(model.get_submodule(path)._modules):
        raise ValueError(f"model type {model_type!r} has no strata: {path!r} uses the same layer more than once.")
    layers = []
    tables = [roles] * len(blocks) if isinstance(roles, dict) else roles
    for index, (block, table) in enumerate(zip(blocks, tables, strict=True)):
        layer_path = f"{path}.{index}"
        inside = dict(block.named_modules())
        modules: dict[str, tuple[str, ...]] = {}
        for role in ROLES:
            present = [sub for sub in table.get(role, ()) if sub in inside and _has_weight(inside[sub])]
            if not present and role not in NORM_ROLES:
                raise ValueError(
                    f"model type {model_type!r}: {layer_path} has no module for the role {role!r} "
                    f"(looked for {', '.join(table.get(role, ())) or 'nothing'}). {_by_hand(block)}"
                )
            modules[role] = tuple(_join(layer_path, sub) for sub in present)
        taken = {module for names in modules.values() for module in names}
        others = tuple(
            _join(layer_path, sub)
            for sub, module in inside.items()
            if (is_linear(module) or is_norm(module)) and _join(layer_path, sub) not in taken
        )
        layers.append(Layer(layer_path, modules, others))
    return Stack(name, path, tuple(layers))


def _has_weight(module: nn.Module) -> bool:
    return "weight" in module._parameters and module._parameters["weight"] is not None


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix LoRA can go on: nn.Linear and its quantized kinds, or the Conv1D of GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a weight, with or without a bias. Models bring norm classes of their own, so by name."""
    return "norm" in type(module).__name__.lower() and _has_weight(module)


# -- by structure -----------------------------------------------------------------------------------------------------

_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward", re.IGNORECASE)
_LAST_NAME: dict[str, tuple[str, ...]] = {
    "query": ("q", "query", "q_proj", "q_lin", "query_proj", "pos_query_proj", "to_q", "wq", "q_attn", "linear_q"),
    "key": ("k", "key", "k_proj", "k_lin", "key_proj", "pos_key_proj", "to_k", "wk", "linear_k"),
    "value": ("v", "value", "v_proj", "v_lin", "value_proj", "to_v", "wv", "linear_v"),
    "fused": ("qkv", "qkv_proj", "query_key_value", "c_attn", "wqkv", "in_proj", "w_pack", "qkv_linear"),
    "attention_output": (
        "o",
        "o_proj",
        "out_proj",
        "out_lin",
        "dense",
        "c_proj",
        "wo",
        "proj",
        "to_out",
        "linear_out",
    ),
    "intermediate": tuple(
        "fc1 lin1 wi wi_0 wi_1 gate_proj up_proj gate_up_proj c_fc fc_in dense_h_to_4h w1 w3 linear1 intermediate_dense".split()
    ),
    "output": tuple("fc2 lin2 wo down_proj c_proj fc_out dense_4h_to_h w2 linear2 output_dense".split()),
}


def _stacks_by_structure(model: nn.Module, model_type: str) -> tuple[Stack, ...]:
    """Stacks as the outermost lists of blocks whose linear layers have the names that attention and feed-forward go by."""
    lists = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    outer = [(name, blocks) for name, blocks in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    found = []
    for path, blocks in outer:
        # A stage of several layers (Swin) is no layer: its parts would all be taken for one.
        if all(_is_layer(block) and not _is_stage(block) for block in blocks):
            found.append((path, [_roles_by_name(block) for block in blocks]))
    if not found:
        longest = max(outer, key=lambda item: len(item[1]), default=None)
        seen = (
            f"the longest list of modules is {longest[0]!r} with {len(longest[1])} of {type(longest[1][0]).__name__}. "
            if longest
            else ""
        )
        raise ValueError(
            f"model type {model_type!r}: no list of transformer layers with attention and feed-forward was found; {seen}"
            f"{_by_hand(longest[1][0] if longest else model)}"
        )
    words = [[word for word in ("encoder", "decoder") if word in path.split(".")] for path, _ in found]
    names = [word[0] if word else "layers" for word in words]
    if len(set(names)) < len(names):
        names = [path for path, _ in found]
    stacks = tuple(
        _stack(model, name, path, roles, model_type) for name, (path, roles) in zip(names, found, strict=True)
    )
    depth = model.config.num_hidden_layers if isinstance(model, PreTrainedModel) and _has_depth(model) else None
    if depth is not None and len(stacks) == 1 and len(stacks[0].layers) != depth:
        raise ValueError(
            f"model type {model_type!r}: {stacks[0].path!r} holds {len(stacks[0].layers)} layers while the config speaks of {depth}; "
            f"layers that share weights have no strata. {_by_hand(model.get_submodule(stacks[0].layers[0].path))}"
        )
    return stacks


def _is_layer(block: nn.Module) -> bool:
    roles = _roles_by_name(block)
    return all(roles[role] for role in ROLES if role not in NORM_ROLES)


def _is_stage(block: nn.Module) -> bool:
    return any(isinstance(inner, nn.ModuleList) and any(map(_is_layer, inner)) for inner in block.modules())


def _has_depth(model: PreTrainedModel) -> bool:
    return "num_hidden_layers" in model.config.to_dict() or "num_hidden_layers" in type(model.config).attribute_map


def _roles_by_name(block: nn.Module) -> Roles:
    roles: dict[str, list[str]] = {role: [] for role in ROLES}
    norms: list[str] = []
    for name, module in block.named_modules():
        last = name.rpartition(".")[2].lower()
        attention = bool(_ATTENTION.search(name))
        if is_norm(module):
            # A norm inside the attention beside the projections normalizes single heads, unless it follows the output.
            if not re.fullmatch(r"(q|k|query|key)_?(layer_?)?norm", last):
                norms.append(name)
        elif is_linear(module):
            for role in _role_of(name, last, attention):
                roles[role].append(name)
    feed_forward = [name for name in norms if _FEED_FORWARD.search(name)]
    if not feed_forward:
        # In reading order the later half belongs to the feed-forward: one of two, two of four, one of three (cross attention).
        feed_forward = norms[len(norms) - len(norms) // 2 :]
    return {role: tuple(names) for role, names in roles.items()} | {
        "attention_norm": tuple(name for name in norms if name not in feed_forward),
        "output_norm": tuple(feed_forward),
    }


def _role_of(name: str, last: str, attention: bool) -> tuple[str, ...]:
    if last in _LAST_NAME["fused"]:
        return ("query", "key", "value")
    for role in ("query", "key", "value"):
        if last in _LAST_NAME[role]:
            return (role,)
    if attention:
        return ("attention_output",) if last in _LAST_NAME["attention_output"] else ()
    if last in _LAST_NAME["intermediate"] or name.endswith("intermediate.dense"):
        return ("intermediate",)
    if last in _LAST_NAME["output"] or name.endswith("output.dense"):
        return ("output",)
    return ()


def _by_hand(block: nn.Module) -> str:
    linear = [name for name, module in block.named_modules() if is_linear(module) or is_norm(module)]
    inside = f" (a layer holds {', '.join(linear[:16])})" if linear else ""
    return (
        "Describe the model by hand: architecture = Architecture.describe(model, layers='name.of.the.list', "
        f"roles={{'query': 'name.in.a.layer', ...}}, head=['classifier']), with a name for each of {', '.join(ROLES)}{inside}, "
        "and pass it on: plan(model, strategy, architecture=architecture)."
    )


# -- outside the layers -----------------------------------------------------------------------------------------------


def _outside(model: nn.Module, stacks: tuple[Stack, ...]) -> Architecture:
    """Complete the architecture with what lies outside the stacks."""
    model_type = _model_type(model)
    base_name, base = _base(model)
    kept = tuple(name for name in _PRETRAINED_OUTSIDE.get(model_type, ()) if name in dict(model.named_children()))
    head = _head(model, base, kept)
    if head and model_type in _NEW_POOLER and "pooler" in dict(base.named_children()):
        head = (_join(base_name, "pooler"), *head)
    in_layers = tuple(f"{stack.path}." for stack in stacks)
    in_body = tuple(f"{name}." for name in (base_name, *kept)) if base_name else ("",)
    in_head = tuple(f"{name}." for name in head)
    outer = [
        (name, module)
        for name, module in model.named_modules()
        if f"{name}.".startswith(in_body) and not f"{name}.".startswith((*in_layers, *in_head))
    ]
    # The output matrix of a language model that is its own base (T5ForConditionalGeneration) is no part of the body.
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linear = [name for name, module in outer if is_linear(module) and module is not output]
    pooler = tuple(
        name for name in linear if "pooler" in name.split(".") or name.startswith(tuple(f"{k}." for k in kept))
    )
    return Architecture(
        model_type=model_type,
        stacks=stacks,
        embeddings=_embeddings(model, base_name, base),
        outer_norms=tuple(name for name, module in outer if is_norm(module)),
        pooler=pooler,
        projections=tuple(name for name in linear if name not in pooler),
        head=head,
    )


def _head(model: nn.Module, base: nn.Module, kept: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the modules that are new with the task."""
    if isinstance(model, PreTrainedModel) and (
        model.get_output_embeddings() is not None or _PRETRAINING_CLASS.search(type(model).__name__)
    ):
        return ()
    children = [(name, child) for name, child in model.named_children() if any(True for _ in child.parameters())]
    if base is model:
        return tuple(name for name, _ in children if name in _HEAD_NAMES)
    return tuple(name for name, child in children if child is not base and name not in kept)


def _embeddings(model: nn.Module, base_name: str, base: nn.Module) -> str | None:
    if "embeddings" in dict(base.named_children()):
        return _join(base_name, "embeddings")
    try:
        table = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except NotImplementedError:  # speech models have no such table
        return None
    return next((name for name, module in model.named_modules() if module is table and name), None)
