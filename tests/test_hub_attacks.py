"""A stranger's adapter: each attack is a folder made here, refused with a reason, and the base keeps every bit.

    a sound folder --one change--> a folder that must not load --> AdapterError, base as it was

Plain PEFT loads many of these (marked P): that is why the folder is checked first.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

from spafit_hf import Strategy, get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import AdapterError, verify_adapter

CONFIG, WEIGHTS, SIDECAR = "adapter_config.json", "adapter_model.safetensors", "spafit_config.json"
QUERY = "base_model.model.bert.encoder.layer.3.attention.self.query"


class Folder:
    """An adapter folder, and the ways to change it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def json(self, name: str, **changes: Any) -> None:
        data = json.loads((self.path / name).read_text())
        data |= changes
        (self.path / name).write_text(json.dumps(data))

    def tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors = load_file(self.path / WEIGHTS)
        change(tensors)
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.path / WEIGHTS)

    def header(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the header of the weights, and nothing that it describes."""
        raw = (self.path / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        (self.path / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    def raw(self, name: str, content: bytes) -> None:
        (self.path / name).write_bytes(content)

    def drop(self, name: str) -> None:
        (self.path / name).unlink()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an adapter that there is nothing wrong with."""
    folder = tmp_path_factory.mktemp("sound")
    torch.manual_seed(0)
    model = get_spafit_model(tiny("bert"), Strategy.from_name("spafit-4-9-II", r=2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(sound: dict[str, bytes], tmp_path: Path) -> Folder:
    for name, content in sound.items():
        (tmp_path / name).write_bytes(content)
    return Folder(tmp_path)


@pytest.fixture
def base() -> Iterator[Any]:
    """A base that must come out as it went in: every bit, every module, every answer."""
    model = tiny("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    labels = dict(model.config.id2label)
    with torch.no_grad():
        answer = model(**model.dummy_inputs).logits
    yield model
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert model.config.id2label == labels
    with torch.no_grad():
        assert torch.equal(model(**model.dummy_inputs).logits, answer)


def refused(folder: Folder, base: Any, *words: str) -> None:
    """Neither loaded, with a reason, nor half loaded (the fixture looks at that)."""
    with pytest.raises(AdapterError) as caught:
        load_adapter(base, folder.path)
    said = str(caught.value)
    assert len(said) < 1000
    for word in words:
        assert word in said
    with pytest.raises(AdapterError):
        verify_adapter(folder.path, base)


def test_the_sound_one_loads(folder: Folder) -> None:
    load_adapter(tiny("bert"), folder.path)
    folder.drop(SIDECAR)
    load_adapter(tiny("bert"), folder.path)


# -- pickles ----------------------------------------------------------------------------------------------------------


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickles_are_never_read(folder: Folder, base: Any, tmp_path: Path, name: str) -> None:
    folder.drop(WEIGHTS)
    folder.raw(name, pickle.dumps(Evil(tmp_path / "ran")))
    refused(folder, base, name, "pickle")
    torch.save({f"{QUERY}.lora_A.weight": torch.zeros(2, 16)}, folder.path / name)  # a harmless one neither
    refused(folder, base, name, "pickle")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_under_the_name_of_safetensors(folder: Folder, base: Any, tmp_path: Path) -> None:
    folder.raw(WEIGHTS, pickle.dumps(Evil(tmp_path / "ran")) + bytes(100))
    refused(folder, base, WEIGHTS)
    assert not (tmp_path / "ran").exists()


def test_pickles_beside_the_weights_are_left_alone(folder: Folder, tmp_path: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "adapter_model.bin", "rng_state.pth"):
        folder.raw(name, pickle.dumps(Evil(tmp_path / "ran")))
    load_adapter(tiny("bert"), folder.path)
    assert not (tmp_path / "ran").exists()


# -- tensors that are not the adapter's -------------------------------------------------------------------------------


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("base_model.model.bert.embeddings.word_embeddings.weight", (50, 16)),  # P: the base's embeddings become 0
        (f"{QUERY}.weight", (16, 16)),
        (f"{QUERY}.base_layer.weight", (16, 16)),
        ("base_model.model.bert.encoder.layer.0.output.LayerNorm.weight", (16,)),
        ("base_model.model.bert.pooler.dense.weight", (16, 16)),
        ("bert.embeddings.word_embeddings.weight", (50, 16)),
        ("classifier.weight", (2, 16)),
        ("base_model.model.classifier.original_module.weight", (2, 16)),
        ("base_model.model.classifier.modules_to_save.default.weight", (2, 16)),
        (f"{QUERY}.lora_embedding_A", (2, 16)),
        (f"{QUERY}.lora_delta", (16,)),
        ("base_model.model.bert.embeddings.LayerNorm.bias", (16,)),
        ("base_model.model.bert.encoder.layer.0.attention.self.query.bias", (16,)),
        ("base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight", (2, 16)),
        ("base_model.model.bert.encoder.layer.99.attention.self.query.bias", (16,)),
        ("base_model.model...", (16,)),
        ("", (16,)),
    ],
)
def test_extra_keys(folder: Folder, base: Any, key: str, shape: tuple[int, ...], sidecar: bool) -> None:
    if not sidecar:
        if key.endswith((".bias",)) and ".99." not in key:
            pytest.skip("without the sidecar any bias of the base may be a delta; it is added, and the base untouched")
        folder.drop(SIDECAR)
    folder.tensors(lambda tensors: tensors.__setitem__(key, torch.zeros(shape)))
    refused(folder, base)


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight"])
def test_missing_lora(folder: Folder, base: Any, part: str, sidecar: bool) -> None:
    """P: the missing half stays as it was initialized."""
    if not sidecar:
        folder.drop(SIDECAR)
    folder.tensors(lambda tensors: tensors.pop(f"{QUERY}.{part}"))
    refused(folder, base, "layer.3.attention.self.query")


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
        "base_model.model.bert.encoder.layer.1.attention.self.query.bias",
    ],
)
def test_missing_head_or_bias(folder: Folder, base: Any, key: str) -> None:
    folder.tensors(lambda tensors: tensors.pop(key))
    refused(folder, base, "missing")


def test_all_lora_of_a_module_missing(folder: Folder, base: Any) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("lora_A", "lora_B"):
            del tensors[f"{QUERY}.{part}.weight"]

    folder.tensors(drop)
    refused(folder, base)
    folder.drop(SIDECAR)
    refused(folder, base)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("what", ["lora_A.weight", "classifier.bias", "layer.1.attention.self.query.bias"])
def test_values_that_are_not_finite(folder: Folder, base: Any, value: float, what: str) -> None:
    """P"""
    key = next(key for key in load_file(folder.path / WEIGHTS) if key.endswith(what))
    folder.tensors(lambda tensors: tensors[key].view(-1).__setitem__(-1, value))
    refused(folder, base, key, "NaN or infinity")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (f"{QUERY}.lora_A.weight", (3, 16)),
        (f"{QUERY}.lora_A.weight", (2, 17)),
        (f"{QUERY}.lora_B.weight", (16, 3)),
        (f"{QUERY}.lora_B.weight", (2, 16)),
        (f"{QUERY}.lora_A.weight", (2, 16, 1)),
        (f"{QUERY}.lora_A.weight", ()),
        (f"{QUERY}.lora_A.weight", (0, 16)),
        ("base_model.model.classifier.weight", (2, 17)),
        ("base_model.model.classifier.weight", (3, 16)),
        ("base_model.model.classifier.weight", (32,)),
        ("base_model.model.classifier.bias", (3,)),
        ("base_model.model.bert.encoder.layer.1.attention.self.query.bias", (1,)),
        ("base_model.model.bert.encoder.layer.1.output.LayerNorm.bias", (16, 1)),
    ],
)
def test_shapes(folder: Folder, base: Any, key: str, shape: tuple[int, ...]) -> None:
    folder.tensors(lambda tensors: tensors.__setitem__(key, torch.zeros(shape)))
    refused(folder, base)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.uint8])
def test_dtypes(folder: Folder, base: Any, dtype: torch.dtype) -> None:
    key = f"{QUERY}.lora_A.weight"
    folder.tensors(lambda tensors: tensors.__setitem__(key, tensors[key].to(dtype)))
    refused(folder, base, "dtype")


# -- files that are not what they say ---------------------------------------------------------------------------------


def test_truncated_weights(folder: Folder, base: Any) -> None:
    whole = (folder.path / WEIGHTS).read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        folder.raw(WEIGHTS, whole[:length])
        refused(folder, base, WEIGHTS)


@pytest.mark.parametrize("claimed", [2**63, 2**64 - 1, 2**40, 10**9])
def test_a_header_that_claims_to_be_giant(folder: Folder, base: Any, claimed: int) -> None:
    whole = (folder.path / WEIGHTS).read_bytes()
    folder.raw(WEIGHTS, struct.pack("<Q", claimed) + whole[8:])
    refused(folder, base, WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header[f"{QUERY}.lora_A.weight"].update(data_offsets=[0, 2**40]),
        lambda header: header[f"{QUERY}.lora_A.weight"].update(data_offsets=[-8, 120]),
        lambda header: header[f"{QUERY}.lora_A.weight"].update(data_offsets=[8, 0]),
        lambda header: header[f"{QUERY}.lora_A.weight"].update(shape=[2**31, 2**31]),
        lambda header: header[f"{QUERY}.lora_A.weight"].update(shape=[2**62, 16]),
        lambda header: header[f"{QUERY}.lora_A.weight"].update(dtype="F99"),
        lambda header: header[f"{QUERY}.lora_A.weight"].update(shape="all"),
        # two names for the same bytes
        lambda header: header[f"{QUERY}.lora_A.weight"].update(
            data_offsets=header[f"{QUERY}.lora_B.weight"]["data_offsets"]
        ),
        lambda header: header.update(__metadata__={"format": 3}),
        lambda header: header.update(surprise="text"),
    ],
)
def test_headers_that_lie(folder: Folder, base: Any, change: Callable[[dict[str, Any]], object]) -> None:
    folder.header(change)
    refused(folder, base)


def test_other_things_in_place_of_files(folder: Folder, base: Any) -> None:
    for content in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"r": ' + b"9" * 10_000 + b"}",
    ):
        for name in (CONFIG, SIDECAR):
            before = (folder.path / name).read_bytes()
            folder.raw(name, content)
            refused(folder, base)
            folder.raw(name, before)
    for name in (CONFIG, WEIGHTS):
        before = (folder.path / name).read_bytes()
        folder.drop(name)
        refused(folder, base, name)
        (folder.path / name).mkdir()
        refused(folder, base, name)
        (folder.path / name).rmdir()
        folder.raw(name, before)


def test_a_giant_configuration(folder: Folder, base: Any) -> None:
    folder.json(CONFIG, auto_mapping={"x": "y" * 5_000_000})
    refused(folder, base, CONFIG)


# -- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "EVIL"},
        {"peft_type": "IA3"},
        {"peft_type": ["LORA"]},
        {"peft_type": None},
        {"r": 0},
        {"r": -1},
        {"r": 2**40},
        {"r": 3},
        {"r": "2"},
        {"r": True},
        {"r": 2.0},
        {"lora_alpha": "big"},
        {"lora_alpha": float("inf")},
        {"lora_alpha": float("nan")},
        {"lora_dropout": 1.5},
        {"lora_dropout": -1},
        {"bias": "everything"},
        {"bias": "none"},
        {"bias": ["all"]},
        {"rank_pattern": {".*": 2}},
        {"rank_pattern": {"(a+)+$": 2}},
        {"rank_pattern": {"query": 2**40}},
        {"rank_pattern": {"query": 5}},
        {"rank_pattern": ["query"]},
        {"alpha_pattern": {".*": 8}},
        {"alpha_pattern": {"query": float("nan")}},
        {"target_modules": ".*"},
        {"target_modules": "(a+)+$"},
        {"target_modules": "all-linear"},
        {"target_modules": ["query", 3]},
        {"target_modules": ["query", "key", "value", "dense", "embeddings"]},
        {"target_modules": ["query"]},
        {"target_modules": []},
        {"modules_to_save": ["bert"]},  # the whole encoder as a head
        {"modules_to_save": ["embeddings"]},
        {"modules_to_save": ["classifier", "bert.pooler"]},
        {"modules_to_save": []},
        {"modules_to_save": "classifier"},
        {"use_dora": True},
        {"use_dora": "yes"},
        {"use_rslora": 1},
        {"lora_bias": True},
        {"layer_replication": [[0, 4], [0, 4]]},
        {"megatron_config": {"a": 1}},
        {"megatron_core": "os"},  # P imports what is named, from an allow-list
        {"arrow_config": {"top_k": 3}},
        {"trainable_token_indices": [0, 1]},
        {"target_parameters": ["bert.embeddings.word_embeddings.weight"]},
        {"use_qalora": True},
        {"alora_invocation_tokens": [1]},
        {"unknown_field": 1},
        {"__class__": "os"},
        {"task_type": 3},
        {"base_model_name_or_path": ["x"]},
        {"revision": {"a": 1}},
    ],
    ids=repr,
)
def test_configurations(folder: Folder, base: Any, change: dict[str, Any], sidecar: bool) -> None:
    if not sidecar:
        folder.drop(SIDECAR)
    folder.json(CONFIG, **change)
    refused(folder, base)


@pytest.mark.parametrize(
    "change",
    [
        {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},  # P: imported, from an allow-list
        {"init_lora_weights": "pissa"},  # P: rewrites the base's weights
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "eva"},
        {"loftq_config": {"loftq_bits": 4}},
        {"eva_config": {"rho": 2.0}},
        {"corda_config": {"corda_method": "ipm"}},
        {"inference_mode": False},
        {"exclude_modules": ["query"]},
        {"layers_to_transform": [0]},
        {"layers_pattern": "(a+)+$"},
        {"fan_in_fan_out": True},
        {"peft_version": "99.0"},
    ],
    ids=repr,
)
def test_configurations_that_do_no_harm(folder: Folder, change: dict[str, Any]) -> None:
    """Read or not, they change nothing: the adapter works as before, and the base under it is as it was."""
    harmless(folder, lambda: folder.json(CONFIG, **change))


def test_a_strategy_that_does_not_fit_does_no_harm(folder: Folder) -> None:
    """It describes how the adapter came about; what is loaded are the tensors."""
    strategy = {"name": "x", "strata": [{"layers": [0, 10**9], "lora": ["query"]}]}
    harmless(folder, lambda: folder.json(SIDECAR, strategy=strategy))


def harmless(folder: Folder, change: Callable[[], None]) -> None:
    texts = tiny("bert").dummy_inputs
    with torch.no_grad():
        expected = load_adapter(tiny("bert"), folder.path)(**texts).logits
        change()
        base = tiny("bert")
        before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        try:
            model = load_adapter(base, folder.path)
        except AdapterError:
            return  # refusing it is as good
        assert torch.equal(model(**texts).logits, expected)
        plain = model.unload().state_dict()
        assert all(torch.equal(plain[name], tensor) for name, tensor in before.items() if "classifier" not in name)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"format": "1"},
        {"form": "evil"},
        {"form": "native"},
        {"form": "lora-bias"},
        {"lora_modules": []},
        {"lora_modules": ["bert.encoder.layer.0.attention.self.query"]},
        {"lora_modules": "query"},
        {"bias_modules": []},
        {"bias_modules": [3]},
        {"bias_modules": ["bert.embeddings.LayerNorm"]},
        {"strategy": {"strata": "x"}},
        {"strategy": "spafit-4-9-II"},
        {"labels": {"num_labels": 3, "id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": None}},
        {"labels": {"num_labels": 2, "id2label": {"0": "a"}, "problem_type": None}},
        {"labels": {"num_labels": 2, "id2label": {"0": "a", "1": ["b"]}, "problem_type": None}},
        {"labels": {"num_labels": 2, "id2label": {"0": "a", "7": "b"}, "problem_type": None}},
        {"labels": {"num_labels": 2, "id2label": {"0": "a", "1": "b"}, "problem_type": "evil"}},
        {"labels": ["a", "b"]},
        {"base": {}},
        {"base": "bert"},
        {"task": "mrpc"},
        {"spafit_hf_version": 3},
        {"unknown": 1},
    ],
    ids=repr,
)
def test_sidecars(folder: Folder, base: Any, change: dict[str, Any]) -> None:
    folder.json(SIDECAR, **change)
    refused(folder, base)


def test_a_million_labels(folder: Folder, base: Any) -> None:
    names = {str(number): "x" for number in range(200_000)}
    folder.json(SIDECAR, labels={"num_labels": len(names), "id2label": names, "problem_type": None})
    refused(folder, base)


# -- another base -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"hidden_size": 32}, "hidden_size"),
        ({"num_hidden_layers": 5}, "num_hidden_layers"),
        ({"vocab_size": 60}, "vocab_size"),
        ({"seed": 7}, "biases"),
    ],
    ids=repr,
)
def test_another_base(folder: Folder, other: dict[str, int], word: str) -> None:
    """P: the same shapes are enough for it, and the answers are wrong."""
    model = tiny("bert", **other)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refused(folder, model, word)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_architecture(folder: Folder) -> None:
    refused(folder, tiny("roberta"), "model_type")
    folder.drop(SIDECAR)
    refused(folder, tiny("roberta"))


def test_another_name(folder: Folder) -> None:
    """P: without the sidecar, the name is all there is to go by."""
    folder.drop(SIDECAR)
    folder.json(CONFIG, base_model_name_or_path="ann/one-bert")
    model = tiny("bert")
    model.config._name_or_path = "bob/another-bert"
    refused(folder, model, "ann/one-bert", "bob/another-bert")


@pytest.mark.parametrize("name", ["../../secret", "/etc", "ann/../bert", "https://evil.example/bert", "a b"])
def test_a_base_that_is_no_repository(folder: Folder, name: str) -> None:
    """Where the adapter itself is to name its base, a path or address leads nowhere, and the error says so."""
    data = json.loads((folder.path / SIDECAR).read_text())["base"]
    folder.json(SIDECAR, base={**data, "name_or_path": name})
    folder.json(CONFIG, base_model_name_or_path=name)
    with pytest.raises(AdapterError):
        load_adapter(None, folder.path)


@pytest.mark.parametrize("revision", ["../../x", "a b", "-x", "refs/../../y", "x" * 5000])
def test_a_base_revision_that_is_none(folder: Folder, revision: str) -> None:
    data = json.loads((folder.path / SIDECAR).read_text())["base"]
    folder.json(SIDECAR, base={**data, "name_or_path": "ann/bert", "revision": revision})
    with pytest.raises(AdapterError):
        load_adapter(None, folder.path)


# -- a model that carries adapters already ----------------------------------------------------------------------------


def test_what_is_loaded_already_stays(folder: Folder, tmp_path: Path) -> None:
    model = load_adapter(tiny("bert"), folder.path, adapter_name="good")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder.tensors(
        lambda tensors: tensors.__setitem__("base_model.model.bert.pooler.dense.weight", torch.zeros(16, 16))
    )
    with pytest.raises(AdapterError):
        load_adapter(model, folder.path, adapter_name="bad")
    assert list(model.peft_config) == ["good"]
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
