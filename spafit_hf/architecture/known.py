"""What the structure of a model does not say: facts about single model types."""

from __future__ import annotations

REFUSED = {
    "albert": "ALBERT uses one set of weights for all of its layers, so no layer can train apart from the others; "
    "take an encoder with layers of its own, such as BERT, RoBERTa or DeBERTa"
}
"""Model types that have no strata, and why."""

# Modules outside the base that are pretrained all the same. ModernBERT's `head` (dense and norm) is part of its masked
# language model and comes with the checkpoint, as BERT's pooler does: like it, it stays frozen. DeBERTa's `pooler` is
# in no checkpoint of its language model: it is new, and trains with the classifier.
PRETRAINED_OUTSIDE = {"modernbert": ("head",)}

# Poolers that no checkpoint of the model type holds: where a head asks for one (RobertaForMultipleChoice) it is new.
NEW_POOLER = ("roberta", "xlm-roberta", "camembert", "mpnet")

# Model types whose only stack is an encoder, which the path of the list ("transformer.layer", "layers") does not say.
ENCODERS = ("distilbert", "modernbert", "vit")
