"""The functions that a program calls: JSON in, JSON out, each with a stable name, types and a description.

They are what `gradio_client` sees, and the tools that Gradio offers over the Model Context Protocol.
"""

from __future__ import annotations

import html
import logging
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import gradio as gr
import torch

from spafit_hf.data.glue import TASKS
from spafit_hf.words import method_title
from spafit_space.results import PAPER_PARAMETERS, paper_score
from spafit_space.service import Answer, Member, Service
from spafit_space.tasks import words_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def in_a_sentence(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function, and make what it refuses a sentence for the visitor.

    The traceback is not printed: its last line would hold words that a visitor typed.

    Raises:
        gr.Error: with what a ValueError says, or where memory is short; for any other error without its words.
    """
    try:
        return function(*args, **kwargs)
    except torch.OutOfMemoryError:
        message = "There is not enough memory for this text at the moment; try a shorter one, or try again."
    except ValueError as error:
        message = str(error)
    except Exception as error:  # noqa: BLE001  unforeseen, and its words may be the visitor's: kind and place are logged
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error("%s in %s, line %s", type(error).__name__, place.filename, place.lineno)
        message = "Something went wrong here, and there is no answer; try again, or try another text."
    # Gradio shows the message as HTML, and parts of it may be from a stranger's files.
    raise gr.Error(html.escape(message[:1].upper() + message[1:], quote=False), print_exception=False)


def visitor_of(request: gr.Request | None) -> str:
    """The address that a call comes from."""
    return request.client.host if request is not None and request.client else ""


def add_endpoints(service: Service) -> None:
    """Add every endpoint to the page that is being built."""

    def list_tasks() -> list[dict[str, Any]]:
        """List the tasks and adapters that can be asked, with their labels and sizes.

        Returns:
            One object per adapter: name, task, question, texts (1, or 2 for a pair), labels, strategy, sizes, layers.
        """
        return [_member(member) for member in service.members]

    def predict(task: str, text: str, text_pair: str = "") -> dict[str, Any]:
        """Ask one task about a text or a pair of texts, such as sentiment (sst2) or similarity (stsb).

        Args:
            task: Name of a task or adapter from list_tasks: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte or wnli.
            text: The text, or the first of a pair (premise, question, first sentence). English.
            text_pair: The second text of a pair; empty for cola and sst2.

        Returns:
            adapter, task, label, scores (label to probability) or value (stsb: 0 to 5), truncated, milliseconds.
        """
        return in_a_sentence(lambda: _answer(service.answer(task, service.text(text, text_pair))))

    def predict_all(text: str, text_pair: str = "") -> dict[str, Any]:
        """Ask every task that fits about one text or pair of texts, in one pass over the encoder.

        Args:
            text: The text, or the first of a pair. English.
            text_pair: The second text; with it the tasks on pairs answer, without it those on single texts.

        Returns:
            milliseconds of the pass, and answers: adapter name to what predict returns, or to a problem in place of
            label, scores and value.
        """
        answers = in_a_sentence(lambda: service.answer_all(service.text(text, text_pair)))
        return {
            "milliseconds": _milliseconds(answers[0]),
            "answers": {answer.member.name: _answer(answer) for answer in answers},
        }

    def compare(first: str, second: str, text: str, text_pair: str = "") -> dict[str, Any]:
        """Ask two adapters about the same text or pair of texts.

        Args:
            first: Name of an adapter from list_tasks.
            second: Name of another that takes as many texts.
            text: The text, or the first of a pair. English.
            text_pair: The second text of a pair.

        Returns:
            first and second: what predict returns for each.
        """
        one, two = in_a_sentence(lambda: service.compare(first, second, service.text(text, text_pair)))
        return {"first": _answer(one), "second": _answer(two)}

    def results() -> list[dict[str, Any]]:
        """Measured scores and trained parameters of every adapter, beside those of the SPAFIT paper on BERT-large.

        Returns:
            One object per adapter, with score and paper_score, trained_parameters and paper_trained_millions.
        """
        return [_result(member) for member in service.members]

    def add_adapter(repo_id: str, revision: str = "", request: gr.Request | None = None) -> dict[str, Any]:
        """Add an adapter from the Hugging Face Hub. It is verified first, and stays until the Space restarts.

        Args:
            repo_id: Repository of the adapter, user/name.
            revision: Branch, tag or commit; empty for the default branch.

        Returns:
            The adapter, as in list_tasks.
        """
        return in_a_sentence(lambda: _member(service.add(repo_id, revision, visitor_of(request))))

    for function in (list_tasks, results):
        gr.api(function, api_name=function.__name__, queue=False)
    for asking in (predict, predict_all, compare):
        gr.api(asking, api_name=asking.__name__, concurrency_id="model")
    if service.config.allow_adding:
        gr.api(add_adapter, api_name="add_adapter", concurrency_limit=1)


# -- as JSON ----------------------------------------------------------------------------------------------------------


def _milliseconds(answer: Answer) -> float:
    return round(1000 * answer.seconds, 2)


def _answer(answer: Answer) -> dict[str, Any]:
    prediction, member = answer.prediction, answer.member
    return {
        "adapter": member.name,
        "task": member.task,
        "label": prediction.label,
        "scores": prediction.scores,
        "value": prediction.value,
        "truncated": prediction.truncated,
        "milliseconds": _milliseconds(answer),
        **({"problem": answer.problem} if answer.problem else {}),
    }


def _touched(member: Member) -> list[int]:
    return [layer for band in member.strata.bands if band.touched for layer in range(band.first, band.last + 1)]


def _member(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "task": member.task,
        "title": TASKS[member.task].title if member.task else member.name,
        "question": words_of(member.task).question,
        "texts": member.texts,
        "labels": [] if member.regression else list(member.labels),
        "strategy": member.method,
        "adapter_bytes": member.file_bytes,
        "touched_layers": _touched(member),
        "layers": member.strata.depth,
    }


def _result(member: Member) -> dict[str, Any]:
    result = member.result
    return {
        "adapter": member.name,
        "task": member.task,
        "strategy": member.method,
        "method": method_title(member.method) if member.method else None,
        "figure": result.figure if result else None,
        "score": result.score if result else None,
        "paper_score": paper_score(member.task, member.method),
        "trained_parameters": result.trained_parameters if result else None,
        "paper_trained_millions": PAPER_PARAMETERS.get(member.method or ""),
        "train_rows": result.train_rows if result else None,
        "adapter_bytes": member.file_bytes,
    }
