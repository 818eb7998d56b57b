"""spafit reproduce: what is wanted, from presets, files and flags; and what it would take."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest
from models import FAMILIES
from reproduce_run import kept

from spafit_hf.cli import build_parser, main
from spafit_hf.cli.reproduce import read
from spafit_hf.planner import plan
from spafit_hf.reproduce.estimate import measure
from spafit_hf.reproduce.grid import Grid
from spafit_hf.reproduce.methods import Methods

BERT_LARGE = {
    "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24,
    "num_attention_heads": 16, "intermediate_size": 4096, "vocab_size": 28996,
}  # fmt: skip


def read_flags(*flags: str) -> Grid:
    args, rest = build_parser().parse_known_args(["reproduce", "--output", "out", *flags])
    args.rest = rest
    return read(args)


def test_the_paper_to_the_letter() -> None:
    grid = read_flags("--preset", "paper")
    assert grid.base == "google-bert/bert-large-cased"
    assert (len(grid.tasks), len(grid.methods)) == (9, 10)
    assert {grid.rates_of(method) for method in grid.methods} == {((2e-3, 6e-3, 2e-5, 6e-5), False)}
    batches = {task: grid.batch_of(task) for task in grid.tasks}
    assert {task for task, rows in batches.items() if rows == 8} == {"mnli", "qnli", "qqp"}
    assert set(batches.values()) == {8, 16}
    assert (grid.num_train_epochs, grid.weight_decay, grid.lora_r, grid.lora_alpha) == (10, 0.01, 64, 128)
    assert (grid.warmup_steps, grid.prefix_cache, grid.selection_rows, grid.bf16) == (0, False, 0, False)
    assert len(grid.wanted()) == 90 * 4 * len(grid.seeds)


def test_files_presets_and_flags_lie_over_each_other(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "preset: paper\nbase: embedded\ntasks: [SST-2, rte]\nmethods: [full, lora-II, spafit-4-9-II]\n"
        "search_rates: {full: [5e-5, 1e-4], others: [1e-3, 2e-3]}\nbf16: on\nseeds: 3\noutput: elsewhere\n"
        "first_token_only: off\n"
    )
    grid = read_flags(str(file), "--seeds", "1", "2", "--learning_rates", "1e-3", "full=1e-5,2e-5")
    assert (grid.preset, grid.base, grid.tasks, grid.seeds) == ("paper", "embedded", ("sst2", "rte"), (1, 2))
    assert (grid.bf16, grid.first_token_only, grid.warmup_steps) == (True, "off", 0)
    assert grid.rates_of("full") == (
        (1e-5, 2e-5),
        False,
    )  # the flags' rates replace the file's, and those the preset's
    assert grid.rates_of("lora-II") == ((1e-3,), False)
    assert read_flags(str(file)).rates_of("full") == ((5e-5, 1e-4), True)
    assert read_flags("--search_rates", "lora=1e-3,2e-3", "3e-3").rates_of("lora-II-equal") == ((1e-3, 2e-3), True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--taks rte", r"no flag --taks; did you mean 'tasks'"),
        ("--preset papr", r"preset is 'papr'; allowed are modern, paper; did you mean 'paper'"),
        ("--tasks rt", r"'rt' is not a GLUE task; did you mean 'rte'"),
        ("--methods lora-III", r"unknown strategy 'lora-III'.*did you mean 'lora-II'"),
        ("--seeds one", r"seeds is \['one'\]; it must be whole numbers"),
        ("--seeds 0 0", r"seeds is \[0, 0\]; give at least one, and each once"),
        ("--bf16 perhaps", r"bf16 is 'perhaps'; it must be true or false"),
        ("--learning_rates -1", r"the rates of 'others' are \[-1\.0\]; give positive numbers"),
        ("--learning_rates 1e-3 0.001", r"the rates of 'others' are \[0\.001, 0\.001\]; give each once"),
        ("--learning_rates 1e-3 full=1e-5 full=2e-5", r"1e-3 full=1e-5 full=2e-5 names full twice; keep one, with"),
        ("--per_device_train_batch_size 16 mlni=8", r"has 'mlni', which is no task; did you mean 'mnli'"),
        ("--per_device_train_batch_size mlni=8", r"has 'mlni', which is no task; did you mean 'mnli'"),
        ("--methods full --learning_rates lora=1e-3", r"full has no rate; give some"),
        (
            "--methods full --learning_rates 1e-3 fulll=1e-3",
            r"rates are given for 'fulll', which is no method; did you mean 'full'",
        ),
        ("--learning_rates 1e-3 --search_rates 1e-3", r"has learning_rates and search_rates; give it one of the two"),
        ("--per_device_train_batch_size rte=8", r"no positive number for cola"),
        ("--max_train_rows -1", r"max_train_rows is -1; it must be 0 or more"),
        ("--train_sampling_strategy long", r"is 'long'; allowed are group_by_length, random, sequential"),
        ("--num_train_epochs 0", r"must be above 0"),
        ("--weight_decay nan", r"weight_decay is nan; it must be 0 or more, and finite"),
        ("--seeds 0 -1", r"seeds are \[0, -1\]; each must be 0 or more"),
        ("--workers 4", r"workers is 4, which backend local does not read; .* that does: processes, ray"),
        ("--backend processes --worker_gpus 0.5", r"worker_gpus is 0\.5, which backend processes does not read"),
        ("--backend cloud", r"backend is 'cloud'; allowed are local, processes, ray"),
    ],
)
def test_what_cannot_be_is_refused(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_flags(*flags.split())


@pytest.mark.parametrize("name", ["output", "data_dir", "base", "tasks", "methods"])
def test_a_key_without_a_value_is_no_word(name: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(f"{name}:\n")
    with pytest.raises(ValueError, match=f"{name} is None; it must be (a word|words)"):
        read_flags(str(tmp_path / "grid.yaml"))


def test_a_file_with_an_unknown_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.yaml").write_text("epochs: 3\nlearning_rate: 1\n")
    assert main(["reproduce", str(tmp_path / "grid.yaml"), "--output", str(tmp_path)]) == 2
    assert re.search(r"a grid has no 'epochs'", capsys.readouterr().err)


def test_searches_come_first_and_then_a_whole_table() -> None:
    grid = read_flags(
        "--tasks", "rte", "mrpc", "--methods", "full", "bitfit", "--seeds", "5", "6",
        "--search_rates", "1e-3,2e-3", "bitfit=1e-3",
    )  # fmt: skip
    order = [str(cell) for cell in grid.wanted()]
    assert order[:4] == [f"{task} full {rate} search" for task in ("rte", "mrpc") for rate in ("0.001", "0.002")]
    assert order[4:8] == ["rte full seed 5", "rte bitfit 0.001 seed 5", "mrpc full seed 5", "mrpc bitfit 0.001 seed 5"]
    assert [word.split()[-1] for word in order[8:]] == ["6"] * 4
    assert {cell.seed for cell in grid.wanted() if cell.stage == "search"} == {5}


def test_the_controls(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BERT_LARGE))
    methods = Methods(Grid(base=str(tmp_path)))
    equal = plan(str(tmp_path), methods.strategy("lora-II-equal", 0), 2)
    target = plan(str(tmp_path), "spafit-4-9-II", 2)
    assert abs(equal.trainable_parameters - target.trainable_parameters) < 24 * 4 * 1024  # half a rank
    (stratum,) = methods.strategy("lora-II-equal", 3).strata
    assert stratum.scaling == 2
    assert methods.strategy("series-adapter", 0).strata[0].bottleneck is not None
    assert Grid(methods=("parallel-adapter",), search_rates={"parallel-adapter": (1e-4,)}).methods
    cuts = [methods.strategy("random-cut", seed) for seed in range(10)]
    assert cuts == [methods.strategy("random-cut", seed) for seed in range(10)]
    assert len({cut.name for cut in cuts}) > 7
    for cut in cuts:
        assert [len(stratum.lora) for stratum in cut.strata] == [0, 0, 4]
        assert all(layers for _, layers in cut.resolve(24))
    two = Methods(Grid(base=str(tmp_path)))
    two.layers = 2
    with pytest.raises(
        ValueError, match=r"a random cut has three groups of layers, and .* has 2; take a base of three"
    ):
        two.strategy("random-cut", 0)


def test_a_dry_run_of_the_paper_needs_a_configuration_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BERT_LARGE))
    monkeypatch.setattr("spafit_hf.reproduce.estimate.measure", lambda grid: (1e12, "as if"))
    assert main(["reproduce", "--preset", "paper", "--dry_run", "--base", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert "90 cells of a table (10 methods x 9 tasks), times rates (4) and seeds (3): 1,080 trainings" in page
    assert re.search(r"mnli +spafit-4-9-II +7,485,443 +12 ", page)
    assert len(re.findall(r"^\w+ +[\w-]+ +[\d,]+ +12 ", page, re.MULTILINE)) == 90
    assert "measured: as if" in page


def test_a_dry_run_measures_a_step(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--dry_run", "--base", str(base_folder), "--tasks", "rte", "--lora_r", "4"]) == 0
    page = capsys.readouterr().out
    assert re.search(r"measured: \d+ GFLOP/s in a step of lora-II on 2 layers .* fp32, on .* cores", page)
    assert "of hidden states" in page


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_step_is_measured_of_decoders_without_padding_and_of_heads_that_read_an_end(
    family: str, tmp_path: Path
) -> None:
    FAMILIES[family].config(**{"pad_token_id": None} if family == "gpt2" else {}).save_pretrained(tmp_path)
    assert measure(Grid(base=str(tmp_path)))[0] > 0


def test_processes_share_the_cores(
    base_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spafit_hf.reproduce.estimate.measure", lambda grid: (1e6, "as if"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = []
    for backend in ("local", "processes", "ray --workers 2"):
        flags = f"--dry_run --base {base_folder} --tasks rte --methods full --backend {backend}"
        assert main(["reproduce", *flags.split()]) == 0
        found += re.findall(r"^(.*) with (\d) at a time", capsys.readouterr().out, re.MULTILINE)
    assert [count for _, count in found] == ["1", "2", "2"]
    assert found[0][0] == found[1][0] != found[2][0]


def test_the_command_runs_and_reports(
    base_folder: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = types.ModuleType("report")
    monkeypatch.setitem(vars(report), "write_report", lambda folder: [folder / "report.md"])
    monkeypatch.setitem(sys.modules, "spafit_hf.reproduce.report", report)
    flags = {"base": base_folder, "data_dir": glue, "output": tmp_path, "tasks": "cola", "methods": "full",
             "learning_rates": "1e-3", "seeds": "0", "num_train_epochs": "1", "max_train_rows": "20"}  # fmt: skip
    assert main(["reproduce", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1/1 cola full 0\.001 seed 0: matthews_correlation -?\d\.\d+, \d+ s; 0\.0 s left", lines[0])
    assert lines[1:] == [f"{tmp_path}: 1 done", str(tmp_path / "report.md")]
    grid = json.loads((tmp_path / "grid.json").read_text())
    assert [cell["key"] for cell in grid["cells"]] == [line["key"] for line in kept(tmp_path)]
    assert str(tmp_path.parent) not in (tmp_path / "results.jsonl").read_text() + (tmp_path / "grid.json").read_text()
    (tmp_path / "results.jsonl").unlink()
    assert main(["reproduce", "--output", str(tmp_path), "--report"]) == 0
    assert len(kept(tmp_path)) == 1
