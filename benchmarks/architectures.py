"""Every model class of transformers' auto mappings, tiny and random: does it train in strata, who reads the adapter?

    python benchmarks/architectures.py --output runs/architectures.jsonl            what is missing of it
    python benchmarks/architectures.py --output runs/architectures.jsonl --table docs/architectures.md

    class --tiny configuration--> model --forward--> get_spafit_model --backward--> trained tensors stirred
          --save_adapter--> folder --> load_adapter, plain PEFT: the same outputs?

A row that is done is not repeated. Each row is one of

    works       plain PEFT opens the folder, and computes what was saved
    native      only this package reads it; so says its form
    partly      with the first of INSTEAD that works, since this strategy is refused; with the reason
    refused     so are these, with the reason, before anything is trained
    idle        nothing that was planned has a gradient from such inputs, which SpafitTrainer says in the first step
    WRONG       anything else: other outputs, a folder that is not opened, a crash after a plan
    no model    transformers cannot build or run it from a small configuration: says nothing of this package
"""

from __future__ import annotations

import argparse
import inspect
import json
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from spafit_hf import get_spafit_model, load_adapter, save_adapter
from spafit_hf.trainer.machine import versions
from spafit_hf.words import first_line

TASKS = (
    "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MULTIPLE_CHOICE", "MASKED_LM",
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION", "AUDIO_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR", "CTC",
    "SPEECH_SEQ_2_SEQ", "DOCUMENT_QUESTION_ANSWERING", "VISUAL_QUESTION_ANSWERING",
)  # fmt: skip
STRATEGY = "spafit-4-9-II"
INSTEAD = ("lora-II", "bitfit", "linear-probe")
"""What is tried where it is refused: models that cannot be cut into strata, or have nothing of what gets LoRA."""
LAYERS = 4
SECONDS = 60
"""Of the processor's time, for one class; the largest default configurations are not made small by every field."""

SIZES = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32, "encoder_hidden_size": 32,
    "decoder_hidden_size": 32, "embedding_size": 32, "word_embed_proj_dim": 32, "projection_dim": 32,
    "intermediate_size": 64, "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_ff": 64, "hidden_dim": 64,
    "n_inner": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "d_kv": 8, "attention_head_size": 8,
    "num_hidden_layers": LAYERS, "num_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS,
    "encoder_layers": LAYERS, "decoder_layers": LAYERS, "num_decoder_layers": LAYERS, "num_encoder_layers": LAYERS,
    "vocab_size": 99, "max_position_embeddings": 64, "n_positions": 64, "max_source_positions": 64,
    "max_target_positions": 64, "type_vocab_size": 2, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "rotary_dim": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "q_lora_rank": 16, "kv_lora_rank": 16,
    "image_size": 32, "patch_size": 8, "num_mel_bins": 16, "vocab_size_per_layer_input": 99,
}  # fmt: skip
"""Field of a configuration -> a small value; taken where the default is a larger whole number."""
MORE: dict[str, Any] = {
    "n_group": 2, "topk_group": 1, "expand": 1, "mamba_n_heads": 4, "n_groups": 1, "entity_vocab_size": 99,
    "default_language": "en_XX", "embed_dim": 24, "window_size": 2, "patch_size": 2,
}  # fmt: skip
"""The same in a second try, in which they and `SIZES` also stand where a default has no value. The last three are for
Swin: its stages have 3 to 24 heads, and halve the image four times."""


def classes() -> dict[str, tuple[str, str]]:
    """Name of a class -> its model type and task, in the order of their names."""
    found: dict[str, tuple[str, str]] = {}
    for task in TASKS:
        for kind, names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            for name in (names,) if isinstance(names, str) else names:
                found.setdefault(name, (kind, task.lower()))
    return dict(sorted(found.items()))


def tiny(kind: type[PreTrainedConfig], kept: tuple[str, ...]) -> PreTrainedConfig:
    """A configuration of its kind with small sizes but for those that are kept, those of its parts included."""
    default = kind()
    fills = kept == FILLED
    given: dict[str, Any] = {
        name: size
        for name, size in (SIZES | MORE if fills else SIZES).items()
        if name not in kept
        and not isinstance(getattr(kind, name, None), property)
        and (fills if (value := getattr(default, name, size)) is None else type(value) is int and value > size)
    }
    if getattr(default, "vocab_size", 1) is None:
        given["vocab_size"] = SIZES["vocab_size"]
    for name, part in vars(default).items():
        if isinstance(part, PreTrainedConfig):
            given[name] = tiny(type(part), kept).to_dict()
    config = kind(**given)
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            value = getattr(part, name, 0)
            if value is None or (isinstance(value, int) and value >= SIZES["vocab_size"]):
                setattr(part, name, 1)
        if hasattr(part, "use_cache"):
            part.use_cache = False  # as in training; RWKV writes to its states, which a backward pass needs
    return config


HEADS = tuple(
    ["head_dim", "d_kv", "attention_head_size", "num_key_value_heads", "num_attention_heads", "num_heads", "n_head"]
)
DEPTH = tuple(name for name in SIZES if name.endswith(("layers", "layer")))
WIDTH = tuple(name for name in SIZES if name not in DEPTH)
FILLED = ("more",)
KEPT: tuple[tuple[str, ...], ...] = ((), FILLED, HEADS, DEPTH, HEADS + DEPTH, WIDTH, HEADS + WIDTH + DEPTH)
"""Which sizes are left as they are: some follow from others in a configuration, or are checked against them."""
LARGEST = 1e8
"""Parameters."""


def build(name: str, kept: tuple[str, ...]) -> PreTrainedModel:
    """The random model of a class, from a configuration of small sizes but for those that are kept."""
    kind: Any = getattr(transformers, name)
    config = tiny(kind.config_class, kept)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > LARGEST:
        raise NoModelError(f"{size:,} parameters")
    torch.manual_seed(0)
    return kind(tiny(kind.config_class, kept)).eval()


def model_of(name: str, task: str) -> tuple[PreTrainedModel, dict[str, torch.Tensor], tuple[str, ...]]:
    """The smallest model of a class that runs, its inputs, and the sizes that it keeps."""
    errors = []
    for kept in KEPT:
        try:
            model = build(name, kept)
            return model, batch_of(model, task), kept
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a configuration has against sizes that are not its own
            errors.append(f"{type(error).__name__}: {first_line(error)}")
    raise NoModelError(errors[0])


def inputs(model: PreTrainedModel, task: str) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs that the model may run on, the likeliest first."""
    taken = inspect.signature(model.forward).parameters
    config: Any = model.config.get_text_config()
    vision: Any = getattr(model.config, "vision_config", model.config)
    text = {"input_ids": torch.arange(10, 26).reshape(2, 8) % (getattr(config, "vocab_size", 99) or 99)}
    if isinstance(getattr(config, "eos_token_id", None), int):
        text["input_ids"][:, -1] = config.eos_token_id  # BART's classifier reads its state
    if task == "multiple_choice":
        text = {"input_ids": text["input_ids"][:, None].repeat(1, 2, 1)}
    decoder = {"decoder_input_ids": torch.arange(2, 10).reshape(2, 4)} if "decoder_input_ids" in taken else {}
    size = getattr(vision, "image_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", 3)
    torch.manual_seed(1)
    image = {"pixel_values": torch.randn(2, channels, height, width)}
    boxes = {"bbox": torch.zeros(2, 8, 4, dtype=torch.long)} if "bbox" in taken else {}
    main = model.main_input_name
    if main == "pixel_values":
        yield image
        frames = getattr(vision, "num_frames", 8)
        yield {"pixel_values": torch.randn(2, frames, channels, height, width)}
    elif main == "input_values":
        yield {"input_values": torch.randn(2, 4000), **decoder}
        yield {"input_values": torch.randn(2, 16000), **decoder}
        yield {"input_values": torch.randn(2, getattr(vision, "max_length", 64), getattr(vision, "num_mel_bins", 16))}
    elif main == "input_features":
        bins = getattr(config, "num_mel_bins", getattr(config, "feature_size", 80))
        length = 2 * getattr(config, "max_source_positions", 32)
        yield {"input_features": torch.randn(2, bins, length), **decoder}
        yield {"input_features": torch.randn(2, 64, bins), **decoder}
        yield {"input_features": torch.randn(2, 64, getattr(config, "feature_projection_input_dim", 160)), **decoder}
    yield {**text, **decoder, **boxes}
    yield {**text, **boxes}
    yield {**text, **decoder, **boxes, "attention_mask": torch.ones_like(text["input_ids"])}
    if "pixel_values" in taken:
        yield {**text, **boxes, **image}


def floats(found: Any) -> list[torch.Tensor]:
    """The real numbers that a model puts out, states for a next call apart."""
    if isinstance(found, torch.Tensor):
        return [found] if found.is_floating_point() else []
    if isinstance(found, Mapping):
        return [tensor for name, value in found.items() if name != "past_key_values" for tensor in floats(value)]
    return [tensor for value in found for tensor in floats(value)] if isinstance(found, (list, tuple)) else []


def run(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the model puts out, random numbers in it the same each time."""
    torch.manual_seed(2)
    return floats(model(**batch))


def batch_of(model: PreTrainedModel, task: str) -> dict[str, torch.Tensor]:
    """The first inputs that the model runs on."""
    errors = []
    for batch in inputs(model, task):
        try:
            with torch.no_grad():
                if run(model, batch):
                    return batch
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model has against inputs that are not its own
            errors.append(f"{type(error).__name__}: {first_line(error)}")
    raise NoModelError(errors[0] if errors else "it puts out no numbers")


class NoModelError(Exception):
    """transformers cannot build or run the class."""


def difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest, infinite where they do not compare."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return float("inf")
    gaps = [(one - other).abs().max().item() for one, other in zip(found, expected, strict=True) if one.numel()]
    return max((gap if gap == gap else float("inf") for gap in gaps), default=0.0)


def check(name: str, task: str) -> dict[str, Any]:
    """The row of a class: `status`, `why`, and what was measured."""
    try:
        model, batch, kept = model_of(name, task)
    except NoModelError as error:
        return {"status": "no model", "why": str(error)[:200]}
    row = trained(name, model, batch, kept, STRATEGY)
    if row["status"] == "refused":
        for strategy in INSTEAD:
            other = trained(name, model, batch, kept, strategy)
            if other["status"] != "refused":
                good = {"status": "partly", "why": f"{strategy} works; {row['why']}"[:300]}
                return other | (good if other["status"] == "works" else {})
    return row


def trained(
    name: str, model: PreTrainedModel, batch: dict[str, torch.Tensor], kept: tuple[str, ...], strategy: str
) -> dict[str, Any]:
    """The row of a class for one strategy."""
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def again() -> PreTrainedModel:
        other = build(name, kept)
        other.load_state_dict(state)
        return other

    try:
        lora = {} if strategy in ("bitfit", "linear-probe") else {"r": 2}
        wrapped = get_spafit_model(again(), strategy, **lora)
    except ValueError as error:
        return {"status": "refused", "why": first_line(error)[:300]}
    row: dict[str, Any] = {"status": "WRONG"}
    try:
        trained = {key: value for key, value in wrapped.named_parameters() if value.requires_grad}
        loss = sum(tensor.float().pow(2).mean() for tensor in run(wrapped, batch) if tensor.requires_grad)
        if isinstance(loss, torch.Tensor):
            loss.backward()
        row["without_gradient"] = sorted(key for key, value in trained.items() if value.grad is None)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(3)
            for parameter in trained.values():
                if parameter.grad is not None:  # what has none stays as it is in training, too
                    parameter += 0.05 * torch.randn_like(parameter)
            expected = run(wrapped, batch)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            row["moved"] = difference(run(model, batch), expected)
            row["form"] = save_adapter(wrapped, folder)
            row["own"] = difference(run(load_adapter(again(), folder).eval(), batch), expected)
            if row["form"] != "native":
                row["peft"] = difference(run(PeftModel.from_pretrained(again(), folder).eval(), batch), expected)
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001 - after a plan, any of them is a defect
        return row | {"why": f"{type(error).__name__}: {first_line(error)}"[:300]}
    return row | verdict(row, len(trained))


def verdict(row: Mapping[str, Any], trained: int) -> dict[str, str]:
    """Status and reason of a row that was measured to its end."""
    if row["own"] > 1e-4 or row.get("peft", 0.0) > 1e-4:
        return {
            "status": "WRONG",
            "why": f"outputs differ by {row['own']:.1g} here, {row.get('peft', 0.0):.1g} in PEFT",
        }
    if len(row["without_gradient"]) == trained or not row["moved"]:
        return {"status": "idle", "why": "nothing of the adapter has a gradient from such inputs"}
    dead = f"{len(row['without_gradient'])} of {trained} tensors without a gradient" if row["without_gradient"] else ""
    return {"status": "native" if row["form"] == "native" else "works", "why": dead}


def fill(output: Path, part: int, parts: int, only: Collection[str] = ()) -> None:
    """Add the rows that are missing; of several processes each its part; `only` those of some classes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    done = {row["class"] for row in read(output)}
    signal.signal(signal.SIGPROF, _too_long)
    for name, (kind, task) in list(classes().items())[part::parts]:
        if name in done or (only and name not in only):
            continue
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            row = check(name, task) if hasattr(transformers, name) else {"status": "no model", "why": "no such class"}
        except TimeoutError:
            row = {"status": "no model", "why": f"more than {SECONDS} s"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        with output.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"class": name, "type": kind, "task": task, **row}) + "\n")


def _too_long(*_: Any) -> None:
    raise TimeoutError


def read(output: Path) -> list[dict[str, Any]]:
    """The rows, in the order of their classes."""
    lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
    return sorted(map(json.loads, lines), key=lambda row: row["class"])


def table(rows: list[dict[str, Any]]) -> str:
    """The page: counts, and a line for each class that transformers can run."""
    counts = Counter(row["status"] for row in rows)
    asked = len(rows) - counts["no model"]
    used = ", ".join(f"{name} {number}" for name, number in versions(("torch", "transformers", "peft")).items())
    lines = [
        "# Architectures\n",
        "    python benchmarks/architectures.py --output runs/architectures.jsonl --table docs/architectures.md\n",
        f"Every class of transformers' auto mappings, tiny and random, with {STRATEGY} ({used}). {len(rows)} classes,",
        f"of which {counts['no model']} cannot be built or run from a small configuration. Of the other {asked}:\n",
        "| | classes |\n| --- | ---: |",
        f"| trains; plain PEFT opens the folder and computes the same | {counts['works']} |",
        f"| trains; only this package reads the folder | {counts['native']} |",
        f"| refused, with the reason; {', '.join(INSTEAD[:-1])} or {INSTEAD[-1]} works so | {counts['partly']} |",
        f"| refused before training, with the reason | {counts['refused']} |",
        f"| stopped in the first step, since nothing has a gradient from such inputs | {counts['idle']} |",
        f"| wrong | {counts['WRONG']} |\n",
        "| class | | |\n| --- | --- | --- |",
    ]
    shown = (row for row in rows if row["status"] != "no model")
    lines += [f"| {row['class']} | {row['status']} | {row['why'].replace('|', '/')} |" for row in shown]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing; print the counts, and write the table where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a line of JSON per class")
    parser.add_argument("--part", default="0/1", help="of several processes the first of two: 0/2")
    parser.add_argument("--only", nargs="+", default=(), metavar="CLASS", help="these alone")
    parser.add_argument("--table", type=Path, help="write the page here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    part, parts = map(int, args.part.split("/"))
    fill(args.output, part, parts, args.only)
    rows = read(args.output)
    print(dict(Counter(row["status"] for row in rows)))
    if args.table:
        args.table.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
