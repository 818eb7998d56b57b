"""classify.py, unchanged, with a look at how its model is spread over the processes: one line of JSON per process."""

import json
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
