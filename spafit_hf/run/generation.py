"""Text that is written: of another text (summarization), or on and on (causal-lm).

                    model                          a row                            figures
    summarization   encoder-decoder, or a pair     a text, and the one to write     ROUGE of what is generated, loss
                    of two copies of an encoder
    causal-lm       decoder                        a text, an end token after it    perplexity, loss

Rows are padded, not packed: a text never sees another. The loss of an evaluation is that of a token, each counting the
same, in batches of whatever size; that of training is what the model makes of `num_items_in_batch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    EncoderDecoderModel,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)

from spafit_hf.adapter.pair import load_seq2seq
from spafit_hf.architecture.positions import positions_of
from spafit_hf.data.perplexity import perplexity
from spafit_hf.data.rouge import mean_rouge
from spafit_hf.data.tokens import tokenize_targets, tokenize_texts
from spafit_hf.run.base import BaseArguments, load_pretrained
from spafit_hf.run.data import MAX_TARGET_LENGTH, RunData
from spafit_hf.run.task import Task
from spafit_hf.shortcuts.probe import evaluating
from spafit_hf.trainer import SpafitSeq2SeqTrainer, SpafitTrainer
from spafit_hf.tuner import task_type_of
from spafit_hf.tuner.plain import base_of

PADDED = -100
"""Where a label is padding, which no loss counts."""


def check_flags(data: RunData, args: TrainingArguments) -> None:
    """Raise ValueError for what says how to generate, where nothing is generated."""
    beams = getattr(args, "generation_num_beams", None)
    if beams is not None and beams < 1:
        raise ValueError(f"--generation_num_beams is {beams}; it must be at least 1.")
    names = ("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config")
    given = [name for name in names if getattr(args, name, None)]
    if given and data.task != "summarization":
        raise ValueError(f"--{given[0]} is for --task summarization, which generates text to measure; leave it out.")


def _load_seq2seq(base: BaseArguments, data: RunData) -> tuple[Any, PreTrainedTokenizerBase]:
    return load_pretrained(base, lambda name, **where: (load_seq2seq(name, **where), {}))


def _load_decoder(base: BaseArguments, data: RunData) -> tuple[Any, PreTrainedTokenizerBase]:
    def load(name: str, **where: Any) -> tuple[Any, dict[str, Any]]:
        adapter = {"local_files_only": where["local_files_only"]}
        model: Any = AutoModelForCausalLM.from_pretrained(
            name, **where, adapter_kwargs=adapter, output_loading_info=True
        )
        return model

    model, tokenizer = load_pretrained(base, load)
    with evaluating(model), torch.no_grad():
        first = model(input_ids=torch.tensor([[0, 1], [0, 2]])).logits[:, 0]
    if not torch.allclose(*first):  # transformers makes language models of encoders too, which see what they predict
        raise ValueError(
            f"the base {base.base!r} is no decoder: what it says of a token depends on those after it. Name one, such "
            "as openai-community/gpt2."
        )
    return model, tokenizer


def _check(model: Any, data: RunData) -> None:
    plain, wanted = base_of(model), TASKS[data.task].auto
    if task_type_of(plain) != TASK_TYPES[data.task]:
        raise ValueError(f"the model is a {type(plain).__name__}, and {data.task} needs one of {wanted.__name__}.")


def _summaries(
    model: Any, tokenizer: PreTrainedTokenizerBase, data: RunData, args: TrainingArguments
) -> dict[str, Any]:
    if not isinstance(args, Seq2SeqTrainingArguments):
        raise ValueError("summarization is trained with SpafitSeq2SeqTrainingArguments; give those.")
    args.predict_with_generate = True
    args.include_for_metrics = [*args.include_for_metrics, "loss"]
    plain: Any = base_of(model)
    settings = plain.generation_config
    # On the model, so that a folder of the whole model generates the same. One token is the decoder's first.
    longest = args.generation_max_length or (data.max_target_length or MAX_TARGET_LENGTH) + 1
    if (most := positions_of(plain)) is not None and longest > most:
        if args.generation_max_length or data.max_target_length:
            raise ValueError(f"the base has {most} positions, and {longest} are to be written: write fewer.")
        longest = most
    settings.max_length = longest
    settings.max_new_tokens, settings.do_sample = None, False
    if args.generation_num_beams is not None:
        settings.num_beams = args.generation_num_beams
    return {
        "data_collator": DataCollatorForSeq2Seq(tokenizer, model=plain, label_pad_token_id=PADDED),
        "compute_metrics": _rouge_with(tokenizer),
    }


def _rouge_with(tokenizer: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    def texts(ids: np.ndarray) -> list[str]:
        return tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)

    def compute_metrics(rows: EvalPrediction) -> dict[str, float]:
        labels = np.asarray(rows.label_ids)
        # Trainer fills rows up to the longest that may be generated, with the tokenizer's token for padding.
        tokens = ((labels >= 0) & (labels != tokenizer.pad_token_id)).sum(axis=1)
        # Each row's loss is the mean over the tokens of its batch; Trainer counts the last batch as a full one.
        loss = float((np.asarray(rows.losses)[: len(tokens)] * tokens).sum() / tokens.sum())
        return mean_rouge(texts(np.asarray(rows.predictions)), texts(labels)) | {"loss": loss}

    return compute_metrics


def _continuations(
    model: Any, tokenizer: PreTrainedTokenizerBase, data: RunData, args: TrainingArguments
) -> dict[str, Any]:
    tokenizer.padding_side = "right"  # tokens have the positions that they have alone
    return {
        # The labels are padded by length, not by token: the end token may be the one for padding too.
        "data_collator": DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=PADDED),
        "preprocess_logits_for_metrics": text_losses,
        "compute_metrics": lambda rows: perplexity(*np.asarray(rows.predictions, dtype=np.float64).T),
    }


def text_losses(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Of each text the sum of its tokens' losses, and how many tokens that are: logits [n, t, v], labels [n, t] ->
    fp32 [n, 2]. The first token is predicted by none."""
    logits = (logits[0] if isinstance(logits, tuple) else logits)[:, :-1].float()
    wanted = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=PADDED, reduction="none")
    return torch.stack([losses.sum(dim=1), (wanted != PADDED).sum(dim=1).float()], dim=1)


def _facts(model: Any, data: RunData) -> dict[str, Any]:
    plain = base_of(model)
    facts: dict[str, Any] = {"pipeline_tag": "summarization"}
    if isinstance(plain, EncoderDecoderModel) and not plain.config.architectures:  # a pair: its base is the encoder
        facts["base"] = {"model_type": plain.encoder.config.model_type}
    return facts


TASK_TYPES = {"summarization": "SEQ_2_SEQ_LM", "causal-lm": "CAUSAL_LM"}
TASKS = {
    "summarization": Task(
        auto=AutoModelForSeq2SeqLM,
        trainer=SpafitSeq2SeqTrainer,
        load=_load_seq2seq,
        check=_check,
        tokens=lambda splits, tokenizer, data, length: tokenize_targets(
            splits,
            tokenizer,
            data.text.columns,
            max_length=length,
            max_target_length=data.max_target_length or MAX_TARGET_LENGTH,
        ),
        parts=_summaries,
        facts=_facts,
    ),
    "causal-lm": Task(
        auto=AutoModelForCausalLM,
        trainer=SpafitTrainer,
        load=_load_decoder,
        check=_check,
        tokens=lambda splits, tokenizer, data, length: tokenize_texts(
            splits, tokenizer, data.text.columns[0], max_length=length
        ),
        parts=_continuations,
    ),
}
