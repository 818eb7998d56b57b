"""classify.py, unchanged, with a look at how its model is spread over the processes: one line of JSON per process.

FSDP runs on processes of a CPU here, which accelerate leaves out.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import classify
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments


@contextmanager
def fsdp_on_cpu(args: TrainingArguments) -> Iterator[None]:
    """Within it, an `Accelerator` takes FSDP for processes on CPUs too.

    accelerate 1.15 (`AcceleratorState.__init__`) looks at the FSDP plugin only where the processes are on
    accelerators, and trains with DDP without a word where they are not, although FSDP version 2 runs on gloo. So they
    are called something else while it looks.
    """
    wanted = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    state = PartialState._shared_state
    if not wanted or args.device.type != "cpu" or state.get("distributed_type") != DistributedType.MULTI_CPU:
        yield
        return
    state["distributed_type"] = DistributedType.MULTI_GPU
    try:
        yield
    finally:
        if state["distributed_type"] == DistributedType.MULTI_GPU:  # with FSDP, accelerate notes FSDP here
            state["distributed_type"] = DistributedType.MULTI_CPU


class Watched(classify.Trainer):  # type: ignore[misc,name-defined]
    seen = False

    def create_accelerator_and_postprocess(self) -> None:
        with fsdp_on_cpu(self.args):
            super().create_accelerator_and_postprocess()

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.seen:
            self.seen = True
            parameters = list(model.parameters())
            facts = {
                "ddp": isinstance(model, DistributedDataParallel),
                "searches": isinstance(model, DistributedDataParallel) and model.find_unused_parameters,
                "sharded": sum(isinstance(parameter, DTensor) for parameter in parameters) / len(parameters),
                "resumed_at": self.state.global_step,
            }
            print("FACTS " + json.dumps(facts), flush=True)
        return super().training_step(model, *args, **kwargs)


classify.Trainer = Watched  # type: ignore[misc,attr-defined]
classify.main()
# A worker thread of gloo that frees a tensor while the interpreter goes down aborts the process (pytorch#179291,
# #190489), and torchrun then stops the others: seen once on a busy machine. Everything is written here, so the
# process ends without taking the interpreter down; destroy_process_group does not wait for those threads.
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
