"""Models spread over processes, here over one: FSDP 2 does to a model what it does on many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import mixture, stir
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from spafit_hf import get_spafit_model, save_adapter
from spafit_hf.trainer.sharding import whole_parameters


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_biases_of_experts_are_written_whole(group: None, tmp_path: Path) -> None:
    model = get_spafit_model(mixture("GptOss"), "spafit-4-9-II")
    stir(model)
    save_adapter(model, tmp_path / "whole")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = dict(model.named_parameters())
    assert all(isinstance(each, DTensor) for each in sharded.values())
    with whole_parameters(model, keep=True):
        save_adapter(model, tmp_path / "sharded")
    for name in ("adapter_model.safetensors", "adapter_config.json", "spafit_config.json"):
        assert (tmp_path / "sharded" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert all(each is sharded[name] for name, each in model.named_parameters())  # and everything is as it was
