"""What was forgotten: known truths of each figure, and of the whole on tiny models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forgetting_run import TEXTS, write_adapter, write_lm
from models import FAMILIES, inputs, tiny, tiny_generator
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from spafit_hf.adapter import load_adapter, merge_adapter
from spafit_hf.card.facts import CardError
from spafit_hf.card.forgetting import FORGETTING_FILE, Forgetting, LayerDrift, forgetting_page, weights_digest
from spafit_hf.card.write import write_card
from spafit_hf.choose.drift import Drift
from spafit_hf.choose.forgetting import SEED, load_reference, measure
from spafit_hf.choose.likelihood import Logits, divergence, likelihood, masked_rows, reading_through
from spafit_hf.choose.reader import encode, reader_of
from spafit_hf.choose.transfer import Probe, predictions, transfer

CPU = torch.device("cpu")


# -- drift --


def drift(*pairs: tuple[torch.Tensor, torch.Tensor]) -> LayerDrift:
    found = Drift()
    for before, after in pairs:
        found.add(before, after)
    return found.result()


def test_equal_states_have_no_drift_at_all() -> None:
    states = torch.randn(50, 8)
    assert drift((states, states.clone())) == LayerDrift(1.0, 1.0, 50)
    other = states.clone()
    other[3, 2] = torch.nextafter(other[3, 2], torch.tensor(9.0))
    assert drift((states, other)).equal == 49


def test_cka_is_that_of_a_worked_example() -> None:
    x = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    # |Y'X|^2 = 4, |X'X| = sqrt 8, |Y'Y| = 2
    found = drift((x[:2], x[:2] * torch.tensor([1.0, 0])), (x[2:], x[2:] * torch.tensor([1.0, 0])))
    assert found.cka == pytest.approx(1 / math.sqrt(2), abs=1e-12)
    assert found.cosine == 0.5  # each other token has become 0, which points nowhere


def test_cka_sees_neither_rotation_nor_scale_nor_shift_and_cosine_does() -> None:
    x = torch.randn(60, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    moved = drift((x, 3 * x @ rotation + 5))
    assert moved.cka == pytest.approx(1, abs=1e-6)
    assert moved.cosine < 0.9
    assert moved.equal == 0
    assert drift((x, -x)).cosine == pytest.approx(-1)
    assert drift((x, torch.randn(60, 6))).cka < 0.5
    assert drift((x, x.new_ones(60, 6))).cka == 0


def test_drift_does_not_depend_on_batches() -> None:
    x, y = torch.randn(40, 5), torch.randn(40, 5)
    parts = drift(*((x[i : i + 7], y[i : i + 7]) for i in range(0, 40, 7)))
    whole = drift((x, y))
    centered = [(each - each.mean(0)).double() for each in (x, y)]
    cross = [(0, 1), (0, 0), (1, 1)]
    both, own_x, own_y = (float(torch.linalg.matrix_norm(centered[i].T @ centered[j])) for i, j in cross)
    assert parts.cka == pytest.approx(whole.cka)
    assert parts.cka == pytest.approx(both**2 / (own_x * own_y))
    assert parts.cosine == pytest.approx(whole.cosine)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.images])
def test_states_of_every_family_are_those_of_its_layers(name: str) -> None:
    model, batch = tiny(name), inputs(name)
    batch["attention_mask"][0, -2:] = 0
    states = reader_of(model).states(batch)
    assert [each.shape for each in states] == [(4 * 7 - 2, 16)] * 6
    if name == "bert":
        known = model(**batch, output_hidden_states=True).hidden_states
        for mine, theirs in zip(states, [*known, known[-1]], strict=True):
            assert torch.equal(mine, theirs[batch["attention_mask"].bool()])


# -- likelihood --


@pytest.mark.parametrize("moved", [0.0, 1e-6, 1e-4, 0.1, 3.0, 200.0])
def test_a_divergence_is_never_negative(moved: float) -> None:
    logits = 3 * torch.randn(8, 20_000)
    both = logits, logits + moved * torch.randn_like(logits)
    old, new = (each.double().log_softmax(-1) for each in both)
    found = divergence(*(each.log_softmax(-1) for each in both))
    assert (found >= 0).all()
    near = {"rtol": 1e-3, "atol": 1e-9 * moved} if moved > 1e-5 else {"rtol": 0.5, "atol": 0.0}
    torch.testing.assert_close(found.double(), (old.exp() * (old - new)).sum(-1), **near)


@pytest.fixture(scope="module", params=["masked", "causal"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lm(tmp_path_factory.mktemp(kind), kind)


def asked(base: Path, kind: str, texts: tuple[str, ...]) -> tuple[Any, list[Any]]:
    tokenizer = load_reference(str(base)).tokenizer
    rows, _ = encode(tokenizer, texts, 32)
    return tokenizer, masked_rows(rows, tokenizer.mask_token_id, SEED) if kind == "masked" else rows


def other(base: Path, kind: str, noise: float) -> Any:
    model = (AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM).from_pretrained(base).eval()
    for parameter in model.base_model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    return model


def of(model: Any) -> Logits:
    return lambda batch: model(**batch).logits


@torch.no_grad()
def test_likelihoods_are_those_of_a_loop(base: Path, kind: str) -> None:
    texts = TEXTS[:5]
    tokenizer, rows = asked(base, kind, texts)
    before, after = other(base, kind, 0), other(base, kind, 0.3)
    found = likelihood(of(before), of(after), tokenizer, rows, CPU)
    means = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        scores = []
        for place in range(1, ids.shape[1] - 1 if kind == "masked" else ids.shape[1]):
            seen = ids[:, :place]
            if kind == "masked":
                seen = ids.clone()
                seen[0, place] = tokenizer.mask_token_id
            at = place if kind == "masked" else -1
            old, new = (model(seen).logits[0, at].double().log_softmax(0) for model in (before, after))
            scores.append(
                [float(old[ids[0, place]]), float(new[ids[0, place]]), float((old.exp() * (old - new)).sum())]
            )
        means.append(np.mean(scores, axis=0))
    old, new, kl = np.array(means).T
    assert (found.texts, found.positions) == (5, len(scores) * 5)
    assert found.before == pytest.approx(old.mean(), abs=1e-5)
    assert found.after == pytest.approx(new.mean(), abs=1e-5)
    assert found.change == pytest.approx((new - old).mean(), abs=1e-5)
    assert found.error == pytest.approx((new - old).std(ddof=1) / math.sqrt(5), abs=1e-5)
    assert found.kl == pytest.approx(kl.mean(), abs=1e-5)
    assert found.kl > 0.01


def test_what_has_learned_a_text_finds_it_likelier(base: Path, kind: str) -> None:
    tokenizer, rows = asked(base, kind, TEXTS)
    learned, same = other(base, kind, 0), other(base, kind, 0)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=5e-3)
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in TEXTS])
    for _ in range(5):
        learned(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    gained = likelihood(of(same), of(learned), tokenizer, rows, CPU)
    lost = likelihood(of(learned), of(same), tokenizer, rows, CPU)
    assert gained.change > 2 * gained.error > 0
    assert (lost.change, lost.error) == (-gained.change, gained.error)
    none = likelihood(of(learned), of(learned), tokenizer, rows, CPU)
    assert (none.change, none.error, none.kl) == (0, 0, 0)


def test_masks_are_the_same_each_time_and_at_most_eight() -> None:
    rows = [{"input_ids": list(range(20, 40)), "special_tokens_mask": [1] + [0] * 18 + [1]}]
    copies = masked_rows(rows, 9, 0)
    assert copies == masked_rows(rows, 9, 0) != masked_rows(rows, 9, 1)
    assert len({copy["place"] for copy in copies}) == 8
    assert all(copy["input_ids"].count(9) == 1 and copy["input_ids"][copy["place"]] == 9 for copy in copies)
    assert all(rows[0]["input_ids"][copy["place"]] == copy["target"] and 0 < copy["place"] < 19 for copy in copies)


def test_a_language_model_has_its_own_body_back(base: Path, kind: str) -> None:
    model, body = other(base, kind, 0), other(base, kind, 0.3).base_model
    own, names = model.base_model, list(model.state_dict())
    with reading_through(model, body):
        assert model.base_model is body
    assert model.base_model is own
    assert list(model.state_dict()) == names


# -- transfer --


def test_a_loss_of_transfer_has_its_sign_and_its_error() -> None:
    labels = np.arange(400) % 2
    probe = Probe("task", "accuracy", False, ([],), labels)
    good, bad = labels.copy(), np.where(np.arange(400) % 4 < 2, labels, 1 - labels)
    found = transfer(probe, good, bad, 0)
    assert (found.before, found.after, found.change) == (1, 0.5, -0.5)
    assert found.error == pytest.approx(math.sqrt(0.25 / 400), rel=0.1)
    none = transfer(probe, bad, bad, 0)
    assert (none.change, none.error) == (0, 0)


def test_a_probe_learns_and_never_predicts_the_rows_that_it_has_seen(base_folder: Path) -> None:
    tokenizer = load_reference(str(base_folder)).tokenizer
    words: Any = SimpleNamespace(
        states=lambda batch: [torch.eye(50)[batch["input_ids"][batch["attention_mask"].bool()]]]
    )
    rows, cut = encode(tokenizer, TEXTS, 32)
    many = rows * 10
    good = np.array([index % 24 < 12 for index in range(240)]).astype(int)
    found = predictions(Probe("", "accuracy", False, (many,), good), words, tokenizer, CPU, 0)
    assert (found == good).all()
    same = np.array([float(index % 4 == 0) for index in range(240)])  # whether both texts have the first noun
    values = predictions(Probe("", "pearson", True, (many, rows[:1] * 240), same), words, tokenizer, CPU, 0)
    assert np.corrcoef(values, same)[0, 1] > 0.9
    chance = np.random.default_rng(0).normal(size=len(TEXTS))
    values = predictions(Probe("", "pearson", True, (rows,), chance), words, tokenizer, CPU, 0)
    assert np.corrcoef(values, chance)[0, 1] < 0.5
    assert cut == 0
    assert encode(tokenizer, TEXTS, 4)[1] == len(TEXTS)


# -- the whole --


@pytest.fixture(scope="module")
def report(base: Path, kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Forgetting, dict[str, Path]]:
    place = tmp_path_factory.mktemp("tuned")
    folders = {name: write_adapter(base, place / name, name) for name in ("spafit-12-18-II", "bitfit")}
    merge_adapter(str(base), folders["bitfit"], place / "merged")
    model = load_adapter(str(base), folders["bitfit"]).unload()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(place / "full")
    folders |= {"merged": place / "merged", "full": place / "full"}
    named = {name: str(folder) for name, folder in folders.items()}
    return measure(named, None, "sentences", TEXTS), folders


def test_switched_off_nothing_is_forgotten(report: tuple[Forgetting, dict[str, Path]]) -> None:
    off = [row for row in report[0].rows if row.state == "off"]
    assert len(off) == 2
    for row in off:
        assert row.equal_tensors == row.tensors > 30
        assert row.distance == 0
        assert set(row.layers) == {LayerDrift(1.0, 1.0, report[0].tokens)}
        assert (row.likelihood.change, row.likelihood.error, row.likelihood.kl) == (0, 0, 0)


def test_switched_on_the_frozen_layers_do_not_drift_and_the_others_do(
    report: tuple[Forgetting, dict[str, Path]],
) -> None:
    strata, bitfit = (row for row in report[0].rows if row.state == "on")
    assert (strata.frozen, bitfit.frozen) == (2, 0)
    assert strata.equal_tensors == strata.tensors
    for row in (strata, bitfit):
        exact = [layer == LayerDrift(1.0, 1.0, report[0].tokens) for layer in row.layers]
        assert exact == [True] * row.frozen + [False] * (4 - row.frozen)
        assert row.layers[-1].cosine < 0.999
        assert row.layers[-1].cka < 0.999
        assert row.likelihood.kl > 1e-4
    assert "spafit-12-18-II trains nothing up to layer 1. With the adapter on" in forgetting_page(report[0])


def test_in_place_tensors_differ_and_states_are_those_of_the_adapter(
    report: tuple[Forgetting, dict[str, Path]],
) -> None:
    rows = {(row.name, row.state): row for row in report[0].rows}
    merged, adapter, full = rows["merged", "whole"], rows["bitfit", "on"], rows["full", "whole"]
    assert 0 < merged.equal_tensors < merged.tensors == adapter.equal_tensors
    assert merged.distance > 0
    assert merged.layers[-1].cka == pytest.approx(adapter.layers[-1].cka, abs=1e-6)
    assert merged.likelihood.change == pytest.approx(adapter.likelihood.change, abs=1e-5)
    assert full.equal_tensors == 0
    assert full.distance == pytest.approx(0.01, rel=1e-3)


def test_a_base_without_a_head_says_so(base_folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base_folder, tmp_path / "adapter", "linear-probe")
    found = measure({"probe": str(adapter)}, str(base_folder), "sentences", TEXTS)
    assert [row.frozen for row in found.rows] == [4, 4]
    assert found.note.startswith("Its checkpoint has no language-model head")
    assert all(row.likelihood is None for row in found.rows)
    assert "likelihood" not in forgetting_page(found).splitlines()[2]
    assert found.base == base_folder.name


def test_of_an_encoder_decoder_the_encoder_is_read(base_folder: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path)
    tiny_generator("t5").save_pretrained(tmp_path)
    found = measure({"itself": str(tmp_path)}, str(tmp_path), "sentences", TEXTS[:2])
    assert found.rows[0].equal_tensors == found.rows[0].tensors
    assert found.note == "Of an encoder-decoder the encoder was read, and likelihoods were not measured."


def test_a_tuned_language_model_speaks_with_its_own_head(tmp_path: Path) -> None:
    base = write_lm(tmp_path / "base", "causal")
    adapter = write_adapter(base, tmp_path / "bitfit", "bitfit", AutoModelForCausalLM)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    model.save_pretrained(tmp_path / "full")
    folders = {"adapter": str(adapter), "full": str(tmp_path / "full")}
    on, off, full = measure(folders, None, "sentences", TEXTS[:6]).rows
    assert (off.likelihood.kl, off.equal_tensors) == (0, off.tensors)
    rows = [AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")["input_ids"] for text in TEXTS[:6]]
    tuned = load_adapter(str(base), adapter)
    for row, own in ((on, tuned), (full, model)):
        losses = [float(own(ids, labels=ids).loss.detach()) for ids in rows]
        assert row.likelihood.after == pytest.approx(-np.mean(losses), abs=1e-5)
    # Tied to the embeddings: one tensor with two names.
    assert full.equal_tensors == full.tensors - 1


# -- the file and the card --


def test_the_file_comes_back_and_strangers_files_are_checked(
    report: tuple[Forgetting, dict[str, Path]], tmp_path: Path
) -> None:
    path = tmp_path / FORGETTING_FILE
    path.write_text(report[0].to_json())
    assert Forgetting.read(path) == report[0]
    text = path.read_text()
    for old, new, message in (
        ('"format": 1', '"format": 2', "has format 2"),
        ('"state": "off"', '"state": "**"', "states"),
        ('"seed": 0', '"seed": "x"', "expected is a int"),
        ('"seed": 0', '"sead": 0', "unknown field"),
        ('"tokens": ', '"tokens": 1e999, "x": ', "expected is a int|unknown field"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(CardError, match=message):
            Forgetting.read(path)
    path.write_text(replace(report[0], rows=()).to_json())
    with pytest.raises(CardError, match="0 kinds of rows"):
        Forgetting.read(path)


def test_a_card_has_the_rows_of_its_own_weights(
    report: tuple[Forgetting, dict[str, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bitfit", "merged"):
        folder = report[1][name]
        (folder / FORGETTING_FILE).unlink(missing_ok=True)
        bare = write_card(folder).read_text()
        (folder / FORGETTING_FILE).write_text(report[0].to_json())
        card = write_card(folder).read_text()
        section = card.partition("## What was forgotten\n")[2].partition("\n## ")[0]
        assert f"| {name}" in section
        assert "full" not in section
        assert card.replace(f"## What was forgotten\n{section}\n", "") == bare
        assert weights_digest(folder) == next(row.weights for row in report[0].rows if row.name == name)
    weights = report[1]["merged"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert write_card(report[1]["merged"]).read_text() == bare
    assert "is about other weights" in caplog.text
