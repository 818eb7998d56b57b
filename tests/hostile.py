"""Adapter folders that try to cost more than they should, each a sound one with something of it replaced."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS, SIDECAR = "adapter_config.json", "adapter_model.safetensors", "spafit_config.json"
RESULTS, TOKENIZER = "spafit_results.json", "tokenizer_config.json"
KEY = "base_model.model."
HUGE = 10**400

KINDS: dict[str, Callable[[Path], object]] = {}
"""Name -> writes the kind into a sound folder."""


def kind(name: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def keep(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
        KINDS[name] = spoil
        return spoil

    return keep


def edit(folder: Path, file: str, **changes: Any) -> None:
    """Replace fields of a JSON file; a function gets the field's value and gives the new one."""
    path = folder / file
    data = json.loads(path.read_text()) if path.exists() else {}
    for name, value in changes.items():
        data[name] = value(data.get(name)) if callable(value) else value
    path.write_text(json.dumps(data))


def add_tensors(folder: Path, tensors: dict[str, torch.Tensor], *, sidecar: bool = False) -> None:
    save_file({**load_file(folder / WEIGHTS), **tensors}, folder / WEIGHTS, metadata={"format": "pt"})
    if not sidecar:
        (folder / SIDECAR).unlink(missing_ok=True)


def write_header(folder: Path, header: dict[str, Any], data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def lora(names: Iterable[str], r: int = 1) -> dict[str, torch.Tensor]:
    parts = (("lora_A.weight", (r, 4)), ("lora_B.weight", (4, r)))
    return {f"{KEY}{name}.{part}": torch.zeros(shape) for name in names for part, shape in parts}


def plain_lora(folder: Path, names: list[str], targets: list[str], **fields: Any) -> None:
    """A folder of plain PEFT's LoRA on some modules, and nothing else."""
    (folder / SIDECAR).unlink(missing_ok=True)
    save_file(lora(names), folder / WEIGHTS, metadata={"format": "pt"})
    own = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 1, "lora_alpha": 1, "target_modules": targets}
    (folder / CONFIG).write_text(json.dumps({**own, **fields}))


# ---- many of something ----


@kind("600 heads x 600 keys")
def _heads(folder: Path) -> None:
    names = [f"head{index}" for index in range(600)]
    plain_lora(folder, ["a.query"], ["query"], modules_to_save=names)
    add_tensors(folder, {f"{KEY}{name}.weight": torch.zeros(1) for name in names})


@kind("heads by one ending")
def _meant(folder: Path) -> None:
    plain_lora(folder, ["a.query"], ["query"], modules_to_save=["classifier"])
    add_tensors(folder, {f"{KEY}x{index}classifier.weight": torch.zeros(1) for index in range(4000)})


@kind("12,000 targets")
def _targets(folder: Path) -> None:
    plain_lora(folder, ["a.query"], [f"{'t' * 190}{index}" for index in range(12_000)])


@kind("100,000 targets")
def _more_targets(folder: Path) -> None:
    plain_lora(folder, ["a.query"], [f"t{index}" for index in range(100_000)])


@kind("4,000 modules and targets")
def _modules(folder: Path) -> None:
    names = [f"layer.{index}.query" for index in range(4000)]
    plain_lora(folder, names, names)


@kind("4,000 modules, patterns for each")
def _patterns(folder: Path) -> None:
    names = [f"layer.{index}.query" for index in range(4000)]
    patterns = {"rank_pattern": dict.fromkeys(names, 1), "alpha_pattern": dict(zip(names, range(4000), strict=True))}
    plain_lora(folder, names, ["query"], **patterns)


@kind("patterns that nothing matches")
def _idle_patterns(folder: Path) -> None:
    names = [f"layer.{index}.query" for index in range(4000)]
    plain_lora(folder, names, ["query"], alpha_pattern={f"x.{index}": 1 for index in range(20_000)})


@kind("patterns that take for ever to match")
def _evil_patterns(folder: Path) -> None:
    edit(folder, CONFIG, rank_pattern={"(a+)+" * 20 + str(index): 4 for index in range(1000)})


@kind("own settings of 20,000 modules")
def _settings(folder: Path) -> None:
    edit(folder, CONFIG, module_settings={f"x.{index}": {"lora_dropout": 0.1} for index in range(20_000)})


@kind("100,000 strata")
def _strata(folder: Path) -> None:
    strata = [{"layers": [index / 100_001, (index + 1) / 100_001], "biases": ["query"]} for index in range(40_000)]
    edit(folder, SIDECAR, strategy={"name": "x", "strata": strata})


@kind("1,000 strata")
def _fewer_strata(folder: Path) -> None:
    strata = [{"layers": [index / 1001, (index + 1) / 1001], "biases": ["query"]} for index in range(1000)]
    edit(folder, SIDECAR, strategy={"name": "x", "strata": strata})


@kind("unknown roles, long")
def _roles(folder: Path) -> None:
    edit(folder, SIDECAR, strategy={"name": "x", "strata": [{"layers": [0, 1], "lora": ["q" * 4_000_000]}]})


@kind("a million labels")
def _labels(folder: Path) -> None:
    names = {str(index): "" for index in range(200_000)}
    edit(folder, SIDECAR, labels={"num_labels": len(names), "id2label": names, "problem_type": None})


@kind("10,000 labels")
def _many_labels(folder: Path) -> None:
    names = {str(index): f"label {index}" for index in range(10_000)}
    edit(folder, SIDECAR, labels={"num_labels": len(names), "id2label": names, "problem_type": None})


@kind("labels of a megabyte")
def _long_labels(folder: Path) -> None:
    edit(folder, SIDECAR, labels=lambda old: {**old, "id2label": dict.fromkeys(old["id2label"], "x" * 2**20)})


@kind("modules in the sidecar")
def _sidecar_modules(folder: Path) -> None:
    edit(folder, SIDECAR, bias_modules=[f"layer.{index}" for index in range(200_000)])


@kind("unknown fields")
def _fields(folder: Path) -> None:
    edit(folder, SIDECAR, **{f"field{index}": index for index in range(100_000)})


@kind("unknown fields of the configuration")
def _config_fields(folder: Path) -> None:
    edit(folder, CONFIG, **{f"field{index}": None for index in range(100_000)})


# ---- deep, empty, large ----


@kind("a million empty lists")
def _lists(folder: Path) -> None:
    (folder / CONFIG).write_text('{"peft_type": "LORA", "eva_config": [' + ",".join(["[]"] * 1_300_000) + "]}")


@kind("a million digits")
def _digits(folder: Path) -> None:
    (folder / CONFIG).write_text('{"peft_type": "LORA", "r": ' + "9" * 4_000_000 + "}")


@kind("many numbers of thousands of digits")
def _long_numbers(folder: Path) -> None:
    (folder / CONFIG).write_text('{"peft_type": "LORA", "x": [' + ",".join(["9" * 4299] * 900) + "]}")


for depth in (30, 900, 100_000):

    @kind(f"nested {depth} deep")
    def _deep(folder: Path, depth: int = depth) -> None:
        text = "[" * depth + "]" * depth
        for file, field in ((CONFIG, "eva_config"), (SIDECAR, "task"), (RESULTS, "hyperparameters")):
            data = json.loads((folder / file).read_text())
            whole = json.dumps({**data, field: "HERE"}).replace('"HERE"', f'{{"x": {text}}}')
            (folder / file).write_text(whole)


for name, value in (("lora_alpha", float("nan")), ("lora_alpha", 1e308), ("lora_dropout", float("inf")), ("r", 1e308)):

    @kind(f"{name} is {value}")
    def _number(folder: Path, name: str = name, value: Any = value) -> None:
        edit(folder, CONFIG, **{name: value})


for name in ("lora_alpha", "lora_dropout", "r"):

    @kind(f"{name} is - 10 ** 400")
    def _huge_number(folder: Path, name: str = name) -> None:
        edit(folder, CONFIG, **{name: -HUGE})


@kind("patterns of 10 ** 400")
def _huge_patterns(folder: Path) -> None:
    edit(folder, CONFIG, alpha_pattern={"query": HUGE}, rank_pattern={"query": HUGE})


@kind("settings of 10 ** 400")
def _huge_settings(folder: Path) -> None:
    edit(folder, CONFIG, module_settings={"query": {"lora_dropout": HUGE}})


@kind("facts about the base of 10 ** 400")
def _huge_base(folder: Path) -> None:
    edit(folder, SIDECAR, base=lambda old: {**old, "vocab_size": HUGE})


@kind("labels counted 10 ** 400")
def _huge_labels(folder: Path) -> None:
    edit(folder, SIDECAR, labels=lambda old: {**old, "num_labels": HUGE})


@kind("a stratum of 10 ** 400")
def _huge_stratum(folder: Path) -> None:
    edit(
        folder, SIDECAR, strategy={"name": "x", "strata": [{"layers": [0, -1], "lora": ["query"], "lora_alpha": HUGE}]}
    )


@kind("a base's name of 5,000 letters")
def _long_base(folder: Path) -> None:
    edit(folder, CONFIG, base_model_name_or_path="a" * 5000)
    edit(folder, SIDECAR, base=lambda old: {**old, "name_or_path": "a" * 5000})


@kind("an unknown task of PEFT")
def _task_type(folder: Path) -> None:
    edit(folder, CONFIG, task_type="x")


@kind("a task of 10 ** 400")
def _huge_task(folder: Path) -> None:
    edit(folder, SIDECAR, task={"name": HUGE, "columns": HUGE})


@kind("half a pair of surrogates")
def _surrogates(folder: Path) -> None:
    edit(folder, SIDECAR, labels=lambda old: {**old, "id2label": {name: f"\ud800{name}" for name in old["id2label"]}})


@kind("control characters")
def _controls(folder: Path) -> None:
    edit(folder, CONFIG, **{"\x1b[31m\r\n\x07" * 50: 1})


# ---- the weights ----


@kind("20,000 tensors")
def _tensors(folder: Path) -> None:
    plain_lora(folder, ["a.query"], ["query"])
    add_tensors(folder, {f"{KEY}a.{index}.bias": torch.zeros(1) for index in range(20_000)})


@kind("9,000 biases")
def _biases(folder: Path) -> None:
    plain_lora(folder, ["a.query"], ["query"], bias="all")
    add_tensors(folder, {f"{KEY}a.{index}.bias": torch.zeros(1) for index in range(9000)})


@kind("a header of 8 MB")
def _header(folder: Path) -> None:
    write_header(
        folder, {f"{KEY}{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(90_000)}
    )


@kind("a header of 200 MB that is one name")
def _name(folder: Path) -> None:
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 200 * 2**20) + b'{"')
        file.truncate(201 * 2**20)  # a hole


@kind("a name of 7 MB")
def _long_name(folder: Path) -> None:
    write_header(folder, {KEY + "a." * 3_500_000 + "bias": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})


@kind("names of many parts")
def _parts(folder: Path) -> None:
    name = "a." * 140
    plain_lora(folder, [f"{name}{index}" for index in range(4000)], ["query"])


@kind("metadata of 7 MB")
def _metadata(folder: Path) -> None:
    write_header(folder, {"__metadata__": {f"k{index}": "v" for index in range(400_000)}})


for shape in ([0, 2**64 - 1], [2**62, 4, 0], [1] * 100_000, [-1], ["1"]):

    @kind(f"a shape of {str(shape)[:24]}")
    def _shape(folder: Path, shape: Any = shape) -> None:
        size = 4 if set(shape) == {1} else 0
        header = {f"{KEY}a.bias": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
        write_header(folder, header, b"\0" * size)


@kind("60 MB of zeros")
def _zeros(folder: Path) -> None:
    plain_lora(folder, ["a.query"], ["query"])
    add_tensors(folder, {f"{KEY}b.bias": torch.zeros(15_000_000)})


@kind("a rank of 60,000")
def _rank(folder: Path) -> None:
    plain_lora(folder, [], ["query"], r=60_000)
    parts = {"lora_A.weight": (60_000, 16), "lora_B.weight": (16, 60_000)}
    layers = [f"{KEY}bert.encoder.layer.{index}.attention.self.query" for index in range(4)]
    save_file({f"{at}.{part}": torch.zeros(shape) for at in layers for part, shape in parts.items()}, folder / WEIGHTS)


@kind("DoRA of rank 60,000")
def _dora(folder: Path) -> None:
    _rank(folder)
    layers = [f"{KEY}bert.encoder.layer.{index}.attention.self.query" for index in range(4)]
    edit(folder, CONFIG, use_dora=True)
    add_tensors(folder, {f"{at}.lora_magnitude_vector": torch.ones(16) for at in layers})


@kind("infinite deltas by scaling")
def _scaling(folder: Path) -> None:
    edit(folder, CONFIG, lora_alpha=2**31, use_rslora=True)


def _outputs(folder: Path, count: int) -> None:
    layer = "bert.encoder.layer.0.attention.self.query"
    plain_lora(folder, [], ["query"], target_modules=[layer], modules_to_save=["classifier"])
    parts = {"lora_A.weight": torch.zeros(1, 16), "lora_B.weight": torch.zeros(16, 1)}
    head = {"weight": torch.zeros(count, 16), "bias": torch.zeros(count)}
    tensors = {f"{layer}.{part}": each for part, each in parts.items()}
    tensors |= {f"classifier.{part}": each for part, each in head.items()}
    save_file({f"{KEY}{name}": each for name, each in tensors.items()}, folder / WEIGHTS)


@kind("a head without outputs")
def _no_outputs(folder: Path) -> None:
    _outputs(folder, 0)


@kind("a head of 1,000,000 outputs without names")
def _many_outputs(folder: Path) -> None:
    _outputs(folder, 1_000_000)


# ---- what stands beside the adapter ----


@kind("results with 2,000 versions full of marks")
def _versions(folder: Path) -> None:
    edit(folder, RESULTS, versions={f"v{index}": "|*_" * 600 for index in range(2000)})


@kind("a tokenizer's settings of 2,000,000 lists")
def _settings_of_tokenizer(folder: Path) -> None:
    (folder / TOKENIZER).write_text(f'{{"a": [{",".join(["[]"] * 2_000_000)}]}}')


@kind("results counted 10 ** 400")
def _huge_results(folder: Path) -> None:
    edit(folder, RESULTS, trained_parameters=HUGE, total_parameters=HUGE, cost={"seconds": HUGE})


@kind("results of 200,000 steps")
def _steps(folder: Path) -> None:
    edit(folder, RESULTS, steps=[{"step": index, "train_loss": 1.0} for index in range(200_000)])


@kind("results of 20,000 steps")
def _fewer_steps(folder: Path) -> None:
    edit(folder, RESULTS, steps=[{"step": index, "train_loss": 1.0, "eval_loss": 1.0} for index in range(20_000)])


@kind("results with 90,000 scores")
def _scores(folder: Path) -> None:
    edit(folder, RESULTS, scores=[{"split": f"s{index}", "figures": {f"f{index}": 1.0}} for index in range(40_000)])


@kind("results with 90,000 settings")
def _hyperparameters(folder: Path) -> None:
    edit(folder, RESULTS, all_hyperparameters={f"k{index}": index for index in range(90_000)})


@kind("results with layers up to 2 ** 62")
def _layers(folder: Path) -> None:
    edit(folder, RESULTS, layers=[{"name": "x", "stack": "y", "layers": [0, 2**62], "biases": ["query"]}] * 1000)


@kind("a tokenizer of other parts")
def _tokenizer(folder: Path) -> None:
    edit(folder, TOKENIZER, tokenizer_class="LlamaTokenizer", model_max_length=HUGE)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}}}))


def copy(sound: Path, folder: Path) -> Path:
    return Path(shutil.copytree(sound, folder))


def write(name: str, sound: Path, folder: Path) -> Path:
    """A copy of a sound folder, made hostile."""
    KINDS[name](copy(sound, folder))
    return folder
