"""`series-adapter` and `parallel-adapter` beside DoubleSeqBn and ParBn of the library adapters: the same logits?

    python -m benchmarks.bottlenecks                             makes an environment for the library, and removes it
    python -m benchmarks.bottlenecks --python venv/bin/python    one in which adapters==1.3.0 is installed

The library pins another transformers than this package (4.57), so it runs in a process of its own: the same random
BERT and the same values of the bottlenecks go there as files, and its logits come back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

VERSION = "1.3.0"
PRESETS = {"series-adapter": "double_seq_bn", "parallel-adapter": "par_bn"}
ROWS, TOKENS, LAYERS, WIDTH = 8, 24, 4, 64


def here(strategy: str, folder: Path) -> tuple[Any, int]:
    """This package's logits and parameters in the layers; base, values and tokens are left in the folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForSequenceClassification

    from spafit_hf import get_spafit_model

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=100, num_hidden_layers=LAYERS, num_labels=3, **sizes))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    wrapped = get_spafit_model(model, {"name": strategy}).eval()
    values = {}
    for name, parameter in wrapped.get_base_model().named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
            values[name.replace(".default", "")] = parameter.data
    tokens = torch.randint(5, 100, (ROWS, TOKENS))
    save_file({**values, "tokens": tokens}, folder / "values.safetensors")
    with torch.no_grad():
        return wrapped(input_ids=tokens).logits, sum(value.numel() for value in values.values())


def there(preset: str, folder: Path) -> None:
    """The library's, on what lies in the folder; runs in its environment, where this package is not."""
    import adapters
    import torch
    from safetensors.torch import load_file
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder)
    adapters.init(model)
    model.add_adapter("x", config=preset)
    model.set_active_adapters("x")
    model.eval()
    own = {name: parameter for name, parameter in model.named_parameters() if ".adapters.x." in name}
    values = load_file(folder / "values.safetensors")
    tokens = values.pop("tokens")
    for name, value in values.items():
        path, part = name.split(".dense.lora_")
        parts = {"down": "adapter_down.0", "up": "adapter_up"}
        place = own[f"{path}.adapters.x.{parts[part.split('.')[0]]}.{part.split('.')[1]}"]
        assert place.shape == value.shape
        place.data = value
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        model.set_active_adapters(None)
        moved = (logits - model(input_ids=tokens).logits).abs().max().item()
    count = sum(parameter.numel() for parameter in own.values())
    found = {"logits": logits.tolist(), "moved": moved, "parameters": count}
    (folder / "found.json").write_text(json.dumps(found))


def environment(folder: Path) -> Path:
    """A Python with the library; pip takes the torch that is here, so that both compute with the same."""
    from importlib.metadata import version

    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    torch = f"torch=={version('torch').partition('+')[0]}"
    subprocess.run([python, "-m", "pip", "install", "--quiet", torch, f"adapters=={VERSION}"], check=True)
    return python


def main() -> None:
    """Compare both presets and print the largest differences."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="Python of an environment with the library")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = args.python or environment(Path(scratch) / "venv")
        for strategy, preset in PRESETS.items():
            folder = Path(scratch) / strategy
            folder.mkdir()
            ours, count = here(strategy, folder)
            subprocess.run([python, __file__, preset, str(folder)], check=True, env={"HF_HUB_OFFLINE": "1"})
            found = json.loads((folder / "found.json").read_text())
            theirs = torch.tensor(found["logits"])
            differ = (ours - theirs).abs().max().item()
            print(
                f"{strategy} and {preset}: logits differ by at most {differ:.1e}, from the base's by up to "
                f"{found['moved']:.2f}; {count:,} and {found['parameters']:,} parameters in the layers"
            )


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in PRESETS.values():
        there(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
