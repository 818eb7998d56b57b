"""What the checkpoint did not bring: found by the marks of transformers, whatever its name."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import transformers as hf
from models import FAMILIES
from torch import nn

from spafit_hf import plan
from spafit_hf.architecture import find_architecture
from spafit_hf.architecture.new import copy_marks, new_parameters

TRANSFORM = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a masked language model, which has no pooler."""
    folder = tmp_path_factory.mktemp("language_model")
    hf.BertForMaskedLM(FAMILIES["bert"].config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an encoder with its pooler and no head."""
    folder = tmp_path_factory.mktemp("encoder")
    hf.BertModel(FAMILIES["bert"].config()).save_pretrained(folder)
    return folder


def test_a_pooler_that_the_checkpoint_had_not(language_model: Path, encoder: Path) -> None:
    model = hf.BertForSequenceClassification.from_pretrained(language_model)
    found = find_architecture(model)
    assert (found.new, found.head, found.pooler) == (("bert.pooler.dense",), ("classifier",), ())
    for strategy in ("spafit-4-9-II", "bitfit", "linear-probe"):
        the_plan = plan(model, strategy)
        assert the_plan.head == ("bert.pooler.dense", "classifier")
        assert "bert.pooler.dense" not in the_plan.biases
        group = next(group for group in the_plan.groups if group.name == "new")
        assert group.trainable_parameters == 16 * 16 + 16
        assert sum(group.trainable_parameters for group in the_plan.groups) == the_plan.trainable_parameters
    pretrained = find_architecture(hf.BertForSequenceClassification.from_pretrained(encoder))
    assert (pretrained.new, pretrained.pooler) == ((), ("bert.pooler.dense",))


def test_what_is_random_as_a_whole_has_nothing_new() -> None:
    assert find_architecture(hf.BertForSequenceClassification(FAMILIES["bert"].config())).new == ()


def test_a_bare_encoder_has_no_use_for_a_new_pooler(language_model: Path) -> None:
    model = hf.BertModel.from_pretrained(language_model)
    assert new_parameters(model) == ("pooler.dense.weight", "pooler.dense.bias")
    assert find_architecture(model).new == ()


def test_a_new_head_of_a_language_model(encoder: Path) -> None:
    the_plan = plan(hf.BertForMaskedLM.from_pretrained(encoder), "spafit-4-9-II")
    assert (the_plan.head, the_plan.architecture.head, the_plan.num_labels) == (TRANSFORM, (), None)


def test_new_cross_attention_trains_whole_in_every_layer(language_model: Path) -> None:
    model = hf.EncoderDecoderModel.from_encoder_decoder_pretrained(language_model, language_model)
    the_plan = plan(model, "spafit-4-9-II")
    new = {name.rpartition(".")[0] for name, _ in model.named_parameters() if "crossattention." in name}
    assert set(the_plan.head) == new
    assert not new & {*the_plan.lora, *the_plan.biases}
    assert list(the_plan.prefix_lengths.values()) == [1, 0]


class Net(nn.Module):
    """A model of one's own: an encoder, and a head on it."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert, self.head = bert, nn.Linear(16, 2)


def test_what_stands_outside_the_pretrained_part_is_the_head(encoder: Path) -> None:
    for bert in (hf.BertModel.from_pretrained(encoder), hf.BertModel(FAMILIES["bert"].config())):
        assert plan(Net(bert), "spafit-4-9-II").head == ("head",)


def test_a_copy_keeps_its_marks(language_model: Path) -> None:
    model = hf.BertForSequenceClassification.from_pretrained(language_model)
    copied = copy.deepcopy(model)
    assert new_parameters(copied) == ()
    copy_marks(model, copied)
    assert new_parameters(copied) == new_parameters(model) != ()
