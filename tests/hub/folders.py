"""Folders as a run leaves them, without a run: with files that must leave the machine, and files that must not."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

HIDDEN = 32


def safetensors_bytes(tensors: dict[str, tuple[list[int], bytes]]) -> bytes:
    """A safetensors file of F32 tensors, written by hand: name -> (shape, bytes)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (shape, content) in sorted(tensors.items()):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def weights(seed: int = 0) -> bytes:
    values = struct.pack(f"<{HIDDEN}f", *[(seed + index) / 100 for index in range(HIDDEN)])
    prefix = "base_model.model.bert.encoder.layer.0.attention.self.query"
    return safetensors_bytes(
        {f"{prefix}.lora_A.weight": ([1, HIDDEN], values), f"{prefix}.lora_B.weight": ([HIDDEN, 1], values)}
    )


def adapter_folder(folder: Path, *, seed: int = 0, token: str = "hf_secret") -> Path:
    """An output folder of a run: an adapter, its card, and the litter around it, token included."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": 1,
        "base_model_name_or_path": "tiny/bert",
        "target_modules": ["bert.encoder.layer.0.attention.self.query"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, sort_keys=True))
    (folder / "adapter_model.safetensors").write_bytes(weights(seed))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("---\nlibrary_name: peft\nbase_model: tiny/bert\n---\n# A test\n")
    (folder / "spafit_results.json").write_text('{"format": 1, "method": "bitfit"}\n')
    # what must stay
    (folder / "training_args.bin").write_bytes(pickle.dumps({"hub_token": token}))
    (folder / "optimizer.pt").write_bytes(b"optimizer")
    (folder / "notes.txt").write_text("private")
    (folder / "checkpoint-5").mkdir(exist_ok=True)
    (folder / "checkpoint-5" / "adapter_model.safetensors").write_bytes(weights(99))
    (folder / "runs").mkdir(exist_ok=True)
    return folder


PUSHED = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer_config.json",
    "tokenizer.json",
    "README.md",
    "spafit_results.json",
}
"""What of `adapter_folder` may be in a repo."""
