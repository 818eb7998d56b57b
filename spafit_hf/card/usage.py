"""Code to use a repo, which runs as it is printed: plain PEFT, transformers' pipeline, this package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from spafit_hf.card.facts import CardFacts
from spafit_hf.card.metadata import pipeline_tag
from spafit_hf.names import AUTO_CLASSES, PAIR_CLASS, SIDECAR_FILE, is_hub_id
from spafit_hf.words import listing, printable

#: Sentences to show where the facts have no example of their own.
STOCK = ("The museum opened a second building in May.", "A new building of the museum opened in spring.")
PROMPT = "The museum opened"
#: More label names than these are read from the sidecar and not printed.
MOST_LABELS = 30
#: More characters of label names than these get lines of their own.
WIDEST_LABELS = 60
#: Tasks whose head has an output per label.
LABELLING = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForImageClassification",
)

GENERATED = [
    "output = model.generate(**inputs, max_new_tokens=20)",
    "print(tokenizer.decode(output[0], skip_special_tokens=True))",
]
PAIR_GENERATED = [
    "output = model.generate(",
    "    **inputs,",
    "    decoder_start_token_id=tokenizer.cls_token_id,",
    "    eos_token_id=tokenizer.sep_token_id,",
    "    pad_token_id=tokenizer.pad_token_id,",
    "    max_new_tokens=20,",
    ")",
    GENERATED[-1],
]
#: PEFT's task -> from `inputs` to something printed.
PRINTED = {
    "CAUSAL_LM": GENERATED,
    "SEQ_2_SEQ_LM": GENERATED,
    "TOKEN_CLS": [
        "best = model(**inputs).logits.argmax(-1)[0]",
        "print([model.config.id2label[int(label)] for label in best])",
    ],
}


@dataclass(frozen=True)
class Usage:
    """One way to use the repo: a heading, a sentence or none, code."""

    heading: str
    note: str
    code: str


def usages(facts: CardFacts) -> list[Usage]:
    """Every way that works for these facts; [] where the base is not known by a name that another machine can load."""
    auto = AUTO_CLASSES.get(facts.task_type or "")
    if (facts.base.model_class or "").endswith("ForImageClassification"):
        auto = "AutoModelForImageClassification"
    if auto is None:
        return []
    if facts.kind == "model":
        load = f"model = {auto}.from_pretrained({', '.join(_repo(facts))}).eval()"
        ways = [_pipeline(facts, auto), Usage("With transformers", "", _code(facts, [], [auto], [load]))]
    elif not is_hub_id(facts.base.id) or facts.form == "native":
        ways = [_package(facts)]
    else:
        ways = [_peft(facts, auto), _pipeline(facts, auto), _package(facts)]
    return [usage for usage in ways if usage]


def _peft(facts: CardFacts, auto: str) -> Usage:
    imports, lines, arguments = _head(facts, auto)
    revision = [f"revision={_quoted(facts.base.revision)}"] if facts.base.revision else []
    where, names = [_quoted(facts.base.id or ""), *revision], [auto]
    base = [f"base = {_call(f'{auto}.from_pretrained', [*where, *arguments])}"]
    if _is_pair(facts):
        names = ["AutoModel", "AutoModelForCausalLM", PAIR_CLASS]
        attending = [*where, "is_decoder=True", "add_cross_attention=True"]
        base = [
            f"encoder = {_call('AutoModel.from_pretrained', where)}",
            f"decoder = {_call('AutoModelForCausalLM.from_pretrained', attending)}",
            f"base = {PAIR_CLASS}(encoder=encoder, decoder=decoder)",
        ]
    load = [
        *lines,
        *base,
        f"model = PeftModel.from_pretrained(base, {', '.join(_repo(facts))}).eval()",
    ]
    note = "`revision` is the version of the base that was trained on." if revision else ""
    code = _code(facts, ["from peft import PeftModel"], names, load)
    return Usage("With plain PEFT", note, "\n".join([*imports, code]))


def _pipeline(facts: CardFacts, auto: str) -> Usage | None:
    tag, adapter = pipeline_tag(facts), facts.kind == "adapter"
    if adapter and facts.revision:  # transformers would ask the base for the adapter's branch
        return None
    imports, lines, arguments = _head(facts, auto) if adapter else ([], [], [])
    settings = [f"model_kwargs=dict({', '.join(arguments)})"] if arguments else []
    make = _call("pipeline", [_quoted(tag or ""), *_repo(facts), *settings])
    if tag == "text-classification":
        text, *pair = map(_quoted, _example(facts))
        example = [f"example = {text}"]
        if pair:
            example = ["example = {", f'    "text": {text},', f'    "text_pair": {pair[0]},', "}"]
        every = [f"top_k={len(facts.labels)}"] if facts.labels else []
        outputs = ['function_to_apply="none"'] if facts.regression else every
        use = [f"classify = {make}", *example, f"print(classify({', '.join(['example', *outputs])}))"]
    elif tag == "text-generation":
        use = [f"generate = {make}", f"print(generate({_quoted(_example(facts)[0])}, max_new_tokens=20))"]
    else:
        return None
    notes = []
    if settings:
        notes.append("Without `model_kwargs`, transformers builds a head for two labels named LABEL_0 and LABEL_1.")
    if adapter and facts.base.revision:
        notes.append("The pipeline takes the newest version of the base, whatever the adapter was trained on.")
    code = [*imports, "from transformers import pipeline", "", *lines, *use]
    return Usage("With a pipeline", " ".join(notes), "\n".join(code))


def _package(facts: CardFacts) -> Usage:
    does = ["checks every file of the repository before it loads"]
    if facts.labels:
        does.append("restores the label names")
    if facts.base.revision and is_hub_id(facts.base.id):
        does.append("takes the base at the version that was trained on")
    elif facts.form is not None:  # only a folder with a sidecar has the base's fingerprint
        does.append("refuses a base whose biases, norms and embeddings are not those of the one that was trained on")
    note = f"It {listing(does)}."
    if facts.form == "native":
        what = "bottleneck adapters" if any(band.bottlenecks for band in facts.layers) else "these biases"
        note = f"Plain PEFT has no place for {what}, so this adapter needs spafit-hf. {note}"
    if facts.base.id is None:
        note = f"The base is not on the Hub: give your copy of it. {note}"
    base = _quoted("path/to/the/base" if facts.base.id is None else facts.base.id)
    load = f"model = load_adapter({', '.join([base, *_repo(facts)])})"
    return Usage("With spafit-hf", note, _code(facts, ["from spafit_hf import load_adapter"], [], [load]))


def _repo(facts: CardFacts, *more: str) -> list[str]:
    """Arguments that name the repo; a card that is in no repo yet speaks of the folder it is in."""
    revision = [f"revision={_quoted(facts.revision)}"] if facts.revision and facts.repo_id else []
    return [_quoted(facts.repo_id or "."), *more, *revision]


def _head(facts: CardFacts, auto: str) -> tuple[list[str], list[str], list[str]]:
    """Imports and lines, and the arguments that need them, with which a base gets this adapter's head."""
    if auto not in LABELLING:
        return [], [], []
    if facts.regression:
        return [], [], ["num_labels=1", 'problem_type="regression"']
    arguments = [f"num_labels={len(facts.labels)}"] if facts.labels else []
    if facts.problem_type == "multi_label_classification":
        arguments.append(f"problem_type={_quoted(facts.problem_type)}")
    pairs = [f"{index}: {_quoted(label)}" for index, label in enumerate(facts.labels)]
    if len(pairs) > MOST_LABELS and facts.repo_id:
        sidecar = _call("hf_hub_download", _repo(facts, _quoted(SIDECAR_FILE)))
        imports = ["import json", "", "from huggingface_hub import hf_hub_download"]
        lines = [
            f"with open({sidecar}) as file:",
            '    names = json.load(file)["labels"]["id2label"]',
            "id2label = {int(index): name for index, name in names.items()}",
        ]
        return imports, lines, [*arguments, "id2label=id2label"]
    if len(", ".join(pairs)) > WIDEST_LABELS:
        return [], ["id2label = {", *(f"    {pair}," for pair in pairs), "}"], [*arguments, "id2label=id2label"]
    if pairs:
        arguments.append(f"id2label={{{', '.join(pairs)}}}")
    return [], [], arguments


def _example(facts: CardFacts) -> tuple[str, ...]:
    if facts.examples:
        return facts.examples[0]
    if facts.task_type == "CAUSAL_LM":
        return (PROMPT,)
    return STOCK[: 2 if facts.takes_pairs else 1]


def _code(facts: CardFacts, imports: list[str], names: list[str], load: list[str]) -> str:
    """From imports over `load`, which makes `model`, to something printed; `names` are transformers'."""
    image = pipeline_tag(facts) == "image-classification"
    processor = "AutoImageProcessor" if image else "AutoTokenizer"
    imports = [*imports, f"from transformers import {', '.join(sorted([*names, processor]))}"]
    source = _repo(facts) if facts.has_tokenizer or not facts.base.id else [_quoted(facts.base.id)]
    made = f"{processor}.from_pretrained({', '.join(source)})"
    if image:
        use = [
            f"processor = {made}",
            'inputs = processor(Image.open("photo.jpg"), return_tensors="pt")',
            "best = model(**inputs).logits.argmax(-1).item()",
            "print(model.config.id2label[best])",
        ]
        return "\n".join([*sorted(["from PIL import Image", *imports]), "", *load, *use])
    inputs = _call("tokenizer", [*map(_quoted, _example(facts)), 'return_tensors="pt"'])
    return "\n".join([*imports, "", *load, f"tokenizer = {made}", "", f"inputs = {inputs}", *_printed(facts)])


def _is_pair(facts: CardFacts) -> bool:
    """Whether the base is an encoder alone, of which the model has two copies."""
    return facts.base.model_class == PAIR_CLASS and facts.base.model_type not in (None, "encoder-decoder")


def _printed(facts: CardFacts) -> list[str]:
    if _is_pair(facts) and facts.kind == "adapter":  # its generation config is in no file
        return PAIR_GENERATED
    if facts.task_type != "SEQ_CLS":
        return PRINTED.get(facts.task_type or "", ["print(model(**inputs))"])
    if facts.regression:
        return ["print(model(**inputs).logits.item())"]
    squash = "sigmoid()" if facts.problem_type == "multi_label_classification" else "softmax(-1)"
    return [
        f"scores = model(**inputs).logits[0].{squash}",
        "print({model.config.id2label[i]: round(p, 4) for i, p in enumerate(scores.tolist())})",
    ]


def _quoted(text: str) -> str:
    """A Python string literal in double quotes, on one line, that cannot end the block of code it stands in."""
    return printable(re.sub(r"`(?=`)", r"\\x60", json.dumps(text, ensure_ascii=False)))


def _call(function: str, arguments: list[str]) -> str:
    """A call, one argument to a line where it would be too long."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= 78:
        return line
    return "\n".join([f"{function}(", *(f"    {argument}," for argument in arguments), ")"])
