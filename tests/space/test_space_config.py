"""config.yaml, the environment on top of it, and the files a Hub Space is started from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import app
import pytest
import torch
import yaml
from spafit_space.config import CONFIG_FILE, Config, ConfigError, Source, load_config

SPACE = CONFIG_FILE.parent


def _write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_shipped_file_serves_the_embedded_base_and_allows_nothing_to_be_added() -> None:
    config = load_config(environment={})
    assert config.base == "embedded"
    assert config.folder == SPACE / "adapters"
    assert not config.allow_adding


def test_the_file_for_the_hub_names_bert_large_and_an_adapter_per_task() -> None:
    config = load_config(environment={"SPAFIT_SPACE_CONFIG": str(SPACE / "config.hub.yaml")})
    assert config.base == "google-bert/bert-large-cased"
    assert config.folder is None
    assert config.adapters is not None
    assert sorted(config.adapters) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]


def test_folders_are_relative_to_the_file_and_repositories_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    file = _write(
        tmp_path,
        "folder: mine\nadapters:\n  a: mine\n  b: user/repo\n  c: {source: user/c, revision: v1, task: sst2}\n",
    )
    config = load_config(file, {})
    assert config.folder == tmp_path / "mine"
    assert config.adapters == {
        "a": Source(str(tmp_path / "mine")),
        "b": Source("user/repo"),
        "c": Source("user/c", "v1", "sst2"),
    }


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, ""), {}) == Config()


def test_the_environment_overrides(tmp_path: Path) -> None:
    file = _write(tmp_path, "base: user/base\nbase_revision: main\nfolder: here\n")
    environment = {"SPAFIT_SPACE_BASE": "other", "SPAFIT_SPACE_FOLDER": "", "SPAFIT_SPACE_ALLOW_ADDING": "yes"}
    config = load_config(file, environment)
    assert (config.base, config.base_revision, config.folder, config.allow_adding) == ("other", None, None, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bases: x", "unknown key 'bases'; allowed are base,"),
        ("- a", "holds a list"),
        ("base: 3", "base is 3"),
        ("allow_adding: maybe", "allow_adding is 'maybe'; it must be like False"),
        ("concurrency: 0", "at least 1"),
        ("concurrency: true", "it must be like 2"),
        ("adapters: [a]", "adapters is a list"),
        ("adapters: {a: {repo: x}}", "a mapping of revision, source, task"),
        ("base_revision: 12", "in quotes"),
        ("a: [", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(_write(tmp_path, text), {})


def test_a_missing_file_and_a_bad_switch_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="must be 1 or 0"):
        load_config(_write(tmp_path, ""), {"SPAFIT_SPACE_ALLOW_ADDING": "perhaps"})


def test_the_readme_has_what_a_hub_space_asks_for() -> None:
    _, header, body = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    facts = yaml.safe_load(header)
    assert facts["sdk"] == "gradio"
    assert (SPACE / facts["app_file"]).is_file()
    assert len(facts["short_description"]) <= 60
    assert facts["license"] == "apache-2.0"
    requirements = (SPACE / "requirements.txt").read_text(encoding="utf-8")
    assert "spafit-hf[embedded]" in requirements
    assert f"gradio[mcp]=={facts['sdk_version']}" in requirements
    for name in ("SPAFIT_SPACE_CONFIG", "SPAFIT_SPACE_ALLOW_ADDING", "/predict_all"):
        assert name in body


def test_the_process_counts_the_smallest_numbers_as_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(config: Config) -> None:
        raise ConfigError("no base")

    monkeypatch.setattr(app, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(app.Service, "start", fail)
    assert (torch.full((4,), 1e-39) * 1).all()
    try:
        assert app.main() == 2
        assert not (torch.full((4,), 1e-39) * 1).any()
    finally:
        torch.set_flush_denormal(False)
    assert capsys.readouterr().err == "The Space cannot start: no base\n"
