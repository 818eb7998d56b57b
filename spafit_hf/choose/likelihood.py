"""What the base's language-model head makes of a text, before and after: paired, the same tokens for both.

    masked   [CLS] the [MASK] shut [SEP]   log p(shop)      some tokens of a text, one at a time (Salazar et al. 2020,
                                                            arXiv:1910.14659: pseudo-log-likelihood)
    causal   the shop shut                 log p(shop | the), log p(shut | the shop)

The head is the base's in both. A language model of its own, tuned as one, is asked with its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spafit_hf.card.forgetting import Likelihood
from spafit_hf.choose.reader import batches
from spafit_hf.words import SpafitError

MASKS = 8
"""Tokens of a text that are masked, each alone, chosen at random; all of a text that has no more."""

Logits = Callable[[dict[str, torch.Tensor]], torch.Tensor]
"""A batch -> logits [rows, tokens, vocabulary]."""


@contextmanager
def reading_through(lm: PreTrainedModel, body: nn.Module) -> Iterator[None]:
    """Within it the language model reads through another body of its kind; its head stays."""
    own = lm.base_model
    setattr(lm, lm.base_model_prefix, body)
    try:
        yield
    finally:
        setattr(lm, lm.base_model_prefix, own)


def masked_rows(rows: Sequence[Any], mask_id: int, seed: int) -> list[Any]:
    """Copies of rows of tokens, one token masked in each; with `text` (its row), `place` and `target` (the token)."""
    rng = np.random.default_rng(seed)
    copies = []
    for text, row in enumerate(rows):
        places = [place for place, special in enumerate(row["special_tokens_mask"]) if not special]
        for place in sorted(rng.permutation(places)[:MASKS].tolist()):
            ids = [*row["input_ids"]]
            target, ids[place] = ids[place], mask_id
            copies.append({**row, "input_ids": ids, "text": text, "place": place, "target": target})
    return copies


def divergence(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """KL(old | new) of log-probabilities in fp32: [rows, vocabulary] -> [rows].

    With d = new - old it is the sum of p (e^d - 1 - d). No term is below 0, and that in fp32 neither distribution sums
    to just 1 hardly counts; the sum of -p d is as far from 0 as that, on either side.
    """
    step = new - old
    small, large = old.exp() * (step.expm1() - step), new.exp() - old.exp() * (1 + step)  # e^d may overflow
    return torch.where(step < 1, small, large).sum(-1)


@torch.no_grad()
def likelihood(
    before: Logits, after: Logits, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], device: torch.device
) -> Likelihood:
    """Both models' log-likelihoods of the same tokens.

    Args:
        before, after: the base and the model, in eval mode.
        tokenizer: pads the batches.
        rows: of `masked_rows`, or rows of tokens for models that predict the next one.
        device: where the models are.

    Raises:
        SpafitError: when fewer than two texts have a token to predict.
    """
    found = []
    for chosen, batch in batches(tokenizer, rows, device):
        if "place" in rows[chosen[0]]:
            line = torch.arange(len(chosen), device=device)
            place, target = (torch.tensor([rows[i][k] for i in chosen], device=device) for k in ("place", "target"))
            owners = np.array([rows[i]["text"] for i in chosen])
        else:
            line, place = batch["attention_mask"][:, 1:].nonzero(as_tuple=True)
            target, owners = batch["input_ids"][line, place + 1], np.array(chosen)[line.cpu().numpy()]
        old, new = (logits(batch)[line, place].float().log_softmax(-1) for logits in (before, after))
        pick = target[:, None]
        both = torch.stack([old.gather(1, pick)[:, 0], new.gather(1, pick)[:, 0], divergence(old, new)])
        found.append((owners, both.double().cpu().numpy()))
    texts = np.concatenate([owners for owners, _ in found])
    values = np.concatenate([values for _, values in found], axis=1)
    known, index, counts = np.unique(texts, return_inverse=True, return_counts=True)
    if len(known) < 2:
        raise SpafitError(f"{len(known)} of the texts have a token to predict; at least two are needed: add texts.")
    old_mean, new_mean, apart = (np.bincount(index, weights=each) / counts for each in values)
    change = new_mean - old_mean
    return Likelihood(
        before=float(old_mean.mean()),
        after=float(new_mean.mean()),
        change=float(change.mean()),
        error=float(change.std(ddof=1) / math.sqrt(len(known))),
        kl=float(apart.mean()),
        texts=len(known),
        positions=len(texts),
    )
