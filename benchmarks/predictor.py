"""Nine adapters for one text: `predict_all` against a loop over PEFT's `set_adapter` with the same adapters.

    OMP_NUM_THREADS=1 python benchmarks/predictor.py        two encoders, 16 to 64 tokens; two minutes and 2 GB at most
    python benchmarks/predictor.py --base google-bert/bert-large-cased --strategy spafit-8-16-II

The encoders are the packaged one (6 layers) and a random BERT of 24 layers, both 384 wide. The adapters have random
values, bias deltas included, and heads of GLUE's nine sizes; speed asks for no more. Both sides read the same adapter
folders and start from the string: tokens, forward passes, probabilities. One round runs every way once, so that what
disturbs the machine disturbs all of them, and a ratio is that of one round.

What can be won depends on the length. Adapters on few tokens wait for the weights, which one pass reads once; on many
tokens a pass waits for the matrix products, of which only those of shared layers and of the last layer can be spared.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    logging,
)

from benchmarks.rounds import CLOCKS, quartiles, take_rounds, write_json
from spafit_hf import Strategy, get_spafit_model, load_adapter, save_adapter
from spafit_hf.data.glue import TASKS
from spafit_hf.names import resolve_base
from spafit_hf.predictor import SpafitPredictor
from spafit_hf.predictor.memory import keep_freed_memory

LOOP = "loop over `set_adapter`"
OURS = "`predict_all`"
RANDOM_BASE = re.compile(r"random-(\d+)x(\d+)")
"""A BERT of so many layers of that width, with random weights."""
SENTENCE = "a quiet and generous film about two brothers who never learn to talk until the day it is too late"


def write_random_base(depth: int, width: int, folder: Path) -> str:
    """A BERT with random weights, and a tokenizer of `SENTENCE`'s words."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(SENTENCE.split())]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    BertModel(BertConfig(vocab_size=30522, num_hidden_layers=depth, **sizes)).save_pretrained(folder)
    return str(folder)


def write_adapters(base: str, strategy: Strategy, folder: Path) -> list[str]:
    """An adapter per GLUE task with random values."""
    for seed, task in enumerate(TASKS.values()):
        torch.manual_seed(seed)
        names = dict(enumerate(task.labels or ("score",)))
        model = AutoModelForSequenceClassification.from_pretrained(base, id2label=names)
        model.config.problem_type = task.problem_type
        wrapped = get_spafit_model(model, strategy)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                std = 0.02 if "lora_" in name else 0.05
                parameter.data += std * torch.randn_like(parameter)
        save_adapter(wrapped, folder / task.name)
    return list(TASKS)


def load_loop(base: str, folder: Path, names: list[str], device: str) -> PeftModel:
    """The same adapters side by side in one `PeftModel`."""
    model = AutoModelForSequenceClassification.from_pretrained(base).to(device)
    for name in names:
        model = load_adapter(model, folder / name, adapter_name=name)
    return model.eval()


def text_of(tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text of so many tokens, special ones included."""
    sentence, words = SENTENCE.split(), list[str]()
    while len(tokenizer(" ".join(words))["input_ids"]) < tokens:
        words.append(sentence[len(words) % len(sentence)])
    return " ".join(words)


def loop_over(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, names: list[str], text: str
) -> dict[str, torch.Tensor]:
    """What one would write with PEFT alone."""
    answers = {}
    with torch.inference_mode():
        batch = tokenizer(text, return_tensors="pt").to(model.device)
        for name in names:
            model.set_adapter(name)
            logits = model(**batch).logits[0]
            answers[name] = (logits.softmax(-1) if len(logits) > 1 else logits).cpu()
    return answers


def largest_difference(expected: dict[str, torch.Tensor], predictor: SpafitPredictor, text: str) -> float:
    """Over all probabilities and values of all adapters."""
    found = predictor.predict_all(text)
    return max(
        float((value - torch.tensor(list((found[name].scores or {"": found[name].value}).values()))).abs().max())
        for name, value in expected.items()
    )


def compare(base: str, title: str, strategy: Strategy, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Print one base's table.

    Returns:
        What was measured, in JSON types: the seconds of each way by number of tokens.
    """
    names = write_adapters(base, strategy, folder)
    looped = load_loop(base, folder, names, args.device)
    tokenizer = AutoTokenizer.from_pretrained(base)
    predictor = SpafitPredictor(base, device=args.device)
    for name in names:
        predictor.add(folder / name, name)
    facts = predictor.facts(names[0])
    print(
        f"\n{title}, {strategy.name}: {len(names)} adapters, layers {facts.layers[0]} to {facts.layers[-1]} of "
        f"{facts.depth} changed; {args.device}, {torch.get_num_threads()} threads, {args.clock} time, {args.rounds} "
        "rounds\n"
    )
    print("| tokens | way | ms (quartiles) | over the loop (quartiles) | largest difference |")
    print("| --- | --- | --- | --- | --- |")
    measured: dict[str, Any] = {}
    for tokens in args.tokens:
        text = text_of(tokens, tokenizer)
        ways: dict[str, Callable[[int], object]] = {
            LOOP: lambda _, text=text: loop_over(looped, tokenizer, names, text),
            # where the difference comes from: the switching, and passes without PEFT's wrappers
            "`set_adapter` alone": lambda _: [looped.set_adapter(name) for name in names],
            "`predict_all`, adapter by adapter": lambda _, text=text: [
                predictor.predict_all(text, [name]) for name in names
            ],
            OURS: lambda _, text=text: predictor.predict_all(text),
        }
        take_rounds(ways, 1, args.clock, args.device)  # does not count
        seconds = take_rounds(ways, args.rounds, args.clock, args.device)
        difference = largest_difference(loop_over(looped, tokenizer, names, text), predictor, text)
        measured[str(tokens)] = {"seconds": seconds, "largest_difference": difference}
        for way, values in seconds.items():
            low, middle, high = (1000 * value for value in quartiles(values))
            least, ratio, most = quartiles([own / loop for own, loop in zip(values, seconds[LOOP], strict=True)])
            over = "1" if way == LOOP else f"{ratio:.2f} ({least:.2f} to {most:.2f})"
            shown = f"{difference:.0e}" if way == OURS else ""
            print(f"| {tokens} | {way} | {middle:.0f} ({low:.0f} to {high:.0f}) | {over} | {shown} |", flush=True)
    return {"base": title, "strategy": strategy.name, "device": args.device, "tokens": measured}


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bases = ["embedded", "random-24x384"]
    parser.add_argument("--base", nargs="+", default=bases, help="embedded, random-LAYERSxWIDTH, Hub ids, folders")
    parser.add_argument("--strategy", default="spafit-4-9-II")
    parser.add_argument("--lora_r", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of this process alone")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's seconds")
    args = parser.parse_args(argv)
    keep_freed_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    strategy = Strategy.from_name(args.strategy)
    if any(stratum.lora for stratum in strategy.strata):
        strategy = strategy.with_lora(r=args.lora_r, lora_alpha=2 * args.lora_r)
    measured = []
    for title in args.base:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            sizes = RANDOM_BASE.fullmatch(title)
            base = write_random_base(*map(int, sizes.groups()), folder / "base") if sizes else resolve_base(title)
            measured.append(compare(base, title, strategy, folder / "adapters", args))
    if args.json:
        write_json(args.json, measured)


if __name__ == "__main__":
    main()
