"""Facts -> the text of a card. Pure: no network, no clock, no files but the template.

The template (model_cards/template.md) has the order and the headings; here is what stands under them. A section whose
facts are unknown comes out as "" and the template leaves its heading out too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined

from spafit_hf.card.citation import citation_intro, citations
from spafit_hf.card.curve import main_figure
from spafit_hf.card.facts import FACTS_FILE, CardError, CardFacts
from spafit_hf.card.limits import limits
from spafit_hf.card.metadata import card_data
from spafit_hf.card.results import SHOWN_STEPS, paper_note, row_count, score_table, step_table
from spafit_hf.card.strata import drawing, in_words
from spafit_hf.card.usage import usages
from spafit_hf.names import is_hub_id
from spafit_hf.words import (
    code,
    duration,
    figure,
    figure_name,
    listed,
    listing,
    method_title,
    plain,
    printable,
    share,
    size,
    table,
)

OWN_BEGIN = "<!-- your own section: begin -->"
OWN_END = "<!-- your own section: end -->"
GENERATED = "<!-- Written by spafit-hf"
#: What transformers and peft leave in a card that no one has written.
PLACEHOLDERS = (
    "This model card has been generated automatically according to the information the Trainer",
    "[More Information Needed]",
)

SHOWN_LABELS = 20


def render_card(facts: CardFacts, *, own: str = "", forgotten: str = "") -> str:
    """The text of a card: Markdown with YAML at its top, as `huggingface_hub.ModelCard` reads it.

    Args:
        facts: what is known. What is unknown leaves no trace.
        own: what stands in the user's own section (`own_section` of the card before).
        forgotten: what stands under "What was forgotten" (`forgetting_section` of the folder).

    Raises:
        CardError: if what comes out is no card that can be parsed.
    """
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False)
    text = environment.from_string(template_text()).render(_context(facts, own, forgotten)).rstrip() + "\n"
    try:
        ModelCard(text)
    except (ValueError, TypeError) as error:
        raise CardError(f"the card's metadata cannot be read back: {error}.") from error
    return text


def template_text() -> str:
    """The template: inside the package where it is installed, beside it in a checkout."""
    installed, checkout = (Path(__file__).parents[up] / "model_cards" / "template.md" for up in (1, 2))
    return (installed if installed.is_file() else checkout).read_text(encoding="utf-8")


def own_section(card: str) -> str:
    """What the user wrote between the two marks of a card; "" if nothing, or if there are no marks."""
    found = re.search(re.escape(OWN_BEGIN) + r"\n(.*?)\n?" + re.escape(OWN_END), card, re.S)
    return found.group(1) if found else ""


def is_generated(card: str) -> bool:
    """Whether a card may be replaced: this package wrote it, or a machine did and its gaps are still there."""
    return GENERATED in card or not card.strip() or any(mark in card for mark in PLACEHOLDERS)


def _context(facts: CardFacts, own: str, forgotten: str) -> dict[str, Any]:
    title = facts.title or _title(facts)
    name = (facts.repo_id or title).split("/")[-1]
    scores, compared = score_table(facts)
    main = main_figure(facts)
    known = [step for step in facts.steps if step.train_loss is not None or step.eval_loss is not None or step.figures]
    return {
        "metadata": card_data(facts, name).to_yaml(),
        "facts_file": FACTS_FILE,
        "title": plain(title),
        "summary": _summary(facts),
        "headline": _headline(facts),
        "own_begin": OWN_BEGIN,
        "own": own,
        "own_end": OWN_END,
        "usages": usages(facts),
        "labels": _labels(facts),
        "strata": drawing(facts) if facts.kind == "adapter" else "",
        "sizes": _sizes(facts),
        "scores": scores,
        "paper_note": paper_note(facts) if compared else "",
        "curve": facts.curve if re.fullmatch(r"[\w./-]+", facts.curve or "") else "",
        "curve_figure": plain(figure_name(main)) if main and any(main in step.figures for step in facts.steps) else "",
        "steps": step_table(facts, known) if len(known) > 1 else "",
        "steps_open": len(known) <= SHOWN_STEPS,
        "training": _training(facts),
        "command": "\n".join(map(printable, (facts.command or "").splitlines())),
        "hyperparameters": _settings(facts.hyperparameters),
        "all_hyperparameters": _settings(facts.all_hyperparameters),
        "versions": ", ".join(f"{plain(name)} {plain(version)}" for name, version in facts.versions.items()),
        "forgotten": forgotten,
        "limits": limits(facts),
        "citation_intro": citation_intro(facts),
        "citations": citations(facts),
    }


def _title(facts: CardFacts) -> str:
    if facts.repo_id:
        return facts.repo_id.split("/")[-1]
    method = method_title(facts.method)
    return f"{method[0].upper()}{method[1:]}{f' for {facts.data.name}' if facts.data.name else ''}"


def _base_name(facts: CardFacts) -> str:
    if is_hub_id(facts.base.id):
        return f"[{facts.base.id}](https://huggingface.co/{facts.base.id})"
    return plain(facts.base.name or "")


def _data_name(facts: CardFacts) -> str:
    data = facts.data
    if is_hub_id(data.id):
        link = f"https://huggingface.co/datasets/{data.id}"
        config = f", {plain(data.config)}" if data.config and data.config != "default" else ""
        return f"[{plain(data.name)}]({link})" if data.name else f"[{data.id}]({link}){config}"
    return plain(data.name or "")


def _summary(facts: CardFacts) -> str:
    base, data = _base_name(facts), _data_name(facts)
    method = f"**{plain(method_title(facts.method))}**"
    if facts.kind == "model":
        opening = f"{base or 'A pretrained model'}, with every weight fine-tuned" + (f" on {data}" if data else "")
    else:
        link = f"[{method}](https://arxiv.org/abs/2405.00201)" if facts.method.startswith("spafit") else method
        of, on = (f"{word} {name}" if name else "" for word, name in ((" of", base), (" on", data)))
        opening = f"An adapter{of}, trained{on} with {link}"
    sentences = [f"{opening}."]
    if job := _job(facts):
        sentences.append(job)
    if facts.kind == "adapter" and facts.layers and (words := in_words(facts)):
        inside = any(band.lora or band.biases or band.bottlenecks for band in facts.layers)
        alone = not inside and not facts.outer_biases
        head = f"; {'only the head trains' if alone else 'the head trains too'}" if facts.head else ""
        sentences.append(f"{words[0].upper()}{words[1:]}{head}.")
    if facts.kind == "adapter" and facts.trained_parameters and facts.total_parameters:
        part = share(facts.trained_parameters, facts.total_parameters)
        trained = f"{facts.trained_parameters:,} of {facts.total_parameters:,} parameters ({part})"
        weights = f"; the file has {size(facts.file_bytes)}" if facts.file_bytes else ""
        sentences.append(f"That is {trained}{weights}.")
    if start := facts.all_hyperparameters.get("init_adapter"):  # whose data have a part in this one
        sentences.append(f"It started with the LoRA and the bias deltas of another adapter, {plain(start)}.")
    return " ".join(sentences)


def _job(facts: CardFacts) -> str:
    """What the model does with an input, in a sentence."""
    if facts.data.task:
        return f"It {'says' if facts.regression else 'decides'} {plain(facts.data.task)}."
    text = "a pair of texts" if facts.takes_pairs else "a text"
    if facts.regression:
        return f"It gives a number for {text}."
    if facts.task_type == "SEQ_CLS" and facts.labels:
        if facts.problem_type == "multi_label_classification":
            return f"It says of each of {len(facts.labels)} labels whether it applies to {text}."
        names = listing([f"*{plain(label)}*" for label in facts.labels], "or") if len(facts.labels) <= 5 else ""
        return f"It sorts {text} into {len(facts.labels)} classes{f': {names}' if names else ''}."
    if facts.pipeline_tag == "summarization":
        return "It writes a short text of a longer one."
    return {
        "CAUSAL_LM": "It continues a text.",
        "SEQ_2_SEQ_LM": "It turns one text into another.",
        "TOKEN_CLS": "It labels the words of a text.",
        "QUESTION_ANS": "It finds the answer to a question in a text.",
    }.get(facts.task_type or "", "")


def _headline(facts: CardFacts) -> str:
    """The figure that counts, in a sentence of its own."""
    main = main_figure(facts) or ""
    parts = [
        f"**{figure(score.figures[main])}** on {plain(score.split)}{row_count(score)}"
        for score in facts.scores
        if main in score.figures
    ]
    return f"{plain(figure_name(main))}: {listing(parts)}." if parts else ""


def _labels(facts: CardFacts) -> str:
    if facts.regression:
        return "One output, a number: no classes and no probabilities."
    if not facts.labels:
        return ""
    rows = table(["Id", "Label"], [[str(i), plain(label)] for i, label in enumerate(facts.labels)], "rl")
    note = "Several may apply at once.\n\n" if facts.problem_type == "multi_label_classification" else ""
    if len(facts.labels) <= SHOWN_LABELS:
        return note + rows
    return f"{note}<details>\n<summary>{len(facts.labels)} labels</summary>\n\n{rows}\n\n</details>"


def _sizes(facts: CardFacts) -> str:
    trained, total = facts.trained_parameters, facts.total_parameters
    rows = []
    if facts.kind == "model":
        if total:
            rows.append(["Trained parameters", f"{total:,}"])
        if facts.file_bytes:
            rows.append(["Weights", size(facts.file_bytes)])
        return table(["", "This model"], rows, "lr") if rows else ""
    if trained and total:
        rows.append(["Parameters", f"{trained:,}", f"{total:,}"])
    if facts.file_bytes and facts.full_file_bytes:
        rows.append(["File", size(facts.file_bytes), size(facts.full_file_bytes)])
    if trained and total:
        rows.append(["AdamW state", size(8 * trained), size(8 * total)])
    parts = [table(["", "Adapter", "Full model"], rows, "lrr")] if rows else []
    ranks = sorted({(band.r, band.lora_alpha) for band in facts.layers if band.lora and band.r is not None})
    if ranks:
        ranked = listing([f"r = {r}" + (f", alpha = {alpha:g}" if alpha is not None else "") for r, alpha in ranks])
        parts.append(f"LoRA: {ranked}.")
    return "\n\n".join(parts)


def _training(facts: CardFacts) -> str:
    data, cost, lines = facts.data, facts.cost, []
    revision = f" (revision {code(data.revision[:12])})" if data.revision else ""
    known = [f"{name}{revision}"] if (name := _data_name(facts)) else []
    known += [f"split {code(data.train_split)}"] if name and data.train_split else []
    known += [f"{data.train_rows:,} rows"] if data.train_rows else []
    if data.train_rows and data.turned_rows:
        swapped = "all" if data.turned_rows == data.train_rows else f"{data.turned_rows:,}"
        known.append(f"{swapped} of them in both orders of their texts")
    known += [f"texts cut after {data.max_length} tokens"] if data.max_length else []
    lines += [f"Data: {listed(known)}."] if known else []
    if _base_name(facts) and facts.base.revision:
        lines.append(f"Base: {_base_name(facts)} at {code(facts.base.revision)}.")
    if cost.seconds is not None or cost.hardware:
        time = f"Time: {duration(cost.seconds)}" if cost.seconds is not None else "Trained"
        on = f" on {plain(cost.hardware)}" if cost.hardware else ""
        many = f", {cost.processes} processes" if cost.processes and cost.processes > 1 else ""
        lines.append(f"{time}{on}{many}.")
    return "\n".join(f"- {line}" for line in lines)


def _settings(settings: dict[str, Any]) -> str:
    rows = [[code(key), code(_setting(value))] for key, value in settings.items()]
    return table(["Hyperparameter", "Value"], rows) if rows else ""


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(item) for item in value)
    return str(value)
