"""What an adapter weighs, and how long it takes to load it and to switch to it."""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path

from peft import PeftModel
from torch import nn

from benchmarks.steps.methods import sharing
from spafit_hf.adapter import load_adapter, save_adapter

LOADS = 5


def adapter_costs(model: nn.Module, base: nn.Module, folder: Path) -> tuple[int, float, float]:
    """Bytes of the adapter's file, seconds to load it onto a base in memory, seconds to switch to it from another.

    Seconds are medians. Python's garbage, of which a large model's modules make much, is collected before each load:
    in the middle of one it takes longer than the load.

    Args:
        model: with the adapter.
        base: the plain model it was made from.
        folder: where the adapter is written.
    """
    assert isinstance(model, PeftModel)
    stock = model.peft_config["default"].peft_type == "LORA"
    if stock:
        model.save_pretrained(str(folder))
    else:
        save_adapter(model, folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    loads = []
    for _ in range(LOADS):
        plain = sharing(base)
        gc.collect()
        start = time.perf_counter()
        loaded = PeftModel.from_pretrained(plain, str(folder)) if stock else load_adapter(plain, folder)
        loads.append(time.perf_counter() - start)
    if stock:
        loaded.load_adapter(str(folder), adapter_name="other")
    else:
        load_adapter(loaded, folder, adapter_name="other")
    times = []
    for name in ("other", "default") * 3:
        start = time.perf_counter()
        loaded.set_adapter(name)
        times.append(time.perf_counter() - start)
    return size, statistics.median(loads), statistics.median(times)
