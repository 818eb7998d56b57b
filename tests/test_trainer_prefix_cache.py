"""The trainer with a prefix cache: same losses, later runs read what earlier ones wrote, and all kinds of trouble."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from programs import Program, ranks
from scripts import tiny
from scripts.runs import ROWS, losses, spafit_trainer
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    TrainerCallback,
    default_data_collator,
)

from spafit_hf import SpafitTrainer, SpafitTrainingArguments
from spafit_hf.shortcuts import store as store_module

EPOCHS = 2


def run(folder: Path, cache: Path | str, model: nn.Module | None = None, **given: Any) -> SpafitTrainer:
    fields = {
        "num_train_epochs": EPOCHS,
        "prefix_cache": str(cache),
        "prefix_cache_dtype": "float32",
        "first_token_only": "off",  # its probe reads rows as well, and they are counted here
    }
    return spafit_trainer(folder, model, **{**fields, **given})


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run without a cache."""
    live = run(tmp_path_factory.mktemp("live"), "off")
    live.train()
    return losses(live)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that a first run has written."""
    folder = tmp_path_factory.mktemp("first")
    run(folder, folder / "cache").train()
    return folder / "cache"


@pytest.fixture
def cache(first: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(first, tmp_path / "cache")


def use(trained: SpafitTrainer) -> tuple[int, int, int]:
    """Rows read, computed, stored."""
    assert trained.prefix_cache is not None, trained.prefix_cache_refused
    counted = trained.prefix_cache.use
    return counted.read, counted.computed, counted.stored


def test_losses_are_those_without_a_cache(tmp_path: Path) -> None:
    live, found = run(tmp_path, "off"), run(tmp_path, tmp_path / "cache")
    live.train()
    found.train()
    assert losses(found) == pytest.approx(losses(live), abs=1e-6)
    assert use(found) == (EPOCHS * ROWS, ROWS, ROWS)
    assert live.prefix_cache is None
    # everything is as it was
    assert not [name for name, module in found.model.named_modules() if "forward" in vars(module) and name]
    assert found.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-6)


def test_other_seeds_rates_and_strategies_read_what_is_there(cache: Path, tmp_path: Path) -> None:
    other = run(tmp_path, cache, seed=7, data_seed=3, learning_rate=1e-3, strategy="spafit-8-12-I")
    with torch.no_grad():
        other.model.get_base_model().bert.pooler.dense.weight.mul_(2)  # runs after the border, and may be new
    other.train()
    assert use(other) == (EPOCHS * ROWS, 0, 0)
    deeper = run(tmp_path, cache, strategy="spafit-4-9-II")
    deeper.train()
    assert use(deeper) == (EPOCHS * ROWS, ROWS, ROWS)


def test_one_changed_row_is_computed_and_no_other(cache: Path, tmp_path: Path) -> None:
    rows = tiny.dataset(ROWS).to_list()
    rows[5]["input_ids"][2] += 1
    rows[6]["label"] = 1 - rows[6]["label"]  # no state depends on it
    data = type(tiny.dataset(1)).from_list(rows)
    found, live = run(tmp_path, cache, data=data), run(tmp_path, "off", data=data)
    found.train()
    live.train()
    assert use(found) == (EPOCHS * ROWS, 1, 1)
    assert losses(found) == pytest.approx(losses(live), abs=1e-6)


@pytest.mark.parametrize("name", ["bert.encoder.layer.1.output.dense.weight", "bert.embeddings.LayerNorm.bias"])
def test_one_changed_weight_is_another_cache(cache: Path, tmp_path: Path, name: str) -> None:

    def changed() -> nn.Module:
        model = tiny.bert(dropout=0.0)
        model.get_parameter(name).data.view(-1)[3] += 0.5
        return model

    found, live = run(tmp_path, cache, changed()), run(tmp_path, "off", changed())
    found.train()
    live.train()
    assert use(found) == (EPOCHS * ROWS, ROWS, ROWS)
    assert losses(found) == pytest.approx(losses(live), abs=1e-6)


def test_a_weight_changed_in_between_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = run(tmp_path, tmp_path / "cache")
    found.train()
    with torch.no_grad():
        found.model.get_base_model().bert.encoder.layer[0].output.dense.weight.mul_(1.5)
    live = found.args.prefix_cache
    cached = found.evaluate()["eval_loss"]
    found.args.prefix_cache = "off"
    assert cached == pytest.approx(found.evaluate()["eval_loss"], abs=1e-6)
    found.args.prefix_cache = live
    # while it is open as well
    found._prefix.open(found.eval_dataset)
    batch = {**found.data_collator([tiny.dataset(1)[0]])}
    batch.pop("labels", None)
    with torch.no_grad():
        found.model.eval()(**batch)
        found.model.get_base_model().bert.embeddings.LayerNorm.bias.add_(1)
        with_cache = found.model(**batch).logits
        assert "have been changed" in caplog.text
        found._opened.close()
        assert torch.allclose(found.model(**batch).logits, with_cache, atol=1e-6)


def test_evaluations_read_too(tmp_path: Path) -> None:
    found = run(tmp_path, tmp_path / "cache", eval_strategy="epoch")
    found.train()
    assert use(found) == (EPOCHS * ROWS + (EPOCHS - 1) * 12, ROWS + 12, ROWS + 12)
    found.evaluate()
    assert found.prefix_cache is not None
    assert found.prefix_cache.use.read == EPOCHS * (ROWS + 12)


def test_one_epoch_is_not_built_ahead(tmp_path: Path) -> None:
    found = run(tmp_path, tmp_path / "cache", num_train_epochs=1)
    found.train()
    assert use(found) == (0, ROWS, ROWS)  # by the steps themselves
    again = run(tmp_path, tmp_path / "cache", num_train_epochs=1)
    again.train()
    assert use(again) == (ROWS, 0, 0)


def test_dropout_is_off_in_the_frozen_part_alone(tmp_path: Path) -> None:
    found = run(tmp_path, tmp_path / "cache", tiny.bert(dropout=0.1))
    seen: dict[str, bool] = {}
    base = found.model.get_base_model()

    def note(name: str, module: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
        seen[name] = module.training
        return forward(*args)

    for name in ("bert.embeddings.dropout", "bert.encoder.layer.5.output.dropout"):
        module = base.get_submodule(name)
        module.forward = partial(note, name, module, module.forward)
    found.train()
    assert seen == {"bert.embeddings.dropout": False, "bert.encoder.layer.5.output.dropout": True}


def test_a_small_budget_holds_a_part(without: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = run(tmp_path, tmp_path / "cache", prefix_cache_max_bytes=8_000)
    found.train()
    assert losses(found) == pytest.approx(without, abs=1e-6)
    read, computed, stored = use(found)
    assert 0 < stored < ROWS
    assert read == EPOCHS * stored
    assert computed > ROWS
    assert "the budget of 8,000 bytes is used up" in caplog.text
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.*") if file.is_file()) <= 8_000


def test_weights_leave_memory_and_come_back(without: list[float], tmp_path: Path) -> None:
    found = run(tmp_path, tmp_path / "cache", prefix_cache_drop_weights=True, eval_strategy="epoch")
    before = tiny.state(found.model.get_base_model())
    weight = found.model.get_base_model().bert.encoder.layer[0].output.dense.weight
    here = weight.data_ptr()
    moved: list[bool] = []
    found.model.get_base_model().bert.encoder.layer[5].register_forward_hook(
        lambda *_: moved.append(weight.data_ptr() != here)
    )
    found.train()
    assert moved[-1]
    assert losses(found) == pytest.approx(without, abs=1e-6)
    after = tiny.state(found.model.get_base_model())
    frozen = [name for name in before if ".lora_" not in name and "modules_to_save" not in name]
    assert [name for name in frozen if not torch.equal(before[name], after[name])] == []
    assert not list((tmp_path / "cache").rglob("*.weights"))
    found.save_model(str(tmp_path / "adapter"))


# -- trouble --


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs takes rights that this user does not have")
    monkeypatch.setattr(store_module, "FREE_BYTES", -(2**40))  # or the store would stop before the disk does
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(without: list[float], small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = run(tmp_path, small_disk, prefix_cache_drop_weights=True)
    found.train()
    assert losses(found) == pytest.approx(without, abs=1e-6)
    assert "No space left on device" in caplog.text
    assert "frozen weights stay in memory" in caplog.text
    assert use(found)[1] > ROWS


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    found = run(tmp_path, tmp_path / "file")
    found.train()
    assert len(losses(found)) == 3 * EPOCHS
    assert "cannot be written to" in caplog.text
    assert "cannot be written to" in found.prefix_cache_refused
    assert found.prefix_cache is None


def test_the_folder_is_removed_while_training(without: list[float], tmp_path: Path) -> None:
    found = run(tmp_path, tmp_path / "cache")
    build = found._prefix.build

    def build_and_remove() -> None:
        build()
        shutil.rmtree(tmp_path / "cache")

    found._prefix.build = build_and_remove  # type: ignore[method-assign]
    found.train()
    assert losses(found) == pytest.approx(without, abs=1e-6)


CHILD = """
import json
from pathlib import Path
import torch
from test_trainer_prefix_cache import losses, run, slow, use
{work}
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def slow(seconds: float) -> None:
    """Make every write and step take a while, so that a kill meets it."""
    put, step = store_module.Store.put, SpafitTrainer.training_step

    def slow_put(self: Any, entries: Any) -> int:
        time.sleep(seconds)
        return put(self, entries)

    def slow_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return step(self, *args, **kwargs)

    store_module.Store.put = slow_put  # type: ignore[method-assign]
    SpafitTrainer.training_step = slow_step  # type: ignore[method-assign]


SAVING = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}


def killed_when(ready: Callable[[], bool], folder: Path, cache: Path) -> None:
    work = f"slow(0.2)\nrun(Path({str(folder)!r}), {str(cache)!r}, **{SAVING}).train()"
    program = Program(["-c", CHILD.format(work=work)], env=environment())
    until = time.monotonic() + 60
    while not ready() and not program.ended and time.monotonic() < until:
        time.sleep(0.01)
    ended = program.ended
    program.kill()
    assert not ended, "the program ended before it was killed"
    assert ready()


@pytest.mark.slow
def test_killed_in_the_build_and_in_an_epoch(tmp_path: Path) -> None:
    live = run(tmp_path / "live", "off", num_train_epochs=3)
    live.train()
    cache, out = tmp_path / "cache", tmp_path / "out"

    def stored() -> int:
        return sum(file.stat().st_size for file in cache.rglob("*.index")) if cache.exists() else 0

    killed_when(lambda: stored() > 0, out, cache)
    assert not list(out.glob("checkpoint-*"))  # it was the build
    killed_when(lambda: len(list(out.glob("checkpoint-*/trainer_state.json"))) >= 2, out, cache)
    found = run(out, cache, **SAVING)
    found.train(resume_from_checkpoint=True)
    assert use(found)[1:] == (0, 0)  # nothing was lost
    assert losses(found) == pytest.approx(losses(live), abs=1e-6)


RANK = """
found = run(Path({out!r}), {cache!r}, per_device_train_batch_size=4, per_device_eval_batch_size=6)
found.train()
counted = use(found) if found.prefix_cache else ()
(Path({out!r}) / f"{{found.args.process_index}}.json").write_text(json.dumps([losses(found), counted]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_build_and_read_together(without: list[float], tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    work = CHILD.format(work=RANK.format(out=str(tmp_path), cache=cache))
    both = ranks(2, ["-c", work], tmp_path, environment(), tmp_path / "log")
    assert [program.wait() for program in both] == [0, 0], (tmp_path / "log").read_text()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0][0] == pytest.approx(without, abs=1e-6)
    for _, counted in found:  # each computed its half, and read what the other one wrote
        # (and read the first batch twice more: the trainer asks the model whether its loss takes the number of items)
        assert counted == [EPOCHS * ROWS // 2 + 2 * 4, ROWS // 2, ROWS // 2]


# -- rows without a mask --


def images(count: int = ROWS) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(3, 8, 8, generator=draw), "labels": index % 2} for index in range(count)]


def image_run(folder: Path, cache: Path | str, data: Any = None) -> SpafitTrainer:
    model = models.tiny("vit", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return run(folder, cache, model, data=images() if data is None else data, collator=default_data_collator)


def test_images_are_read_from_the_cache(tmp_path: Path) -> None:
    live, found = image_run(tmp_path, "off"), image_run(tmp_path, tmp_path / "cache")
    live.train()
    found.train()
    assert losses(found) == pytest.approx(losses(live), abs=1e-6)
    assert use(found) == (EPOCHS * ROWS, ROWS, ROWS)


def test_images_that_are_drawn_anew_are_not_kept(tmp_path: Path) -> None:
    class Noisy(list):
        def __getitem__(self, index: int) -> Any:
            row = super().__getitem__(index)
            return {**row, "pixel_values": row["pixel_values"] + torch.randn(3, 8, 8)}

    live = image_run(tmp_path, "off", Noisy(images()))
    live.train()
    found = image_run(tmp_path, tmp_path / "cache", Noisy(images()))
    found.train()
    assert "other inputs each time" in found.prefix_cache_refused
    assert not (tmp_path / "cache").exists()
    assert losses(found) == losses(live)  # a look at the examples draws no number of the training's


def test_rows_padded_without_a_mask_are_not_kept(tmp_path: Path) -> None:
    padded = DataCollatorWithPadding(tiny.tokenizer())

    def without_mask(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = padded(rows)
        del batch["attention_mask"]
        return dict(batch)

    found = run(tmp_path, tmp_path / "cache", collator=without_mask)
    found.train()
    assert "padded to those beside them and come without an attention_mask" in found.prefix_cache_refused


# -- what cannot go together --


def test_a_strategy_without_a_prefix_trains_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = run(tmp_path, tmp_path / "cache", strategy="bitfit")
    found.train()
    assert found.prefix_cache is None
    assert "is not frozen" in found.prefix_cache_refused
    assert "No prefix cache" in caplog.text
    assert not (tmp_path / "cache").exists()
    full = run(tmp_path, tmp_path / "cache", strategy="full")
    full.train()
    assert "is not frozen" in full.prefix_cache_refused


def test_a_collator_that_changes_tokens(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.mask_token = "[UNK]"
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    data = tiny.dataset(ROWS).remove_columns("label")
    found = run(tmp_path, tmp_path / "cache", collator=collator, data=data)
    with pytest.raises(ValueError):  # masked tokens are no labels of a sentence
        found.train()
    assert "other inputs each time" in found.prefix_cache_refused


def rows_of(*lengths: int) -> list[dict[str, Any]]:
    """Examples of so many tokens, no two with the same ones."""
    draw = torch.Generator().manual_seed(0)
    words = [torch.randint(4, len(tiny.VOCABULARY), (length,), generator=draw).tolist() for length in lengths]
    return [
        {"input_ids": row, "attention_mask": [1] * len(row), "label": index % 2} for index, row in enumerate(words)
    ]


@pytest.mark.parametrize("kind", ["dataset", "list"])
@pytest.mark.parametrize("lengths", [(4,) * 70 + (6, 8, 10), (4,) * 73], ids=["sorted", "equal"])
def test_padding_on_the_left_is_seen_in_rows_of_one_length(tmp_path: Path, lengths: Any, kind: str) -> None:
    rows = rows_of(*lengths)
    data = type(tiny.dataset(1)).from_list(rows) if kind == "dataset" else rows
    left = tiny.tokenizer()
    left.padding_side = "left"
    for tokenizer, words in ((left, "depend on padding"), (tiny.tokenizer(), "")):
        found = run(tmp_path, tmp_path / "cache", data=data, collator=DataCollatorWithPadding(tokenizer))
        found.args.max_steps = 1
        found.train()
        assert words in found.prefix_cache_refused
        assert bool(words) == bool(found.prefix_cache_refused)


def test_examples_that_are_no_mappings(tmp_path: Path) -> None:
    class Example:
        def __init__(self, row: dict[str, Any]) -> None:
            vars(self).update(row)

    pad = DataCollatorWithPadding(tiny.tokenizer())

    def of_tuples(rows: list[tuple[list[int], int]]) -> Any:
        return pad([{"input_ids": ids, "label": label} for ids, label in rows])

    rows = rows_of(*[5] * ROWS)
    for data, collator in (
        ([(row["input_ids"], row["label"]) for row in rows], of_tuples),
        ([Example(row) for row in rows], default_data_collator),
    ):
        live, found = (run(tmp_path, where, data=data, collator=collator) for where in ("off", tmp_path / "cache"))
        live.train()
        found.train()
        assert found.prefix_cache_refused == ""
        assert losses(found) == pytest.approx(losses(live), abs=1e-6)


def test_a_collator_that_takes_one_length_alone(tmp_path: Path) -> None:
    data = rows_of(*[4] * 8, *[6] * 8, *[8] * 8)
    given = {"data": data, "collator": default_data_collator, "train_sampling_strategy": "sequential"}
    found = run(tmp_path, tmp_path / "cache", **given)
    found.train()
    assert len(losses(found)) == 3 * EPOCHS
    assert "makes no batch of short and long examples" in found.prefix_cache_refused


def test_a_stream_is_not_used_up(tmp_path: Path) -> None:
    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = iter(tiny.dataset(ROWS).to_list())

        def __iter__(self) -> Iterator[Any]:
            return self.rows

    found = run(tmp_path, tmp_path / "cache", data=Once(), max_steps=3)
    found.train()
    assert found.state.global_step == 3
    assert "a stream of examples" in found.prefix_cache_refused
    found.evaluate()  # its examples are no stream
    assert found.prefix_cache_refused == ""


class Averages(TrainerCallback):
    """Keeps a copy of the model as it is after each step."""

    def __init__(self) -> None:
        self.kept: list[nn.Module] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept.append(copy.deepcopy(model))
        torch.save(model, Path(args.output_dir) / "model.pt")


def test_a_copy_made_while_training_has_weights_of_its_own(tmp_path: Path) -> None:
    found, copies = run(tmp_path, tmp_path / "cache"), Averages()
    found.add_callback(copies)
    found.train()
    batch = found.data_collator([tiny.dataset(1)[0]])
    first, last = (model.eval()(**batch).logits for model in (copies.kept[0], copies.kept[-1]))
    now = found.model.eval()(**batch).logits
    assert torch.equal(last, now)
    assert not torch.allclose(first, now, atol=1e-3)
    assert use(found) == (EPOCHS * ROWS, ROWS, ROWS)
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False).eval()(**batch).logits, now)


def test_autocast_that_was_put_on_meanwhile_stays(tmp_path: Path) -> None:
    def frozen() -> nn.Module:
        model = tiny.bert(dropout=0.0)
        for part in (model.bert.embeddings, *model.bert.encoder.layer[:2]):
            part.requires_grad_(False)
        return model

    def evaluated(cache: Path | str, **given: Any) -> tuple[list[float], SpafitTrainer]:
        found = run(tmp_path, cache, frozen(), strategy="full", **given)
        return [found.evaluate()["eval_loss"] for _ in range(2)], found

    live, _ = evaluated("off", bf16=True)
    exact, _ = evaluated("off")
    cached, found = evaluated(tmp_path / "cache", bf16=True)
    assert found.prefix_cache is not None, found.prefix_cache_refused
    assert abs(live[0] - exact[0]) > 1e-6
    assert cached == pytest.approx([cached[0]] * 2, abs=1e-9)
    assert abs(cached[1] - exact[1]) > 1e-6
    found.train()
    assert len(losses(found)) == 3 * EPOCHS


def test_a_model_that_was_cast_or_unfrozen_in_between(tmp_path: Path) -> None:
    found = run(tmp_path, tmp_path / "cache")
    found.train()
    first = found.prefix_cache
    found.evaluate()
    assert found.prefix_cache is first
    found.model.to(torch.bfloat16)
    cached = found.evaluate()["eval_loss"]
    assert found.prefix_cache is not first
    assert found.prefix_cache is not None
    found.args.prefix_cache = "off"
    assert cached == pytest.approx(found.evaluate()["eval_loss"], abs=2e-2)
    found.args.prefix_cache = str(tmp_path / "cache")
    found.model.get_base_model().bert.embeddings.LayerNorm.bias.requires_grad = True
    found.evaluate()
    assert "embeddings.LayerNorm.bias trains" in found.prefix_cache_refused


def test_compiled_models_and_several_kinds_of_evaluation_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(tmp_path, tmp_path / "cache", bf16_full_eval=True)
    found.evaluate()
    assert "bf16_full_eval" in found.prefix_cache_refused


def test_noise_on_the_embeddings_is_not_lost(tmp_path: Path) -> None:
    found = run(tmp_path, tmp_path / "cache", neftune_noise_alpha=5.0, max_steps=1)
    found.train()
    assert "--neftune_noise_alpha is drawn anew" in found.prefix_cache_refused


@pytest.mark.parametrize("where", ["embeddings.word_embeddings", "encoder.layer.0", "encoder.layer.1.output.dense"])
def test_a_hook_of_the_scripts_own_on_what_is_frozen_sees_and_does_what_it_would(where: str, tmp_path: Path) -> None:
    def double(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return 2 * output

    live, found = run(tmp_path, "off"), run(tmp_path, tmp_path / "cache")
    found.evaluate()
    assert found.prefix_cache is not None, found.prefix_cache_refused
    for each in (live, found):
        each.model.get_base_model().bert.get_submodule(where).register_forward_hook(double)
    assert found.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-6)
    again = run(tmp_path, tmp_path / "cache")
    again.model.get_base_model().bert.get_submodule(where).register_forward_hook(double)
    again.train()
    assert "a hook on" in again.prefix_cache_refused


def test_a_hook_on_what_goes_in_around_the_frozen_layers_is_seen_and_one_on_what_comes_out_is_none(
    tmp_path: Path,
) -> None:
    live, found = run(tmp_path, "off"), run(tmp_path, tmp_path / "cache")
    found.evaluate()
    for each in (live, found):
        encoder = each.model.get_base_model().bert.encoder
        encoder.register_forward_hook(lambda _module, _args, _output: None)  # of states that are there
        if each is found:
            read = use(found)[0]
            found.evaluate()
            assert use(found)[0] > read
        encoder.register_forward_pre_hook(lambda _module, args: (args[0].flip(-1), *args[1:]))
    assert found.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prefix_cache_dtype": "int8"}, "allowed are float16, bfloat16, float32"),
        ({"prefix_cache_max_bytes": -1}, "must be 0 or more"),
        ({"prefix_cache": ""}, "off, auto, or a folder"),
    ],
)
def test_arguments_that_cannot_be(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        SpafitTrainingArguments(str(tmp_path), **fields)


def test_the_cache_is_off_by_default(tmp_path: Path) -> None:
    assert SpafitTrainingArguments(str(tmp_path)).prefix_cache == "off"


def test_bf16_has_entries_of_its_own(cache: Path, tmp_path: Path) -> None:
    mixed, live = run(tmp_path, cache, bf16=True), run(tmp_path, "off", bf16=True)
    mixed.train()
    live.train()
    assert use(mixed) == (EPOCHS * ROWS, ROWS, ROWS)
    assert losses(mixed) == pytest.approx(losses(live), abs=2e-2)
