"""PEFT's own tests with `SpafitConfig` in the place of `LoraConfig`, beside the same tests with PEFT's own.

    python -m benchmarks.peft_suite                     the files of FILES; docs/peft_suite.json gets the result
    python -m benchmarks.peft_suite test_decoder_models test_custom_models --out result.json

The tests come with PEFT's source package, which pip downloads. The models that they load from the Hub are stood for by
random ones of the same classes, in a cache folder of their own: nothing is asked of the Hub. Of the tests that have a
configuration as a parameter only those of LoRA run.

It is a plugin of pytest too: each of the two runs loads this file (`-p`) in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VERSION = "0.21.2"
FILES = (
    "test_decoder_models",
    "test_encoder_decoder_models",
    "test_feature_extraction_models",
    "test_seq_classifier",
    "test_token_classification_qa",
    "test_custom_models",
)
SWAPPED, REPORT = "PEFT_SUITE_SWAPPED", "PEFT_SUITE_REPORT"

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024}
MLP = {"intermediate_size": 32}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SMALL, **MLP, **ENDS, "num_key_value_heads": 2}
BERT = {**SMALL, **MLP, "max_position_embeddings": 128}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 1024, "n_positions": 128, **ENDS}
SEQ2SEQ = {"d_model": 16, "vocab_size": 1024}
SIDES = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in
         (("layers", 2), ("attention_heads", 4), ("ffn_dim", 32))}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", {
        **SMALL, "ffn_dim": 32, "max_position_embeddings": 128, "word_embed_proj_dim": 16, **ENDS}),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", GPT2),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", GPT2),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {**GPT2, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", GROUPED),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", GROUPED),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", GROUPED),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {**GROUPED, "head_dim": 8}),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", {
        **SEQ2SEQ, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", {
        **SEQ2SEQ, **SIDES, **ENDS, "decoder_start_token_id": 2, "max_position_embeddings": 128}),
    **{f"peft-internal-testing/tiny-random-{name}{kind}": (f"{name}{kind}", BERT)
       for name, kinds in (("Bert", ("Model", "ForSequenceClassification")),
                           ("Roberta", ("Model", "ForSequenceClassification")),
                           ("Deberta", ("Model",)), ("DebertaV2", ("Model",)))
       for kind in kinds},
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", GROUPED),
}  # fmt: skip


# -- the plugin -------------------------------------------------------------------------------------------------------

outcomes: dict[str, str] = {}


def pytest_configure() -> None:
    """Put the configuration in place before a test imports it."""
    import peft

    if importlib.util.find_spec("diffusers") is None:  # for an `isinstance` in what all the files share
        stub = types.ModuleType("diffusers")
        vars(stub).update(StableDiffusionPipeline=type("Absent", (), {}), __spec__=ModuleSpec("diffusers", None))
        sys.modules["diffusers"] = stub
    if os.environ.get(SWAPPED):
        from spafit_hf import SpafitConfig

        peft.LoraConfig = peft.tuners.LoraConfig = SpafitConfig
    utilities = importlib.import_module("tests.testing_utils")
    vars(utilities)["hub_online_once"] = lambda model_id: nullcontext()  # which would ask the Hub the first time


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out the tests of other methods."""
    import peft

    def is_other(value: Any) -> bool:
        return isinstance(value, type) and issubclass(value, peft.PeftConfig) and value is not peft.LoraConfig

    others = [item for item in items if any(map(is_other, getattr(item, "callspec", _NoParameters).params.values()))]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]


class _NoParameters:
    params: dict[str, Any] = {}  # noqa: RUF012


def pytest_runtest_logreport(report: Any) -> None:
    """Note how a test ended."""
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid.replace("SpafitConfig", "LoraConfig")] = report.outcome


def pytest_sessionfinish() -> None:
    """Write down how all ended."""
    if os.environ.get(REPORT):
        Path(os.environ[REPORT]).write_text(json.dumps(outcomes), encoding="utf-8")


# -- the two runs -----------------------------------------------------------------------------------------------------


def fetch_tests(folder: Path) -> Path:
    """PEFT's tests, from its source package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", "peft", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--dest", str(folder), f"peft=={VERSION}"], check=True)
    (archive,) = folder.glob("peft-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    tests = folder / f"peft-{VERSION}" / "tests"
    (tests / "__init__.py").touch()  # they import one another, and the archive leaves this out
    return tests


def write_models(cache: Path) -> None:
    """The stand-ins with a tokenizer each, laid out as the Hub's cache is."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *map(chr, range(32, 127))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    for name, (kind, fields) in MODELS.items():
        torch.manual_seed(0)
        cls = getattr(transformers, kind)
        repo = cache / f"models--{name.replace('/', '--')}"
        snapshot = repo / "snapshots" / ("0" * 40)
        cls(cls.config_class(**fields)).save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)


def run(tests: Path, files: list[str], home: Path, *, swapped: bool) -> dict[str, str]:
    """Test -> how it ended."""
    report = home / f"report{int(swapped)}.json"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    env |= {"HF_HOME": str(home), SWAPPED: "1" if swapped else "", REPORT: str(report)}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-o", "addopts=", "-p", "no:cacheprovider"]
    names = [f"tests/{file}.py" for file in files]
    subprocess.run([*command, "-p", "benchmarks.peft_suite", *names], cwd=tests.parent, env=env, check=False)
    return json.loads(report.read_text(encoding="utf-8"))


def _of(file: str, outcomes: dict[str, str]) -> dict[str, str]:
    return {name: outcome for name, outcome in outcomes.items() if name.startswith(f"tests/{file}.py")}


def compared(stock: dict[str, str], ours: dict[str, str]) -> dict[str, Any]:
    """What passes with PEFT's own configuration, and which of that does not with this package's."""
    passed = sorted(name for name, outcome in stock.items() if outcome == "passed")
    lost = {name: ours.get(name, "absent") for name in passed if ours.get(name) != "passed"}
    return {
        "pass with LoraConfig": len(passed),
        "pass with both": len(passed) - len(lost),
        "fail with both": sum(outcome == ours.get(name) == "failed" for name, outcome in stock.items()),
        "pass with LoraConfig alone": lost,
    }


def main() -> None:
    """Run both and write the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", default=list(FILES), help="names of PEFT's test files, without .py")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "peft_suite.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        tests = fetch_tests(home)
        write_models(home / "hub")
        stock, ours = (run(tests, args.files, home, swapped=swapped) for swapped in (False, True))
    result = {
        "versions": {name: version(name) for name in ("peft", "transformers", "torch")},
        "files": {file: compared(*(_of(file, each) for each in (stock, ours))) for file in args.files},
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for file, figures in result["files"].items():
        print(f"{file}: {figures['pass with both']} of {figures['pass with LoraConfig']} pass")


if __name__ == "__main__":
    main()
