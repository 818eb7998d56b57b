"""Bottleneck adapters in a model: beside LoRA and deltas, in files, batches, checkpoints and short cuts."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, VOCAB, assert_equal, base_tensors, inputs, logits, stir, tensors, tiny, train
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from scripts.runs import ROWS, losses, spafit_trainer
from test_predictor import TEXTS, Alone, assert_as_alone, serve

from spafit_hf import Strategy, get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import AdapterError, export_adapter, merge_adapter, start_from, verify_adapter
from spafit_hf.architecture import find_architecture
from spafit_hf.cli import main
from spafit_hf.shortcuts.first_token import probe
from spafit_hf.trainer.optimizer import parameter_kind
from spafit_hf.tuner import SpafitConfig

#: All parts beside one another: in a layer, and from layer to layer.
BESIDE = {
    "strata": [
        {"layers": [0, 0], "bottleneck": {"kind": "series", "reduction": 4}},
        {"layers": [1, 1], "lora": ["query", "intermediate"], "r": 2, "bottleneck": {"kind": "parallel"}},
        {"layers": [2, 2], "biases": ["intermediate", "output"], "bottleneck": {"kind": "parallel", "reduction": 3}},
        {
            "layers": [3, 3],
            "lora": ["output"],
            "r": 2,
            "biases": ["attention_output"],
            "bottleneck": {"kind": "series"},
        },
    ]
}
FAMILIES = ["bert", "opt", "t5"]  # the second lays rows end to end, the third has two stacks
DOWN = "base_model.model.bert.encoder.layer.2.output.dense.lora_down.weight"


def stirred(family: str = "bert", strategy: Any = BESIDE, seed: int = 0, **sizes: Any) -> PeftModel:
    """An adapter as if trained for long; equal arguments give equal ones."""
    torch.manual_seed(seed)
    model = get_spafit_model(tiny(family, **sizes), strategy)
    stir(model, seed=seed)
    return model


# ---- training ----


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "llama"])
def test_it_starts_as_the_base_and_training_leaves_the_base(family: str) -> None:
    batch, base = inputs(family), tiny(family)
    expected, before = logits(base, batch), tensors(base)
    model = get_spafit_model(base, BESIDE)
    assert torch.equal(logits(model, batch), expected)
    started = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model, batch)
    idle = [name for name, p in model.named_parameters() if name in started and torch.equal(p, started[name])]
    assert not idle
    assert not torch.equal(logits(model, batch), expected)
    assert_equal(base_tensors(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), expected)
    assert torch.equal(logits(model.unload(), batch), expected)


def test_it_computes_what_the_papers_say() -> None:
    batch = inputs("bert")
    base, seen = tiny("bert"), {}
    for strategy in ("series-adapter", "parallel-adapter"):
        model = stirred(strategy=strategy)
        layer = model.get_base_model().bert.encoder.layer[0]
        own = {name: p.detach() for name, p in layer.output.dense.named_parameters() if ".lora_" in f".{name}"}
        for name, module in (("in", layer.intermediate.dense), ("out", layer.output.dense)):
            module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args[0], out)}))
        logits(model, batch)
        (x, _), (inner, out) = seen["in"], seen["out"]
        y = base.bert.encoder.layer[0].output.dense(inner)
        read, act, scale = (y, torch.nn.functional.silu, 1) if strategy == "series-adapter" else (x, torch.relu, 4)
        low = act(read @ own["lora_down.default.weight"].T + own["lora_down.default.bias"])
        added = low @ own["lora_up.default.weight"].T + own["lora_up.default.bias"]
        torch.testing.assert_close(out, y + scale * added)


def test_a_start_away_from_the_base() -> None:
    batch = inputs("bert")
    away = get_spafit_model(tiny("bert"), "parallel-adapter", init_lora_weights=False)
    assert not torch.equal(logits(away, batch), logits(tiny("bert"), batch))


def test_activation_checkpointing_changes_nothing() -> None:
    batch = {**inputs("bert"), "labels": torch.tensor([0, 1, 0, 1])}
    gradients = []
    for checkpointed in (False, True):
        model = stirred(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if checkpointed:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert torch.equal(logits(copy.deepcopy(model), batch), logits(model, batch))
    assert_equal(*gradients)


def test_a_half_precision_base_keeps_fp32_bottlenecks() -> None:
    base = tiny("bert").to(torch.bfloat16)
    expected = logits(base, inputs("bert"))
    model = get_spafit_model(base, BESIDE)
    assert torch.equal(logits(model, inputs("bert")), expected)
    parts = {p.dtype for name, p in model.named_parameters() if ".lora_down." in name or ".lora_up." in name}
    assert parts == {torch.float32}
    train(model, inputs("bert"))
    assert logits(model, inputs("bert")).dtype == torch.bfloat16
    config = SpafitConfig(strategy=BESIDE, task_type="SEQ_CLS")
    half = get_peft_model(tiny("bert").to(torch.bfloat16), config, autocast_adapter_dtype=False)
    assert {p.dtype for name, p in half.named_parameters() if ".lora_" in name} == {torch.bfloat16}


def test_kinds_and_decay(tmp_path: Path) -> None:
    run = spafit_trainer(
        tmp_path, tiny("bert"), strategy=json.dumps(BESIDE), weight_decay=0.1, head_learning_rate=1e-3
    )
    groups = {(g["kind"], g["weight_decay"] > 0): g for g in run.create_optimizer().param_groups}
    names = {id(p): name for name, p in run.model.named_parameters()}
    decayed, other = ([names[id(p)] for p in groups["bottleneck", decays]["params"]] for decays in (True, False))
    assert {name.rpartition(".")[2] for name in decayed} == {"weight"}
    assert {name.rpartition(".")[2] for name in other} == {"bias"}
    assert {parameter_kind(name) for name in (*decayed, *other)} == {"bottleneck"}


# ---- several adapters ----


@pytest.mark.parametrize("family", FAMILIES)
def test_switching_deleting_and_mixed_batches(family: str, tmp_path: Path) -> None:
    batch = inputs(family)
    alone: dict[str, torch.Tensor] = {"__base__": logits(tiny(family), batch)}
    folders = {"a": BESIDE, "b": "series-adapter", "c": "bitfit", "d": "parallel-adapter"}
    for seed, (name, strategy) in enumerate(folders.items()):
        model = stirred(family, strategy, seed)
        alone[name] = logits(model, batch)
        save_adapter(model, tmp_path / name)
    model = load_adapter(tiny(family), tmp_path / "a", adapter_name="a")
    for name in "bcd":
        load_adapter(model, tmp_path / name, adapter_name=name)
    for name in "abcda":
        model.set_adapter(name)
        assert torch.equal(logits(model, batch), alone[name]), name
    for names in (["b", "__base__", "a", "d"], ["c", "d", "d", "a"]):
        mixed = logits(model, batch, adapter_names=names)
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row], alone[name][row], atol=1e-5, rtol=1e-5)
    for name in "adbc":
        model.delete_adapter(name)
        assert not [key for key, _ in model.named_parameters() if name in key.split(".")]
        if model.peft_config:
            model.set_adapter("c")
            assert torch.equal(logits(model, batch), alone["c"])
    assert torch.equal(logits(model.base_model.model, batch), alone["__base__"])


def test_two_at_a_time_add_up() -> None:
    strategy = {**Strategy.from_name("parallel-adapter").to_dict(), "head": False}
    model = stirred(strategy=strategy)
    model.add_adapter("b", SpafitConfig(strategy=strategy))
    stir(model, "b", seed=1)
    seen: list[torch.Tensor] = []
    layer = model.get_base_model().bert.encoder.layer[0].output.dense
    layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    for names in (["default"], ["b"], ["default", "b"], []):
        model.base_model.set_adapter(names)
        logits(model, inputs("bert"))
    first, second, both, none = seen
    torch.testing.assert_close(both - none, first + second - 2 * none)


def test_merging_and_combining_are_refused_with_nothing_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, model = inputs("bert"), stirred()
    expected, before = logits(model, batch), base_tensors(model)
    for work in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="has bottleneck adapters, which are not linear"):
            work()
    with pytest.raises(ValueError, match="of which no weighted combination exists"):
        model.add_weighted_adapter(["default"], [1.0], "sum", combination_type="linear")
    assert torch.equal(logits(model, batch), expected)
    assert_equal(base_tensors(model), before)
    assert save_adapter(model, tmp_path / "a") == "native"
    with pytest.raises(ValueError, match="not linear"):
        merge_adapter(tiny("bert"), tmp_path / "a", tmp_path / "merged")
    with pytest.raises(AdapterError, match="plain PEFT cannot read this adapter: it has bottleneck adapters"):
        export_adapter(tiny("bert"), tmp_path / "a", tmp_path / "plain", "peft")
    tiny("bert").save_pretrained(tmp_path / "base")
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "merged"), "--base", str(tmp_path / "base")]) != 0
    assert "not linear" in capsys.readouterr().err


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_peft_saves_and_loads_by_itself(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = stirred()
    PeftModel.save_pretrained(model, tmp_path)
    again = PeftModel.from_pretrained(tiny("bert"), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(again, inputs("bert")), logits(model, inputs("bert")))


# ---- files ----


def test_an_adapter_starts_from_another_ones(tmp_path: Path) -> None:
    save_adapter(stirred(), tmp_path)
    model = get_spafit_model(tiny("bert", 3), BESIDE)
    start_from(model, tmp_path)
    assert_equal(
        {name: p for name, p in model.named_parameters() if ".lora_" in name},
        {name: p for name, p in stirred().named_parameters() if ".lora_" in name},
    )
    other = json.loads(json.dumps(BESIDE))
    other["strata"][0]["bottleneck"]["activation"] = "tanh"
    for strategy, reason in ((other, "the bottleneck of .*'swish'.*'tanh'"), ("bitfit", "changes the bottleneck of")):
        with pytest.raises(AdapterError, match=reason):
            start_from(get_spafit_model(tiny("bert"), strategy), tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    save_adapter(stirred(), folder)
    verify_adapter(folder, tiny("bert"))
    return folder


MODULE = "bert.encoder.layer.2.output.dense"


def settings(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        config["bottlenecks"][MODULE] |= changes
        (folder / "adapter_config.json").write_text(json.dumps(config))

    return spoil


def announced(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        change(config)
        (folder / "adapter_config.json").write_text(json.dumps(config))

    return spoil


def stored(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        held = load_file(folder / "adapter_model.safetensors")
        change(held)
        save_file(held, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (settings(reduction=10**9), "reduction is 1000000000; it must be an integer from 1"),
        (settings(reduction=2), r"lora_down.weight of .* has shape \[5, 16\]; expected is \[8, 16\]"),
        (settings(activation="__import__"), "activation is '__import__'; allowed are"),
        (settings(activation=["relu"]), r"activation is \['relu'\]"),
        (settings(scaling=1e300), "scaling is 1e"),
        (settings(kind="series"), "reads is .*in series"),
        (settings(reads=""), "reads is ''; it must name a module"),
        (settings(reads="bert.encoder.layer.1.intermediate.dense"), "does not begin the feed-forward"),
        (settings(reads="bert.encoder.layer.2.attention.self.query"), "does not begin the feed-forward"),
        (settings(reads="nowhere"), "does not begin the feed-forward"),
        (settings(more=1), "unexpected keyword argument 'more'"),
        (announced(lambda data: data["bottlenecks"].pop(MODULE)), "lora_down.weight of .* is missing or unannounced"),
        (announced(lambda data: data.update(bottlenecks=[1])), r"bottlenecks is \[1\]"),
        (announced(lambda data: data.update(bottlenecks={MODULE: 3})), "bottlenecks is"),
        (announced(lambda data: data.update(peft_type="LORA")), "bottlenecks do not go with LORA"),
        (stored(lambda held: held.pop(DOWN)), "lora_down.weight of .* is missing or unannounced"),
        (
            stored(lambda held: held.update({DOWN: held[DOWN][:, :8].clone()})),
            r"shape \[5, 8\]; expected is \[5, 16\]",
        ),
        (stored(lambda held: held[DOWN].fill_(float("nan"))), "holds NaN or infinity"),
    ],
)
def test_hostile_folders(spoil: Callable[[Path], None], reason: str, good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "adapter"))
    spoil(folder)
    base = tiny("bert")
    before = tensors(base)
    with pytest.raises(AdapterError, match=reason):
        load_adapter(base, folder)
    assert_equal(tensors(base), before)


def test_layers_described_by_hand(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(model: Any, *, layers: bool = True) -> Any:
        if layers:
            raise ValueError("no list of layers was found")
        return find_architecture(model, layers=False)

    monkeypatch.setattr("spafit_hf.adapter.fit.find_architecture", unknown)
    assert verify_adapter(good, tiny("bert")).bottlenecks[MODULE].reads == "bert.encoder.layer.2.intermediate.dense"
    folder = Path(shutil.copytree(good, tmp_path / "adapter"))
    for reads in ("nowhere", "bert.embeddings.word_embeddings"):
        settings(reads=reads)(folder)
        with pytest.raises(AdapterError, match="does not begin the feed-forward"):
            verify_adapter(folder, tiny("bert"))


def test_a_bottleneck_on_a_norm_is_refused(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "adapter"))
    norm, dense = "bert.encoder.layer.0.output.LayerNorm", "bert.encoder.layer.0.output.dense"
    announced(lambda data: data["bottlenecks"].update({norm: data["bottlenecks"].pop(dense)}))(folder)
    stored(lambda held: held.update({k.replace(dense, norm): held.pop(k) for k in [*held] if f".{dense}." in k}))(
        folder
    )
    with pytest.raises(AdapterError, match="a bottleneck on a LayerNorm, bert"):
        load_adapter(tiny("bert"), folder)


# ---- serving, resuming, short cuts ----


@pytest.mark.parametrize("family", ["bert", "opt"])
def test_the_predictor_answers_as_each_adapter_alone(family: str, tmp_path: Path) -> None:
    dora = [*BESIDE["strata"][:3], {**BESIDE["strata"][3], "use_dora": True}]
    strategies = {
        "beside": {"strata": dora},
        "parallel": "parallel-adapter",
        "same": "parallel-adapter",
        "bias": "bitfit",
    }
    upper = {"strata": [{"layers": [3, 3], "bottleneck": {"kind": "series", "activation": "gelu"}}]}
    folders = {}
    for seed, (name, strategy) in enumerate({**strategies, "upper": upper, "upper2": upper}.items()):
        save_adapter(stirred(family, strategy, seed), folders.setdefault(name, tmp_path / name))
    assert_as_alone(serve(tiny(family), folders, batch_size=8), Alone(family, folders), TEXTS)


def test_the_prefix_cache_holds_what_lies_below(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    upper = json.dumps({"strata": [{"layers": [2, 3], "bottleneck": {"kind": "parallel"}}]})
    fields = {"strategy": upper, "num_train_epochs": 3, "prefix_cache_dtype": "float32", "first_token_only": "on"}
    live = spafit_trainer(tmp_path, **{**fields, "first_token_only": "off"})
    live.train()
    assert "Plain PEFT has no bottleneck adapters: the folder is native" in caplog.text
    cached = spafit_trainer(tmp_path, prefix_cache=str(tmp_path / "cache"), **fields)
    cached.train()
    assert cached.prefix_cache is not None, cached.prefix_cache_refused
    assert cached.prefix_cache.use.stored == ROWS
    assert cached.prefix_cache.use.read >= 3 * ROWS  # and what the probe of the last layer reads
    assert cached.first_token is not None, cached.first_token_refused
    assert losses(cached) == pytest.approx(losses(live), abs=1e-5)
    everywhere = spafit_trainer(tmp_path, strategy="series-adapter", prefix_cache=str(tmp_path / "cache"), max_steps=1)
    everywhere.train()
    assert everywhere.prefix_cache is None
    assert "is not frozen" in everywhere.prefix_cache_refused


@pytest.mark.parametrize(
    "strategy", ["series-adapter", "parallel-adapter", BESIDE], ids=["series", "parallel", "beside"]
)
def test_the_last_layer_for_the_first_token_alone(strategy: Any) -> None:
    model = stirred(strategy=strategy, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = {"input_ids": torch.randint(EOS, VOCAB, (4, 7))}
    expected = logits(model, batch)
    first = probe(model.get_base_model(), batch)
    with first.attached():
        torch.testing.assert_close(logits(model, batch), expected)
    assert first.passes
