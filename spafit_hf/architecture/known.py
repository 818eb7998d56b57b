"""What the structure of a model does not say: facts about single model types."""

from __future__ import annotations

# Modules outside the base that are pretrained all the same. ModernBERT's `head` (dense and norm) is part of its masked
# language model and comes with the checkpoint, as BERT's pooler does: like it, it stays frozen. DeBERTa's `pooler` is
# in no checkpoint of its language model: it is new, and trains with the classifier.
PRETRAINED_OUTSIDE = {"modernbert": ("head",)}

# Poolers that no checkpoint of the model type holds: where a head asks for one (RobertaForMultipleChoice) it is new.
NEW_POOLER = ("roberta", "xlm-roberta", "camembert", "mpnet")

# Model types with a Mamba of which a fused kernel reads out_proj past the module: on a GPU no LoRA there would train,
# and PEFT refuses it in most of them.
READ_PAST = (
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "mamba", "mamba2", "nemotron_h", "zamba2",
)  # fmt: skip

# Model types whose only stack is an encoder, which the path of the list ("transformer.layer", "layers") does not say.
ENCODERS = ("distilbert", "modernbert", "vit")
