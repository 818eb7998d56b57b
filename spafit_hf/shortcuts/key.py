"""What an entry is filed under. A wrong value can only be read by two different things with one key, so all counts.

<folder>/<fingerprint>/   everything that computes states: weights, N1, configuration, dtypes, versions
    key                   everything in a row: token ids, types, positions, mask
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.shortcuts.border import Border
from spafit_hf.shortcuts.rows import Rows

FORMAT = 1
"""Version of the files. Another version is another folder."""

KEY_BYTES = 16


def facts_of(base: nn.Module, border: Border, dtype: torch.dtype, precision: str, device: str) -> dict[str, Any]:
    """Everything that computes states, but for the weights, as JSON types.

    `dtype` is that of the stored states, `precision` what autocast does ("bf16", "no"), `device` a kind ("cpu").
    """
    config = base.config.to_dict() if isinstance(base, PreTrainedModel) else {}
    # What the head and the training are about has no part in states; other seeds and tasks share them.
    for name in ("id2label", "label2id", "problem_type", "_name_or_path", "architectures", "transformers_version"):
        config.pop(name, None)
    return {
        "format": FORMAT,
        "stack": border.layers[0].rpartition(".")[0],
        "layers": border.length,
        "width": border.width,
        "stored_dtype": str(dtype).removeprefix("torch."),
        "computed_dtype": str(border.dtype).removeprefix("torch."),
        "precision": precision,
        "device": device,
        "attention": str(base.config._attn_implementation) if isinstance(base, PreTrainedModel) else "",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "config": json.loads(json.dumps(config, sort_keys=True, default=str)),
    }


def weights_of(base: nn.Module, border: Border) -> dict[str, torch.Tensor]:
    """Every weight that may have a part in the states: all but what runs after the border. None of them trains.

    A weight that has none costs a miss at worst.
    """
    return {
        name: value
        for name, value in sorted(base.state_dict(keep_vars=True).items())
        if isinstance(value, torch.Tensor) and border.comes_before(name)
    }


def fingerprint(base: nn.Module, border: Border, facts: dict[str, Any]) -> str:
    """The name of the folder: a hash of the facts and of the weights."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, value in weights_of(base, border).items():
        # Without PEFT's wrappers in it, so that a wrapped module is the same as a plain one.
        plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        digest.update(f"{plain} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:32]


def row_keys(rows: Rows) -> list[bytes]:
    """A hash per row, of its content without padding."""
    head = repr([(name, str(value.dtype), value.dim()) for name, value in rows.tensors.items()]).encode()
    keys = []
    for row in range(rows.count):
        digest = hashlib.blake2b(head, digest_size=KEY_BYTES)
        for name in rows.tensors:
            value = rows.of(name, row)
            digest.update(repr(tuple(value.shape)).encode())
            digest.update(_bytes(value))
        keys.append(digest.digest())
    return keys


def _bytes(value: torch.Tensor) -> Any:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""
