"""Strategy x architecture -> plan: what trains in which layer of one model, and what that costs.

    strategy  ─┐
               ├─> plan ─> which modules get LoRA, which a bias delta, which head trains
    model ─────┘           parameters, adapter bytes, memory and FLOPs of a training step

A plan is made of names and numbers. The model may be on the meta device: no weights are downloaded, none is changed.

How the costs are counted, per token, over the layers (and the output matrix of a language model):

* a linear layer of a inputs and b outputs costs 2ab forward, 2ab for the gradient of its input where anything below
  it trains, 2ab for the gradient of its weight where that trains; LoRA of rank r adds the same with r(a+b) for ab;
* attention over S tokens costs 4S times its width forward, and up to twice that backward;
* saved for the backward pass is each tensor that autograd keeps, once: inputs of trained matrices, and, above the
  first trained module, query, key, value and result of the attention (fused kernel), inputs of norms and activations.

Left out as small: embeddings, softmax, norms, dropout masks, the task head, DoRA's norm of the weight. Against what
autograd kept with dropout off and the fused attention kernel, saved activations came out within 4 % on BERT and within
15 % on other models (full fine-tuning of OPT, whose ReLU shares its tensor with the next layer: 27 % too high).
"""

from spafit_hf.planner.cost import Flops
from spafit_hf.planner.facts import Group
from spafit_hf.planner.make import Plan, plan, plan_each, plan_what_fits
from spafit_hf.planner.source import ModelLike, build_model
from spafit_hf.planner.text import comparison_table
from spafit_hf.strategy import LoraSettings

__all__ = [
    "Flops", "Group", "LoraSettings", "ModelLike", "Plan",
    "build_model", "comparison_table", "plan", "plan_each", "plan_what_fits",
]  # fmt: skip
