"""Read the three files of an adapter folder that may come from a stranger, as bounded and checked plain data.

Configuration and sidecar are checked field by field, no pattern in them is ever run as a regular expression, nothing
they name is imported, and the weights must be safetensors of a sane size. What the fields say together, and whether
they fit a base, is for `verify` and `fit`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError, safe_open

from spafit_hf.adapter.folder import AdapterError, Sidecar, check_labels
from spafit_hf.files import Bounds, read_json, size_of
from spafit_hf.names import CONFIG_FILE, MAX_HEADS, SIDECAR_FILE, WEIGHTS_FILE
from spafit_hf.strategy import Bottleneck, Strategy
from spafit_hf.tuner import SpafitConfig
from spafit_hf.tuner.config import OWN_SETTINGS

MAX_TENSORS = 20_000
CONFIG_BOUNDS = Bounds(size=4 * 2**20, entries=MAX_TENSORS, text=4096)
MAX_WEIGHTS_BYTES = 2 * 2**30
MAX_HEADER_BYTES = 8 * 2**20
MAX_NAME, MAX_PARTS = 300, 32  # of a tensor's name: characters, and parts between dots
MAX_SHAPE = 8  # dimensions of a tensor, each of less than 2 ** 31
MODULE_NAME = re.compile(r"[\w.]+")

#: Fields of a LoRA configuration that this reader carries out. Every other field must hold its default.
READ_FIELDS = frozenset((
    "alpha_pattern", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "lora_alpha", "lora_bias", "lora_dropout", "modules_to_save", "peft_type", "peft_version", "r",
    "rank_pattern", "revision", "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
    "bias_modules", "bottlenecks", "labels", "module_settings", "strategy",  # of SpafitConfig
))  # fmt: skip
#: Fields that take modules out of `target_modules` again. Which are left, the file itself says.
NARROWING_FIELDS = frozenset({"exclude_modules", "layers_pattern", "layers_to_transform"})
#: Initializations that leave the base alone. After the others the tensors only make sense on what is left of it.
HARMLESS_INITS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
#: Fields that this package never reads: a class to import for a model that PEFT does not know, and how LoRA started.
PASSIVE_FIELDS = frozenset({"auto_mapping", "eva_config"})


def read_config(path: Path) -> dict[str, Any]:
    if size_of(path / CONFIG_FILE, AdapterError) is None and (path / "config.json").is_file():
        raise AdapterError(
            f"{path} holds a whole model and no adapter: pipeline() loads it, and `spafit evaluate` measures it."
        )
    data = read_json(path / CONFIG_FILE, CONFIG_BOUNDS, AdapterError)
    if not isinstance(data, dict):
        raise AdapterError(f"{CONFIG_FILE} holds a {type(data).__name__}; expected is an object.")
    if data.get("peft_type") not in ("LORA", "SPAFIT"):
        raise AdapterError(f"{CONFIG_FILE}: peft_type is {data.get('peft_type')!r}; allowed are 'LORA' and 'SPAFIT'.")
    known = SpafitConfig if data["peft_type"] == "SPAFIT" else LoraConfig
    default = known(peft_type=data["peft_type"]).to_dict()
    for name, value in data.items():
        if name in READ_FIELDS | NARROWING_FIELDS | PASSIVE_FIELDS:
            continue
        if name not in default:
            raise AdapterError(f"{CONFIG_FILE} has the unknown field {name!r}; it may need a newer version of peft.")
        if value != default[name] and value not in (None, False, [], {}):
            raise AdapterError(
                f"{CONFIG_FILE} sets {name} to {value!r:.80}; this package reads adapters of plain LoRA, DoRA and bias"
                " deltas. Load it with peft if you trust where it comes from."
            )
    _check_types(data)
    check_labels(data.get("labels"), CONFIG_FILE)
    _check_strategy(data.get("strategy"), CONFIG_FILE)
    bottlenecks_of(data)
    return data


def _check_types(config: dict[str, Any]) -> None:
    def names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) and name for name in value)

    def flag(value: Any) -> bool:
        return value is None or isinstance(value, bool)

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**32  # NaN is not

    def rank(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 2**16

    def pattern(field: str, allowed: Any) -> bool:
        value = config.get(field) or {}
        if not isinstance(value, dict):
            return False
        for key in value:  # PEFT would run them as regular expressions; here they are names
            if not MODULE_NAME.fullmatch(key):
                raise AdapterError(f"{CONFIG_FILE}: {key!r} in a pattern is no module name.")
        return all(map(allowed, value.values()))

    def dropout(value: Any) -> bool:
        return value is None or (number(value) and 0 <= value < 1)

    def own_settings(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and set(value) <= set(OWN_SETTINGS)
            and value.get("init_lora_weights") in HARMLESS_INITS
            and dropout(value.get("lora_dropout"))
            and flag(value.get("use_rslora"))
            and flag(value.get("use_dora"))
        )

    good = {
        "r": rank(config.get("r", 8)),
        "lora_alpha": number(config.get("lora_alpha", 8)),
        "lora_dropout": dropout(config.get("lora_dropout")),
        "bias": config.get("bias", "none") in ("none", "all", "lora_only"),
        "rank_pattern": pattern("rank_pattern", rank),
        "alpha_pattern": pattern("alpha_pattern", number),
        "target_modules": config.get("target_modules") in (None, DUMMY_TARGET_MODULES)
        or names(config.get("target_modules")),
        "target_parameters": names(config.get("target_parameters") or []),
        "modules_to_save": names(heads := config.get("modules_to_save") or []) and len(heads) <= MAX_HEADS,
        "init_lora_weights": config.get("init_lora_weights") in HARMLESS_INITS,
        "bias_modules": names(config.get("bias_modules") or []),
        "module_settings": pattern("module_settings", own_settings),
        **{name: isinstance(config.get(name), (str, type(None))) for name in ("base_model_name_or_path", "revision")},
        "task_type": config.get("task_type") in (None, *TaskType),
        **{name: flag(config.get(name)) for name in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out")},
    }
    for name, fine in good.items():
        if not fine:
            hint = _HINTS.get(name, "") if isinstance(config.get(name), str) else ""
            raise AdapterError(f"{CONFIG_FILE}: {name} is {config.get(name)!r:.80}, which is not allowed{hint}.")


def bottlenecks_of(config: dict[str, Any]) -> dict[str, Bottleneck]:
    """Module -> the bottleneck adapter that a configuration announces on it."""
    data = config.get("bottlenecks") or {}
    try:
        if not isinstance(data, dict) or not all(isinstance(own, dict) for own in data.values()):
            raise ValueError(f"bottlenecks is {data!r:.80}; it must hold settings by module")
        if data and config["peft_type"] != "SPAFIT":
            raise ValueError(f"bottlenecks do not go with {config['peft_type']}, of which plain PEFT reads LoRA alone")
        return {module: Bottleneck(**own) for module, own in sorted(data.items())}
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{CONFIG_FILE}: {error}") from error


_HINTS = {
    "task_type": f": PEFT knows {', '.join(TaskType)}",
    "target_modules": ": a regular expression is not run from a file; list the modules",
    "bias_modules": ": a regular expression is not run from a file; list the modules",
    "init_lora_weights": ", since it trained on a base that the initialization had changed; convert the adapter with "
    "peft (save_pretrained with path_initial_model_for_weight_conversion)",
}


def read_sidecar(path: Path) -> Sidecar | None:
    if size_of(path / SIDECAR_FILE, AdapterError) is None:
        return None
    sidecar = Sidecar.from_dict(read_json(path / SIDECAR_FILE, CONFIG_BOUNDS, AdapterError))
    _check_strategy(sidecar.strategy, SIDECAR_FILE)
    return sidecar


def _check_strategy(strategy: Any, file: str) -> None:
    if strategy is None:
        return
    try:
        Strategy.from_dict(strategy)
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{file}: {error}") from error


def open_weights(path: Path) -> Any:
    """`safe_open` with the file's kind, size and header bounded first."""
    size = size_of(path, AdapterError)
    if size is None:
        others = sorted(file.name for file in path.parent.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl"))
        found = f" {others[0]} is a pickle, which can run code and is never read." if others else ""
        raise AdapterError(f"{path.parent} has no {path.name}.{found} Save the adapter as safetensors.")
    if size > MAX_WEIGHTS_BYTES:
        raise AdapterError(f"{path.name} has {size:,} bytes; weights of more than {MAX_WEIGHTS_BYTES:,} are not read.")
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if size < 8 or header > min(size - 8, MAX_HEADER_BYTES):
            raise AdapterError(f"{path.name} is truncated or no safetensors file: its header claims {header:,} bytes.")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path.name} is not a valid safetensors file: {error}.") from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a folder's tensors, within bounds."""
    shapes: dict[str, tuple[int, ...]] = {}
    with open_weights(path / WEIGHTS_FILE) as file:
        keys = file.keys()
        if len(keys) > MAX_TENSORS:
            raise AdapterError(f"{WEIGHTS_FILE} has {len(keys):,} tensors; at most {MAX_TENSORS:,} are read.")
        for key in keys:
            piece = file.get_slice(key)
            if piece.get_dtype() not in ("F32", "F16", "BF16"):
                raise AdapterError(f"{key} has dtype {piece.get_dtype()}; allowed are F32, F16 and BF16.")
            shapes[key] = shape = tuple(piece.get_shape())
            odd_shape = len(shape) > MAX_SHAPE or max(shape, default=0) >= 2**31
            if odd_shape or len(key) > MAX_NAME or key.count(".") > MAX_PARTS:
                raise AdapterError(f"{WEIGHTS_FILE} holds {key!r:.80}, whose name or shape is of no module.")
    return shapes
