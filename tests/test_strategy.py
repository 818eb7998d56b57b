"""Strategies: names, ranges, scaling, files, and every way to get one wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from spafit_hf.strategy import EVERY_ROLE, LORA_ROLES, METHODS, ROLES, Strategy, Stratum, layers_text

EVERY_BIAS = ROLES
FEED_FORWARD = ("intermediate", "output", "output_norm")
QKV = ("query", "key", "value")

OWN = Strategy(
    strata=(
        Stratum(layers=(0.25, 0.5), biases=("output", "query")),
        Stratum(layers=(0.5, 1.0), lora=("value", "query"), r=8, lora_alpha=16.5, lora_dropout=0.1, use_dora=True),
    ),
    name="my own, ünïcode: yes",
    outer_biases=True,
)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_each_method_of_table_1_has_its_own_name(name: str) -> None:
    assert Strategy.from_name(name).name == name
    for spelling in (name.upper(), name.lower(), f" {name.replace('-', ' ')} ", name.replace("-", "_")):
        assert Strategy.from_name(spelling) == Strategy.from_name(name)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("Full fine-tuning", "full"),
        ("Full BitFit", "bitfit"),
        ("full-lora-i", "lora-I"),
        ("Full LoRA-II", "lora-II"),
        ("linear probing", "linear-probe"),
    ],
)
def test_names_as_the_paper_writes_them(alias: str, name: str) -> None:
    assert Strategy.from_name(alias) == Strategy.from_name(name)


@pytest.mark.parametrize("kind", ["I", "II"])
def test_the_groups_of_spafit(kind: str) -> None:
    strategy = Strategy.from_name(f"spafit-4-9-{kind}")
    (one, first), (two, second), (three, third) = strategy.resolve(24)
    assert (first, second, third) == (tuple(range(5)), tuple(range(5, 10)), tuple(range(10, 24)))
    assert not one.trains
    assert (two.lora, two.biases) == ((), EVERY_BIAS)
    assert three.lora == (QKV if kind == "I" else (*QKV, "attention_output"))
    assert three.biases == FEED_FORWARD
    assert (three.r, three.lora_alpha, three.lora_dropout) == (64, 128, 0.0)
    assert strategy.head
    assert not strategy.outer_biases
    assert strategy.prefix_length(24) == 5


def test_the_other_methods() -> None:
    full, bitfit, lora = (Strategy.from_name(name) for name in ("full", "bitfit", "lora-II"))
    assert full.full
    assert full.resolve(24) == ()
    assert full.prefix_length(24) == 0
    assert bitfit.outer_biases
    assert [(stratum.biases, layers) for stratum, layers in bitfit.resolve(12)] == [(EVERY_BIAS, tuple(range(12)))]
    assert bitfit.prefix_length(12) == 0
    assert [(stratum.lora, stratum.biases) for stratum, _ in lora.resolve(6)] == [((*QKV, "attention_output"), ())]
    probe = Strategy.from_name("linear-probe")
    assert probe.strata == ()
    assert probe.head
    assert probe.prefix_length(12) == 12


def test_lora_settings_go_where_lora_is() -> None:
    strategy = Strategy.from_name("spafit-4-9-I", r=8, lora_alpha=16, lora_dropout=0.1, use_rslora=True, use_dora=True)
    third = strategy.strata[-1]
    assert (third.r, third.lora_alpha, third.lora_dropout, third.use_rslora, third.use_dora) == (
        8,
        16,
        0.1,
        True,
        True,
    )
    assert strategy.strata[1] == Strategy.from_name("spafit-4-9-I").strata[1]
    settings = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "use_rslora": True, "use_dora": True}
    assert Strategy.from_name("spafit-4-9-I").with_lora(**settings) == strategy
    assert Strategy.from_name("bitfit", r=8) == Strategy.from_name("bitfit")
    assert Strategy.from_name("bitfit").with_lora(r=8) == Strategy.from_name("bitfit")


def test_any_other_spafit_name() -> None:
    assert Strategy.from_name("SPAFIT-0-23-i").resolve(24)[0][1] == (0,)
    assert [stratum.name for stratum in Strategy.from_name("spafit-0-23-I").strata] == ["group 1", "group 2"]
    assert [stratum.name for stratum in Strategy.from_name("spafit-7-7-II").strata] == ["group 1", "group 3"]


# -- bounds in the model's own depth ----------------------------------------------------------------------------------


def test_absolute_bounds() -> None:
    strategy = Strategy.from_bounds(0, 2, "I")
    assert [layers for _, layers in strategy.resolve(6)] == [(0,), (1, 2), (3, 4, 5)]
    assert [layers for _, layers in strategy.resolve(3)] == [(0,), (1, 2), ()]
    assert Strategy.from_name(strategy.name) == strategy
    assert Strategy.from_bounds(-1, -1).resolve(4)[0][1] == (0, 1, 2, 3)
    assert strategy.scaling(6) == ""
    with pytest.raises(ValueError, match=r"group 2 .*beyond the last layer: there are 2, .* the last is 1"):
        strategy.resolve(2)


def test_every_pair_of_absolute_bounds_covers_each_layer_once() -> None:
    for num_layers in (1, 2, 5, 6, 12, 13):
        for n2 in range(-1, num_layers):
            for n1 in range(-1, n2 + 1):
                strategy = Strategy.from_bounds(n1, n2)
                layers = [layer for _, each in strategy.resolve(num_layers) for layer in each]
                assert layers == list(range(num_layers))
                assert strategy.prefix_length(num_layers) == n1 + 1
                assert Strategy.from_name(strategy.name) == strategy


def test_with_bounds_keeps_kind_and_lora() -> None:
    strategy = Strategy.from_name("spafit-4-9-I", r=8, lora_alpha=32).with_bounds(1, 3)
    assert strategy == Strategy.from_bounds(1, 3, "I", r=8, lora_alpha=32)
    assert Strategy.from_name("spafit-4-23-II").with_bounds(1, 3) == Strategy.from_bounds(1, 3, "II")
    with pytest.raises(ValueError, match="'bitfit', which has no such bounds"):
        Strategy.from_name("bitfit").with_bounds(1, 3)


# -- scaling ----------------------------------------------------------------------------------------------------------


def test_scaling_follows_the_rule_on_every_depth() -> None:
    for num_layers in range(1, 49):
        for n1, n2 in ((4, 9), (8, 12), (8, 16), (4, 14), (0, 0), (0, 23), (23, 23), (11, 17)):
            strategy = Strategy.from_name(f"spafit-{n1}-{n2}-II")
            end1, end2 = (int(Fraction((n + 1) * num_layers, 24) + Fraction(1, 2)) for n in (n1, n2))
            layers = {stratum.name: each for stratum, each in strategy.resolve(num_layers)}
            assert layers.get("group 1", ()) == tuple(range(end1))
            assert layers.get("group 2", ()) == tuple(range(end1, end2))
            assert layers.get("group 3", ()) == tuple(range(end2, num_layers))
            assert strategy.prefix_length(num_layers) == end1


@pytest.mark.parametrize(
    ("num_layers", "ends"), [(24, (5, 10)), (12, (3, 5)), (6, (1, 3)), (48, (10, 20)), (3, (1, 1)), (1, (0, 0))]
)
def test_scaling_rounds_halves_up(num_layers: int, ends: tuple[int, int]) -> None:
    layers = [each for _, each in Strategy.from_name("spafit-4-9-II").resolve(num_layers)]
    assert layers == [tuple(range(ends[0])), tuple(range(*ends)), tuple(range(ends[1], num_layers))]


def test_scaling_says_what_became_of_the_bounds() -> None:
    strategy = Strategy.from_name("spafit-4-9-II")
    assert strategy.scaling(24) == ""
    assert strategy.scaling(12) == (
        "24 -> 12 layers: group 1 0-4 -> 0-2, group 2 5-9 -> 3-4, group 3 10-23 -> 5-11 (N1 = 4 -> 2, N2 = 9 -> 4)"
    )
    assert strategy.scaling(1).endswith("(N1 = 4 -> none, N2 = 9 -> none)")
    assert OWN.scaling(12) == ""


def test_shares_cut_where_they_say() -> None:
    thirds = Strategy(tuple(Stratum((i / 6, (i + 1) / 6), biases=("output",)) for i in range(6)))
    assert [layers for _, layers in thirds.resolve(12)] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    # A sixth of three layers is half a layer: 1/6 as a float is a little less, and must round up all the same.
    assert [layers for _, layers in thirds.resolve(3)] == [(0,), (), (1,), (), (2,), ()]
    for num_layers in range(1, 60):
        layers = [layer for _, each in thirds.resolve(num_layers) for layer in each]
        assert layers == list(range(num_layers))


def test_layers_in_no_stratum_are_left_out() -> None:
    strategy = Strategy((Stratum((2, 3), biases=ROLES), Stratum((5, 5), lora=QKV)))
    assert [layers for _, layers in strategy.resolve(8)] == [(2, 3), (5,)]
    assert strategy.prefix_length(8) == 2


# -- round trips ------------------------------------------------------------------------------------------------------

SAMPLES = (
    *(Strategy.from_name(name) for name in METHODS),
    Strategy.from_name("spafit-3-11-I", r=3, lora_alpha=0.1, lora_dropout=1e-5, use_rslora=True),
    Strategy.from_bounds(1, 2),
    OWN,
    Strategy((Stratum((0, -1), biases=ROLES, name="all"),), head=False),
)


@pytest.mark.parametrize("strategy", SAMPLES, ids=lambda strategy: strategy.name)
def test_round_trips_are_exact(strategy: Strategy, tmp_path: Path) -> None:
    assert Strategy.from_dict(strategy.to_dict()) == strategy
    assert Strategy.from_dict(json.loads(json.dumps(strategy.to_dict()))) == strategy
    assert Strategy.from_dict(yaml.safe_load(yaml.safe_dump(strategy.to_dict()))) == strategy
    for ending in ("yaml", "yml", "json"):
        path = tmp_path / f"strategy.{ending}"
        strategy.to_file(path)
        again = Strategy.from_file(path)
        assert again == strategy
        assert again.to_dict() == strategy.to_dict()
        assert Strategy.coerce(path) == Strategy.coerce(str(path)) == strategy
    assert Strategy.coerce(json.dumps(strategy.to_dict())) == strategy
    assert Strategy.coerce(strategy) is strategy
    assert hash(strategy) == hash(Strategy.from_dict(strategy.to_dict()))
    for stratum in strategy.strata:
        assert Stratum.from_dict(stratum.to_dict()) == stratum


def test_a_file_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
        name: mine
        strata:
          - layers: [0.0, 0.5]
            biases: [output_norm, query]
          - layers: [0.5, 1]
            lora: [value]
            r: 4
        """
    )
    strategy = Strategy.from_file(path)
    assert strategy.strata[0].biases == ("query", "output_norm")  # one order, whatever was written
    assert strategy.strata[1].layers == (0.5, 1.0)
    assert [layers for _, layers in strategy.resolve(4)] == [(0, 1), (2, 3)]


def test_a_name_alone_is_the_method() -> None:
    assert Strategy.from_dict({"name": "bitfit"}) == Strategy.from_name("bitfit")


def test_lists_become_tuples() -> None:
    strategy = Strategy([Stratum([0, 1], lora=["key"], biases=["value"])])  # type: ignore[arg-type]
    assert strategy == Strategy((Stratum((0, 1), lora=("key",), biases=("value",)),))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spafit-9-4-II", r"N1 = 9 is beyond N2 = 4.*did you mean N1 = 4, N2 = 9\?"),
        ("spafit-4-24-II", r"N2 = 24 is beyond the last layer.*24 layers.*at most 23"),
        ("spafit-30-40-I", r"at most 23"),
        ("spafit--1-4-II", r"N1 is -1; it counts layers from zero"),
        ("spafit-4-9", r"did you mean 'spafit-4-9-I'"),
        ("spafit-4-9-III", r"unknown strategy 'spafit-4-9-III'.*allowed are full, bitfit"),
        ("spfit-4-9-II", r"did you mean 'spafit-4-9-II'"),
        ("Bitfitt", r"did you mean 'bitfit'"),
        ("", r"allowed are full, bitfit, .*linear-probe"),
        ("spafit-4-9-II-absolute-x", r"unknown strategy"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strategy.from_name(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (4, 2)}, "the first layer must not be beyond the last"),
        ({"layers": (-2, 2)}, "layers count from zero"),
        ({"layers": (0, -2)}, "layers count from zero"),
        ({"layers": (0.5, 0.5)}, "shares of the depth, 0 <= first < last <= 1"),
        ({"layers": (0.0, 1.5)}, "shares of the depth"),
        ({"layers": (0, 4.0)}, "shares of the depth"),
        ({"layers": (float("nan"), 1.0)}, "shares of the depth"),
        ({"layers": (1,)}, "must be two numbers"),
        ({"layers": (0, True)}, "must be two numbers"),
        ({"layers": "0-4"}, "must be two numbers"),
        ({"layers": 4}, "must be two numbers"),
        ({"lora": ("querry",)}, "unknown role 'querry'; allowed are query, .*did you mean 'query'"),
        ({"lora": ("output_norm",)}, "'output_norm' is a norm and has no matrix for LoRA"),
        ({"biases": ("classifier",)}, "biases: unknown role 'classifier'"),
        ({"biases": "query"}, "must be a list of roles"),
        ({"biases": ("query", "query")}, "names a role twice"),
        ({"biases": (1,)}, "unknown role 1"),
        ({"r": 0}, "rank of LoRA must be an integer of at least 1"),
        ({"r": 8.0}, "rank of LoRA"),
        ({"r": True}, "rank of LoRA"),
        ({"lora_alpha": 0}, "must be a positive number"),
        ({"lora_alpha": float("inf")}, "must be a positive number"),
        ({"lora_alpha": "128"}, "must be a positive number"),
        ({"lora_dropout": 1.0}, "probability from 0 to below 1"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; it must be true or false"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; allowed are default, gaussian, orthogonal"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "r is 3; an orthogonal start needs an even rank"),
        ({"use_rslora": 1}, "use_rslora is 1"),
        ({"name": None}, "must be a string"),
    ],
)
def test_wrong_strata(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stratum(**{"layers": (0, 4), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"strata": (Stratum((0, 4)), Stratum((4, 9)))},
            r"stratum 1 \(layers 0-4\) and stratum 2 \(layers 4-9\) overlap",
        ),
        ({"strata": (Stratum((5, 9)), Stratum((0, -1)))}, "overlap"),
        ({"strata": (Stratum((0.0, 0.5)), Stratum((0.4, 1.0)))}, r"stratum 1 \(layers 0%-50%\) and stratum 2"),
        ({"strata": (Stratum((0.0, 0.5)), Stratum((4, 9))), "depth": 12}, "overlap"),
        ({"strata": (Stratum((0, 12)),), "depth": 12}, "beyond the last layer: there are 12"),
        ({"strata": Stratum((0, 4))}, "must be a tuple"),
        ({"strata": ({"layers": [0, 4]},)}, "each must be a Stratum"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": 24.0}, "depth is 24.0"),
        ({"full": True, "head": False}, "full=True trains every weight"),
        ({"full": True, "strata": (Stratum((0, 4)),)}, "full=True trains every weight"),
        ({"head": False}, "trains nothing"),
        ({"head": "yes"}, "head is 'yes'; it must be true or false"),
        ({"name": ""}, "name is ''"),
    ],
)
def test_wrong_strategies(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strategy(**fields)  # type: ignore[arg-type]


def test_strata_that_meet_only_on_some_depth() -> None:
    mixed = Strategy((Stratum((0.0, 0.5), biases=ROLES), Stratum((6, -1), lora=QKV)))
    assert [layers for _, layers in mixed.resolve(12)] == [tuple(range(6)), tuple(range(6, 12))]
    with pytest.raises(ValueError, match=r"both take layer 6 of 14"):
        mixed.resolve(14)
    for num_layers in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="num_layers is"):
            mixed.resolve(num_layers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n1", "n2", "kind", "message"),
    [
        (4, 2, "I", "N1 = 4 is beyond N2 = 2"),
        (-2, 2, "I", "layers count from zero"),
        (1.0, 2, "I", "both must be integers"),
        (1, 2, "III", "must be 'I' or 'II'"),
    ],
)
def test_wrong_bounds(n1: int, n2: int, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strategy.from_bounds(n1, n2, kind)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "strata": [], "deph": 24}, "unknown key 'deph'; allowed are .*did you mean 'depth'"),
        ({"strata": [{"layers": [0, 4], "rank": 8}]}, "stratum: unknown key 'rank'"),
        ({"strata": [{"lora": ["query"]}]}, "has no 'layers'"),
        ({"strata": [[0, 4]]}, "a stratum is"),
        ({"strata": {"layers": [0, 4]}}, "must be a list of mappings"),
        ({"strata": "spafit-4-9-II"}, "must be a list of mappings"),
        ({"strata": 3}, "must be a list of mappings"),
        ({"name": "mine", "head": True}, "has no 'strata'"),
        ({"name": "mine"}, "unknown strategy 'mine'"),
        ({}, "has no 'strata'"),
        ([], "must be a name|must be a mapping"),
        (None, "must be a name"),
        (7, "must be a name"),
    ],
)
def test_wrong_dicts(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strategy.coerce(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.yaml", "strata: [", "not valid YAML"),
        ("a.yaml", "name: a\nname: b\nstrata: []", "'name' stands twice"),
        ("a.yaml", "- 1", "must be a mapping"),
        ("a.yaml", "", "must be a mapping"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a.yaml", "strata:\n- {layers: [4, 2]}", "a.yaml: stratum: layers"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"strata": [], "strata": []}', "'strata' stands twice"),
        ("a.txt", "{}", "ends in .yaml, .yml or .json"),
    ],
)
def test_wrong_files(file: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Strategy.from_file(path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml: the strategy cannot be read \(No such file"):
        Strategy.coerce(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        Strategy.from_file(tmp_path / "binary.yaml")
    with pytest.raises(ValueError, match=r"ends in \.yaml"):
        OWN.to_file(tmp_path / "strategy.toml")


def test_with_lora_takes_only_lora_settings() -> None:
    with pytest.raises(ValueError, match="unknown key 'rank'"):
        OWN.with_lora(rank=8)
    with pytest.raises(ValueError, match="rank of LoRA"):
        OWN.with_lora(r=0)


# -- text -------------------------------------------------------------------------------------------------------------


def test_strategies_read_as_a_line() -> None:
    assert str(Strategy.from_name("spafit-4-9-II")) == (
        "spafit-4-9-II of 24 layers: 0-4 frozen | 5-9 every bias | "
        "10-23 LoRA q,k,v,o r=64 alpha=128 + biases intermediate,output,output_norm | head"
    )
    assert str(Strategy.from_name("full")) == "full: every weight"
    assert str(Strategy.from_name("linear-probe")) == "linear-probe: head"
    assert str(OWN).endswith(
        "25%-50% biases q,output | 50%-100% LoRA q,v r=8 alpha=16.5 dropout=0.1 DoRA"
        " | biases outside the layers | head"
    )
    assert "4-end" in str(Strategy.from_bounds(1, 3))


def test_layers_text() -> None:
    assert layers_text((3, 4, 5)) == "3-5"
    assert layers_text((5, 0, 1)) == "0-1,5"
    assert layers_text((7,)) == "7"
    assert layers_text(()) == "none"


def test_roles() -> None:
    assert len(ROLES) == 8
    assert set(EVERY_ROLE) - set(LORA_ROLES) == {"attention_norm", "cross_attention_norm", "output_norm"}
    assert {*ROLES, *(f"cross_{role}" for role in ROLES[:5]), "mixer_in", "mixer_out"} == {*EVERY_ROLE}
    assert list(EVERY_ROLE).index("attention_norm") < list(EVERY_ROLE).index("cross_query")


def test_the_attention_stands_for_a_mixer_where_there_is_one() -> None:
    kinds = {name: Strategy.from_name(name).strata[-1] for name in ("lora-I", "lora-II", "bitfit", "spafit-4-9-II")}
    mixers = {name: tuple(r for r in stratum.lora_roles if "mixer" in r) for name, stratum in kinds.items()}
    assert mixers == {
        "lora-I": ("mixer_in",),
        "lora-II": ("mixer_in", "mixer_out"),
        "bitfit": (),
        "spafit-4-9-II": ("mixer_in", "mixer_out"),
    }
    assert kinds["bitfit"].bias_roles == EVERY_ROLE
    assert kinds["spafit-4-9-II"].bias_roles == ("intermediate", "output", "output_norm")
    # By name alone where only a part of the attention is named; and nothing of it is in what is written.
    assert not any("mixer" in role for role in Stratum((0, 1), lora=("query", "value")).lora_roles)
    assert Stratum((0, 1), lora=("mixer_out",), biases=("mixer_in",)).to_dict()["lora"] == ["mixer_out"]
    assert Stratum((0, 1), biases=EVERY_ROLE) == Stratum((0, 1), biases=ROLES)
    assert not any("mixer" in str(stratum.to_dict()) for stratum in kinds.values())


def test_both_attentions_unless_one_is_named_apart() -> None:
    both = Stratum((0, 1), lora=("query", "attention_output"), biases=("value", "output"))
    assert both.lora_roles == ("query", "attention_output", "cross_query", "cross_attention_output")
    assert both.bias_roles == ("value", "cross_value", "output")
    assert both.to_dict()["lora"] == ["query", "attention_output"]
    apart = Stratum((0, 1), lora=("cross_value", "query"), biases=("cross_attention_norm",))
    assert apart.lora_roles == ("query", "cross_value")
    assert apart.bias_roles == ("cross_attention_norm",)
    assert "q,cross_value" in apart.what()
    assert Stratum.from_dict(apart.to_dict()) == apart
    with pytest.raises(ValueError, match="'cross_attention_norm' is a norm"):
        Stratum((0, 1), lora=("cross_attention_norm",))


def test_experts_are_named_by_a_stratum_and_by_no_method() -> None:
    assert not any(stratum.trains_experts for name in METHODS for stratum in Strategy.from_name(name).strata)
    named = Stratum((0, 1), lora=("experts", "query"), r=4)
    assert named.trains_experts
    assert named.lora == ("query", "experts")
    assert "experts" not in named.lora_roles  # which are those of modules
    assert named.what() == "LoRA q,experts r=4 alpha=128"
    assert Stratum.from_dict(named.to_dict()) == named
    for others in ({"lora_dropout": 0.1}, {"use_dora": True}, {"init_lora_weights": "orthogonal"}):
        with pytest.raises(ValueError, match="LoRA on experts has no dropout, no DoRA and no orthogonal start"):
            replace(named, **others)
    with pytest.raises(ValueError, match="biases: unknown role 'experts'"):
        Stratum((0, 1), biases=("experts",))


def test_no_torch_is_needed() -> None:
    code = "import sys; import spafit_hf.strategy; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stacks_may_be_named_apart() -> None:
    encoder = Stratum((0, 1), biases=ROLES, stack="encoder")
    decoder = Stratum((0, 2), lora=("query",), r=2, stack="decoder")
    both = Stratum((3, -1), lora=("value",), r=2)
    strategy = Strategy((encoder, decoder, both))
    assert strategy.of_stack("encoder").strata == (encoder, both)
    assert [layers for _, layers in strategy.of_stack("decoder").resolve(5)] == [(0, 1, 2), (3, 4)]
    assert Strategy.from_dict(strategy.to_dict()) == strategy
    assert "stack" not in both.to_dict()
    assert str(strategy).startswith("custom: encoder 0-1 every bias | decoder 0-2 LoRA q")
    assert Strategy((both,)).of_stack("decoder") is not None
    assert Strategy((encoder,), head=False).of_stack("decoder").strata == ()
    with pytest.raises(ValueError, match=r"\(layers 0-2 of the decoder\) and .*\(layers 2-end\) overlap"):
        Strategy((decoder, Stratum((2, -1), biases=("output",))))
    with pytest.raises(ValueError, match="stack is 3; it must be a string"):
        Stratum((0, 1), stack=3)
