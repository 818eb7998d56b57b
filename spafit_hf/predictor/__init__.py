"""Many adapters on one base, an adapter per row: `SpafitPredictor`.

    "a fine film"  --+--> layers frozen in every adapter, --+--> row 1  (sst2)   --> {"negative": .02, "positive": .98}
                     |    once per text                     +--> row 2  (cola)   --> {"unacceptable": .1, ...}
                     +                                      +--> row 3  (stsb)   --> 3.4
                                                                 each row with its own LoRA, deltas and head

    base.py        the base and its tokenizer
    facts.py       what a predictor knows of an adapter (labels, task, size, layers), and what comes out
    patch.py       an adapter as plain tensors, one patch per module
    text.py        texts as tokens
    rows.py        the forward pass of rows with different adapters
    serving.py     which short cuts are right for a model, measured before they are used
    cache.py       loaded adapters within a limit in bytes
    predictor.py   the parts together, for many threads

Neither PEFT's wrappers nor the adapters' weights go into the base: an adapter is a set of tensors beside it, and a
pass adds what its rows' adapters add to each module. So adapters cannot see each other, come and go without touching
the model, and need not have the same modules, ranks or heads.
"""

from spafit_hf.predictor.facts import AdapterFacts, NoAnswer, Prediction
from spafit_hf.predictor.predictor import SpafitPredictor

__all__ = ["AdapterFacts", "NoAnswer", "Prediction", "SpafitPredictor"]
