"""What stands behind the page and the API: one base, its adapters, and answers with what they cost.

    Service.start(config)     base + every adapter that verifies; what was refused is in .problems
    .answer(name, text)       one adapter
    .answer_all(text)         every adapter that fits, in one pass
    .compare(a, b, text)      two of them
    .add(repo_id)             one more from the Hub, if the configuration allows it

Nothing of a text is kept or logged.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CacheNotFound, scan_cache_dir

from spafit_hf.adapter import AdapterError, fetch_adapter, verify_adapter
from spafit_hf.architecture import find_architecture
from spafit_hf.data.glue import TASKS
from spafit_hf.hub import Pulled
from spafit_hf.names import EMBEDDED_BASE, resolve_base
from spafit_hf.predictor import AdapterFacts, NoAnswer, Prediction, SpafitPredictor
from spafit_hf.tuner.plain import plain_view
from spafit_hf.words import first_line
from spafit_space.config import Config, Source
from spafit_space.full import FullModel, is_full_model
from spafit_space.results import Result, read_result
from spafit_space.strata import Strata, full_strata, strata_of
from spafit_space.tasks import TASK_WORDS
from spafit_space.tries import Tries

logger = logging.getLogger(__name__)

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
REVISION = re.compile(r"[\w./-]{1,100}")
_GENERIC = re.compile(r"LABEL_\d+")

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Member:
    """An adapter, or a full model, that answers."""

    name: str
    source: str
    """Where it is from, for a reader: a repository's id, or a folder's name."""
    task: str | None
    """The GLUE task, where it is known."""
    method: str | None
    """The strategy's name, such as "spafit-4-9-II"; "full" for a full model."""
    labels: tuple[str, ...]
    texts: int | None
    """1 for single texts, 2 for pairs, None where unknown."""
    file_bytes: int
    strata: Strata
    result: Result | None
    full: bool = False
    added: bool = False
    """Whether a visitor added it."""
    tokenizer: str = ""
    """In what its own tokenizer differs from the base's, which is used; "" where in nothing."""

    @property
    def regression(self) -> bool:
        """Whether it gives a score instead of a label."""
        return self.task == "stsb" or (self.task is None and len(self.labels) == 1)

    def fits(self, texts: int) -> bool:
        """Whether it takes so many texts, as far as is known."""
        return self.texts in (None, texts)


@dataclass(frozen=True)
class Answer:
    """A prediction with the labels a person expects, and how long it took."""

    member: Member
    prediction: Prediction
    seconds: float
    """In the model, with the wait for it; for several adapters in one pass, of that pass."""
    problem: str = ""
    """Why there is no answer, where others in the same pass have one; the prediction is empty then."""


class Service:
    """The base, its adapters, and full models beside them. Safe for many threads.

    Args:
        predictor: the base.
        base_name: of the base, for a reader.
        config: what is allowed.
    """

    def __init__(self, predictor: SpafitPredictor, base_name: str, config: Config) -> None:
        self.config = config
        self.base_name = base_name
        self.problems: tuple[str, ...] = ()
        """A sentence for each adapter of the configuration that is not served."""
        self._predictor = predictor
        self._view = plain_view(predictor.model)
        self._architecture = find_architecture(self._view)
        model = predictor.model
        self.base_parameters = sum(p.numel() for p in model.parameters())
        self.base_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.depth = self._architecture.num_layers
        self.width = getattr(model.config.get_text_config(), "hidden_size", None)
        self._full: dict[str, FullModel] = {}
        self._members: dict[str, Member] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        """Member's name -> its folder, and what a reader calls that."""
        # One at a time: names are checked first and taken at the end, with a download in between.
        self._changing = threading.Lock()
        self._tries = Tries(config.max_tries)

    @classmethod
    def start(cls, config: Config) -> Service:
        """Load the base and every adapter. An adapter that cannot be served becomes a problem, not an error.

        Raises:
            ValueError: if the base cannot be loaded.
        """
        limit = config.max_adapter_megabytes * 10**6
        base = resolve_base(config.base)
        predictor = SpafitPredictor(base, revision=config.base_revision, max_adapter_bytes=limit)
        name = "all-MiniLM-L6" if config.base == EMBEDDED_BASE else Path(base).name
        service = cls(predictor, name, config)
        folders, models, problems = _in_folder(config.folder)
        adapters = {**folders, **(config.adapters or {})}
        models = {**models, **(config.models or {})}
        for found, put in ((adapters, service._put_adapter), (models, service._put_model)):
            for name, source in found.items():
                try:
                    put(name, source)
                except ValueError as error:
                    problems.append(f"{name} is not served: {error}")
                except Exception as error:  # one odd folder must not keep the others from visitors
                    logger.exception("%s", name)
                    problems.append(f"{name} is not served: its files cannot be read ({type(error).__name__}).")
        for problem in problems:
            logger.warning("%s", problem)
        service.problems = tuple(problems)
        return service

    # -- who is there -------------------------------------------------------------------------------------------------

    @property
    def members(self) -> tuple[Member, ...]:
        """Everything that answers: by task in the order of the page, then by the time it was added."""
        order = {task: index for index, task in enumerate(TASK_WORDS)}
        return tuple(sorted(self._members.values(), key=lambda m: order.get(m.task or "", len(order))))

    @property
    def tasks(self) -> tuple[str, ...]:
        """GLUE tasks that something answers, in the order of the page; "" at the end for what names no task."""
        return tuple(dict.fromkeys(member.task or "" for member in self.members))

    def of_task(self, task: str) -> tuple[Member, ...]:
        """What answers a task; "" for what names none."""
        return tuple(member for member in self.members if (member.task or "") == task)

    def member(self, name: str) -> Member:
        """By its name, or by the name of a task (then the task's first).

        Raises:
            ValueError: for a name that nothing has.
        """
        members = self._members
        if isinstance(name, str) and name in members:
            return members[name]
        of_task = self.of_task(name.strip().lower().replace("-", "")) if isinstance(name, str) and name else ()
        if of_task:
            return of_task[0]
        there = ", ".join(members) or "none, since no adapters are here"
        raise ValueError(f"There is no task or adapter {str(name)[:40]!r}; there are {there}.")

    # -- answers ------------------------------------------------------------------------------------------------------

    def text(self, text: str, text_pair: str = "") -> Text:
        """One text or a pair from two boxes, checked.

        Raises:
            ValueError: for no text, a second one without a first, and texts beyond the limit.
        """
        for box, value in (("text", text), ("second text", text_pair)):
            if not isinstance(value, str):
                raise ValueError(f"The {box} is a {type(value).__name__}; it must be a string.")
            if len(value) > self.config.max_characters:
                raise ValueError(
                    f"The {box} has {len(value):,} characters; at most {self.config.max_characters:,} are read here."
                )
        if not text.strip():
            raise ValueError("There is no text yet; type a sentence.")
        return (text, text_pair) if text_pair.strip() else text

    def answer(self, name: str, text: Text) -> Answer:
        """One adapter's answer.

        Raises:
            ValueError: for an unknown name, and for one text where the task takes a pair or the reverse.
        """
        member = self.member(name)
        _check_count(member, text)
        ask = self._asking(member)
        start = time.perf_counter()
        with self._without_paths():
            prediction = ask(text)
        return Answer(member, _named(member, prediction), time.perf_counter() - start)

    def answer_all(self, text: Text) -> tuple[Answer, ...]:
        """The answers of every adapter that takes such texts, in one pass. Full models have no part in it.

        Raises:
            ValueError: where there is none.
        """
        count = 1 if isinstance(text, str) else 2
        members = [member for member in self.members if not member.full and member.fits(count)]
        if not members:
            kind = "a single text" if count == 1 else "a pair of texts"
            raise ValueError(f"No adapter here takes {kind}; {'add a second text' if count == 1 else 'drop one'}.")
        problems: dict[str, str] = {}
        start = time.perf_counter()
        with self._without_paths():
            try:
                predictions = self._predictor.predict_all(text, [member.name for member in members])
            except NoAnswer as error:  # one adapter, which a visitor may have added, takes no other's answer away
                if not error.answers:
                    raise
                predictions = {answer.adapter: answer for answer in error.answers}
                problems = {name: self._without_places(problem) for name, problem in error.problems.items()}
        seconds = time.perf_counter() - start
        return tuple(
            Answer(member, _named(member, predictions[member.name]), seconds)
            if member.name in predictions
            else Answer(member, Prediction(member.name, None, None, None), seconds, problems[member.name])
            for member in members
        )

    def compare(self, first: str, second: str, text: Text) -> tuple[Answer, Answer]:
        """The answers of two to the same text. Two adapters share one pass.

        Raises:
            ValueError: as in `answer`, and for the same one twice.
        """
        members = self.member(first), self.member(second)
        if members[0].name == members[1].name:
            raise ValueError(f"Both sides are {members[0].name!r}; choose two different ones.")
        for member in members:
            _check_count(member, text)
        if any(member.full for member in members):
            return self.answer(members[0].name, text), self.answer(members[1].name, text)
        start = time.perf_counter()
        with self._without_paths():
            both = self._predictor.predict_all(text, [member.name for member in members])
        seconds = time.perf_counter() - start
        one, two = (Answer(member, _named(member, both[member.name]), seconds) for member in members)
        return one, two

    # -- one more -----------------------------------------------------------------------------------------------------

    def add(self, repo_id: str, revision: str = "", visitor: str = "") -> Member:
        """Add an adapter of the Hub: downloaded without a token, verified, tried on the base.

        Args:
            repo_id: "user/name".
            revision: branch, tag or commit; "" for the default branch.
            visitor: whose try it is, by the address.

        Raises:
            ValueError: if adding is off, the id is malformed, there are too many already or of this visitor, or the
                adapter is refused. Then its files are gone again.
        """
        if not self.config.allow_adding:
            raise ValueError("Adding adapters is switched off here; duplicate the Space and set allow_adding: true.")
        repo_id, revision = str(repo_id).strip(), str(revision or "").strip()
        if not REPO_ID.fullmatch(repo_id) or ".." in repo_id:
            raise ValueError(f"{repo_id[:60]!r} is no id of a repository on the Hub; it must be like user/name.")
        if revision and (not REVISION.fullmatch(revision) or ".." in revision):
            raise ValueError(f"{revision[:60]!r} is no branch, tag or commit.")
        with self._changing:
            name = f"{repo_id}@{revision}" if revision else repo_id
            if name in self._members:
                raise ValueError(f"{name} is here already; choose it in the list.")
            if sum(member.added for member in self._members.values()) >= self.config.max_added:
                raise ValueError(f"{self.config.max_added} adapters have been added already, which is the limit here.")
            self._tries.take(visitor)
            # token=False: with the Space's own token, visitors could load its owner's private repositories.
            limit = self.config.max_adapter_megabytes * 10**6
            pulled = fetch_adapter(repo_id, revision=revision or None, token=False, max_bytes=limit)
            try:
                return self._put(name, pulled.folder, Source(repo_id, revision or None), added=True)
            except Exception:
                if pulled.folder not in [folder for folder, _ in self._places.values()]:
                    _delete(pulled)
                raise

    def remove(self, name: str) -> None:
        """Undo `add`.

        Raises:
            ValueError: for a name that no visitor added.
        """
        with self._changing:
            member = self._members.get(name)
            if member is None or not member.added:
                raise ValueError(f"{name!r} was not added by a visitor, and stays.")
            self._members = {other: kept for other, kept in self._members.items() if other != name}
            self._predictor.remove(name)
            self._places = {other: kept for other, kept in self._places.items() if other != name}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _asking(self, member: Member) -> Callable[[Text], Prediction]:
        if member.full:
            return self._full[member.name].predict
        return lambda text: self._predictor.predict([text], member.name)[0]

    @contextmanager
    def _without_paths(self, *more: tuple[Path, str]) -> Iterator[None]:
        """Errors name a repository, or a folder by its last name: no reader need know where a machine has its files.

        Args:
            more: folders that are not a member's yet, each with what a reader calls it.

        Raises:
            ValueError: in place of any ValueError or OSError.
        """
        try:
            yield
        except (ValueError, OSError) as error:
            said = str(error) if isinstance(error, ValueError) else f"its files cannot be read: {error.strerror}."
            message = self._without_places(said, *more)
            if message == str(error):
                raise
            raise AdapterError(message) from error

    def _without_places(self, message: str, *more: tuple[Path, str]) -> str:
        """A message with what a reader calls them in place of paths."""
        base = Path(self._predictor.model.config._name_or_path or "/")
        known = [*more, *self._places.values(), *([(base, self.base_name)] if base.is_dir() else [])]
        names = {str(path): name for folder, name in known for path in (folder, folder.resolve())}
        for path in sorted(names, key=len, reverse=True):  # a longer one first, which may begin with a shorter
            if len(Path(path).parts) > 1:
                message = message.replace(path, names[path])
        return message

    def _put_adapter(self, name: str, source: Source) -> None:
        folder = Path(source.source)
        if not folder.is_dir():
            folder = fetch_adapter(source.source, revision=source.revision).folder
        self._put(name, folder, source)

    def _put(self, name: str, folder: Path, source: Source, *, added: bool = False) -> Member:
        place = folder, _readable(source)
        with self._without_paths(place):
            # What comes from the Hub is not run: its texts go through the base's tokenizer.
            facts = self._predictor.add(folder, name, own_tokenizer=Path(source.source).is_dir())
            try:
                result = read_result(folder)
                member = Member(
                    name=name,
                    source=_readable(source),
                    task=_task(source, facts, result, name, added),
                    method=facts.strategy or (result.method if result else None),
                    labels=facts.labels,
                    texts=facts.texts,
                    file_bytes=facts.file_bytes,
                    strata=strata_of(verify_adapter(folder, self._view), self._architecture),
                    result=result,
                    added=added,
                    tokenizer=facts.tokenizer,
                )
                self._admit(member)
            except Exception:  # of any kind: the predictor must not keep what cannot be asked
                self._predictor.remove(name)
                raise
        self._places = {**self._places, name: place}
        return self._members[name]

    def _put_model(self, name: str, source: Source) -> None:
        if name in self._members:
            raise ValueError(f"there is an adapter {name!r} already; give the model another name.")
        folder = Path(source.source)
        with self._without_paths((folder, _readable(source))):
            full = FullModel(source.source, name, revision=source.revision)
            result = read_result(folder) if folder.is_dir() else None
        member = Member(
            name=name,
            source=_readable(source),
            task=_task(source, full.facts, result, name, added=False),
            method="full",
            labels=full.facts.labels,
            texts=None,
            file_bytes=full.file_bytes,
            strata=full_strata(full.facts.depth),
            result=result,
            full=True,
        )
        self._full[name] = full
        self._admit(member)

    def _admit(self, member: Member) -> None:
        task = TASKS.get(member.task or "")
        if task is not None:
            if len(member.labels) != task.num_labels:
                raise AdapterError(
                    f"it is for {task.title}, which has {task.num_labels} outputs, and gives {len(member.labels)}."
                )
            generic = all(_GENERIC.fullmatch(label) for label in member.labels)
            labels = task.labels if generic and task.labels else member.labels
            member = replace(member, texts=len(task.columns), labels=labels)
        self._members = {**self._members, member.name: member}


def _in_folder(folder: Path | None) -> tuple[dict[str, Source], dict[str, Source], list[str]]:
    """Adapters and full models in a folder, by the names of their folders, and what is neither."""
    adapters: dict[str, Source] = {}
    models: dict[str, Source] = {}
    problems: list[str] = []
    if folder is None or not folder.is_dir():
        return adapters, models, problems
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        if (path / "adapter_config.json").is_file():
            adapters[path.name] = Source(str(path))
        elif is_full_model(path):
            models[path.name] = Source(str(path))
        else:
            problems.append(f"{path.name} is not served: the folder holds no adapter_config.json.")
    return adapters, models, problems


def _delete(pulled: Pulled) -> None:
    """Take a download out of the Hub's cache again, with what it shares with no other."""
    try:
        scan_cache_dir().delete_revisions(pulled.commit).execute()
    except (CacheNotFound, OSError) as error:
        logger.warning("A refused adapter stays in the Hub's cache: %s", first_line(error))


def _readable(source: Source) -> str:
    """A repository's id, or a folder's last name: a page need not tell where a machine keeps its files."""
    path = Path(source.source)
    return path.name if path.is_dir() else source.source


def _task(source: Source, facts: AdapterFacts, result: Result | None, name: str, added: bool) -> str | None:
    """The GLUE task: as configured, as the folder says, or as it is called."""
    named = [source.task, facts.task.get("name"), result.task if result else None]
    if not added:  # a stranger's choice of name says nothing
        named.append(re.split(r"[-_.]", name.lower())[0])
    return next((task for task in named if isinstance(task, str) and task in TASKS), None)


def _named(member: Member, prediction: Prediction) -> Prediction:
    """The prediction under the member's labels, which are the task's where the adapter has only LABEL_0 and so on."""
    if prediction.scores is None:
        return prediction
    own = dict(zip(prediction.scores, member.labels, strict=True))
    scores = {own[label]: score for label, score in prediction.scores.items()}
    return replace(prediction, scores=scores, label=own[prediction.label or ""])


def _check_count(member: Member, text: Text) -> None:
    count = 1 if isinstance(text, str) else 2
    if not member.fits(count):
        task = TASKS[member.task].title if member.task else member.name
        if member.texts == 2:
            raise ValueError(f"{task} takes two texts, and the second is empty; fill in both.")
        raise ValueError(f"{task} takes one text; leave the second empty.")
