"""Answers, strata and tables as HTML. Every word from outside goes through `words`, which escapes it.

Colors are variables of style.css, so that light and dark follow the page.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from spafit_hf.data.glue import PAPER_SCORES, TASKS
from spafit_hf.strategy import METHODS, ROLES
from spafit_hf.strategy.drawing import BIAS, BOTH, BOTTLENECK, COLUMNS, FROZEN, LETTERS, LORA, MEANINGS, MIXED, WHOLE
from spafit_hf.words import ROLE_WORDS, figure_name, method_title, share, size, spans
from spafit_space.results import PAPER_BASE, PAPER_PARAMETERS, paper_score
from spafit_space.service import Answer, Member, Service
from spafit_space.strata import Band
from spafit_space.tasks import label_words, words_of

_CLASSES = {
    FROZEN: "none", BIAS: "bias", LORA: "lora", BOTH: "both", BOTTLENECK: "adapter", MIXED: "adapter", WHOLE: "full"
}  # fmt: skip
"""Letter of a sub-layer -> its class in style.css, without "sf-"."""
SCALE_ENDS = ("unrelated", "same meaning")
SCALE = 5.0
PAPER_TOTAL = round(1e6 * PAPER_PARAMETERS["full"])


def words(text: object) -> str:
    """Text from outside, made safe to stand in HTML. `$` and braces too, which Gradio's templates would read."""
    return html.escape(str(text)).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


# -- numbers ----------------------------------------------------------------------------------------------------------


def percent(probability: float) -> str:
    """A probability: 97 %, 0.4 %, never a 100 % or 0 % that is none."""
    value = 100 * probability
    if 0.05 <= value < 1 or 99 < value < 99.95:
        return f"{value:.1f} %"
    return "> 99.9 %" if value >= 99.95 else "< 0.1 %" if value < 0.05 else f"{value:.0f} %"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def millions(count: int) -> str:
    """333.6 M, 0.16 M, 770."""
    if count >= 10**6:
        return f"{count / 10**6:.1f} M" if count >= 10**7 else f"{count / 10**6:.2f} M"
    return f"{count / 10**6:.2f} M" if count >= 10**4 else f"{count:,}"


def decimal(value: float) -> str:
    """Two digits, with a minus as long as a plus."""
    return f"{value:.2f}".replace("-", "−")


def points(score: float | None) -> str:
    """A score as the paper prints it: .92; a dash where there is none."""
    if score is None:
        return "–"
    text = decimal(score)
    return text.replace("0.", ".", 1) if abs(score) < 0.995 else text


# -- names ------------------------------------------------------------------------------------------------------------


def member_title(member: Member) -> str:
    """SST-2 · SPAFIT-4-9-II, as plain text."""
    task = TASKS[member.task].title if member.task else member.name
    method = method_title(member.method) if member.method else member.name
    return f"{task} · {method}" if method != task else task


def member_titles(members: Sequence[Member]) -> list[tuple[str, str]]:
    """(title, name) of each, titles that differ: two runs of one method get their names behind them."""
    titles = [member_title(member) for member in members]
    return [
        (title if titles.count(title) == 1 else f"{title} ({member.name})", member.name)
        for title, member in zip(titles, members, strict=True)
    ]


def _label(member: Member, label: str) -> str:
    return words(label_words(member.task, label))


# -- head of the page -------------------------------------------------------------------------------------------------


def hero(service: Service) -> str:
    """What this is, in figures."""
    members = [member for member in service.members if not member.full]
    names = [*dict.fromkeys(TASKS[member.task].title for member in members if member.task)]
    count = {1: "One task", 2: "Two tasks", 9: "Nine tasks"}.get(len(names), f"{len(names)} tasks")
    title = f"{count}, one encoder" if names else "Many tasks, one encoder"
    facts = [
        (f"{words(service.base_name)}", f"{millions(service.base_parameters)} parameters, {service.depth} layers"),
        ("Base", f"{size(service.base_bytes)}, loaded once, never changed"),
    ]
    if members:
        sizes = sorted(member.file_bytes for member in members)
        each = size(sizes[0]) if size(sizes[0]) == size(sizes[-1]) else f"{size(sizes[0])} to {size(sizes[-1])}"
        facts.append((f"{len(members)} adapter{'s' if len(members) > 1 else ''}", f"{each} each"))
    chips = "".join(f"<div class='sf-chip'><b>{name}</b><span>{value}</span></div>" for name, value in facts)
    return (
        f"<div class='sf-hero'><h1>{title}</h1><p>Early layers frozen, middle layers tuned by their biases, late "
        "layers by LoRA: the method of <a href='https://arxiv.org/abs/2405.00201' target='_blank' rel='noopener'>"
        "SPAFIT</a>. What a task adds to the encoder is a small file, so one encoder answers them all. This page "
        f"is not by the paper's authors.</p><div class='sf-chips'>{chips}</div></div>"
    )


def notices(service: Service) -> str:
    """What is missing or was refused; "" where all is well."""
    blocks = []
    base = service.base_name if Path(service.config.base).is_dir() else service.config.base
    if not service.members:
        blocks.append(
            "<p><b>No adapters are here, so nothing can be asked yet.</b> Train one with <code>spafit train "
            f"--task sst2 --base {words(base)} --output_dir adapters/sst2</code>, or name some in "
            "<code>config.yaml</code>, and start again. The paper's results are there all the same.</p>"
        )
    if service.problems:
        items = "".join(f"<li>{words(problem)}</li>" for problem in service.problems)
        blocks.append(f"<p>Some of what the configuration names could not be used:</p><ul>{items}</ul>")
    return f"<div class='sf-notice' role='status'>{''.join(blocks)}</div>" if blocks else ""


def hint(text: str) -> str:
    """What stands where an answer will be."""
    return f"<div class='sf-hint'>{words(text)}</div>"


# -- a task -----------------------------------------------------------------------------------------------------------


def about(member: Member) -> str:
    """What an adapter can and cannot do, and how well it did."""
    wording = words_of(member.task)
    title = f"{TASKS[member.task].title}: {wording.question}" if member.task else f"{member.name}: {wording.question}"
    return (
        f"<div class='sf-about'><h3>{words(title)}</h3><p>{words(wording.does)} "
        f"<span class='sf-cannot'>{words(wording.does_not)}</span></p>{_tokenizer(member)}{_measured(member)}</div>"
    )


def _tokenizer(member: Member) -> str:
    if not member.tokenizer:
        return ""
    return f"<p>Texts go through the base's tokenizer here, not the adapter's own: {words(member.tokenizer)}.</p>"


def _measured(member: Member) -> str:
    result = member.result
    if result is None or result.score is None or result.figure is None:
        return "<p class='sf-measured'>How well it does has not been measured: no result file lies beside it.</p>"
    rows = f" on {result.rows:,} validation rows" if result.rows else " on validation"
    paper = paper_score(member.task, member.method)
    beside = f" (the paper's, on {PAPER_BASE}: {points(paper)})" if paper is not None else ""
    claim = "Its repository says: " if member.added else ""
    return (
        f"<p class='sf-measured'>{claim}<b>{words(figure_name(result.figure))} {points(result.score)}</b>"
        f"{rows}{beside}.</p>"
    )


# -- answers ----------------------------------------------------------------------------------------------------------


def answer(found: Answer, *, title: str = "", heading: bool = True, latency: bool = True) -> str:
    """One answer: the verdict, a bar per label or the scale, and what it cost."""
    member, prediction = found.member, found.prediction
    if found.problem:
        return f"<p class='sf-cut'>{words(found.problem)}</p>"
    body = _scale(found) if prediction.scores is None else _bars(found)
    facts = [f"{milliseconds(found.seconds)}"] if latency else []
    facts.append(f"{'model' if member.full else 'adapter'} {size(member.file_bytes)}")
    touched = [layer for band in member.strata.bands if band.touched for layer in range(band.first, band.last + 1)]
    if touched:
        facts.append(f"layer{'s' if len(touched) > 1 else ''} {spans(touched)} of {member.strata.depth}")
    else:
        facts.append("no layer, the head alone")
    chips = "".join(f"<span>{words(fact)}</span>" for fact in facts)
    cut = "<p class='sf-cut'>The text was too long for the base; its end was not read.</p>"
    return (
        f"<div class='sf-answer'>{f'<h4>{words(title)}</h4>' if title else ''}"
        f"{_verdict(found) if heading else ''}{body}{cut if prediction.truncated else ''}"
        f"<div class='sf-facts'>{chips}</div></div>"
    )


def _verdict(found: Answer) -> str:
    prediction = found.prediction
    if prediction.scores is None:
        value = prediction.value or 0.0
        return (
            f"<div class='sf-verdict'><b>{decimal(value)}</b><span>{'of 5' if found.member.task == 'stsb' else ''}"
            "</span></div>"
        )
    label = prediction.label or ""
    text = percent(prediction.scores[label])
    return f"<div class='sf-verdict'><b>{_label(found.member, label)}</b><span>{text}</span></div>"


def _bars(found: Answer) -> str:
    scores = found.prediction.scores or {}
    rows = []
    for label, score in scores.items():
        name, top = _label(found.member, label), " sf-top" if label == found.prediction.label else ""
        rows.append(
            f"<div class='sf-bar{top}'><span class='sf-name'>{name}</span>"
            f"<span class='sf-track'><i style='width:{100 * score:.1f}%'></i></span>"
            f"<span class='sf-value'>{words(percent(score))}</span></div>"
        )
    return f"<div class='sf-bars'>{''.join(rows)}</div>"


def _scale(found: Answer) -> str:
    value = found.prediction.value or 0.0
    if found.member.task != "stsb":  # a score of unknown range has no scale
        return ""
    place = 100 * min(max(value / SCALE, 0.0), 1.0)
    ticks = "".join(f"<span style='left:{20 * tick}%'>{tick}</span>" for tick in range(6))
    return (
        f"<div class='sf-scale' role='img' aria-label='{value:.2f} on a scale from 0, {SCALE_ENDS[0]}, to 5, "
        f"{SCALE_ENDS[1]}'><div class='sf-line'><i style='width:{place:.1f}%'></i>"
        f"<b style='left:{place:.1f}%'></b></div><div class='sf-ticks'>{ticks}</div>"
        f"<div class='sf-ends'><span>{SCALE_ENDS[0]}</span><span>{SCALE_ENDS[1]}</span></div></div>"
    )


def answers(found: Sequence[Answer]) -> str:
    """Many answers to one text, as cards."""
    titles = dict((name, title) for title, name in member_titles([one.member for one in found]))
    cards = []
    for one in found:
        wording = words_of(one.member.task)
        cards.append(
            f"<section class='sf-card'><header><b>{words(wording.title if one.member.task else one.member.name)}</b>"
            f"<span>{words(titles[one.member.name])}</span></header><p>{words(wording.question)}</p>"
            f"{answer(one, latency=False)}</section>"
        )
    count = sum(not one.problem for one in found)
    took = milliseconds(found[0].seconds)
    return (
        f"<p class='sf-pass'><b>{count} answer{'s' if count > 1 else ''}</b> in one pass over the encoder: "
        f"<b>{took}</b>.</p><div class='sf-grid'>{''.join(cards)}</div>"
    )


def comparison(one: Answer, two: Answer) -> str:
    """Two answers side by side, what each costs, and whether they agree."""
    titles = [title for title, _ in member_titles([one.member, two.member])]
    alone = one.member.full or two.member.full
    took = "" if alone else f" Both answered in one pass: <b>{milliseconds(one.seconds)}</b>."
    sides = "".join(
        f"<section class='sf-card'><header><b>{words(title)}</b></header>{answer(side, latency=alone)}"
        f"{strata(side.member)}</section>"
        for side, title in zip((one, two), titles, strict=True)
    )
    return f"<p class='sf-pass'>{_agreement(one, two)}{took}</p><div class='sf-grid sf-two'>{sides}</div>"


def _agreement(one: Answer, two: Answer) -> str:
    first, second = one.prediction, two.prediction
    small, large = sorted((one.member.file_bytes, two.member.file_bytes))
    ratio = large / max(1, small)
    larger = "left" if one.member.file_bytes > two.member.file_bytes else "right"
    sizes = f" The {larger} one's file is {ratio:.{0 if ratio >= 10 else 1}f} times as large." if ratio >= 1.05 else ""
    if one.member.task != two.member.task or one.member.task is None:
        return f"Two different tasks: their answers mean different things.{sizes}"
    if first.value is not None and second.value is not None:
        return f"Their scores differ by <b>{abs(first.value - second.value):.2f}</b>.{sizes}"
    if first.scores is None or second.scores is None:
        return f"One gives a score and the other a label.{sizes}"
    by_label = {label: abs(score - second.scores.get(label, 0.0)) for label, score in first.scores.items()}
    word = "<b>agree</b>" if first.label == second.label else "<b>disagree</b>"
    return f"They {word}; their probabilities differ by at most {100 * max(by_label.values()):.1f} points.{sizes}"


# -- strata -----------------------------------------------------------------------------------------------------------


def strata(member: Member) -> str:
    """Every layer of the base as a row of sub-layers, in the color of what the adapter does to it."""
    found = member.strata
    head = "".join(
        f"<th scope='col' title='{ROLE_WORDS[role]}' class='{_gap(role)}'>{LETTERS[role]}</th>" for role in ROLES
    )
    # ROLES has five sub-layers of the attention, then three of the feed-forward.
    top = (
        "<tr class='sf-over'><th></th><th colspan='5' scope='colgroup'>attention</th>"
        "<th colspan='3' scope='colgroup' class='sf-gap'>feed-forward</th><th></th></tr>"
    )
    rows = [f"<thead>{top}<tr><th scope='col'>layer</th>{head}<th></th></tr></thead><tbody>"]
    for band in found.bands:
        for layer in range(band.first, band.last + 1):
            rows.append(_layer(layer, band))
    rows.append("</tbody>")
    ends = "its own, trained" if found.head else "the base's"
    outside = " It also changes biases outside the layers." if found.outside and not member.full else ""
    used = {letter for band in found.bands for letter in band.marks}
    legend = "".join(f"<span>{_cell(letter)}{word}</span>" for letter, word in MEANINGS.items() if letter in used)
    several = found.frozen > 1
    run = f"Layer{'s' if several else ''} {spans(range(found.frozen))} run{'' if several else 's'} once"
    frozen = f"{run} for all adapters that leave {'them' if several else 'it'} alone." if found.frozen else ""
    return (
        f"<div class='sf-strata'><h4>Layers this {'model' if member.full else 'adapter'} touches</h4>"
        f"<table>{''.join(rows)}</table><div class='sf-legend'>{legend}</div>"
        f"<p>Text enters at layer 0; the head after layer {found.depth - 1} is {ends}. {frozen}{outside}</p>"
        f"<details><summary>What the letters mean</summary><p>{COLUMNS}.</p></details></div>"
    )


def _layer(layer: int, band: Band) -> str:
    cells = "".join(
        f"<td class='{_gap(role)}' title='layer {layer}, {ROLE_WORDS[role]}: {MEANINGS[letter]}'>{_cell(letter)}</td>"
        for role, letter in zip(ROLES, band.marks, strict=True)
    )
    rows = band.last - band.first + 1
    text = f"<td class='sf-what' rowspan='{rows}'>{words(band.what)}</td>" if layer == band.first else ""
    first = " class='sf-first'" if layer == band.first and layer else ""
    return f"<tr{first}><th scope='row'>{layer}</th>{cells}{text}</tr>"


def _cell(letter: str) -> str:
    return f"<i class='sf-cell sf-{_CLASSES[letter]}'>{letter}</i>"


def _gap(role: str) -> str:
    return "sf-gap" if role == "intermediate" else ""


# -- results ----------------------------------------------------------------------------------------------------------


def results(service: Service) -> str:
    """Scores and parameters of what is served, beside the paper's."""
    measured = [member for member in service.members if member.result is not None]
    parts = []
    if measured:
        parts.append(_chart(service, [m for m in measured if m.result and m.result.score is not None and m.task]))
        parts.append(_own_table(service, measured))
    else:
        parts.append("<p class='sf-hint'>No adapter here has a result file, so there is nothing to set beside.</p>")
    parts.append(_paper_table({member.method for member in service.members if member.method}))
    return f"<div class='sf-results'>{''.join(parts)}</div>"


def _chart(service: Service, members: Sequence[Member]) -> str:
    if not members:
        return ""
    titles = dict((name, title) for title, name in member_titles(members))
    rows = []
    for member in members:
        assert member.result is not None
        assert member.result.score is not None
        theirs, ours = paper_score(member.task, member.method), member.result.score
        dots = [f"<i class='sf-ours' style='left:{_place(ours)}%'></i>"]
        if theirs is not None:
            low, high = sorted((_place(ours), _place(theirs)))
            dots.insert(0, f"<u style='left:{low}%;width:{high - low:.1f}%'></u>")
            dots.append(f"<i class='sf-paper' style='left:{_place(theirs)}%'></i>")
        text = points(ours) + (f" (paper {points(theirs)})" if theirs is not None else "")
        figure = figure_name(member.result.figure or "")
        rows.append(
            f"<div class='sf-row'><span class='sf-name'><b>{words(titles[member.name])}</b>"
            f"<small>{words(figure)}</small></span><span class='sf-axis' role='img' aria-label='{words(text)}'>"
            f"{''.join(dots)}</span><span class='sf-value'>{words(text)}</span></div>"
        )
    ticks = "".join(f"<span style='left:{25 * tick}%'>{points(tick / 4) if tick else 0}</span>" for tick in range(5))
    return (
        f"<h3>Scores</h3><p>Here: {words(service.base_name)} with {millions(service.base_parameters)} parameters. In "
        f"the paper: {PAPER_BASE} with 333.6 M, ten epochs, the best of several runs. Encoder and training differ, "
        "so the distance is not that of the methods.</p>"
        "<div class='sf-legend'><span><i class='sf-dot sf-ours'></i>here</span>"
        "<span><i class='sf-dot sf-paper'></i>the paper, same method</span></div>"
        f"<div class='sf-chart'>{''.join(rows)}<div class='sf-row sf-foot'><span class='sf-name'></span>"
        f"<span class='sf-axis'>{ticks}</span><span class='sf-value'></span></div></div>"
    )


def _place(score: float) -> float:
    return round(100 * min(max(score, 0.0), 1.0), 1)


def _own_table(service: Service, members: Sequence[Member]) -> str:
    titles = dict((name, title) for title, name in member_titles(members))
    rows = []
    for member in members:
        result = member.result
        assert result is not None
        trained, total = result.trained_parameters, result.total_parameters or service.base_parameters
        millions_there = PAPER_PARAMETERS.get(member.method or "")
        rows.append(
            [
                words(titles[member.name]),
                words(figure_name(result.figure)) if result.figure else "–",
                points(result.score),
                points(paper_score(member.task, member.method)),
                millions(trained) if trained is not None else "–",
                share(trained, total) if trained is not None else "–",
                f"{millions_there:.2f} M" if millions_there is not None else "–",
                share(round(1e6 * millions_there), PAPER_TOTAL) if millions_there is not None else "–",
                size(member.file_bytes),
                f"{result.train_rows:,}" if result.train_rows else "–",
            ]
        )
    head = ["Adapter", "Figure", "Here", "Paper", "Trained", "share", "Paper trained", "share", "File", "Train rows"]
    return f"<h3>What is served, in full</h3>{_table(head, rows)}"


def _paper_table(methods: Iterable[str]) -> str:
    here = set(methods)
    tasks = list(PAPER_SCORES)
    best = {task: max(scores.values()) for task, scores in PAPER_SCORES.items()}
    rows, marked = [], []
    for index, method in enumerate(m for m in METHODS if m in PAPER_PARAMETERS):
        scores = [PAPER_SCORES[task][method] for task in tasks]
        cells = [
            f"<b>{points(score)}</b>" if score == best[task] else points(score)
            for task, score in zip(tasks, scores, strict=True)
        ]
        rows.append([words(method_title(method)), f"{PAPER_PARAMETERS[method]:.2f} M", *cells])
        if method in here:
            marked.append(index)
    head = ["Method", "Trained", *(TASKS[task].title for task in tasks)]
    return (
        f"<h3>The paper's results</h3><p>{PAPER_BASE}-cased, GLUE validation sets, the best of the authors' runs "
        "(arXiv:2405.00201, Table 2). CoLA: Matthews correlation; MRPC: F1; STS-B: Pearson; the others accuracy. "
        "Bold: best of a column. Shaded: methods served here.</p>"
        f"{_table(head, rows, marked)}<p>BitFit's 31.52 M cannot be biases alone, of which {PAPER_BASE} has 0.27 M: "
        "embeddings and pooler must have trained as well.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Iterable[int] = ()) -> str:
    """A table whose cells are HTML already; it scrolls sideways in a box of its own."""
    shaded = set(marked)
    top = "".join(f"<th scope='col'>{name}</th>" for name in head)
    body = "".join(
        f"<tr{' class=sf-marked' if index in shaded else ''}><th scope='row'>{row[0]}</th>"
        f"{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for index, row in enumerate(rows)
    )
    return (
        "<div class='sf-scroll' tabindex='0' role='region' aria-label='table'>"
        f"<table class='sf-table'><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
