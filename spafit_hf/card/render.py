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

from spafit_hf.card.curve import main_figure
from spafit_hf.card.facts import CardError, CardFacts, Score, Step
from spafit_hf.card.limits import limits
from spafit_hf.card.metadata import card_data
from spafit_hf.card.strata import drawing, in_words
from spafit_hf.card.usage import usages
from spafit_hf.data.glue import PAPER_SCORES, TASKS
from spafit_hf.names import is_hub_id
from spafit_hf.words import (
    code,
    count,
    duration,
    figure,
    figure_name,
    listing,
    method_title,
    plain,
    share,
    size,
    table,
)

FACTS_FILE = "spafit_results.json"
"""Beside the card in the folder: `CardFacts.to_json`."""

OWN_BEGIN = "<!-- your own section: begin -->"
OWN_END = "<!-- your own section: end -->"
GENERATED = "<!-- Written by spafit-hf"
#: What transformers and peft leave in a card that nobody wrote.
PLACEHOLDERS = (
    "This model card has been generated automatically according to the information the Trainer",
    "[More Information Needed]",
)

SHOWN_LABELS = 20
SHOWN_STEPS = 12
MOST_STEPS = 60

CITATIONS = {
    "spafit": """@misc{arora2024spafit,
  title         = {{SPAFIT}: Stratified Progressive Adaptation Fine-tuning for Pre-trained Large Language Models},
  author        = {Arora, S. and Wang, L.},
  year          = {2024},
  eprint        = {2405.00201},
  archivePrefix = {arXiv}
}""",
    "bitfit": """@inproceedings{benzaken2022bitfit,
  title     = {{BitFit}: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models},
  author    = {Ben Zaken, Elad and Goldberg, Yoav and Ravfogel, Shauli},
  booktitle = {ACL},
  year      = {2022}
}""",
    "lora": """@inproceedings{hu2022lora,
  title     = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author    = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and
               Wang, Shean and Wang, Lu and Chen, Weizhu},
  booktitle = {ICLR},
  year      = {2022}
}""",
    "glue": """@inproceedings{wang2019glue,
  title     = {{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author    = {Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and
               Bowman, Samuel R.},
  booktitle = {ICLR},
  year      = {2019}
}""",
}


def render_card(facts: CardFacts, *, own: str = "", template: str | None = None) -> str:
    """The text of a card.

    Args:
        facts: what is known. What is unknown leaves no trace.
        own: what stands in the user's own section (`own_section` of the card before).
        template: Jinja text in place of the one shipped.

    Returns:
        Markdown with YAML at its top, as `huggingface_hub.ModelCard` reads it.

    Raises:
        CardError: if what comes out is no card that can be parsed.
    """
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )
    text = environment.from_string(template_text() if template is None else template).render(_context(facts, own))
    text = text.rstrip() + "\n"
    try:
        ModelCard(text)
    except (ValueError, TypeError) as error:
        raise CardError(f"the card's metadata cannot be read back: {error}.") from error
    return text


def template_text() -> str:
    """The template: inside the package where it is installed, beside it in a checkout."""
    here = Path(__file__)
    for folder in (here.parents[1] / "model_cards", here.parents[2] / "model_cards"):
        path = folder / "template.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise CardError("model_cards/template.md is missing; install spafit-hf again, or give a template.")


def own_section(card: str) -> str:
    """What the user wrote between the two marks of a card; "" if nothing, or if there are no marks."""
    found = re.search(re.escape(OWN_BEGIN) + r"\n(.*?)\n?" + re.escape(OWN_END), card, re.S)
    return found.group(1) if found else ""


def is_generated(card: str) -> bool:
    """Whether a card may be replaced: this package wrote it, or a machine did and nobody filled it in."""
    return GENERATED in card or not card.strip() or any(mark in card for mark in PLACEHOLDERS)


# -- what the template asks for ---------------------------------------------------------------------------------------


def _context(facts: CardFacts, own: str) -> dict[str, Any]:
    name = (facts.repo_id or facts.title or _title(facts)).split("/")[-1]
    scores, compared = _scores(facts)
    main = main_figure(facts)
    known = [step for step in facts.steps if step.train_loss is not None or step.eval_loss is not None or step.figures]
    return {
        "metadata": card_data(facts, name).to_yaml(),
        "facts_file": FACTS_FILE,
        "title": plain(facts.title or _title(facts)),
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
        "paper_note": _paper_note(facts) if compared else "",
        "curve": facts.curve or "",
        "curve_figure": figure_name(main) if main and any(main in step.figures for step in facts.steps) else "",
        "steps": _steps(facts, known) if len(known) > 1 else "",
        "steps_open": len(known) <= SHOWN_STEPS,
        "training": _training(facts),
        "command": facts.command or "",
        "hyperparameters": _settings(facts.hyperparameters),
        "all_hyperparameters": _settings(facts.all_hyperparameters),
        "versions": ", ".join(f"{plain(name)} {plain(version)}" for name, version in facts.versions.items()),
        "limits": limits(facts),
        "citation_intro": _citation_intro(facts),
        "citations": _citations(facts),
    }


def _title(facts: CardFacts) -> str:
    if facts.repo_id:
        return facts.repo_id.split("/")[-1]
    method = method_title(facts.method)
    return (
        f"{method[0].upper()}{method[1:]} for {facts.data.name}" if facts.data.name else method[0].upper() + method[1:]
    )


def _linked(hub_id: str, what: str = "") -> str:
    return f"[{hub_id}](https://huggingface.co/{what}{hub_id})"


def _base_name(facts: CardFacts) -> str:
    if is_hub_id(facts.base.id):
        return _linked(str(facts.base.id))
    return plain(facts.base.name) if facts.base.name else ""


def _data_name(facts: CardFacts) -> str:
    data = facts.data
    if is_hub_id(data.id):
        link = f"https://huggingface.co/datasets/{data.id}"
        config = f", {plain(data.config)}" if data.config and data.config != "default" else ""
        return f"[{plain(data.name)}]({link})" if data.name else f"[{data.id}]({link}){config}"
    return plain(data.name) if data.name else ""


def _summary(facts: CardFacts) -> str:
    base, data = _base_name(facts), _data_name(facts)
    method = f"**{method_title(facts.method)}**"
    if facts.kind == "model":
        opening = f"{base or 'A pretrained model'}, with every weight fine-tuned" + (f" on {data}" if data else "")
    else:
        link = "[" + method + "](https://arxiv.org/abs/2405.00201)" if facts.method.startswith("spafit") else method
        opening = (
            f"An adapter{f' of {base}' if base else ''}{f', trained on {data}' if data else ', trained'} with {link}"
        )
    sentences = [f"{opening}."]
    if job := _job(facts):
        sentences.append(job)
    if facts.kind == "adapter" and facts.layers and (words := in_words(facts)):
        alone = not any(band.lora or band.biases for band in facts.layers) and not facts.outer_biases
        head = f"; {'only the head trains' if alone else 'the head trains too'}" if facts.head else ""
        sentences.append(f"{words[0].upper()}{words[1:]}{head}.")
    if facts.kind == "adapter" and facts.trained_parameters and facts.total_parameters:
        part = share(facts.trained_parameters, facts.total_parameters)
        trained = f"{count(facts.trained_parameters)} of {count(facts.total_parameters)} parameters ({part})"
        weights = f"; the file has {size(facts.file_bytes)}" if facts.file_bytes else ""
        sentences.append(f"That is {trained}{weights}.")
    if start := facts.all_hyperparameters.get("init_adapter"):  # whose data have a part in this one
        sentences.append(f"It started with the LoRA and the bias deltas of another adapter, {plain(start)}.")
    return " ".join(sentences)


def _job(facts: CardFacts) -> str:
    """What the model does with an input, in a sentence."""
    if facts.data.task:
        verb = "It says" if facts.regression else "It decides"
        return f"{verb} {plain(facts.data.task)}."
    if facts.regression:
        return "It gives a number for a text."
    if facts.task_type == "SEQ_CLS" and facts.labels:
        if facts.problem_type == "multi_label_classification":
            return f"It says of each of {len(facts.labels)} labels whether it applies to a text."
        names = listing([f"*{plain(label)}*" for label in facts.labels], "or") if len(facts.labels) <= 5 else ""
        return f"It sorts a text into {len(facts.labels)} classes{f': {names}' if names else ''}."
    return {
        "CAUSAL_LM": "It continues a text.",
        "SEQ_2_SEQ_LM": "It turns one text into another.",
        "TOKEN_CLS": "It labels the words of a text.",
        "QUESTION_ANS": "It finds the answer to a question in a text.",
    }.get(facts.task_type or "", "")


def _headline(facts: CardFacts) -> str:
    """The figure that counts, in a sentence of its own."""
    main = main_figure(facts)
    parts = [
        f"**{figure(score.figures[main])}** on {plain(score.split)}{_rows(score)}"
        for score in facts.scores
        if main is not None and main in score.figures
    ]
    return f"{figure_name(main)}: {listing(parts)}." if parts and main is not None else ""


def _rows(score: Score) -> str:
    return f" ({count(score.rows)} rows)" if score.rows else ""


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
    if facts.kind == "model":
        rows = [
            *([["Trained parameters", count(total)]] if total else []),
            *([["Weights", size(facts.file_bytes)]] if facts.file_bytes else []),
        ]
        return table(["", "This model"], rows, "lr") if rows else ""
    rows = []
    if trained and total:
        rows.append(["Parameters", count(trained), count(total)])
    if facts.file_bytes and facts.full_file_bytes:
        rows.append(["File", size(facts.file_bytes), size(facts.full_file_bytes)])
    if trained and total:
        rows.append(["AdamW state", size(8 * trained), size(8 * total)])
    text = table(["", "Adapter", "Full model"], rows, "lrr") if rows else ""
    ranks = sorted({(band.r, band.lora_alpha) for band in facts.layers if band.lora and band.r is not None})
    if ranks:
        said = listing([f"r = {r}" + (f", alpha = {alpha:g}" if alpha is not None else "") for r, alpha in ranks])
        text += f"\n\nLoRA: {said}." if text else f"LoRA: {said}."
    return text


# -- results ----------------------------------------------------------------------------------------------------------


def _paper_score(facts: CardFacts) -> tuple[str, float] | None:
    """The paper's figure for this task and method: its name and value."""
    value = PAPER_SCORES.get(facts.data.glue or "", {}).get(facts.method)
    return (TASKS[facts.data.glue or ""].main_metric, value) if value is not None else None


def _scores(facts: CardFacts) -> tuple[str, bool]:
    """The table of scores, and whether the paper's stands beside them."""
    scores = [score for score in facts.scores if score.figures]
    if not scores:
        return "", False
    names = list(dict.fromkeys(name for score in scores for name in score.figures))
    paper = _paper_score(facts)
    header = ["", *(plain(score.split).replace("\\_", " ") + _rows(score) for score in scores)]
    rows = []
    for name in names:
        cells = [figure(score.figures[name]) if name in score.figures else "" for score in scores]
        theirs = [f"{paper[1]:.2f}" if paper[0] == name else ""] if paper else []
        rows.append([figure_name(name), *cells, *theirs])
    return table(
        [*header, *(["Paper"] if paper else [])], rows, "l" + "r" * (len(header) - 1 + bool(paper))
    ), paper is not None


def _paper_note(facts: CardFacts) -> str:
    matched = ", on the matched part" if facts.data.glue == "mnli" else ""
    other = (
        ""
        if (facts.base.id or "").endswith("bert-large-cased")
        else " The base here is another one, so the two are not the same experiment."
    )
    return (
        f"Paper: {method_title(facts.method)} in Table 2 of [arXiv:2405.00201](https://arxiv.org/abs/2405.00201), "
        f"BERT-large-cased, best of the authors' runs on the validation set{matched}, no spread given.{other}"
    )


def _steps(facts: CardFacts, known: list[Step]) -> str:
    names = list(dict.fromkeys(name for step in known for name in step.figures))
    columns: list[tuple[str, list[str]]] = [("Step", [count(step.step) for step in known])]

    def add(title: str, values: list[float | None], digits: int = 4) -> None:
        if any(value is not None for value in values):
            columns.append((title, ["" if value is None else f"{value:.{digits}f}" for value in values]))

    add("Epoch", [step.epoch for step in known], 2)
    add("Train loss", [step.train_loss for step in known])
    add("Val. loss", [step.eval_loss for step in known])
    for name in names:
        add(figure_name(name), [step.figures.get(name) for step in known])
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    kept = [index for index, step in enumerate(known) if step.step == facts.best_step]
    for index in kept:
        rows[index] = [f"**{cell}**" if cell else "" for cell in rows[index]]
    left_out = ""
    if len(rows) > MOST_STEPS:
        # Every evaluation stays, and of the rest as many as there is room for, evenly.
        stride = -(-len(rows) // MOST_STEPS)
        chosen = [
            i
            for i, step in enumerate(known)
            if step.figures or step.eval_loss is not None or i % stride == 0 or i in kept
        ]
        left_out = f"\n\n{len(chosen)} of {len(rows)} logged steps; all are in `{FACTS_FILE}`."
        rows = [rows[i] for i in chosen]
    note = "\n\nThe weights here are those of the step in bold." if kept else ""
    return table([title for title, _ in columns], rows, "r" * len(columns)) + left_out + note


# -- training ---------------------------------------------------------------------------------------------------------


def _training(facts: CardFacts) -> str:
    data, cost, lines = facts.data, facts.cost, []
    if _data_name(facts):
        split = f", split {code(data.train_split)}" if data.train_split else ""
        rows = f", {count(data.train_rows)} rows" if data.train_rows else ""
        turned = "all" if data.turned_rows == data.train_rows else count(data.turned_rows or 0)
        rows += f", {turned} of them in both orders of their texts" if data.turned_rows else ""
        cut = f", texts cut after {data.max_length} tokens" if data.max_length else ""
        revision = f" (revision {code(data.revision[:12])})" if data.revision else ""
        lines.append(f"Data: {_data_name(facts)}{revision}{split}{rows}{cut}.")
    if _base_name(facts) and facts.base.revision:
        lines.append(f"Base: {_base_name(facts)} at {code(facts.base.revision)}.")
    if cost.seconds is not None or cost.hardware:
        time = f"Time: {duration(cost.seconds)}" if cost.seconds is not None else "Trained"
        on = f" on {plain(cost.hardware)}" if cost.hardware else ""
        many = f", {cost.processes} processes" if cost.processes and cost.processes > 1 else ""
        lines.append(f"{time}{on}{many}.")
    if cost.emissions_grams is not None:
        energy = f", {cost.energy_kwh:.3g} kWh" if cost.energy_kwh is not None else ""
        source = f", measured by {plain(cost.emissions_source)}" if cost.emissions_source else ""
        lines.append(f"Emissions: {cost.emissions_grams:.3g} g CO2eq{energy}{source}.")
    return "\n".join(f"- {line}" for line in lines)


def _settings(settings: dict[str, Any]) -> str:
    return (
        table(["Hyperparameter", "Value"], [[code(key), code(_setting(value))] for key, value in settings.items()])
        if settings
        else ""
    )


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(item) for item in value)
    return str(value)


# -- citation ---------------------------------------------------------------------------------------------------------


def _cited(facts: CardFacts) -> list[str]:
    cited = ["spafit"]
    if facts.method == "bitfit":
        cited.append("bitfit")
    elif facts.kind == "adapter" and any(band.lora for band in facts.layers):
        cited.append("lora")
    return [*cited, *(["glue"] if facts.data.glue else [])]


def _citation_intro(facts: CardFacts) -> str:
    origin = (
        "The method" if facts.method.startswith("spafit") or facts.method == "custom" else "The comparison of methods"
    )
    return f"{origin} is Arora and Wang's; this repository and spafit-hf are not by them."


def _citations(facts: CardFacts) -> str:
    return "\n\n".join(CITATIONS[key] for key in _cited(facts))
