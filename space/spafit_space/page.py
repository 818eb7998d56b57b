"""What a person sees: four tabs over a `Service`. Every function here only fetches, checks and draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from spafit_hf.data.glue import TASKS
from spafit_space import draw
from spafit_space.api import add_endpoints, in_a_sentence, visitor_of
from spafit_space.blocks import QuietBlocks
from spafit_space.service import Member, Service
from spafit_space.tasks import TASK_WORDS, words_of

CSS = Path(__file__).with_name("style.css")
HEAD = """<style>
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
@media (max-width: 640px) {
  .gradio-container main.app { padding: .8rem !important; }
  .tab-container button { padding: 0 .45rem !important; font-size: .84rem !important; }
  footer .divider { display: none !important; }
}
</style>"""
"""For what lies outside Gradio's container. Here from the first moment: tabs are measured before style.css is read,
and those that seem not to fit go into a menu."""
TITLE = "SPAFIT: many tasks, one encoder"
SINGLE_EXAMPLES = [
    ["A warm, funny film that trusts its actors and never outstays its welcome.", ""],
    ["This the worst meal I were ever served.", ""],
]
PAIR_EXAMPLES = [
    ["A child is feeding ducks by the pond.", "A kid gives bread to the ducks at a pond."],
    ["How do I keep basil alive indoors?", "What is the best way to grow basil in an apartment?"],
    ["The museum is closed on Mondays, so we went to the lake.", "We visited the museum on Monday."],
]
EXAMPLES = 3
"""Of a task."""
SHOW = "() => document.getElementById('{}')?.scrollIntoView({{behavior: 'smooth', block: 'nearest'}})"
"""On a phone the answer is below the screen."""
WAITING = "Type something, or choose an example, and the answer will stand here."


def theme() -> gr.themes.Base:
    """System fonts, so that nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )


def build(service: Service) -> gr.Blocks:
    """The page with its API, ready to launch (with `theme()` and `CSS`)."""
    # What an answer may leave in Gradio's cache goes after an hour.
    with QuietBlocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        head = gr.HTML(draw.hero(service))
        gr.HTML(draw.notices(service), visible=bool(draw.notices(service)))
        refresh: list[Any] = []
        with gr.Tabs():
            if service.members:
                with gr.Tab("One task", id="one"):
                    one = _one_task(service)
                with gr.Tab("Every task", id="all"):
                    _every_task(service)
                with gr.Tab("Compare", id="compare"):
                    two = _compare(service)
                refresh = [(one, _refresh_one), (two, _refresh_two)]
            with gr.Tab("Results", id="results"):
                results = gr.HTML(draw.results(service))
            if service.config.allow_adding:
                with gr.Tab("Add", id="add"):
                    _add(service)
        gr.HTML(
            "<div class='sf-cut'>Research models: they are often wrong and may repeat prejudices of their training "
            "texts. What you type is sent to this server for the answer and is neither stored nor logged.</div>"
        )

        # What visitors have added since the page was built appears when it is loaded again.
        blocks.load(lambda: draw.hero(service), None, head, api_visibility="private", queue=False)
        blocks.load(lambda: draw.results(service), None, results, api_visibility="private", queue=False)
        for boxes, update in refresh:
            blocks.load(
                lambda update=update: update(service), None, boxes, api_visibility="private", show_progress="hidden"
            )
        add_endpoints(service)
    return blocks


def _wire(
    ask: Callable[..., str],
    chosen: list[gr.components.Component],
    boxes: list[gr.Textbox],
    answer: gr.HTML,
    button: gr.Button,
    examples: Sequence[tuple[gr.Button, Callable[..., Sequence[str]], gr.components.Component | None]],
) -> None:
    """Ask on the button, on Enter in a box, and after an example has filled the boxes; then show the answer."""
    asking: dict[str, Any] = {
        "fn": ask,
        "inputs": [*chosen, *boxes],
        "outputs": answer,
        "api_visibility": "private",
        "concurrency_id": "model",
        "show_progress": "minimal",
    }
    events = [event(**asking) for event in (button.click, *(box.submit for box in boxes))]
    for example, fill, source in examples:
        filled = example.click(fill, source, boxes, api_visibility="private", show_progress="hidden", queue=False)
        events.append(filled.success(**asking))
    for event in events:
        event.success(None, js=SHOW.format(answer.elem_id), api_visibility="private")


# -- one task ---------------------------------------------------------------------------------------------------------


def _one_task(service: Service) -> list[gr.components.Component]:
    first = service.members[0]
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            task = gr.Radio(_task_choices(service), value=first.task or "", label="Task", elem_id="one-task")
            adapter = gr.Dropdown(**_adapters(service, first.task or ""), label="Adapter", elem_id="one-adapter")
            about = gr.HTML(draw.about(first), elem_id="one-about")
            text = gr.Textbox(**_box(service, first, 0), elem_id="one-text")
            pair = gr.Textbox(**_box(service, first, 1), elem_id="one-pair")
            button = gr.Button("Ask", variant="primary", elem_id="one-ask")
            examples = _example_buttons(_examples(first), "one")
        with gr.Column(scale=5, min_width=320):
            answer = gr.HTML(draw.hint(WAITING), elem_id="one-answer")
            strata = gr.HTML(draw.strata(first), elem_id="one-strata")

    def ask(name: str, text: str, pair: str) -> str:
        member = in_a_sentence(service.member, name)
        # A box that is hidden may still hold what was typed for another task.
        second = "" if member.texts == 1 else pair or ""
        return draw.answer(in_a_sentence(lambda: service.answer(name, service.text(text or "", second))))

    def choose_task(name: str) -> tuple[Any, ...]:
        member = next(iter(service.of_task(name)), None) or in_a_sentence(service.member, name)
        return (gr.Dropdown(**_adapters(service, name)), *choose_adapter(member.name))

    def choose_adapter(name: str) -> tuple[Any, ...]:
        member = in_a_sentence(service.member, name)
        return (
            draw.about(member),
            gr.Textbox(**_box(service, member, 0), value=""),
            gr.Textbox(**_box(service, member, 1), value=""),
            draw.hint(WAITING),
            draw.strata(member),
            *_labeled(_examples(member)),
        )

    def show(name: str) -> tuple[str, str, str]:
        member = in_a_sentence(service.member, name)
        return draw.about(member), draw.hint(WAITING), draw.strata(member)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    task.input(choose_task, task, [adapter, about, text, pair, answer, strata, *examples], **quiet)
    # Within a task the texts stay: the next adapter is to be asked about the same.
    adapter.input(show, adapter, [about, answer, strata], **quiet)
    fill = [
        (example, lambda name, index=index: _examples(in_a_sentence(service.member, name))[index], adapter)
        for index, example in enumerate(examples)
    ]
    _wire(ask, [adapter], [text, pair], answer, button, fill)
    return [task, adapter]


def _refresh_one(service: Service) -> tuple[Any, ...]:
    first = service.members[0].task or ""
    return (
        gr.Radio(choices=_task_choices(service), value=first),
        gr.Dropdown(**_adapters(service, first)),
    )


def _task_choices(service: Service) -> list[tuple[str, str]]:
    return [(words_of(task).title, task) for task in service.tasks]


def _adapters(service: Service, task: str) -> dict[str, Any]:
    members = service.of_task(task)
    return {
        "choices": draw.member_titles(members),
        "value": members[0].name,
        "visible": len(members) > 1 or not task,
    }


def _box(service: Service, member: Member, index: int) -> dict[str, Any]:
    boxes = words_of(member.task).boxes
    return {
        "label": boxes[index] if index < len(boxes) else "Second text",
        "visible": index < len(boxes),
        "lines": 2,
        "max_lines": 8,
        "max_length": service.config.max_characters,
        "placeholder": "English works best",
    }


def _examples(member: Member) -> list[list[str]]:
    return [[*example, ""][:2] for example in words_of(member.task).examples]


def _example_buttons(samples: Sequence[Sequence[str]], name: str, count: int = EXAMPLES) -> list[gr.Button]:
    """A button per example, which also says what is in it. Those beyond the examples are hidden."""
    gr.HTML("<div class='sf-label'>Examples</div>")
    with gr.Column(elem_classes="sf-examples", elem_id=f"{name}-examples"):
        return [gr.Button(**settings, size="sm") for settings in _faces(samples, count)]


def _labeled(samples: Sequence[Sequence[str]], count: int = EXAMPLES) -> list[gr.Button]:
    """The same buttons for other examples."""
    return [gr.Button(**settings) for settings in _faces(samples, count)]


def _faces(samples: Sequence[Sequence[str]], count: int) -> list[dict[str, Any]]:
    titles = ["\n".join(f"“{text}”" for text in sample if text) for sample in samples]
    return [{"value": title, "visible": bool(title)} for title in [*titles, *[""] * count][:count]]


# -- every task -------------------------------------------------------------------------------------------------------


def _every_task(service: Service) -> None:
    counts = {count for count in (1, 2) if any(m.fits(count) and not m.full for m in service.members)}
    gr.HTML(
        "<div class='sf-about'><p>One text goes to the tasks on single texts, two go to those on pairs, and all of "
        "them answer in one pass: layers that no adapter touches run once, the others side by side.</p></div>"
    )
    with gr.Row():
        text = _plain_box(service, "Text", "all-text")
        pair = _plain_box(service, "Second text (leave empty for single texts)", "all-pair")
    button = gr.Button("Ask every task", variant="primary", elem_id="all-ask")
    samples = [*(SINGLE_EXAMPLES if 1 in counts else []), *(PAIR_EXAMPLES if 2 in counts else [])]
    examples = _example_buttons(samples, "all", len(samples))
    answers = gr.HTML(draw.hint(WAITING), elem_id="all-answers")

    def ask(text: str, pair: str) -> str:
        return draw.answers(in_a_sentence(lambda: service.answer_all(service.text(text or "", pair or ""))))

    fill = [(example, lambda sample=sample: sample, None) for sample, example in zip(samples, examples, strict=True)]
    _wire(ask, [], [text, pair], answers, button, fill)


def _plain_box(service: Service, label: str, elem_id: str) -> gr.Textbox:
    return gr.Textbox(
        label=label,
        lines=2,
        max_lines=8,
        max_length=service.config.max_characters,
        placeholder="English works best",
        elem_id=elem_id,
        min_width=280,
    )


# -- compare ----------------------------------------------------------------------------------------------------------


def _compare(service: Service) -> list[gr.components.Component]:
    first, second = _first_two(service)
    gr.HTML(
        "<div class='sf-about'><p>Two adapters on the same text: what they say, what they weigh, and where they "
        f"change the encoder.{_only_one_each(service)}</p></div>"
    )
    with gr.Row():
        left = gr.Dropdown(
            draw.member_titles(service.members), value=first.name, label="Left", min_width=280, elem_id="two-left"
        )
        right = gr.Dropdown(_partners(service, first), value=second, label="Right", min_width=280, elem_id="two-right")
    with gr.Row():
        text = gr.Textbox(**_box(service, first, 0), elem_id="two-text")
        pair = gr.Textbox(**_box(service, first, 1), elem_id="two-pair")
    button = gr.Button("Compare", variant="primary", elem_id="two-ask")
    examples = _example_buttons(_examples(first), "two")
    answers = gr.HTML(draw.hint(WAITING), elem_id="two-answers")

    def choose_left(name: str, other: str | None) -> tuple[Any, ...]:
        member = in_a_sentence(service.member, name)
        partners = _partners(service, member)
        names = [partner for _, partner in partners]
        same = [partner.name for partner in service.of_task(member.task or "") if partner.name in names]
        value = other if other in names and not same else next(iter([*same, *names]), None)
        return (
            gr.Dropdown(choices=partners, value=value),
            gr.Textbox(**_box(service, member, 0), value=""),
            gr.Textbox(**_box(service, member, 1), value=""),
            draw.hint(WAITING),
            *_labeled(_examples(member)),
        )

    def ask(first: str, second: str | None, text: str, pair: str) -> str:
        if not second:
            raise gr.Error("Nothing here can be set beside this adapter; choose another.", print_exception=False)
        member = in_a_sentence(service.member, first)
        typed = "" if member.texts == 1 else pair or ""
        return draw.comparison(*in_a_sentence(lambda: service.compare(first, second, service.text(text or "", typed))))

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    left.input(choose_left, [left, right], [right, text, pair, answers, *examples], **quiet)
    fill = [
        (example, lambda name, index=index: _examples(in_a_sentence(service.member, name))[index], left)
        for index, example in enumerate(examples)
    ]
    _wire(ask, [left, right], [text, pair], answers, button, fill)
    return [left, right]


def _refresh_two(service: Service) -> tuple[Any, ...]:
    first, second = _first_two(service)
    return (
        gr.Dropdown(choices=draw.member_titles(service.members), value=first.name),
        gr.Dropdown(choices=_partners(service, first), value=second),
    )


def _first_two(service: Service) -> tuple[Member, str | None]:
    """Two of one task where there are, else two that take the same texts."""
    for task in service.tasks:
        members = service.of_task(task)
        if task and len(members) > 1:
            return members[0], members[1].name
    for member in service.members:
        partners = _partners(service, member)
        if partners:
            return member, partners[0][1]
    return service.members[0], None


def _partners(service: Service, member: Member) -> list[tuple[str, str]]:
    """What can be set beside an adapter, the same task first."""
    fitting = [
        other
        for other in service.members
        if other.name != member.name and (member.texts is None or other.fits(member.texts))
    ]
    fitting.sort(key=lambda other: other.task != member.task)
    return draw.member_titles(fitting)


def _only_one_each(service: Service) -> str:
    if any(task and len(service.of_task(task)) > 1 for task in service.tasks):
        return ""
    known = [TASKS[task].title for task in service.tasks if task in TASK_WORDS]
    return (
        " Each task has one adapter here, so a comparison is of two tasks on the same text"
        f"{' (as of ' + known[-2] + ' and ' + known[-1] + ')' if len(known) > 1 else ''}."
    )


# -- add --------------------------------------------------------------------------------------------------------------


def _add(service: Service) -> None:
    gr.HTML(
        "<div class='sf-about'><p>An adapter for this encoder, trained with spafit-hf or plain PEFT's LoRA, by the id "
        "of its repository on the Hub. Its files are checked before a number of them is used; it runs no code, and "
        "everyone on this page sees it until the Space restarts.</p></div>"
    )
    with gr.Row():
        repo = gr.Textbox(label="Repository", placeholder="user/name", max_length=200, elem_id="add-repo")
        revision = gr.Textbox(label="Revision", placeholder="main", max_length=100, elem_id="add-revision")
    button = gr.Button("Verify and add", variant="primary", elem_id="add-button")
    done = gr.HTML(elem_id="add-done")
    # The other tabs are built once, around the adapters that are there at the start.
    then = (
        "Reload the page to find it among the tasks."
        if service.members
        else "Ask it through the API (/predict). This page was started without adapters and has no tab to ask one in."
    )

    def add(repo: str, revision: str, request: gr.Request) -> str:
        member = in_a_sentence(service.add, repo or "", revision or "", visitor_of(request))
        news = f"<p><b>{draw.words(member.name)} is here.</b> {then}</p>"
        return f"<div class='sf-notice' role='status'>{news}</div>{draw.about(member)}{draw.strata(member)}"

    button.click(add, [repo, revision], done, api_visibility="private", concurrency_limit=1)
