"""What trains where, as plain data: a model is cut by depth into strata, each with its own way of tuning.

    spafit-4-9-II on 24 layers (arXiv:2405.00201, section 3)

    layers  0  1  2  3  4 | 5  6  7  8  9 | 10 11 12 13 14 15 16 17 18 19 20 21 22 23 | head
            group 1       | group 2       | group 3                                   |
            frozen        | every bias    | LoRA on attention, feed-forward biases    | trains

A `Stratum` is a range of layers with what trains in it, a `Strategy` is some strata with a name. Layers in no stratum
are frozen. No torch here: a strategy knows nothing about models until `Strategy.resolve(num_layers)` gives it a depth.
"""

from spafit_hf.strategy.bottleneck import Bottleneck, BottleneckSettings
from spafit_hf.strategy.methods import ADAPTER_METHODS, METHODS, PAPER_DEPTH
from spafit_hf.strategy.strategy import Strategy, StrategyLike
from spafit_hf.strategy.stratum import (
    CROSS_ROLES,
    EVERY_ROLE,
    EXPERT_ROLES,
    INIT_LORA_WEIGHTS,
    LORA_ROLES,
    LORA_SETTINGS,
    MIXER_ROLES,
    NORM_ROLES,
    ROLES,
    LoraSettings,
    Stratum,
)
from spafit_hf.words import layers_text

__all__ = [
    "ADAPTER_METHODS", "CROSS_ROLES", "EVERY_ROLE", "EXPERT_ROLES", "INIT_LORA_WEIGHTS", "LORA_ROLES",
    "LORA_SETTINGS", "METHODS", "MIXER_ROLES", "NORM_ROLES", "PAPER_DEPTH", "ROLES", "Bottleneck",
    "BottleneckSettings", "LoraSettings", "Strategy", "StrategyLike", "Stratum", "layers_text",
]  # fmt: skip
