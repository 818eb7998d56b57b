"""What a step costs by FLOPs, over LoRA-II's."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from benchmarks.steps.methods import with_rank
from benchmarks.steps.settings import BASELINE, CACHED, FIRST_TOKEN, BenchSettings, strategy_of
from spafit_hf.planner import Plan, plan
from spafit_hf.planner.cost import layer_costs


def theory(method: str, config: PretrainedConfig, settings: BenchSettings) -> float:
    """FLOPs of a method's step over those of LoRA-II, at the longest length."""
    with torch.device("meta"):
        bare = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)

    def flops(name: str) -> float:
        the_plan = plan(bare, with_rank(strategy_of(name), settings.lora_r))
        total = the_plan.flops(settings.batch, settings.max_tokens, cached_prefix=CACHED in name).total
        return total - (_spared(the_plan, settings) if FIRST_TOKEN in name else 0)

    return flops(method) / flops(BASELINE)


def _spared(the_plan: Plan, settings: BenchSettings) -> float:
    """FLOPs that a last layer for one token spares: its share of matrices that see that token alone."""
    stack = the_plan.architecture.stacks[0]
    last, seq = stack.layers[-1], settings.max_tokens
    cost = list(layer_costs(the_plan, seq, full=the_plan.full))[len(stack.layers) - 1]
    sizes = {
        name: the_plan.linear[name][0] * the_plan.linear[name][1]
        for name in last.names(("query", "key", "value", "attention_output", "intermediate", "output"))
    }
    whole = last.names(("key", "value"))
    narrowed = sum(size for name, size in sizes.items() if name not in whole)
    attention = 2 * seq * sum(the_plan.linear[name][0] for name in last.names(("attention_output",)))
    share = narrowed * (1 - 1 / seq) / (sum(sizes.values()) + attention)
    per_token = cost.forward + cost.activation_gradient + cost.weight_gradient
    return share * per_token * settings.batch * seq
