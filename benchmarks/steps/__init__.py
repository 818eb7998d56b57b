"""What a training step costs, method by method, measured side by side in one process.

    round 1:  lora-II  full  ...  spafit-8-16-II  spafit-8-16-II cached  ...  lora-II, bf16    one batch, every row
    round 2:  full  ...  spafit-8-16-II cached  ...  lora-II, bf16  lora-II                    the next, another order
    ...
    ratio = median over rounds of (a row's step / fp32 LoRA-II's step of the same round)

On a machine that others use as well the times drift, and the ratios within a round hardly do. The baselines are stock
PEFT and plain PyTorch, get the same batches grouped by length, the same dropout and the same fused AdamW. Memory is
measured in a process of each row's own.

    settings.py  what to measure, and the names of the rows
    methods.py   models that take steps
    measure.py   the rounds, and everything else about a row
    memory.py    bytes: kept for the backward pass, and resident at the peak
    adapters.py  bytes of an adapter, seconds to load it and to switch to it
    theory.py    the same by FLOPs
    ladder.py    batches of growing size, until memory ends
    result.py    figures, table
"""

from benchmarks.steps.measure import measure
from benchmarks.steps.result import BenchResult, MethodResult
from benchmarks.steps.settings import CACHED, FIRST_TOKEN, BenchSettings

__all__ = ["CACHED", "FIRST_TOKEN", "BenchResult", "BenchSettings", "MethodResult", "measure"]
