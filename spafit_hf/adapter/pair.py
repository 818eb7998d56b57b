"""An encoder-decoder from an encoder alone: two copies of it, of which one gets cross attention (Rothe et al. 2020).

    encoder on the Hub or a disk --twice--> EncoderDecoderModel      encoder   as it is
                                                                     decoder   causal, cross attention and head new

What is new trains and travels with an adapter, so that the encoder alone is its base: any machine can load that.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    PreTrainedModel,
)

from spafit_hf.architecture.new import loading_quietly
from spafit_hf.names import task_of_class


def is_half(config: Any) -> bool:
    """Whether a base is one half of a pair: an encoder whose layers can attend to another's output."""
    decoder = task_of_class(next(iter(config.architectures or ()), "")) == "CAUSAL_LM"
    known = type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    return hasattr(config, "add_cross_attention") and not known and not decoder


def load_seq2seq(name: str, *, revision: str | None = None, **where: Any) -> PreTrainedModel:
    """The encoder-decoder of a folder or Hub id, or the pair of an encoder, with the base's name in its configuration.

    Args:
        name, revision, where: of `from_pretrained`.

    Raises:
        ValueError: for an encoder whose tokenizer has no marks for a text's begin and end; whatever transformers
            raises for what it cannot load, a decoder alone among it.
    """
    where |= {"revision": revision}
    if not is_half(AutoConfig.from_pretrained(name, **where)):
        adapter = {"adapter_kwargs": {"local_files_only": where.get("local_files_only", False)}}
        return AutoModelForSeq2SeqLM.from_pretrained(name, **where, **adapter)
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    ids = {
        "decoder_start_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if None in ids.values():
        raise ValueError("its tokenizer lacks [CLS], [SEP] or [PAD], with which a decoder begins and ends.")
    # Not from_encoder_decoder_pretrained, which reads the configuration of a revision, and the weights of the newest.
    with loading_quietly():  # it takes an encoder for a language model that lost its head
        encoder = AutoModel.from_pretrained(name, **where)
        decoder = AutoModelForCausalLM.from_pretrained(name, **where, is_decoder=True, add_cross_attention=True)
    model: Any = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.vocab_size = model.config.decoder.vocab_size
    for key, value in ids.items():
        setattr(model.config, key, value)
        setattr(model.generation_config, key, value)
    model.config._name_or_path = model.name_or_path = name
    return model
