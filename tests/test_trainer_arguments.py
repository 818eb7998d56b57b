"""The arguments: from every source a script may use, back again, and refused with a sentence."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from spafit_hf import SpafitSeq2SeqTrainingArguments, SpafitTrainingArguments, Strategy, Stratum
from spafit_hf.trainer.arguments import StrataArguments

ADDED = [f.name for f in dataclasses.fields(StrataArguments) if f.name != "train_sampling_strategy"]
BOTH = [SpafitTrainingArguments, SpafitSeq2SeqTrainingArguments]


def parse(*words: str, cls: type = SpafitTrainingArguments) -> Any:
    return HfArgumentParser(cls).parse_args_into_dataclasses(["--output_dir", "out", *words])[0]


@pytest.mark.parametrize("cls", BOTH)
def test_adds_fields_to_transformers_own(cls: type) -> None:
    args = cls("out")  # output_dir stays the first positional argument
    assert args.output_dir == "out"
    assert isinstance(args, Seq2SeqTrainingArguments if cls is SpafitSeq2SeqTrainingArguments else TrainingArguments)
    assert args.build_strategy() == Strategy.from_name("spafit-4-9-II")
    own = {f.name: f for f in dataclasses.fields(cls)}
    assert set(own) - {f.name for f in dataclasses.fields(cls.__bases__[1])} == set(ADDED)
    assert all(own[name].metadata["help"] for name in ADDED)


def test_defaults_of_transformers_stay_but_for_the_sampling() -> None:
    ours, theirs = SpafitTrainingArguments("out").to_dict(), TrainingArguments("out").to_dict()
    # the time stamp in logging_dir differs by nature
    changed = {name for name in theirs if ours[name] != theirs[name] and name != "logging_dir"}
    assert changed == {"train_sampling_strategy"}
    assert ours["train_sampling_strategy"] == "group_by_length"


def test_defaults_can_be_cast_by_a_hyperparameter_search() -> None:
    args = SpafitTrainingArguments("out")
    trial = {"strategy": "bitfit", "n1": 1.0, "n2": "3", "lora_r": 8.0, "lora_alpha": 16, "bias_learning_rate": "1e-3"}
    for name in ADDED:
        assert getattr(args, name) is not None
    for name, value in trial.items():
        old = getattr(args, name)
        assert type(type(old)(value)) is type(old)


def test_command_line() -> None:
    args = parse(
        *(
            "--strategy",
            "SPAFIT-8-12-I",
            "--lora_r",
            "4",
            "--lora-alpha",
            "8",
            "--lora_dropout",
            "0.1",
            "--use_rslora",
        ),
        *("--head_learning_rate", "1e-3", "--bias_learning_rate", "2e-4", "--init_lora_weights", "gaussian"),
    )
    expected = Strategy.from_name("spafit-8-12-I", r=4, lora_alpha=8, lora_dropout=0.1, use_rslora=True)
    assert args.build_strategy() == expected
    assert (args.head_learning_rate, args.bias_learning_rate, args.use_dora) == (1e-3, 2e-4, False)
    assert parse("--n1", "-1", "--n2", "-1").build_strategy() == Strategy.from_name("spafit-4-9-II")


def test_help_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        HfArgumentParser(SpafitTrainingArguments).parse_args_into_dataclasses(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in ADDED)


@pytest.mark.parametrize("kind", ["yaml", "json", "dict"])
def test_files_and_dicts(kind: str, tmp_path: Path) -> None:
    data = {"output_dir": "out", "strategy": "lora-I", "lora_r": 2, "learning_rate": 6e-5}
    parser = HfArgumentParser(SpafitTrainingArguments)
    file = tmp_path / f"args.{kind}"
    if kind == "dict":
        (args,) = parser.parse_dict(data)
    else:
        file.write_text(yaml.safe_dump(data) if kind == "yaml" else json.dumps(data))
        (args,) = parser.parse_yaml_file(str(file)) if kind == "yaml" else parser.parse_json_file(str(file))
    assert args.build_strategy() == Strategy.from_name("lora-I", r=2)
    assert args.learning_rate == 6e-5


@pytest.mark.parametrize("cls", BOTH)
def test_round_trip(cls: type) -> None:
    args = cls("out", strategy="bitfit", n1=-1, lora_r=3, use_dora=True, head_learning_rate=0.5)
    (again,) = HfArgumentParser(cls).parse_dict(json.loads(args.to_json_string()))
    assert again.to_dict() == args.to_dict()
    assert dataclasses.replace(args, lora_r=4).lora_r == 4


def test_bounds_take_the_place_of_the_numbers_in_the_name() -> None:
    args = SpafitTrainingArguments("out", strategy="spafit-4-9-I", n1=0, n2=2, lora_r=8)
    assert args.build_strategy() == Strategy.from_bounds(0, 2, "I", r=8)
    assert args.build_strategy().resolve(6)[0][1] == (0,)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_file_keeps_what_it_states_and_takes_the_rest_from_the_fields(suffix: str, tmp_path: Path) -> None:
    data = {
        "name": "mine",
        "strata": [
            {"layers": [0, 1], "biases": ["query"]},
            {"layers": [2, 3], "lora": ["query"], "r": 2},
            {"layers": [4, -1], "lora": ["value"], "use_dora": False},
        ],
    }
    file = tmp_path / f"strata{suffix}"
    file.write_text(yaml.safe_dump(data) if suffix == ".yaml" else json.dumps(data))
    args = SpafitTrainingArguments("out", strategy=str(file), lora_r=16, lora_alpha=4.0, use_dora=True)
    expected = Strategy(
        (
            Stratum((0, 1), biases=("query",)),
            Stratum((2, 3), lora=("query",), r=2, lora_alpha=4.0, use_dora=True),
            Stratum((4, -1), lora=("value",), r=16, lora_alpha=4.0),
        ),
        name="mine",
    )
    assert args.build_strategy() == expected
    assert args.build_strategy(data) == expected
    assert args.build_strategy(json.dumps(data)) == expected
    complete = Strategy.from_file(file)
    assert args.build_strategy(complete) is complete


def test_a_file_with_a_name_alone_takes_lora_from_the_fields(tmp_path: Path) -> None:
    file = tmp_path / "name.yaml"
    file.write_text("name: lora-II\n")
    built = SpafitTrainingArguments("out", strategy=str(file), lora_r=16).build_strategy()
    assert built == Strategy.from_name("lora-II", r=16)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strategy": "spafit-4-9-III"}, ["unknown strategy 'spafit-4-9-III'", "spafit-4-9-II"]),
        ({"strategy": "nowhere.yaml"}, ["nowhere.yaml", "check the path"]),
        ({"n1": 2}, ["n1 is 2 and n2 is not set", "--n1 2 --n2 5"]),
        ({"n2": 2}, ["n2 is 2 and n1 is not set"]),
        ({"n1": 3, "n2": 1}, ["N1 = 3 is beyond N2 = 1"]),
        ({"n1": -2}, ["n1 is -2", "-1 leaves it unset"]),
        ({"n1": 1, "n2": 2, "strategy": "bitfit"}, ["'bitfit'", "no such bounds", "spafit-N1-N2-I"]),
        ({"n1": 1, "n2": 2, "strategy": '{"strata": []}'}, ["n1 = 1 and n2 = 2", "strata", "drop n1 and n2"]),
        ({"lora_r": 0}, ["lora_r is 0", "at least 1"]),
        ({"gradient_accumulation_steps": 0}, ["gradient_accumulation_steps is 0", "at least 1"]),
        ({"per_device_eval_batch_size": 0}, ["per_device_eval_batch_size is 0", "at least 1"]),
        ({"num_train_epochs": -1}, ["num_train_epochs is -1", "0 or more"]),
        ({"lora_alpha": 0.0}, ["lora_alpha is 0.0", "positive"]),
        ({"lora_dropout": 1.0}, ["lora_dropout is 1.0", "below 1"]),
        ({"init_lora_weights": "pissa"}, ["'pissa'", "default, gaussian, orthogonal", "PeftModel"]),
        ({"bias_learning_rate": -0.5}, ["bias_learning_rate is -0.5", "-1 for the same"]),
        ({"head_learning_rate": float("inf")}, ["head_learning_rate is inf"]),
    ],
)
@pytest.mark.parametrize("cls", BOTH)
def test_refused_with_a_sentence(cls: type, fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        cls("out", **fields)
    for word in words:
        assert word in str(error.value)


def test_fields_set_later_are_checked_too() -> None:
    args = SpafitTrainingArguments("out")
    args.lora_r = 0  # as a hyperparameter search sets them
    with pytest.raises(ValueError, match="lora_r is 0"):
        args.build_strategy()


def test_no_clash_with_the_fields_of_transformers_example_scripts() -> None:
    @dataclass
    class ModelArguments:
        model_name_or_path: str = "m"
        config_name: str = ""
        tokenizer_name: str = ""
        cache_dir: str = ""
        use_fast_tokenizer: bool = True
        model_revision: str = "main"
        token: str = ""
        trust_remote_code: bool = False
        ignore_mismatched_sizes: bool = False
        model_type: str = ""
        dtype: str = ""
        attn_implementation: str = ""

    @dataclass
    class DataTrainingArguments:
        task_name: str = ""
        dataset_name: str = ""
        dataset_config_name: str = ""
        do_regression: bool = False
        text_column_names: str = ""
        label_column_name: str = ""
        metric_name: str = ""
        shuffle_train_dataset: bool = False
        shuffle_seed: int = 42
        max_seq_length: int = 128
        overwrite_cache: bool = False
        preprocessing_num_workers: int = 1
        pad_to_max_length: bool = True
        max_train_samples: int = 0
        max_eval_samples: int = 0
        max_predict_samples: int = 0
        train_file: str = ""
        validation_file: str = ""
        test_file: str = ""
        block_size: int = 0
        mlm_probability: float = 0.15
        doc_stride: int = 128
        n_best_size: int = 20
        num_beams: int = 1
        source_prefix: str = ""
        max_target_length: int = field(default=128)

    for cls in BOTH:
        parser = HfArgumentParser((ModelArguments, DataTrainingArguments, cls))
        _, data, args = parser.parse_args_into_dataclasses(
            ["--output_dir", "o", "--task_name", "mrpc", "--strategy", "full"]
        )
        assert data.task_name == "mrpc"
        assert args.build_strategy().full
