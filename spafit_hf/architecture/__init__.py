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

They are found by structure and by the names that matrices go by; what cannot be found is an error that says how to
describe the model by hand (`register_architecture`). Nothing here changes a model; models on the meta device will do.

    Stack                                                            depth
    ├── layers in one list (BERT)                                    its length
    ├── stages, each with a list of layers (Swin, Funnel)            the layers of all stages in a row
    ├── lists side by side (XLM's attentions, ffns, layer_norm1)     layer i is made of the i-th of each
    └── one layer used again and again (ALBERT)                      trains alike in all, or not at all

How a role is meant where a layer is not BERT's:

* no attention (Mamba, RWKV, Qwen3-Next's linear attention): the projections into and out of what mixes the tokens are
  "mixer_in" and "mixer_out"; they stand beside a convolution or bare weights, and no query is among them;
* experts that are one tensor for all (Mixtral): no "intermediate" and "output", since there are no matrices; a layer
  has the roles that it has. The parameters are the role "experts", of which LoRA alone is known, and that by name:
  no method trains it. Their biases and routers stay frozen, and the plan names them;
* gated feed-forward: "intermediate" is gate and up;
* a decoder's layer that attends to itself and to an encoder: the second attention's are "cross_query" to
  "cross_attention_norm"; in a layer with that one alone (Mllama) they are "query" and so on;
* one matrix for query, key and value (GPT-2, ModernBERT, Phi-3): it stands under each of the three;
* norms, before or after the sub-layer: "attention_norm" are those of the attention, "output_norm" those of the
  feed-forward; where both share one norm (Phi) it is "attention_norm";
* left out on purpose: the norms of single heads (q_norm, k_norm in Qwen3 and Gemma 3), and what gates an attention
  beside its projections (output_gate in MiniMax, in_proj_z in Qwen3.5); see `Layer.others`.
"""

from spafit_hf.architecture.described import DescriptionLike, register_architecture
from spafit_hf.architecture.find import describe_architecture, find_architecture, find_head
from spafit_hf.architecture.kinds import (
    biases_of,
    biases_with,
    delta_between,
    in_out,
    is_linear,
    is_norm,
    split_delta,
    takes_delta,
)
from spafit_hf.architecture.parts import Architecture, Layer, Stack

__all__ = [
    "Architecture", "DescriptionLike", "Layer", "Stack", "biases_of", "biases_with", "delta_between",
    "describe_architecture", "find_architecture", "find_head", "in_out", "is_linear", "is_norm",
    "register_architecture", "split_delta", "takes_delta",
]  # fmt: skip
