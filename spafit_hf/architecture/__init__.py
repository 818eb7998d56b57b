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
describe the model by hand (`describe_architecture`). Nothing here changes a model; models on the meta device will do.

How a role is meant where a layer is not BERT's:

* gated feed-forward: "intermediate" is gate and up;
* a decoder with cross attention: the attention roles are self and cross attention;
* one matrix for query, key and value (GPT-2, ModernBERT, Phi-3): it stands under each of the three;
* norms, before or after the sub-layer: "attention_norm" are those of the attention, "output_norm" those of the
  feed-forward; where both share one norm (Phi) it is "attention_norm";
* left out on purpose: the norms of single heads (q_norm, k_norm in Qwen3 and Gemma 3); see `Layer.others`.
"""

from spafit_hf.architecture.find import describe_architecture, find_architecture
from spafit_hf.architecture.kinds import in_out, is_linear, is_norm, takes_delta
from spafit_hf.architecture.parts import Architecture, Layer, Stack

__all__ = [
    "Architecture", "Layer", "Stack", "describe_architecture", "find_architecture",
    "in_out", "is_linear", "is_norm", "takes_delta",
]  # fmt: skip
