"""Text that is written: trained, measured, read again anywhere, and asked."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from models import tiny_generator
from programs import Program
from reviews_run import BAD, GOOD, NOUNS, write_base
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from spafit_hf import load_adapter
from spafit_hf.adapter.pair import load_seq2seq
from spafit_hf.card import CardFacts
from spafit_hf.card.usage import usages
from spafit_hf.cli import main
from spafit_hf.data import DataError
from spafit_hf.data.tokens import tokenize_targets
from spafit_hf.names import BASE_ID
from spafit_hf.predictor.writer import load_writer, write
from spafit_hf.run import BaseArguments, DataArguments, load_data
from spafit_hf.run.base import fit_tokenizer
from spafit_hf.run.generation import text_losses
from spafit_hf.run.train import _describe

ARTICLES = [f"a {word} {noun} a {word} {other}" for word in (*GOOD, *BAD) for noun in NOUNS for other in NOUNS]


def summary_of(article: str) -> str:
    return "a bright film" if article.split()[1] in GOOD else "a dull plot"


def flags(command: str, *folder: Path, **given: object) -> list[str]:
    return [command, *map(str, folder), *(text for name, value in given.items() for text in (f"--{name}", str(value)))]


SHORT = {"max_length": 12, "max_target_length": 6}
FAST = {"strategy": "spafit-0-1-II", "lora_r": 4, "lora_alpha": 8, "learning_rate": 0.01, "disable_tqdm": True,
        "per_device_train_batch_size": 8, "lr_scheduler_type": "constant"}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("encoder"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "articles.jsonl"
    rows = [{"article": article, "highlights": summary_of(article)} for article in ARTICLES]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def some_articles(articles: Path) -> Path:
    """Two that begin with each word, for measuring again."""
    file = articles.with_name("some.jsonl")
    file.write_text("".join(articles.read_text().splitlines(True)[::8]))
    return file


@pytest.fixture(scope="module")
def pair(encoder: Path, articles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two copies of an encoder that were trained to summarize."""
    output = tmp_path_factory.mktemp("runs") / "pair"
    given = {"task": "summarization", "base": encoder, "train_file": articles, "output_dir": output}
    often = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 22, "save_steps": 22}
    assert main(flags("train", **given, **SHORT, **FAST, **often, num_train_epochs=4)) == 0
    return output


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 without a token for padding, on disk."""
    folder = tmp_path_factory.mktemp("gpt2")
    words = ["[UNK]", "[END]", "a", *GOOD, *BAD, *NOUNS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]").save_pretrained(folder)
    tiny_generator("gpt2", pad_token_id=None, eos_token_id=1, bos_token_id=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "texts.txt"
    file.write_text("\n\n".join(ARTICLES + [article.partition(" a ")[0] for article in ARTICLES[::8]]) + "\n")
    return file


@pytest.fixture(scope="module")
def continued(decoder: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That decoder, trained to go on."""
    output = tmp_path_factory.mktemp("runs") / "continued"
    given = {"task": "causal-lm", "base": decoder, "train_file": texts, "output_dir": output}
    assert main(flags("train", **given, **FAST, num_train_epochs=2, per_device_eval_batch_size=4)) == 0
    return output


def test_summaries_get_better_and_the_results_say_how_sure(pair: Path) -> None:
    results = json.loads((pair / "results.json").read_text())
    history = [entry for entry in results["history"] if "eval_loss" in entry]
    found = results["metrics"]["validation"]
    assert found["loss"] < history[0]["eval_loss"] / 2
    assert found["rougeL"] > 0.9
    assert found["rougeL_ci_low"] <= found["rougeL"] <= found["rougeL_ci_high"]
    assert (results["task"], results["main_figure"]) == ("summarization", "rougeL")
    assert found["rougeL"] == max(entry["eval_rougeL"] for entry in history)
    facts = json.loads((pair / "spafit_results.json").read_text())
    assert (facts["pipeline_tag"], facts["base"]["model_type"]) == ("summarization", "bert")
    assert facts["scores"][0]["figures"]["rouge1"] == found["rouge1"]
    card = (pair / "README.md").read_text()
    assert "- rouge\n" in card
    assert "rougeL_ci_low" not in card
    assert "| ROUGE-L, 95 % from |" in card


def test_the_card_shows_how_plain_peft_opens_a_pair(
    pair: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = CardFacts.from_json((pair / "spafit_results.json").read_text())
    base = dataclasses.replace(facts.base, id="owner/encoder", name=None, revision="main")
    shutil.copytree(pair, tmp_path / "repo", ignore=shutil.ignore_patterns("checkpoint-*"))
    shutil.copytree(encoder, tmp_path / "repo" / "owner" / "encoder")
    monkeypatch.chdir(tmp_path / "repo")
    ways = usages(dataclasses.replace(facts, base=base, examples=((ARTICLES[0],),)))
    assert [way.heading for way in ways] == ["With plain PEFT", "With spafit-hf"]
    for way in ways:
        torch.manual_seed(5)
        capsys.readouterr()
        exec(way.code, {})  # the point of the test
        assert capsys.readouterr().out.strip() == summary_of(ARTICLES[0])


def test_both_copies_are_of_the_revision_asked_for(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for auto in (AutoModel, AutoModelForCausalLM):
        load = auto.from_pretrained

        def spy(name: str, load: Any = load, **where: Any) -> Any:
            asked.append((where["revision"], where["local_files_only"]))
            return load(name, **where)

        monkeypatch.setattr(auto, "from_pretrained", spy)
    load_seq2seq(str(encoder), revision="v2", local_files_only=True)
    assert asked == [("v2", True), ("v2", True)]


def test_the_card_of_a_pair_of_the_embedded_encoder_names_it(
    encoder: Path, articles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package's own `train` is the function.
    monkeypatch.setattr(sys.modules["spafit_hf.run.train"], "resolve_base", lambda name: str(encoder))
    told: dict[str, Any] = {}
    trainer: Any = SimpleNamespace(model=load_seq2seq(str(encoder)), describe=lambda **facts: told.update(facts))
    data = load_data(DataArguments(task="summarization", train_file=str(articles)))
    _describe(trainer, data, BaseArguments("embedded"), None, None)
    assert (told["base"]["id"], told["base"]["model_type"]) == (BASE_ID, "bert")
    assert trainer.task == {"name": "summarization", "columns": ["article"]}


def test_summaries_are_measured_again_as_they_were(
    pair: Path, some_articles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The loss of a token must not depend on the batches.
    found = []
    for size in (7, 64):
        asked = {"task": "summarization", "validation_file": some_articles, "batch_size": size}
        assert main([*flags("evaluate", pair, **asked), "--json"]) == 0
        out, err = capsys.readouterr()
        found.append(json.loads(out)["validation"])
        assert [
            f"{what} cut after {count} tokens (as in training)" for what, count in (("texts", 12), ("summaries", 6))
        ] == err.splitlines()[-2:]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    model, tokenizer = load_writer(None, str(pair))
    losses, tokens = 0.0, 0
    for article in ARTICLES[::8]:
        row = tokenizer(article, return_tensors="pt", return_token_type_ids=False)
        labels = tokenizer(text_target=summary_of(article), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            losses += float(model(**row, labels=labels).loss) * labels.numel()
        tokens += labels.numel()
    assert found[0]["loss"] == pytest.approx(losses / tokens, rel=1e-4)


READ = """
import torch
from spafit_hf.predictor.writer import load_writer, write

def answers(folder, seed):
    torch.manual_seed(seed)
    model, tokenizer = load_writer(None, folder)
    tokens = torch.arange(4, 13).view(3, 3)
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    written = write(model, tokenizer, ["a warm film a warm plot", "a dull plot"], max_target_length=6)
    return [model(input_ids=tokens, **more).logits.tolist(), [each.text for each in written]]
"""


def test_a_new_process_writes_the_same(pair: Path, continued: Path, tmp_path: Path) -> None:
    """With another seed: what the encoder's checkpoint has not is in the folder."""
    folders = [str(pair), str(continued)]
    code = f"{READ}\nimport json\njson.dump([answers(each, 7) for each in {folders}], open('found.json', 'w'))"
    assert Program(["-c", code], tmp_path, {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}).wait() == 0
    here: dict[str, Any] = {}
    exec(READ, here)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == [here["answers"](folder, 3) for folder in folders]
    assert found[0][1] == ["a bright film", "a dull plot"]


def test_perplexity_is_that_of_every_token(continued: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((continued / "results.json").read_text())
    history = [entry["eval_perplexity"] for entry in results["history"] if "eval_perplexity" in entry]
    assert results["metrics"]["validation"]["perplexity"] == min(history) < history[0]
    assert main([*flags("evaluate", continued, task="causal-lm", validation_file=texts, batch_size=7), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["validation"]
    model, tokenizer = load_writer(None, str(continued))
    losses, tokens = [], []
    for line in filter(None, texts.read_text().split("\n")):
        ids = torch.tensor([*tokenizer(line)["input_ids"], tokenizer.eos_token_id])
        with torch.no_grad():
            scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        losses.append(-sum(float(scores[place, ids[place + 1]]) for place in range(len(ids) - 1)))
        tokens.append(len(ids) - 1)
    mean = sum(losses) / sum(tokens)
    assert found["loss"] == pytest.approx(mean, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    draws = np.random.default_rng(1).integers(len(losses), size=(4000, len(losses)))
    means = np.array(losses)[draws].sum(1) / np.array(tokens)[draws].sum(1)
    assert found["perplexity_se"] == pytest.approx(np.exp(means).std(), rel=0.1)
    assert "- perplexity\n" in (continued / "README.md").read_text()


def test_padding_counts_in_no_loss() -> None:
    logits, labels = torch.randn(2, 4, 9), torch.tensor([[3, 1, 4, 1], [5, 1, -100, -100]])
    scores = logits.log_softmax(-1)
    first = -(scores[0, 0, 1] + scores[0, 1, 4] + scores[0, 2, 1])
    expected = torch.tensor([[float(first), 3.0], [float(-scores[1, 0, 1]), 1.0]])
    assert torch.allclose(text_losses((logits, "past"), labels), expected)


def test_predict_writes(pair: Path, continued: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"text": "a warm film a warm plot", "id": 1}, {"text": " ".join(["a dull plot"] * 12)}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([*flags("predict", pair, file=tmp_path / "rows.jsonl", max_length=12), "--json"]) == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["written"] for row in found] == ["a bright film", "a dull plot"]
    assert [row["truncated"] for row in found] == [False, True]
    assert found[0]["id"] == 1
    assert "lost their end: 1 of 2" in err
    # Beside a longer row, which is padded before its begin, a decoder writes as it does alone.
    asked = flags("predict", continued, max_target_length=5)
    assert main([*asked, "--text", "a warm", "--text", "a dull plot a dull"]) == 0
    together = capsys.readouterr().out.splitlines()
    assert main([*asked, "--text", "a warm", "--generation_num_beams", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == together[:1]
    assert together[0].split("\t")[0]
    for flag, count in (("batch_size", -1), ("generation_num_beams", 0), ("max_target_length", 0)):
        assert (
            main([*flags("predict", pair, output=tmp_path / "rows.jsonl", **{flag: count}), "--text", "a warm"]) == 2
        )
        assert f"{flag.removeprefix('generation_')} is {count}; it must be at least 1." in capsys.readouterr().err
    assert (tmp_path / "rows.jsonl").read_text().count("text") == 2


def test_what_a_base_has_no_positions_for(pair: Path, articles: Path, tmp_path: Path, capsys: Any) -> None:
    asked = flags("evaluate", pair, task="summarization", validation_file=articles, max_length=1000)
    assert main([*asked, "--max_target_length", "100"]) == 2
    assert "positions, and 101 are to be written: write fewer." in capsys.readouterr().err
    model, tokenizer = load_writer(None, str(pair))
    with pytest.raises(ValueError, match="32 positions, and 32 are to be written"):
        write(model, tokenizer, ["a warm film"], max_target_length=32)
    tokenizer.model_max_length = 10**30
    fit_tokenizer(model, tokenizer)
    assert tokenizer.model_max_length == 32
    with pytest.raises(DataError, match="max_target_length is 2, the tokenizer's 32; rows need 3 tokens or more"):
        tokenize_targets(DatasetDict(), tokenizer, ["article"], max_target_length=2)


@pytest.mark.parametrize("name", ["pair", "continued"])
def test_merged_it_is_the_same(
    name: str,
    some_articles: Path,
    texts: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = request.getfixturevalue(name)
    assert main(flags("merge", folder, tmp_path / "plain")) == 0
    auto = AutoModelForSeq2SeqLM if name == "pair" else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "plain").eval()
    tokens = torch.randint(4, 13, (3, 5))
    more = {"decoder_input_ids": tokens} if name == "pair" else {}
    expected = load_adapter(None, folder).eval()(input_ids=tokens, **more).logits
    assert torch.allclose(plain(input_ids=tokens, **more).logits, expected, atol=1e-5)
    asked = {"task": "summarization", "validation_file": some_articles, **SHORT}
    asked = asked if name == "pair" else {"task": "causal-lm", "validation_file": texts}
    capsys.readouterr()
    figures = []
    for each in (folder, tmp_path / "plain"):
        assert main([*flags("evaluate", each, **asked), "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["validation"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    assert main(flags("predict", tmp_path / "plain", text="a warm film a warm plot", max_target_length=6)) == 0
    assert name != "pair" or capsys.readouterr().out.startswith("a bright film\t")


def test_an_encoder_decoder_keeps_what_it_was_asked_to_generate(
    base_folder: Path, articles: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    tiny_generator("t5", pad_token_id=0, eos_token_id=3, decoder_start_token_id=0).save_pretrained(base)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(base)
    given = {"task": "summarization", "base": base, "train_file": articles, "output_dir": tmp_path / "out", **FAST}
    more = {"strategy": "full", "max_steps": 2, "generation_num_beams": 2, "learning_rate": 1e-3}
    more |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    assert main(flags("train", **SHORT, **(given | more))) == 0
    plain, _ = load_writer(None, str(tmp_path / "out"))
    assert (plain.generation_config.num_beams, plain.generation_config.max_length) == (2, 7)
    facts = json.loads((tmp_path / "out" / "spafit_results.json").read_text())
    assert facts["base"]["model_type"] == "t5"
    assert facts["hyperparameters"]["generation_num_beams"] == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"labels": "a,b"}, "--labels is for labelled rows of --dataset or --train_file, and not"),
        ({"train_file": "", "task": "causal-lm"}, "name one source of data: --dataset, or --train_file; found none"),
        ({"max_target_length": -3}, "--max_target_length is -3; it must be 1 or more, or 0 for 64."),
        ({"generation_num_beams": 0}, "--generation_num_beams is 0; it must be at least 1."),
        ({"task": "causal-lm", "label_column": "highlights"}, "--label_column is for labelled rows of"),
        ({"task": "causal-lm", "generation_num_beams": 2}, "--generation_num_beams is for --task summarization"),
        ({"task": "causal-lm", "max_target_length": 9}, "--max_target_length is for --task summarization"),
        ({"label_column": "abstract"}, "no column 'abstract'; it has article, highlights"),
        ({"text_columns": "article,highlights"}, "from one column, and 2 were named"),
        ({"base": "decoder"}, "cannot be loaded: "),
        ({"task": "causal-lm"}, "is no decoder: what it says of a token depends on those after it"),
    ],
)
def test_what_does_not_go_together(
    given: dict[str, object],
    sentence: str,
    base_folder: Path,
    decoder: Path,
    articles: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"task": "summarization", "base": base_folder, "train_file": articles, "output_dir": tmp_path, **given}
    given["base"] = decoder if given["base"] == "decoder" else given["base"]
    assert main(flags("train", **given)) == 2
    assert sentence in capsys.readouterr().err


def test_folders_of_other_tasks(pair: Path, trained: Path, articles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags("evaluate", trained, task="summarization", validation_file=articles)) == 2
    error = capsys.readouterr().err
    assert "is a BertForSequenceClassification, and summarization needs one of AutoModelForSeq2SeqLM" in error
    assert main(flags("predict", trained, text="a warm film", max_target_length=3)) == 2
    assert "writes no text" in capsys.readouterr().err
    assert main(flags("predict", pair, trained, text="a warm film")) == 2
    assert "'pair' writes text, and is asked alone" in capsys.readouterr().err
