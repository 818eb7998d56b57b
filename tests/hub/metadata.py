"""What the Hub refuses in a model card's YAML, as far as people have run into it."""

from __future__ import annotations

import re
from typing import Any

import yaml

REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|multilingual|code")
LICENSES = {
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "bsd-3-clause",
    "gpl-3.0",
    "llama3",
    "gemma",
    "other",
    "unknown",
}
TASKS = {
    "text-classification",
    "token-classification",
    "text-generation",
    "text-ranking",
    "summarization",
    "translation",
    "question-answering",
    "feature-extraction",
    "image-classification",
    "fill-mask",
}
FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---(\r?\n|\Z)", re.S)


def validate(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the YAML that opens a README."""
    front = FRONT.match(content)
    if front is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(front.group(1))
    except yaml.YAMLError as error:
        return [f"YAML does not parse: {error}"], []
    if not isinstance(data, dict):
        return ["metadata must be a mapping"], []
    errors: list[str] = []
    for key, value in data.items():
        if value is None:
            errors.append(f'"{key}" must not be null')
    for key in ("base_model", "datasets", "new_version"):
        errors += [f'"{key}" {item!r} is not a valid repo id' for item in listed(data.get(key)) if not repo_id(item)]
    errors += [
        f'"language" {code!r} must be an ISO 639 code' for code in listed(data.get("language")) if not language(code)
    ]
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" {data["license"]!r} must be one of {sorted(LICENSES)}')
    if "pipeline_tag" in data and data["pipeline_tag"] not in TASKS:
        errors.append(f'"pipeline_tag" {data["pipeline_tag"]!r} is not a task of the Hub')
    if data.get("base_model_relation", "adapter") not in ("adapter", "finetune", "merge", "quantized"):
        errors.append(f'"base_model_relation" {data["base_model_relation"]!r} is unknown')
    for key in ("tags", "metrics"):
        errors += [
            f'"{key}" must hold strings, not {item!r}' for item in listed(data.get(key)) if not isinstance(item, str)
        ]
    return errors + results(data.get("model-index", [])), []


def listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def repo_id(value: Any) -> bool:
    return isinstance(value, str) and REPO_ID.fullmatch(value) is not None


def language(value: Any) -> bool:
    return isinstance(value, str) and LANGUAGE.fullmatch(value) is not None


def results(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be a list']
    errors = []
    for at, model in enumerate(index):
        if not model.get("name"):
            errors.append(f'"model-index[{at}].name" is required')
        for n, result in enumerate(model.get("results") or [{}]):
            where = f"model-index[{at}].results[{n}]"
            for section, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
                errors += [
                    f'"{where}.{section}.{key}" is required' for key in keys if not result.get(section, {}).get(key)
                ]
            for key in ("config", "split", "revision"):
                if not isinstance(result.get("dataset", {}).get(key, ""), str):
                    errors.append(f'"{where}.dataset.{key}" must be a string')
            if "source" in result and not result["source"].get("url"):
                errors.append(f'"{where}.source.url" is required')
            for metric in result.get("metrics") or [{}]:
                if not metric.get("type") or not isinstance(metric.get("value"), (int, float)):
                    errors.append(f'"{where}.metrics" needs a type and a numeric value')
    return errors
