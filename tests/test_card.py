"""Cards: what is known is said, what is not leaves no trace, and what is printed runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from spafit_hf.card import (
    Base,
    CardError,
    CardFacts,
    Cost,
    Data,
    Layers,
    Score,
    Step,
    facts_of_folder,
    glue_data,
    layers_of,
    own_section,
    render_card,
    write_card,
)
from spafit_hf.card.render import OWN_BEGIN, OWN_END, template_text
from spafit_hf.data.glue import TASKS
from spafit_hf.strategy import METHODS, Strategy, Stratum
from spafit_hf.words import code, duration, figure, plain, share, size, spans

LARGE = Base(
    id="google-bert/bert-large-cased",
    revision="a" * 40,
    license="apache-2.0",
    model_type="bert",
    model_class="BertForSequenceClassification",
)
STEPS = tuple(
    Step(n * 10, n / 2, 0.7 / n, 0.8 / n if n % 2 == 0 else None, {"f1": 0.7 + n / 50} if n % 2 == 0 else {})
    for n in range(1, 7)
)


def facts(method: str = "spafit-4-9-II", **changes: object) -> CardFacts:
    """An adapter for MRPC of which everything is known."""
    strategy = Strategy.from_name(method)
    known = CardFacts(
        method=method,
        kind="model" if strategy.full else "adapter",
        repo_id=f"ann/{method}-mrpc",
        task_type="SEQ_CLS",
        problem_type="single_label_classification",
        labels=("not_equivalent", "equivalent"),
        form="absolute",
        has_tokenizer=True,
        base=LARGE,
        data=glue_data("mrpc", revision="b" * 40, max_length=128),
        language=("en",),
        layers=() if strategy.full else layers_of(strategy, 24),
        outer_biases=strategy.outer_biases,
        head=("classifier",),
        trained_parameters=7_484_418,
        total_parameters=333_581_314,
        file_bytes=29_999_000,
        full_file_bytes=1_334_000_000,
        scores=(Score("validation", {"f1": 0.9213, "accuracy": 0.8897}, 408),),
        main_figure="f1",
        steps=STEPS,
        best_step=40,
        hyperparameters={"strategy": method, "learning_rate": 6e-5},
        all_hyperparameters={"strategy": method, "learning_rate": 6e-5, "seed": 42},
        cost=Cost(seconds=1234.5, hardware="AMD EPYC, 2 cores", processes=1),
        versions={"spafit-hf": "0.1.0", "peft": "0.21.2"},
    )
    return dataclasses.replace(known, **changes)


def check(text: str) -> ModelCard:
    """What holds for every card."""
    card = ModelCard(text)
    prose = re.sub(r"```.*?```", "", card.text.replace(own_section(text), ""), flags=re.S)
    for blank in ("None", "More Information Needed", "nan", "{{", "{%", "()", "[]", " ,", " ."):
        assert blank not in prose, blank
    assert "None" not in card.text
    headings = re.findall(r"^#+ .+$", re.sub(r"```.*?```", "code", card.text, flags=re.S), re.M)
    sections = re.split(r"^#+ .+$", re.sub(r"<!--.*?-->", "", card.text, flags=re.S), flags=re.M)[1:]
    for heading, body, following in zip(headings, sections, [*headings[1:], "# end"], strict=True):
        deeper = len(following.split()[0]) > len(heading.split()[0])
        assert body.strip() or deeper, f"{heading} is empty"
    assert "\n\n\n" not in text
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert "<td>|" not in html
    assert html.count("<details") == html.count("</details>")
    return card


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str) -> None:
    card = check(render_card(facts(method)))
    data = card.data.to_dict()
    full = method == "full"
    assert data["library_name"] == ("transformers" if full else "peft")
    assert data["base_model_relation"] == ("finetune" if full else "adapter")
    assert data["base_model"] == "google-bert/bert-large-cased"
    assert ("With plain PEFT" in card.text) is not full
    assert ("## What was trained" in card.text) is True
    assert ("layer  q k v o n" in card.text) is (method not in ("full", "linear-probe"))
    assert ("| Paper |" in card.text) is (method != "linear-probe")


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str) -> None:
    found = TASKS[task]
    scores = tuple(Score(split, dict.fromkeys(found.metrics, 0.5)) for split in found.validation)
    given = facts(
        data=glue_data(task, revision="b" * 40),
        labels=found.labels,
        problem_type=found.problem_type,
        scores=scores,
        main_figure=found.main_metric,
        steps=(),
        best_step=None,
    )
    card = check(render_card(given))
    results = card.data.eval_results
    assert {result.dataset_split for result in results} == set(found.validation)
    assert {result.dataset_config for result in results} == {task}
    assert all(result.dataset_type == "nyu-mll/glue" and result.dataset_revision == "b" * 40 for result in results)
    assert all(result.source_url == "https://huggingface.co/ann/spafit-4-9-II-mrpc" for result in results)
    named = {"pearson": "pearsonr", "spearmanr": "spearmanr"}
    assert {result.metric_type for result in results} == {named.get(name, name) for name in found.metrics}
    assert card.data.to_dict()["datasets"] == ["nyu-mll/glue"]
    assert found.description in card.text
    assert ("id2label" in card.text) is not found.regression


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_what_is_unknown_leaves_no_trace(kind: str) -> None:
    card = check(render_card(CardFacts(method="spafit-4-9-II", kind=kind)))
    assert re.findall(r"^## (.+)$", card.text, re.M) == ["Citation"]
    assert not {"base_model", "datasets", "license", "language", "metrics", "model-index"} & set(card.data.to_dict())


def test_each_fact_alone_makes_a_sound_card() -> None:
    """Facts come and go one by one: no combination of one or all but one may leave a hole."""
    whole, bare = facts(), CardFacts(method="spafit-4-9-II")
    for item in dataclasses.fields(CardFacts):
        if item.name in ("method", "kind"):
            continue
        check(render_card(dataclasses.replace(bare, **{item.name: getattr(whole, item.name)})))
        check(render_card(dataclasses.replace(whole, **{item.name: getattr(bare, item.name)})))


def test_a_card_is_a_function_of_its_facts() -> None:
    assert render_card(facts()) == render_card(facts())


# -- kinds of tasks ---------------------------------------------------------------------------------------------------


def test_regression() -> None:
    card = check(render_card(facts(problem_type="regression", labels=(), data=glue_data("stsb"))))
    assert 'num_labels=1, problem_type="regression"' in card.text.replace("\n    ", " ").replace(",  ", ", ")
    assert "function_to_apply" in card.text
    assert "softmax" not in card.text


def test_multi_label() -> None:
    card = check(render_card(facts(problem_type="multi_label_classification", labels=("joy", "anger", "fear"))))
    assert "sigmoid" in card.text
    assert "Several may apply at once" in card.text


@pytest.mark.parametrize(
    ("task_type", "tag", "word"),
    [("CAUSAL_LM", "text-generation", "AutoModelForCausalLM"), ("SEQ_2_SEQ_LM", None, "AutoModelForSeq2SeqLM")],
)
def test_language_models(task_type: str, tag: str | None, word: str) -> None:
    given = facts(task_type=task_type, problem_type=None, labels=(), head=(), data=Data(id="ann/poems", name="poems"))
    card = check(render_card(given))
    assert card.data.to_dict().get("pipeline_tag") == tag
    assert word in card.text
    assert "model.generate" in card.text
    assert card.data.eval_results
    named = check(render_card(dataclasses.replace(given, pipeline_tag="summarization")))
    assert named.data.pipeline_tag == "summarization"


def test_many_labels_are_read_from_the_repo_and_folded() -> None:
    card = check(render_card(facts(labels=tuple(f"intent {n}" for n in range(77)))))
    assert "spafit_config.json" in card.text
    assert "<summary>77 labels</summary>" in card.text
    assert "intent 3" not in "".join(re.findall(r"```python.*?```", card.text, re.S))


def test_an_adapter_that_plain_peft_cannot_read_says_so() -> None:
    card = check(render_card(facts(form="native")))
    assert "With plain PEFT" not in card.text
    assert "this adapter needs spafit-hf" in card.text
    assert card.data.library_name == "spafit-hf"


def test_a_local_base_and_local_data_are_named_but_not_linked() -> None:
    base = Base(name="my-bert", model_class="BertForSequenceClassification")
    card = check(render_card(facts(base=base, data=Data(name="my rows", columns=("text",)))))
    assert "base_model" not in card.data.to_dict()
    assert card.data.eval_results is None
    assert "my-bert" in card.text
    path = check(render_card(facts(base=Base(id="/home/ann/bert"))))
    assert "base_model" not in path.data.to_dict()


# -- parts ------------------------------------------------------------------------------------------------------------


def test_strata_are_drawn_layer_by_layer() -> None:
    text = render_card(facts())
    block = re.search(r"```text\n(.*?)```", text, re.S)[1].splitlines()
    assert max(map(len, block)) <= 44  # fits a phone
    rows = {int(line[:5]): line[5:] for line in block if line[:5].strip().isdigit()}
    assert list(rows) == list(range(24))
    assert rows[4].split() == [*".....", "|", *"..."]
    assert rows[5].split() == [*"bbbbb", "|", *"bbb", "group", "2"]
    assert rows[23].split() == [*"LLLL.", "|", *"bbb"]
    assert "layers 5 to 9 train every bias" in text


def test_a_layer_that_a_file_names_twice_is_drawn_twice() -> None:
    twice = tuple(Layers(name, "layers", (0, 1), biases=(role,)) for name, role in (("b", "query"), ("a", "key")))
    block = re.search(r"```text\n(.*?)```", render_card(facts(layers=twice)), re.S)[1]
    assert [line[:5].strip() for line in block.splitlines()][2:6] == ["0", "0", "1", "1"]


def test_strata_of_ones_own_and_two_stacks() -> None:
    own = Strategy.from_dict(
        {
            "strata": [
                {"layers": [1, 2], "lora": ["query"], "biases": ["query"], "r": 2, "name": "low"},
                {"layers": [3, 3], "lora": ["output"], "r": 8},
            ]
        }
    )
    bands = (*layers_of(own, 5, "encoder"), *layers_of(own, 5, "decoder"))
    text = render_card(facts(layers=bands))
    assert "encoder\n" in text
    assert "+ . . . ." in text
    assert "`+` LoRA and bias" in text
    assert "r = 2, alpha = 128 and r = 8, alpha = 128" in text
    assert "encoder layers 1 to 2 train LoRA of rank 2 on query and the bias of query" in text


def test_bottleneck_adapters() -> None:
    own = {"layers": [12, 23], "lora": ["output"], "bottleneck": {"kind": "parallel"}}
    bands = layers_of(Strategy.from_dict({"strata": [{"layers": [0, 1], "bottleneck": {"kind": "series"}}, own]}), 24)
    given = dataclasses.replace(facts(layers=bands, form="native"), method="custom")
    assert CardFacts.from_json(given.to_json()) == given
    card = check(render_card(given))
    assert "    0  . . . A .  | . A .  stratum 1" in card.text
    assert "   12  . . . . .  | . * .  stratum 2" in card.text
    assert "`A` bottleneck adapter, `*` bottleneck adapter, and LoRA or bias and `.` frozen" in card.text
    assert "Layers 0 to 1 train bottleneck adapters after attention and feed-forward" in card.text
    assert "LoRA of rank 64 on feed-forward out and bottleneck adapters beside the feed-forward" in card.text
    assert "Plain PEFT has no place for bottleneck adapters" in card.text
    assert {"houlsby2019adapters", "he2022unified", "hu2022lora"} <= set(re.findall(r"\{(\w+),$", card.text, re.M))
    assert "bottleneck-adapter" in card.data.tags
    assert "Series adapters for GLUE MRPC" in render_card(facts("series-adapter", repo_id=None))


def test_results_stand_beside_the_papers() -> None:
    assert "| F1 | 0.9213 | 0.92 |" in render_card(facts())
    other = render_card(facts(base=dataclasses.replace(LARGE, id="ann/other")))
    assert "not the same experiment" in other
    assert "Paper" not in render_card(facts(data=Data(id="ann/rows", name="rows")))


def test_steps_are_listed_and_long_lists_are_thinned() -> None:
    text = render_card(facts())
    assert "| **40** | **2.00** | **0.1750** | **0.2000** | **0.7800** |" in text
    many = tuple(Step(n, None, 1 / (n + 1)) for n in range(500))
    text = render_card(facts(steps=many, best_step=None))
    assert "of 500 logged steps; all are in `spafit_results.json`" in text
    assert len(re.findall(r"^\| [\d,]+ \| [\d.]+ \|$", text, re.M)) <= 61


def test_an_adapter_that_another_one_started_says_so() -> None:
    assert "of another adapter" not in render_card(facts())
    text = render_card(facts(all_hyperparameters={"init_adapter": "ann/bert-mnli_*x*"}))
    check(text)
    assert r"It started with the LoRA and the bias deltas of another adapter, ann/bert-mnli\_\*x\*." in text


def test_strangers_words_stay_words() -> None:
    nasty = ("a|b", "<script>alert(1)</script>", "*x*\n# y", "`tick`", 'quote"\\', "```\nend")
    card = check(render_card(facts(labels=nasty, title="<img src=x>", data=Data(name="[x](javascript:1)"), steps=())))
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    for bad in ("<script", "<img src=x", 'href="javascript', "<h1>y"):
        assert bad not in html
    for block in re.findall(r"```python\n(.*?)\n```", card.text, re.S):
        compile(block, "card", "exec")


def test_words() -> None:
    assert [share(1, 1), share(748, 33358), share(27, 33358), share(1, 10**6)] == [
        "100 %",
        "2.24 %",
        "0.081 %",
        "0.0001 %",
    ]
    assert [size(999), size(29_999_000), size(1_334_000_000), size(123_456_789)] == [
        "999 B",
        "30 MB",
        "1.33 GB",
        "123 MB",
    ]
    assert [duration(3.21), duration(59), duration(1234.5), duration(7260)] == [
        "3.2 s",
        "59 s",
        "20 min 34 s",
        "2 h 1 min",
    ]
    assert [figure(0.92134), figure(0.0), figure(12345.678), figure(0.00001)] == [
        "0.9213",
        "0.0000",
        "1.235e+04",
        "1e-05",
    ]
    assert spans([0, 1, 2, 5, 7, 8]) == "0 to 2, 5 and 7 to 8"
    assert plain("a_b <c>") == "a\\_b &lt;c&gt;"
    assert code("a|b`c") == "`` a\\|b`c ``"


EVIL = (
    "</summary><script>alert(1)</script>",
    "[x](javascript:alert(1)) ![y](javascript:alert(1))",
    "\n```\n<img src=x onerror=alert(1)>\n",
    "<javascript:alert(1)>",
    "`<b>`` | <b>",
    "--- \n# <h1>",
    "\x1b[31m\x9b\u202ex\u2066\u2028",
)


def evil(hint: Any, text: str) -> Any:
    """A value of a type with the text wherever one can be."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(**{field.name: evil(hints[field.name], text) for field in dataclasses.fields(hint)})
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return evil(arguments[0], text)
    if origin is tuple:
        return (evil(arguments[0], text),) * 2
    if origin is dict:
        return {text: text if arguments[1] is Any else evil(arguments[1], text)}
    return {str: text, int: 3, float: 2.5, bool: True}[hint]


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "model"},
        {"main_figure": "f1", "task_type": "SEQ_CLS"},
        {"method": "spafit-<b>", "task_type": "CAUSAL_LM", "base": LARGE},
        {"problem_type": "regression", "task_type": "SEQ_CLS", "data": glue_data("mrpc")},
    ],
)
def test_words_of_a_stranger_are_neither_html_nor_links(changes: dict[str, Any], text: str) -> None:
    fields = {name: evil(hint, text) for name, hint in typing.get_type_hints(CardFacts).items()}
    card = render_card(CardFacts(**{**fields, "kind": "adapter", "command": "spafit train", **changes}))
    body = card.split("\n---\n", 1)[1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", body)
    raw, links = [], []
    markdown = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    markdown.validateLink = lambda _: True  # type: ignore[method-assign]  # it drops javascript: itself
    for token in markdown.parse(body):
        for part in (token, *(token.children or ())):
            raw += [part.content] if part.type in ("html_block", "html_inline") else []
            links += [str(value) for name, value in part.attrs.items() if name in ("href", "src")]
    assert not [
        html for html in raw if not re.fullmatch(r"(<!--[^>]*-->|</?(details|summary)( open)?>|[\w ]|\n)+", html)
    ]
    assert not [link for link in links if not link.startswith(("https://", "training_curve.png"))]


# -- facts as a file --------------------------------------------------------------------------------------------------


def test_facts_survive_their_file() -> None:
    given = facts(cost=Cost(seconds=1.5), examples=(("a", "b"),), language=("en", "de"))
    assert CardFacts.from_json(given.to_json()) == given
    assert CardFacts.from_json(CardFacts(method="bitfit").to_json()) == CardFacts(method="bitfit")
    assert given.to_json() == CardFacts.from_json(given.to_json()).to_json()
    assert CardFacts(method="full", kind="model", data=glue_data("rte")).language == ("en",)


def test_what_is_not_finite_is_unknown() -> None:
    odd = {"accuracy": math.nan, "f1": math.inf}
    given = facts(scores=(Score("validation", odd, 5),), steps=(Step(1, None, math.nan, math.inf, odd), Step(2)))
    assert CardFacts.from_json(given.to_json()) == given
    assert given.steps == (Step(1), Step(2))
    assert not re.search(r"\b(nan|inf)\b", render_card(given))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not valid JSON"),
        ("[]", "format 'list'"),
        ('{"format": 2, "method": "x"}', "format 2"),
        ('{"format": 1}', "lacks 'method'"),
        ('{"format": 1, "method": "x", "colour": 1}', "unknown field 'colour'; allowed are"),
        ('{"format": 1, "method": "x", "base": {"id": 3}}', "facts.base.id is 3; expected is a str"),
        ('{"format": 1, "method": "x", "labels": "ab"}', "facts.labels is a str; expected is a list"),
        ('{"format": 1, "method": "x", "steps": [{"step": true}]}', "facts.steps[0].step is True"),
        ('{"format": 1, "method": "x", "kind": "thing"}', "allowed are 'adapter' and 'model'"),
    ],
)
def test_bad_facts_say_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(CardError, match=re.escape(why)):
        CardFacts.from_json(text)


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter folder without facts: what it says about itself is all there is."""
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]})
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1000))
    sidecar = {
        "form": "absolute",
        "strategy": Strategy.from_name("spafit-4-9-II").to_dict(),
        "labels": {"num_labels": 2, "id2label": {"0": "no", "1": "yes"}, "problem_type": None},
        "base": {"name_or_path": "google-bert/bert-large-cased", "revision": "c" * 40, "num_hidden_layers": 24},
        "task": {"name": "mrpc"},
    }
    (tmp_path / "spafit_config.json").write_text(json.dumps(sidecar))
    return tmp_path


def test_a_folder_describes_itself(folder: Path) -> None:
    found = facts_of_folder(folder)
    assert found.method == "spafit-4-9-II"
    assert found.labels == ("no", "yes")
    assert found.base == Base(id="google-bert/bert-large-cased", revision="c" * 40)
    assert found.data.glue == "mrpc"
    assert found.file_bytes == 1000
    assert [len(band.layers) for band in found.layers] == [5, 5, 14]
    check(write_card(folder).read_text())


def test_a_depth_that_cannot_be(folder: Path) -> None:
    sidecar = json.loads((folder / "spafit_config.json").read_text())
    sidecar["strategy"] = Strategy(name="own", strata=(Stratum(layers=(4, 5), biases=("query",)),)).to_dict()
    for depth, why in ((True, ""), (3, r"^spafit_config.json: .*reaches beyond the last layer")):
        sidecar["base"]["num_hidden_layers"] = depth
        (folder / "spafit_config.json").write_text(json.dumps(sidecar))
        with pytest.raises(CardError, match=why) if why else contextlib.nullcontext():
            assert facts_of_folder(folder).layers == ()


def test_rows_without_a_name_are_counted_and_pairs_are_asked_as_pairs(folder: Path) -> None:
    sidecar = json.loads((folder / "spafit_config.json").read_text())
    sidecar["task"] = {"columns": ["question", "answer"]}
    (folder / "spafit_config.json").write_text(json.dumps(sidecar))
    known = facts_of_folder(folder)
    of_run = dataclasses.replace(known, data=dataclasses.replace(known.data, train_rows=81, turned_rows=81))
    text = write_card(folder, of_run).read_text()
    assert "- Data: 81 rows, all of them in both orders of their texts." in text
    assert "It sorts a pair of texts into 2 classes: *no* or *yes*." in text
    assert text.count("A new building of the museum opened in spring.") == 3  # plain PEFT, a pipeline, this package
    assert write_card(folder).read_text() == text
    summaries = render_card(facts(task_type="SEQ_2_SEQ_LM", data=Data(columns=("document", "summary"))))
    assert "A new building" not in summaries


def test_writing_again_keeps_edits_and_the_own_section(folder: Path) -> None:
    path = write_card(folder)
    text = path.read_text()
    mine = "## About me\n\nThis stays: *as it is*, {{ braces }} and all.\n\n```text\ncode\n```"
    path.write_text(text.replace(f"{OWN_BEGIN}\n\n{OWN_END}", f"{OWN_BEGIN}\n{mine}\n{OWN_END}"))
    known = json.loads((folder / "spafit_results.json").read_text())
    known["license"] = "mit"
    known["scores"] = [{"split": "validation", "figures": {"f1": 0.5}}]
    (folder / "spafit_results.json").write_text(json.dumps(known))
    again = write_card(folder).read_text()
    assert own_section(again) == mine
    card = check(again)
    assert card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == 0.5
    assert write_card(folder).read_text() == again  # nothing changes without a change


def test_a_card_written_by_hand_is_not_replaced(folder: Path) -> None:
    (folder / "README.md").write_text("# My model\n")
    with pytest.raises(CardError, match="not written by spafit-hf"):
        write_card(folder)
    assert (folder / "README.md").read_text() == "# My model\n"
    write_card(folder, force=True)
    for placeholder in (
        "<!-- This model card has been generated automatically according to the information the Trainer had. -->",
        "---\nlibrary_name: peft\n---\n# Model Card\n[More Information Needed]\n",
    ):
        (folder / "README.md").write_text(placeholder)
        assert "## Use it" in write_card(folder).read_text()


def test_the_curve_is_drawn_once_there_are_two_points(folder: Path) -> None:
    given = facts()
    write_card(folder, given)
    picture = (folder / "training_curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "training_curve.png" in (folder / "README.md").read_text()
    write_card(folder, given)
    assert (folder / "training_curve.png").read_bytes() == picture
    (folder / "training_curve.png").unlink()
    write_card(folder, facts(steps=()))
    assert not (folder / "training_curve.png").exists()
    assert "training_curve.png" not in (folder / "README.md").read_text()


def test_no_folder_of_anything(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"neither adapter_config.json nor config.json"):
        facts_of_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CardError, match="not valid JSON"):
        facts_of_folder(tmp_path)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from argparse import ArgumentParser

    from spafit_hf.cli import card

    parser = ArgumentParser()
    card.add_parser(parser.add_subparsers())
    args = parser.parse_args(["card", str(folder), "--license", "mit", "--repo", "ann/x", "--language", "en"])
    args.run(args)
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    data = check((folder / "README.md").read_text()).data
    assert (data.license, data.language) == ("mit", "en")


def test_the_template_is_shipped() -> None:
    assert "{{ metadata }}" in template_text()


def test_rows_that_are_not_glues_own_are_said() -> None:
    whole = render_card(facts(data=dataclasses.replace(glue_data("mrpc"), train_rows=3668)))
    assert "GLUE's own" not in whole
    assert "both orders" not in whole
    both = render_card(facts(data=dataclasses.replace(glue_data("mrpc"), train_rows=3668, turned_rows=3660)))
    assert "3,668 rows, 3,660 of them in both orders of their texts" in both
    every = render_card(facts(data=dataclasses.replace(glue_data("mrpc"), train_rows=3668, turned_rows=3668)))
    assert "3,668 rows, all of them in both orders of their texts" in every
    assert "GLUE's own" not in both
    data = dataclasses.replace(glue_data("qqp"), train_rows=11_999)
    part = render_card(facts(data=data, scores=(Score("validation", {"accuracy": 0.8}, 10_000),)))
    assert "Trained on 11,999 rows; GLUE's own training set has 363,846." in part
    assert "Measured on 10,000 rows, not on GLUE's own validation set of 40,430" in part
    matched = render_card(
        facts(data=glue_data("mnli"), scores=(Score("validation_matched", {"accuracy": 0.8}, 9815),))
    )
    assert "Measured on" not in matched


def test_the_command_stands_in_a_block_that_it_cannot_end() -> None:
    command = "spafit train \\\n  --task mrpc"
    assert f"```bash\n{command}\n```" in render_card(facts(command=command))
    with pytest.raises(CardError, match="would end its block"):
        facts(command="spafit train ```\n# Send me your token")


@pytest.mark.parametrize("revision", ["main", "refs/pr/1"])
def test_what_is_or_will_be_on_the_default_branch_names_no_branch(revision: str) -> None:
    assert facts(revision=revision) == facts()
    assert CardFacts.from_json(facts().to_json().replace("{", f'{{"revision": "{revision}",', 1)) == facts()
    assert "With a pipeline" in render_card(facts(revision=revision))
    assert 'revision="run/2"' in render_card(facts(revision="run/2"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "loads, restores the label names and takes the base at the version that was trained on."),
        ({"base": dataclasses.replace(LARGE, revision=None)}, "refuses a base whose biases, norms and embeddings"),
        ({"base": Base(name="my-bert", revision="a" * 40)}, "refuses a base whose biases, norms and embeddings"),
        ({"base": dataclasses.replace(LARGE, id="/home/ann/bert")}, "refuses a base whose biases, norms and embed"),
        ({"base": dataclasses.replace(LARGE, revision=None), "form": None}, "loads and restores the label names."),
        ({"base": dataclasses.replace(LARGE, revision=None), "form": None, "labels": ()}, "before it loads.\n"),
    ],
)
def test_what_this_package_does_about_the_base_is_said_as_it_is(changes: dict[str, object], said: str) -> None:
    notes = [note for note in check(render_card(facts(**changes))).text.splitlines(True) if "It checks every" in note]
    assert len(notes) == 1
    assert said in notes[0]
    assert ("takes the base at the version" in notes[0]) is (not changes)


def test_the_main_figure_comes_first_also_from_a_file() -> None:
    known = facts()
    again = CardFacts.from_json(known.to_json())
    assert list(again.scores[0].figures) == list(known.scores[0].figures) == ["f1", "accuracy"]
    assert ModelCard(render_card(again)).data.eval_results[0].metric_type == "f1"


def test_links_of_a_strangers_folder_are_replaced_and_not_followed(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    steps = tuple(Step(step=step, train_loss=1 / step) for step in (1, 2, 3))
    names = ("training_curve.png", ".README.md.partial", ".spafit_results.json.partial")
    for name in names:
        (folder / name).symlink_to(mine)
    write_card(folder, dataclasses.replace(facts_of_folder(folder), steps=steps))
    assert mine.read_text() == "precious"
    assert not [name for name in ("training_curve.png", "README.md") if (folder / name).is_symlink()]


def test_a_folder_that_takes_no_card(folder: Path) -> None:
    (folder / "spafit_results.json").mkdir()
    with pytest.raises(CardError, match="takes no card: Is a directory"):
        write_card(folder, CardFacts(method="bitfit"))
    assert not list(folder.glob(".*"))
