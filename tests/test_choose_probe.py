"""Probes against their closed forms, and N1 by the one-standard-error rule."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from models import tiny
from sklearn.model_selection import KFold

from spafit_hf.choose.probe import FOLDS, PENALTY, one_standard_error, out_of_fold, probe_layers, read_states
from spafit_hf.choose.reader import reader_of


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_states_are_those_of_the_token_that_the_head_reads_and_the_mean(family: str) -> None:
    model = tiny(family).train()
    ids = torch.randint(3, 40, (3, 6))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]])  # padding on either side
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([1, 0, 1])}
    states, labels = read_states(reader_of(model), [batch, batch], last=family == "llama")
    assert model.training
    assert labels.tolist() == [1, 0, 1] * 2
    with torch.no_grad():
        layers = model.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert states.shape == (len(layers), 6, 2 * layers[0].shape[-1])
    places = [5, 3, 5] if family == "llama" else [0, 0, 3]
    for found, expected in zip(states, layers, strict=True):
        for row, place in enumerate(places):
            mean = expected[row][mask[row] == 1].mean(0)
            np.testing.assert_allclose(found[row], torch.cat([expected[row, place], mean]), rtol=1e-4, atol=1e-5)


def test_ridge_is_the_closed_form_on_rows_that_the_fit_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(3, 2, (60, 5))
    labels = states @ rng.normal(size=5) + rng.normal(size=60)
    expected = np.empty(60)
    for train, held in KFold(FOLDS, shuffle=True, random_state=4).split(states):
        mean, deviation = states[train].mean(0), states[train].std(0)
        x, y = (states[train] - mean) / deviation, labels[train] - labels[train].mean()
        weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(5), x.T @ y)
        expected[held] = (states[held] - mean) / deviation @ weights + labels[train].mean()
    np.testing.assert_allclose(out_of_fold(states, labels, True, 4), expected)


def test_a_class_is_read_where_it_can_be() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    noise = rng.normal(size=(120, 4))
    told = np.eye(4)[labels] * 6 + noise
    assert (out_of_fold(told, labels, False, 0) == labels).mean() > 0.95
    assert (out_of_fold(noise, labels, False, 0) == labels).mean() < 0.5


def test_a_class_of_one_row_is_read_around() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 30 + [1] * 30 + [2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = out_of_fold(np.eye(3)[labels] * 6 + rng.normal(size=(61, 3)), labels, False, 0)
    assert (found[:60] == labels[:60]).mean() > 0.9
    for few in ([0] * 9, [0] * 9 + [1], [0] * 9 + [1, 2]):
        with pytest.raises(ValueError, match=f"of the {len(few)} rows to probe with, no two classes have two rows"):
            out_of_fold(rng.normal(size=(len(few), 3)), np.array(few), False, 0)


def test_the_first_within_one_standard_error_of_the_best() -> None:
    assert one_standard_error([0.5, 0.78, 0.79, 0.8, 0.7], [0.5, 0.5, 0.5, 0.02, 0.5]) == 1
    assert one_standard_error([0.5, 0.78, 0.79, 0.8, 0.7], [0.5, 0.5, 0.5, 0.015, 0.5]) == 2
    assert one_standard_error([0.8, 0.8], [0.0, 0.0]) == 0


@pytest.mark.parametrize(("layer", "n1"), [(0, -1), (2, 1), (3, 2), (5, 2)])
def test_n1_is_below_the_first_layer_that_tells(layer: int, n1: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    states = rng.normal(size=(6, 200, 3))  # the embeddings, then five layers
    states[layer:, :, 0] += 5 * labels
    probes = probe_layers(states, labels, "accuracy", False, 0)
    assert probes.n1 == n1  # at most: the last two layers are left to train
    assert probes.scores[layer] > 0.95
    share = probes.scores[layer]
    assert probes.errors[layer] == pytest.approx((share * (1 - share) / 200) ** 0.5, rel=0.1)
