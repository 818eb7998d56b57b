"""A folder -> its card: facts read from its files, the picture drawn, README.md written."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from spafit_hf.card.curve import CURVE_FILE, draw_curve
from spafit_hf.card.facts import FACTS_BOUNDS, FACTS_FILE, Base, CardError, CardFacts, Data, Layers
from spafit_hf.card.forgetting import forgetting_section
from spafit_hf.card.render import is_generated, own_section, render_card
from spafit_hf.data.glue import TASKS, columns_of
from spafit_hf.files import read_json, size_of, write_whole
from spafit_hf.names import CONFIG_FILE, SIDECAR_FILE, is_hub_id, task_of_class
from spafit_hf.strategy import Strategy

CARD_FILE = "README.md"
MOST_LAYERS = 1000


def write_card(folder: str | os.PathLike[str], facts: CardFacts | None = None, *, force: bool = False) -> Path:
    """Write `README.md`, the facts it is from, and the picture of the training curve, into a folder; the card's path.

    The user's own section of a card that is there is kept. What `spafit forgetting` measured of it is a section.

    Args:
        folder: of an adapter or a model.
        facts: what to say; None reads them from the folder (`facts_of_folder`).
        force: replace a card that was written by hand, too.

    Raises:
        CardError: if the facts cannot be read, or the card there was written by hand and `force` is False.
    """
    place = Path(folder)
    if facts is None:
        facts = facts_of_folder(place)
    path = place / CARD_FILE
    if (size_of(path, CardError) or 0) > FACTS_BOUNDS.size:
        raise CardError(f"{path} is too large for a card; remove it.")
    before = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
    if not is_generated(before) and not force:
        raise CardError(f"{path} was not written by spafit-hf; to replace it, remove it or say --force (force=True).")
    # A picture that was drawn before stays, unless there is nothing any more that it could show.
    old = CURVE_FILE if facts.steps and (place / CURVE_FILE).is_file() else None
    try:
        facts = replace(facts, curve=draw_curve(facts, place) or old)
        text = render_card(facts, own=own_section(before), forgotten=forgetting_section(place))
        for name, content in ((FACTS_FILE, facts.to_json()), (CARD_FILE, text)):
            write_whole(place / name, content.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise CardError(f"{place} takes no card: {error.strerror}.") from error
    return path


def facts_of_folder(folder: str | os.PathLike[str]) -> CardFacts:
    """What a folder says about itself: its facts file, completed by its configurations and the sizes of its files."""
    place = Path(folder)
    adapter = _json(place / CONFIG_FILE)
    config = _json(place / "config.json")
    if adapter is not None:
        inferred, weights = _of_adapter(place, adapter), "adapter_model*.safetensors"
    elif config is not None:
        inferred, weights = _of_model(config), "model*.safetensors"
    else:
        raise CardError(
            f"{place} holds neither adapter_config.json nor config.json; give the folder of an adapter or a model."
        )
    stored = place / FACTS_FILE
    facts = inferred if (data := _json(stored)) is None else CardFacts.from_data(data)
    # What the facts file does not say is taken from the other files; sizes always are.
    known = {
        item.name: getattr(inferred, item.name)
        for item in dataclasses.fields(CardFacts)
        if getattr(facts, item.name) in (None, (), {}, Base(), Data())
    }
    known["file_bytes"] = sum(path.stat().st_size for path in place.glob(weights)) or None
    processors = ("tokenizer_config.json", "preprocessor_config.json")
    known["has_tokenizer"] = any((place / name).is_file() for name in processors)
    return replace(facts, **known)


def _of_adapter(place: Path, config: dict[str, Any]) -> CardFacts:
    sidecar = _json(place / SIDECAR_FILE) or {}
    named, labels, task, chosen = (_mapping(sidecar, key) for key in ("base", "labels", "task", "strategy"))
    name = _word(named.get("name_or_path") or config.get("base_model_name_or_path"))
    known = is_hub_id(name) and not os.path.exists(str(name))
    depth = named.get("num_hidden_layers")
    if type(depth) is not int or not 0 < depth <= MOST_LAYERS:
        depth = None  # a stranger's folder may say anything
    try:
        strategy = Strategy.from_dict(chosen) if chosen else None
        layers = layers_of(strategy, depth) if strategy and depth else ()
    except (ValueError, TypeError) as error:
        raise CardError(f"{SIDECAR_FILE}: {error}") from error
    glue = name_of_task if (name_of_task := _word(task.get("name"))) in TASKS else None
    problem = _word(labels.get("problem_type"))
    return CardFacts(
        method=strategy.name if strategy else "lora" if config.get("peft_type") == "LORA" else "custom",
        task_type=_word(config.get("task_type")),
        problem_type=problem,
        labels=_label_names(labels) if problem != "regression" else (),
        form=_word(sidecar.get("form")),
        base=Base(
            id=name if known else None,
            revision=_word(named.get("revision") or config.get("revision")) if known else None,
            name=Path(name).name if name and not known else None,
            model_type=_word(named.get("model_type")),
        ),
        data=glue_data(glue) if glue else Data(columns=columns_of(task)),
        layers=layers,
        outer_biases=strategy.outer_biases if strategy else False,
        head=tuple(name for name in _list(config.get("modules_to_save")) if isinstance(name, str)),
    )


def _label_names(labels: dict[str, Any], file: str = SIDECAR_FILE) -> tuple[str, ...]:
    ids = _mapping(labels, "id2label", file)
    if not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in ids):
        raise CardError(f"{file}: the label ids are not all numbers. Save the folder again.")
    return tuple(str(ids[key]) for key in sorted(ids, key=int))


def _mapping(data: dict[str, Any], key: str, file: str = SIDECAR_FILE) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise CardError(f"{file}: {key} is a {type(value).__name__}; expected is an object. Save the folder again.")
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _of_model(config: dict[str, Any]) -> CardFacts:
    model_class = next(iter(filter(None, map(_word, _list(config.get("architectures"))))), "")
    task_type = task_of_class(model_class)
    problem = _word(config.get("problem_type"))
    named = task_type in ("SEQ_CLS", "TOKEN_CLS") and problem != "regression"
    return CardFacts(
        method="full",
        kind="model",
        task_type=task_type,
        problem_type=problem,
        labels=_label_names(config, "config.json") if named else (),
        base=Base(model_type=_word(config.get("model_type")), model_class=model_class or None),
    )


def glue_data(task: str, *, revision: str | None = None, max_length: int | None = None) -> Data:
    """What is known of a GLUE task without a look at its rows; `revision` is the commit of nyu-mll/glue that was
    trained on."""
    found = TASKS[task]
    return Data(
        id="nyu-mll/glue",
        config=found.name,
        revision=revision,
        name=f"GLUE {found.title}",
        task=found.description,
        glue=found.name,
        columns=found.columns,
        train_split="train",
        max_length=max_length,
        license=found.license,
        domain=found.domain,
    )


def layers_of(strategy: Strategy, depth: int, stack: str = "layers") -> tuple[Layers, ...]:
    """What a strategy means on a depth, frozen layers included, as far as it can be said without the model itself."""
    bands: dict[int, Layers] = {}
    for number, (stratum, layers) in enumerate(strategy.of_stack(stack).resolve(depth), start=1):
        for layer in layers:
            bands[layer] = Layers(
                name=stratum.name or f"stratum {number}",
                stack=stack,
                layers=layers,
                lora=stratum.lora,
                biases=stratum.biases,
                bottlenecks=stratum.bottleneck.roles if stratum.bottleneck else (),
                r=stratum.r if stratum.lora else None,
                lora_alpha=float(stratum.lora_alpha) if stratum.lora else None,
            )
    frozen = tuple(layer for layer in range(depth) if layer not in bands)
    found = [*dict.fromkeys(bands.values()), *([Layers("frozen", stack, frozen)] if frozen else [])]
    return tuple(sorted(found, key=lambda band: band.layers))


def _json(path: Path) -> dict[str, Any] | None:
    if size_of(path, CardError) is None:
        return None
    data = read_json(path, FACTS_BOUNDS, CardError)
    if not isinstance(data, dict):
        raise CardError(f"{path} holds a {type(data).__name__}; expected is an object.")
    return data
