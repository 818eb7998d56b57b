"""The last layer for one token, where the head reads no other.

    states of all tokens --+--> key, value ----------------+
                           |                               |
                           +--> first token --> query --> attention --> feed-forward --> head

Classifiers on BERT and its kin read the first token of the last layer. Keys and values of that layer are needed for
all tokens; query, attention output and feed-forward only for the first: 10 of 12 parts of the layer's products drop
out, forward and backward, and what is left is the same numbers.

    layer.py      how the last layer is narrowed: hooks on its parts
    probe.py      one batch both ways, outputs and gradients, before it is believed
    arguments.py  the user's side
    training.py   the trainer's side

No list of models says who reads one token: the probe finds out, and a model that does not stays as it is.
"""

from spafit_hf.first_token.layer import FirstToken, NotFirstToken, base_of

__all__ = ["FirstToken", "NotFirstToken", "base_of"]
