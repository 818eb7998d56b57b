"""What a training step costs, method by method, measured side by side in one process.

    round 1:  lora-II  full  ...  spafit-8-16-II  spafit-8-16-II cached      one batch, every method
    round 2:  full  ...  spafit-8-16-II cached  lora-II                      the next batch, another order
    ...
    ratio = median over rounds of (a method's step / LoRA-II's step of the same round)

On a machine that others use as well the times drift, and the ratios within a round hardly do. The baselines are stock
PEFT and plain PyTorch, get the same batches grouped by length, the same dropout and the same fused AdamW. Memory is
measured in a process of each method's own.

    settings.py  what to measure, and the names of the methods
    methods.py   models that take steps
    measure.py   the rounds, and everything else about a method
    memory.py    bytes: kept for the backward pass, and resident at the peak
    adapters.py  bytes of an adapter, seconds to load it and to switch to it
    theory.py    the same by FLOPs
    gpu.py       on a GPU: bf16, torch.compile, batches until memory ends
    result.py    figures, table, picture
"""

from benchmarks.steps.measure import measure
from benchmarks.steps.result import BenchResult, MethodResult
from benchmarks.steps.settings import BASELINE, BASELINES, CACHED, FIRST_TOKEN, STRATEGIES, BenchSettings

__all__ = [
    "BASELINE",
    "BASELINES",
    "CACHED",
    "FIRST_TOKEN",
    "STRATEGIES",
    "BenchResult",
    "BenchSettings",
    "MethodResult",
    "measure",
]
