"""Architectures described in a file: known wherever the model is looked at, and the page that shows it runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models import tiny
from test_architecture import BY_HAND, Unusual
from torch import nn

from spafit_hf import get_spafit_model, plan
from spafit_hf.architecture import Architecture, find_architecture, register_architecture
from spafit_hf.architecture.described import forget_architecture
from spafit_hf.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "by_hand.md").read_text(encoding="utf-8")
FILE = {"model_type": "Unusual", "layers": "blocks", "roles": BY_HAND, "head": ["decide"]}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for model_type in ("Unusual", "Mine", "bert", "t5"):
        forget_architecture(model_type)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    for kind, text in blocks:
        if kind == "yaml":
            Path("mine.yaml").write_text(text, encoding="utf-8")
        else:
            exec(compile(text, "by_hand.md", "exec"), names)  # the point of the test
    x = torch.arange(10)[None]
    with torch.no_grad():
        trained, again = (model.eval()(input_ids=x)["logits"] for model in (names["trainer"].model, names["again"]))
    assert torch.equal(trained, again)
    forget_architecture("Mine")
    with pytest.raises(ValueError) as refused:
        find_architecture(names["Mine"]())
    start, shown = (
        yaml.safe_load(re.search(r"starts as ({.*?}) \(", str(refused.value))[1]),
        yaml.safe_load(blocks[1][1]),
    )
    assert (start["model_type"], start["layers"], set(start["roles"])) == ("Mine", "blocks", set(shown["roles"]))
    assert "{model_type: Mine, layers: blocks, roles: {query: '?'," in " ".join(PAGE.split())


def test_a_description_is_known_wherever_the_model_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(FILE))
    with pytest.raises(ValueError, match="no list of layers"):
        plan(Unusual(), "spafit-4-9-II")
    found = plan(Unusual(), "spafit-4-9-II", architecture=tmp_path / "mine.yaml")
    assert plan(Unusual(), "spafit-4-9-II").tensors == found.tensors
    wrapped = get_spafit_model(Unusual(), "spafit-4-9-II")
    assert {name for name, _ in wrapped.named_parameters() if "lora_A" in name}
    forget_architecture("Unusual")
    with pytest.raises(ValueError, match="no list of layers"):
        find_architecture(Unusual())


def test_what_a_layer_lacks_is_left_out_and_noted() -> None:
    roles = {role: names for role, names in BY_HAND.items() if role not in ("intermediate", "output", "output_norm")}
    found = plan(Unusual(), "spafit-4-9-II", architecture={**FILE, "roles": roles})
    assert "4 of the 4 layers in blocks have no intermediate, output." in found.notes
    assert all(".mix." in name for name in found.lora)


class Several(nn.Module):
    """Matrices of several networks in one tensor, which no name says are experts."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.randn(3, 16, 8))


def test_experts_are_found_by_their_name_or_told() -> None:
    model = Unusual()
    for block in model.blocks:
        block.add_module("several", Several())
        block.add_module("experts", Several())
    tables = {"found": BY_HAND, "told": {**BY_HAND, "experts": "several.bank"}}
    layers = [find_architecture_with(model, roles).stacks[0].layers[1] for roles in tables.values()]
    assert [layer.experts for layer in layers] == [("blocks.1.experts.bank",), ("blocks.1.several.bank",)]
    strategy = {"strata": [{"layers": [1, 1], "lora": ["experts"], "r": 2}], "head": False}
    assert plan(model, strategy).tensors == {
        "base_model.model.blocks.1.several.lora_A.weight": (6, 8),
        "base_model.model.blocks.1.several.lora_B.weight": (16, 6),
    }
    with pytest.raises(ValueError, match=r"no layer in blocks .* the role 'experts' \(looked for wide\)"):
        find_architecture_with(model, {**BY_HAND, "experts": "wide"})


def find_architecture_with(model: nn.Module, roles: dict[str, Any]) -> Architecture:
    register_architecture({**FILE, "roles": roles})
    return find_architecture(model)


def test_stacks_may_have_tables_of_their_own() -> None:
    model = tiny("t5")
    known = find_architecture(model)
    paths = {stack.name: stack.path for stack in known.stacks}
    roles = {
        stack.name: {
            role: [name.removeprefix(f"{stack.layers[0].path}.") for name in names]
            for role, names in stack.layers[0].modules.items()
            if names
        }
        for stack in known.stacks
    }
    register_architecture({"model_type": "t5", "layers": paths, "roles": roles})
    assert find_architecture(model).stacks == known.stacks


def test_the_command_line_takes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny("bert")
    model.config.save_pretrained(tmp_path)
    roles = {role: names for role, names in FILE["roles"].items() if role == "query"}
    short = {"model_type": "bert", "layers": "bert.encoder.layer", "roles": {"query": "attention.self.query"}}
    (tmp_path / "bert.yaml").write_text(yaml.safe_dump(short))
    flags = ["plan", str(tmp_path), "lora-II", "--architecture", str(tmp_path / "bert.yaml")]
    assert main(flags) == 0
    assert "have no key, value, attention_output, intermediate, output" in capsys.readouterr().out
    (tmp_path / "bert.yaml").write_text(yaml.safe_dump({**short, "roles": roles}))
    assert main(flags) == 2
    assert "no layer in bert.encoder.layer has a module for the role 'query'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "blocks"}, "unknown key 'layer'"),
        ({"layers": None}, "has no 'layers'"),
        ({"layers": 3}, "layers is 3; docs/by_hand.md shows the form"),
        ({"roles": ["query"]}, "roles is .*docs/by_hand.md"),
        ({"head": "decide"}, "head is 'decide'; it must be a list"),
    ],
)
def test_wrong_descriptions(change: dict[str, Any], message: str) -> None:
    before = copy.deepcopy(FILE)
    with pytest.raises(ValueError, match=message):
        register_architecture({**before, **change})
    with pytest.raises(ValueError, match="no list of layers"):
        find_architecture(Unusual())


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the architecture cannot be read"):
        register_architecture(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="the architecture is read from a file that ends in"):
        register_architecture(tmp_path / "nowhere.txt")
