"""Code to use a repo, which runs as it is printed: plain PEFT, transformers' pipeline, this package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from spafit_hf.card.facts import CardFacts
from spafit_hf.card.metadata import pipeline_tag
from spafit_hf.names import AUTO_CLASSES, SIDECAR_FILE, is_hub_id
from spafit_hf.words import listing

#: Sentences to show where the facts have no example of their own.
STOCK = ("The museum opened a second building in May.", "A new building of the museum opened in spring.")
PROMPT = "The museum opened"
#: More label names than these are read from the sidecar and not printed.
MOST_LABELS = 30
#: More characters of label names than these get lines of their own.
WIDEST_LABELS = 60


@dataclass(frozen=True)
class Usage:
    """One way to use the repo: a heading, a sentence or none, code."""

    heading: str
    note: str
    code: str


def usages(facts: CardFacts) -> list[Usage]:
    """Every way that works for these facts; [] where the base is not known by a name that another machine can load."""
    auto = auto_class(facts)
    if auto is None:
        return []
    if facts.kind == "model":
        return [usage for usage in (_model_pipeline(facts, auto), _model(facts, auto)) if usage]
    if not is_hub_id(facts.base.id) or facts.form == "native":
        return [_package(facts, auto)]
    return [usage for usage in (_peft(facts, auto), _pipeline(facts), _package(facts, auto)) if usage]


def auto_class(facts: CardFacts) -> str | None:
    if (facts.base.model_class or "").endswith("ForImageClassification"):
        return "AutoModelForImageClassification"
    return AUTO_CLASSES.get(facts.task_type or "")


# -- the ways ---------------------------------------------------------------------------------------------------------


def _peft(facts: CardFacts, auto: str) -> Usage:
    arguments = [_quoted(facts.base.id or "")]
    if facts.base.revision:
        arguments.append(f"revision={_quoted(facts.base.revision)}")
    arguments += _head_arguments(facts)
    lines = [
        *_imports(facts, ["from peft import PeftModel"], auto),
        "",
        *_label_lines(facts),
        f"base = {_call(f'{auto}.from_pretrained', arguments)}",
        f"model = PeftModel.from_pretrained(base, {', '.join(_repo(facts))}).eval()",
        *_prediction(facts),
    ]
    note = "`revision` is the version of the base that was trained on." if facts.base.revision else ""
    return Usage("With plain PEFT", note, "\n".join(lines))


def _pipeline(facts: CardFacts) -> Usage | None:
    tag = pipeline_tag(facts)
    if tag == "text-classification":
        kwargs = _head_arguments(facts)
        settings = [f"model_kwargs=dict({', '.join(kwargs)})"] if kwargs else []
        extra = _function(facts)
        code = [
            *_label_imports(facts),
            "from transformers import pipeline",
            "",
            *_label_lines(facts),
            f"classify = {_call('pipeline', [_quoted(tag), _quoted(_where(facts)), *_revision(facts), *settings])}",
            *_pipeline_input(facts),
            f"print(classify({', '.join(['example', *extra])}))",
        ]
        note = (
            "Without `model_kwargs`, transformers builds a head for two labels named LABEL_0 and LABEL_1."
            if kwargs
            else ""
        )
    elif tag == "text-generation":
        code = [
            "from transformers import pipeline",
            "",
            f"generate = {_call('pipeline', [_quoted(tag), _quoted(_where(facts)), *_revision(facts)])}",
            f"print(generate({_quoted(_example(facts)[0])}, max_new_tokens=20))",
        ]
        note = ""
    else:
        return None
    if facts.revision:  # transformers would ask the base for the adapter's branch
        return None
    if facts.base.revision:
        note = (
            f"{note} The pipeline takes the newest version of the base, whatever the adapter was trained on.".strip()
        )
    return Usage("With a pipeline", note, "\n".join(code))


def _package(facts: CardFacts, auto: str) -> Usage:
    base = _quoted("path/to/the/base" if facts.base.id is None else facts.base.id)
    does = ["checks every file of the repository before it loads"]
    if facts.labels:
        does.append("restores the label names")
    if facts.base.revision and is_hub_id(facts.base.id):
        does.append("takes the base at the version that was trained on")
    elif facts.form is not None:  # only a folder with a sidecar has the base's fingerprint
        does.append("refuses a base whose biases, norms and embeddings are not those of the one that was trained on")
    note = f"It {listing(does)}."
    if facts.form == "native":
        note = f"Plain PEFT has no place for these biases, so this adapter needs spafit-hf. {note}"
    if facts.base.id is None:
        note = f"The base is not on the Hub: give your copy of it. {note}"
    lines = [
        *_imports(facts, ["from spafit_hf import load_adapter"], None),
        "",
        f"model = load_adapter({', '.join([base, *_repo(facts)])})",
        *_prediction(facts),
    ]
    return Usage("With spafit-hf", note, "\n".join(lines))


def _model(facts: CardFacts, auto: str) -> Usage:
    lines = [
        *_imports(facts, [], auto),
        "",
        f"model = {auto}.from_pretrained({', '.join(_repo(facts))}).eval()",
        *_prediction(facts),
    ]
    return Usage("With transformers", "", "\n".join(lines))


def _model_pipeline(facts: CardFacts, auto: str) -> Usage | None:
    tag = pipeline_tag(facts)
    names = {"text-classification": "classify", "text-generation": "generate"}
    if tag not in names:
        return None
    last = (
        [*_pipeline_input(facts), f"print(classify({', '.join(['example', *_function(facts)])}))"]
        if tag == "text-classification"
        else [f"print(generate({_quoted(_example(facts)[0])}, max_new_tokens=20))"]
    )
    made = _call("pipeline", [_quoted(tag), _quoted(_where(facts)), *_revision(facts)])
    code = ["from transformers import pipeline", "", f"{names[tag]} = {made}", *last]
    return Usage("With a pipeline", "", "\n".join(code))


# -- their parts ------------------------------------------------------------------------------------------------------


def _where(facts: CardFacts) -> str:
    """The repo; a card that is in no repo yet speaks of the folder it is in."""
    return facts.repo_id or "."


def _revision(facts: CardFacts) -> list[str]:
    return [f"revision={_quoted(facts.revision)}"] if facts.revision and facts.repo_id else []


def _repo(facts: CardFacts) -> list[str]:
    return [_quoted(_where(facts)), *_revision(facts)]


def _processor(facts: CardFacts) -> str:
    return "AutoImageProcessor" if pipeline_tag(facts) == "image-classification" else "AutoTokenizer"


def _imports(facts: CardFacts, first: list[str], auto: str | None) -> list[str]:
    names = sorted([*([auto] if auto else []), _processor(facts)])
    lines = [*first, f"from transformers import {', '.join(names)}"]
    if pipeline_tag(facts) == "image-classification":
        lines = sorted(["from PIL import Image", *lines])
    return [*(_label_imports(facts) if auto and facts.kind == "adapter" else []), *lines]


def _label_imports(facts: CardFacts) -> list[str]:
    """What `_label_lines` needs, as formatters sort it: the standard library first."""
    return ["import json", "", "from huggingface_hub import hf_hub_download"] if _long(facts) else []


def _long(facts: CardFacts) -> bool:
    return len(facts.labels) > MOST_LABELS and facts.repo_id is not None


def _label_lines(facts: CardFacts) -> list[str]:
    """What defines `id2label` before it is used, where the labels are too many for one line."""
    if not _long(facts):
        if len(_pairs(facts)) <= WIDEST_LABELS or "id2label=id2label" not in _head_arguments(facts):
            return []
        return ["id2label = {", *(f"    {i}: {_quoted(label)}," for i, label in enumerate(facts.labels)), "}"]
    sidecar = _call("hf_hub_download", [_quoted(_where(facts)), _quoted(SIDECAR_FILE), *_revision(facts)])
    return [
        f"with open({sidecar}) as file:",
        '    names = json.load(file)["labels"]["id2label"]',
        "id2label = {int(index): name for index, name in names.items()}",
    ]


def _head_arguments(facts: CardFacts) -> list[str]:
    """What a base must be told to get this adapter's head."""
    if auto_class(facts) in (
        "AutoModelForCausalLM",
        "AutoModelForSeq2SeqLM",
        "AutoModel",
        "AutoModelForQuestionAnswering",
    ):
        return []
    arguments = []
    if facts.regression or facts.labels:
        arguments.append(f"num_labels={1 if facts.regression else len(facts.labels)}")
    if facts.problem_type in ("regression", "multi_label_classification"):
        arguments.append(f"problem_type={_quoted(facts.problem_type)}")
    if facts.labels and not facts.regression:
        apart = _long(facts) or len(_pairs(facts)) > WIDEST_LABELS
        arguments.append("id2label=id2label" if apart else f"id2label={{{_pairs(facts)}}}")
    return arguments


def _pairs(facts: CardFacts) -> str:
    return ", ".join(f"{index}: {_quoted(label)}" for index, label in enumerate(facts.labels))


def _function(facts: CardFacts) -> list[str]:
    if facts.regression:
        return ['function_to_apply="none"']
    return [f"top_k={len(facts.labels)}"] if facts.labels else []


def _example(facts: CardFacts) -> tuple[str, ...]:
    if facts.examples:
        return facts.examples[0]
    if facts.task_type == "CAUSAL_LM":
        return (PROMPT,)
    return STOCK[: min(2, len(facts.data.columns) or 1)]


def _pipeline_input(facts: CardFacts) -> list[str]:
    """The lines that define `example`."""
    example = _example(facts)
    if len(example) == 1:
        return [f"example = {_quoted(example[0])}"]
    return ["example = {", f'    "text": {_quoted(example[0])},', f'    "text_pair": {_quoted(example[1])},', "}"]


def _prediction(facts: CardFacts) -> list[str]:
    """From `model` to something printed."""
    if pipeline_tag(facts) == "image-classification":
        source = _repo(facts) if facts.has_tokenizer else [_quoted(facts.base.id or _where(facts))]
        return [
            f"processor = AutoImageProcessor.from_pretrained({', '.join(source)})",
            'inputs = processor(Image.open("photo.jpg"), return_tensors="pt")',
            "best = model(**inputs).logits.argmax(-1).item()",
            "print(model.config.id2label[best])",
        ]
    source = _repo(facts) if facts.has_tokenizer or not facts.base.id else [_quoted(facts.base.id)]
    lines = [f"tokenizer = AutoTokenizer.from_pretrained({', '.join(source)})"]
    example = _example(facts)
    arguments = [*map(_quoted, example), 'return_tensors="pt"']
    lines += ["", f"inputs = {_call('tokenizer', arguments)}"]
    if facts.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        return [
            *lines,
            "output = model.generate(**inputs, max_new_tokens=20)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    if facts.task_type == "TOKEN_CLS":
        return [
            *lines,
            "best = model(**inputs).logits.argmax(-1)[0]",
            "print([model.config.id2label[int(label)] for label in best])",
        ]
    if facts.task_type == "SEQ_CLS" and facts.regression:
        return [*lines, "print(model(**inputs).logits.item())"]
    if facts.task_type == "SEQ_CLS":
        squash = "sigmoid()" if facts.problem_type == "multi_label_classification" else "softmax(-1)"
        return [
            *lines,
            f"scores = model(**inputs).logits[0].{squash}",
            "print({model.config.id2label[i]: round(p, 4) for i, p in enumerate(scores.tolist())})",
        ]
    return [*lines, "print(model(**inputs))"]


def _quoted(text: str) -> str:
    """A Python string literal in double quotes, on one line, that cannot end the block of code it stands in."""
    return re.sub(r"`(?=`)", r"\\x60", json.dumps(text, ensure_ascii=False))


def _call(function: str, arguments: list[str], width: int = 88) -> str:
    """A call, one argument to a line where it would be too long."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= width - 10:
        return line
    return "\n".join([f"{function}(", *(f"    {argument}," for argument in arguments), ")"])
