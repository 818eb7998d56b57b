"""classify.py, unchanged, with a look at how its model is spread over the processes: one line of JSON per process."""

import json
import os
import sys
from typing import Any

import classify
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


class Watched(classify.Trainer):  # type: ignore[misc,name-defined]
    seen = False

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
