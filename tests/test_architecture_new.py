"""What the checkpoint did not bring: found by the marks of transformers, whatever its name."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import scripts.tiny
import torch
import transformers as hf
from models import FAMILIES, stir
from peft import PeftModel
from programs import Program
from safetensors.torch import load_file
from scripts.runs import spafit_trainer
from torch import nn

from spafit_hf import get_spafit_model, load_adapter, plan, save_adapter
from spafit_hf.adapter.folder import facts_of_plain
from spafit_hf.architecture import find_architecture
from spafit_hf.architecture.new import copy_marks, new_parameters
from spafit_hf.planner import obstacles

SCRIPTS = Path(__file__).parent / "scripts"
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


def test_what_a_module_computes_for_itself_is_not_new(tmp_path: Path) -> None:
    model = hf.MarianMTModel(hf.MarianConfig(**FAMILIES["bart"].config().to_diff_dict()))
    model.save_pretrained(tmp_path)
    assert not any("embed_positions" in name for name in load_file(tmp_path / "model.safetensors"))
    model = hf.MarianMTModel.from_pretrained(tmp_path)
    assert new_parameters(model) == ()
    with pytest.raises(ValueError, match="linear-probe trains nothing"):
        plan(model, "linear-probe")


def test_a_bare_encoder_has_no_use_for_a_new_pooler(language_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = hf.BertModel.from_pretrained(language_model)
    assert new_parameters(model) == ("pooler.dense.weight", "pooler.dense.bias")
    assert find_architecture(model).new == ()
    assert any(
        note.startswith("not in the base's checkpoint, and frozen: pooler.dense;")
        for note in plan(model, "lora-II").notes
    )
    get_spafit_model(model, "lora-II")
    assert "pooler.dense: not in the base's checkpoint, so random at each load" in caplog.text


def test_a_new_head_of_a_language_model(encoder: Path) -> None:
    the_plan = plan(hf.BertForMaskedLM.from_pretrained(encoder), "spafit-4-9-II")
    assert (the_plan.head, the_plan.architecture.head, the_plan.num_labels) == (TRANSFORM, (), None)
    # The bias of the output matrix, whose weight is the word embeddings'.
    group = next(group for group in the_plan.groups if group.name == "new biases")
    assert group.bias_modules == ("cls.predictions.decoder",)
    assert not any("not in the base's checkpoint" in note or "cls" in note for note in the_plan.notes)


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


def test_a_module_of_ones_own_trains_with_all_that_is_in_it(encoder: Path) -> None:
    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.dense = nn.Parameter(torch.ones(1)), nn.Linear(16, 16)

    model = Net(hf.BertModel.from_pretrained(encoder))
    model.pooling = Pooling()
    assert plan(model, "spafit-4-9-II").head == ("head", "pooling")
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"scale is new with the task .* put it into a module of its own"):
        get_spafit_model(model, "spafit-4-9-II")


def test_a_head_of_ones_own_is_no_part_of_what_tells_bases_apart(encoder: Path) -> None:
    def digests() -> dict[str, str]:
        model = Net(hf.BertModel.from_pretrained(encoder))
        model.head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))  # biases with numbers, drawn at random
        return facts_of_plain(model).vectors

    assert digests() == digests() != {}


def test_heads_named_like_what_lora_puts_into_a_layer_are_refused_by_the_plan(encoder: Path) -> None:
    class Named(nn.Module):
        def __init__(self, bert: nn.Module) -> None:
            super().__init__()
            self.bert, self.a = bert, nn.Linear(16, 2)

    model = Named(hf.BertModel.from_pretrained(encoder))
    with pytest.raises(ValueError, match="for PEFT its own lora_delta is one of them by the end of its name; rename"):
        plan(model, "spafit-4-9-II")
    assert plan(model, "linear-probe").head == ("a",)


def test_a_new_decoder_of_many_layers_can_be_read_back_and_too_many_are_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf.BertModel(FAMILIES["bert"].config(num_hidden_layers=14)).save_pretrained(tmp_path / "base")

    def pair() -> hf.PreTrainedModel:
        return hf.EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "base", tmp_path / "base")

    model = get_spafit_model(pair(), "spafit-4-9-II", r=2)
    assert len(model.peft_config["default"].modules_to_save) > 64
    save_adapter(model, tmp_path / "adapter")
    load_adapter(pair(), tmp_path / "adapter")
    monkeypatch.setattr(obstacles, "MAX_HEADS", 8)
    with pytest.raises(ValueError, match=r"are to train whole .* holds 8\. Save"):
        get_spafit_model(pair(), "spafit-4-9-II")
    assert "are to train whole" in plan(pair(), "spafit-4-9-II").notes[0]


def test_a_copy_is_what_it_was_copied_from(language_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = hf.BertForSequenceClassification.from_pretrained(language_model)
    new = new_parameters(model)
    assert "bert.pooler.dense.weight" in new
    assert new_parameters(copy.deepcopy(model)) == new
    parts = hf.EncoderDecoderModel.from_encoder_decoder_pretrained(language_model, language_model)
    assert new_parameters(copy.deepcopy(parts)) == new_parameters(parts) != ()
    copied = copy.deepcopy(model)
    copied.config._name_or_path = "nowhere"
    assert new_parameters(copied) == ()
    assert "BertForSequenceClassification is a copy" in caplog.text
    copied = copy.deepcopy(model)
    copy_marks(model, copied)
    assert new_parameters(copied) == new


def test_every_reader_gives_the_logits_of_the_training(tmp_path: Path) -> None:
    """On a base without a pooler, in a new process with another seed."""
    base = tmp_path / "base"
    hf.BertForMaskedLM(scripts.tiny.bert().config).save_pretrained(base)
    scripts.tiny.tokenizer().save_pretrained(base)
    names = {0: "no", 1: "yes"}
    model = hf.BertForSequenceClassification.from_pretrained(
        base, id2label=names, label2id={"no": 0, "yes": 1}, hidden_dropout_prob=0.0
    )
    run = spafit_trainer(tmp_path / "run", model, max_steps=6, strategy="spafit-4-9-II")
    run.train()
    run.save_model()
    rows = scripts.tiny.sentences(12, seed=1)  # what the trainer evaluates on
    table = "\n".join(["text,label", *(f"{row['text']},{names[row['label']]}" for row in rows)])
    (tmp_path / "rows.csv").write_text(table + "\n")
    batch = scripts.tiny.tokenizer()([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = run.model.eval()(**batch).logits
    log, argv = tmp_path / "log", [SCRIPTS / "readers.py", base, tmp_path / "run", tmp_path / "rows.csv", tmp_path]
    assert Program(argv, log=log).wait() == 0, log.read_text()
    scores, loss = logits.softmax(-1), torch.tensor(run.evaluate()["eval_loss"])
    expected = {"predict": scores, "predictor": scores, "evaluate": loss}
    for reader, found in json.loads(log.read_text().splitlines()[-1]).items():
        assert torch.allclose(torch.tensor(found), expected.get(reader, logits), atol=2e-6, rtol=0), reader


DPT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32}
DPT |= {"patch_size": 8, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
DPT |= {"is_hybrid": False, "reassemble_factors": [4, 2, 1, 0.5]}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("kind", "bare", "config", "strategy", "head"),
    [
        # A module within the head is called as the head is.
        (hf.DPTForDepthEstimation, hf.DPTModel, hf.DPTConfig(**DPT), "spafit-4-9-II", "head.head.4"),
        # A list is a part of the head, as layers are of the base; its bias is drawn at random.
        (hf.ResNetForImageClassification, hf.ResNetModel, hf.ResNetConfig(**RESNET), "linear-probe", "classifier"),
    ],
    ids=["dpt", "resnet"],
)
def test_heads_within_heads_train_and_come_back(kind, bare, config, strategy, head, tmp_path: Path) -> None:
    bare(config).save_pretrained(tmp_path / "base")

    def fresh(seed: int) -> hf.PreTrainedModel:
        torch.manual_seed(seed)
        return kind.from_pretrained(tmp_path / "base", config=config).eval()

    pixels = torch.randn(2, 3, 32, 32)
    model = get_spafit_model(fresh(1), strategy)
    trained = [each for each in model.parameters() if each.requires_grad]
    model.eval()(pixels)[0].square().mean().backward()
    assert sum(each.numel() for each in trained) == plan(fresh(1), strategy).trainable_parameters
    assert all(each.grad is not None for name, each in model.named_parameters() if f".{head}.modules_to_save" in name)
    assert plan(fresh(1), strategy).head[-1] == head
    stir(model)
    expected = model(pixels)[0]
    save_adapter(model, tmp_path / "adapter")
    for read in (load_adapter, PeftModel.from_pretrained):
        assert torch.equal(read(fresh(2), tmp_path / "adapter").eval()(pixels)[0], expected)


def test_what_no_folder_could_hold_is_said_by_the_plan_and_refused_at_the_entrance(encoder: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.tagger = hf.BertModel.from_pretrained(encoder), nn.Module()
            self.tagger.decoder = nn.Linear(16, 5)
            self.tagger.bias = self.tagger.decoder.bias

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = hf.BertModel.from_pretrained(encoder)
            self.one, self.two = nn.Linear(16, 5, bias=False), nn.Linear(16, 5, bias=False)
            self.two.weight = self.one.weight

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = hf.BertModel.from_pretrained(encoder), nn.ParameterList([torch.ones(16)])

    normed = hf.BertModel.from_pretrained(encoder)
    nn.utils.parametrizations.weight_norm(normed.encoder.layer[0].output.dense)
    hooked = hf.BertForSequenceClassification(FAMILIES["bert"].config())
    nn.utils.weight_norm(hooked.classifier)
    sizes = {"hidden_sizes": [16] * 4, "decoder_hidden_size": 16, "num_attention_heads": [1, 1, 2, 2]}
    for model, why in (
        (Tied(), "tagger.decoder.bias is a weight of the head by a second name"),
        (Twice(), "two.weight is a part of one by a second name"),
        (Listed(), "scale is to train whole and is a ParameterList: PEFT stores modules"),
        (FAMILIES["bert"].classifier(FAMILIES["bert"].config()).double(), "is float64, which no adapter folder holds"),
        (normed, "encoder.layer.0.output.dense.parametrizations.weight is to train whole"),
        (hooked, "classifier holds a weight that is computed from others before each pass"),
        (hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**sizes)), "decode_head.batch_norm.running_mean"),
        (hf.BertForSequenceClassification(FAMILIES["bert"].config(id2label={0: "a", 1: "a"})), "called 'a'"),
    ):
        the_plan = plan(model, "spafit-4-9-II")
        assert the_plan.notes[0] == f"no adapter can be made by this plan: {the_plan.obstacles[0]}"
        assert why in the_plan.obstacles[0]
        with pytest.raises(ValueError, match="^" + re.escape(the_plan.obstacles[0])):
            get_spafit_model(model, "spafit-4-9-II")
        assert plan(model, "full").obstacles == ()
