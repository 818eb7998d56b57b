"""Trainer's way to the Hub, mended: the named files and no others, one commit each time, and no failure in silence.

It works on a plain `transformers.Trainer` too: `class MyTrainer(HubPushMixin, Trainer)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.constants import DEFAULT_REVISION
from peft import PeftModel
from torch import nn
from transformers import PretrainedConfig, Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy, TrainOutput
from transformers.utils import PushInProgress

from spafit_hf.adapter.untrusted import read_sidecar
from spafit_hf.card import CardError, CardFacts, write_card
from spafit_hf.data.glue import columns_of
from spafit_hf.hub import (
    BaseVersion,
    HubError,
    Patience,
    base_version,
    cached_revision,
    full_repo_id,
    parcel,
    push_adapter,
)
from spafit_hf.hub.errors import FAILURES, explain, is_passing
from spafit_hf.hub.retry import patiently
from spafit_hf.names import is_remote
from spafit_hf.planner import Plan
from spafit_hf.trainer.facts import facts_of_run
from spafit_hf.tuner.plain import base_of

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last-checkpoint"


class HubPushMixin(Trainer):
    """What a trainer does about the Hub. Comes before Trainer, or a subclass of it, among the bases."""

    plan: Plan | None = None
    """Of the wrapped model; for the card."""
    task: dict[str, Any] | None = None
    """Of a saved adapter; for the card."""
    hub_model_id: str | None  # type: ignore[assignment]
    push_in_progress: PushInProgress | None  # type: ignore[assignment]
    hub_patience: Patience = Patience()
    """How long a Hub that does not answer is tried."""

    _push_was_skipped = False
    _push_branch: str | None = None
    """The branch that the last push was told to go to; None for that of the arguments."""

    @functools.cached_property
    def _described(self) -> dict[str, Any]:
        """What `describe` was given."""
        return {}

    @functools.cached_property
    def _pushes(self) -> ThreadPoolExecutor:
        """Pushes follow each other in their order."""
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="spafit-push")

    @functools.cached_property
    def _last_pushes(self) -> dict[str, Future[CommitInfo]]:
        """The last push of each place in the repo: where it succeeds, what failed before it is made good."""
        return {}

    # ---- the card ----

    def describe(self, **facts: Any) -> None:
        """Tell the card what a trainer cannot know: `trainer.describe(data=glue_data("mrpc"), license="mit")`.

        Args:
            facts: fields of `spafit_hf.card.CardFacts`; they take the place of what the trainer finds out by itself. A
                dict for `base`, `data` or `cost` replaces only what it names: `describe(base={"name": "my encoder"})`.

        Raises:
            ValueError: for a fact that there is no field for.
        """
        fields = [item.name for item in dataclasses.fields(CardFacts)]
        for name in facts:
            if name not in fields:
                raise CardError(f"a card has no fact {name!r}; it has {', '.join(fields)}.")
        self._described.update(facts)

    def card_facts(self) -> CardFacts:
        """What the card would say now."""
        base = self._base
        facts = facts_of_run(self, self.plan, base.revision if base else None, base.license if base else None)
        if self.task and not facts.data.columns:
            facts = dataclasses.replace(facts, data=dataclasses.replace(facts.data, columns=columns_of(self.task)))
        name = self.hub_model_id or self.args.hub_model_id
        facts = dataclasses.replace(
            facts, repo_id=name if name and "/" in name else None, revision=self._push_branch or self.args.hub_revision
        )
        return _with(facts, self._described)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card into `args.output_dir`, with the facts it is from and the picture of the training curve.

        A card that was written by hand stays as it is. The arguments are Trainer's (`license`: the base's by default);
        `describe` takes every other fact.
        """
        if not self.is_world_process_zero():
            return
        facts = self.card_facts()
        data = {"id": _first(dataset_tags), "name": _first(dataset), "config": _first(dataset_args)}
        given: dict[str, Any] = {
            "language": _listed(language),
            "license": license,
            "tags": tuple(dict.fromkeys([*facts.tags, *_listed(tags)])),
            "title": model_name,
            "pipeline_tag": _first(tasks),
            "base": {"id": finetuned_from} if is_remote(finetuned_from or "") else {},
            "data": {key: value for key, value in data.items() if value},
        }
        facts = _with(facts, {key: value for key, value in given.items() if value})
        folder = Path(str(self.args.output_dir))
        try:
            saved = parcel(folder)
            weights = [path for path in saved.paths if path.suffix == ".safetensors"]
            sidecar = read_sidecar(folder) if saved.kind == "adapter" else None
            facts = dataclasses.replace(
                facts,
                kind=saved.kind,
                file_bytes=sum(path.stat().st_size for path in weights),
                form=sidecar.form if sidecar is not None else facts.form,
            )
        except HubError:  # nothing is saved yet: a card of what is known so far
            folder.mkdir(parents=True, exist_ok=True)
        try:
            write_card(folder, facts)
        except CardError as error:
            logger.warning("The card was not written: %s", error)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`, with the commit of the base noted in the folder."""
        self._note_base_revision()
        super().save_model(output_dir, _internal_call)

    @functools.cached_property
    def _base(self) -> BaseVersion | None:
        """Commit and license of the base; not looked up where `describe` was given the base."""
        described = self._described.get("base")
        if described.get("id") if isinstance(described, dict) else described:
            return None
        config = base_of(self._unwrapped()).config
        return base_version(getattr(config, "_name_or_path", None), token=self.args.hub_token)

    def _note_base_revision(self) -> None:
        """Let the folder that is saved name the commit of its base; transformers 5 no longer notes it by itself."""
        model = self._unwrapped()
        config = getattr(base_of(model), "config", None)
        if not isinstance(config, PretrainedConfig) or getattr(config, "_commit_hash", None) is not None:
            return
        revision = cached_revision(str(config._name_or_path or ""))
        config._commit_hash = revision  # in memory only: transformers does not write it
        if isinstance(model, PeftModel) and model.peft_config[model.active_adapter].revision is None:
            model.peft_config[model.active_adapter].revision = revision

    def _unwrapped(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    # ---- the repo ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repo, as Trainer does. A Hub that does not answer is tried again, and does not end the run.

        Raises:
            HubError: if the Hub says no: a wrong token, or one that may not write.
        """
        if not self.is_world_process_zero():
            return
        self.push_in_progress = None
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        wanted = private if private is not None else self.args.hub_private_repo
        api = HfApi(token=token if token is not None else self.args.hub_token)
        try:
            url = patiently(
                lambda: api.create_repo(name, private=wanted, exist_ok=True), f"Creating {name}", self.hub_patience
            )
            self.hub_model_id = url.repo_id
        except FAILURES as error:
            why = explain(error, name, anonymous=api.token is None)
            if not is_passing(error):
                raise HubError(f"push_to_hub=True, but {why}") from error
            logger.warning(
                "The repository %s is not there yet: %s Training goes on; it is tried again at each push.", name, why
            )
            self.hub_model_id = name

    def _learn_whose(self, token: str | None = None) -> None:
        """Learn the full name of a repository that could not be made at the start, so that the card can name it."""
        if self.hub_model_id and "/" not in self.hub_model_id:
            with contextlib.suppress(HubError):  # the push itself says so, and tries more often
                self.hub_model_id = full_repo_id(
                    self.hub_model_id, token=token or self.args.hub_token, patience=Patience(tries=1)
                )

    def push_to_hub(  # type: ignore[override]  # Trainer says CommitInfo, and returns these too
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save, write the card, push: what `args.output_dir` holds of an adapter (or model), and no other file of it.

        Args:
            commit_message: of the commit.
            blocking: wait for it; if False a `Future` is returned.
            token, private: in place of those in the arguments.
            revision: branch, made if it is not there.
            kwargs: of `create_model_card`, and `create_pr=True` to open a pull request.

        Returns:
            Where it is now; None on processes other than the first.

        Raises:
            HubError: with what to do; the adapter is on disk.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        create_pr = bool(kwargs.pop("create_pr", False))
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        model_tags = getattr(self.model, "model_tags", None)
        if model_tags:
            kwargs["tags"] = [*_listed(kwargs.get("tags")), *_listed(model_tags)]
        self._learn_whose(token)
        self._push_branch = DEFAULT_REVISION if create_pr else revision
        self.create_model_card(**kwargs)
        self._finish_current_push()
        message = commit_message or "End of training"
        job = self._in_background(message, token=token, revision=revision, private=private, create_pr=create_pr)
        if not blocking:
            return job
        try:
            return job.result()
        finally:
            self._last_pushes.clear()  # the caller hears of this one, and it made good what failed before it

    # ---- pushing while training goes on ----

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`; a push that failed in the background is raised at its end.

        Raises:
            HubError: with what failed and what to do. The adapter as it was trained is in `args.output_dir`.
        """
        output = super().train(*args, **kwargs)
        if self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END:
            # On every process, whoever knows of a failure: saving may need them all. From here on it is safe on disk.
            self.save_model(_internal_call=True)
            if self._push_was_skipped:  # the last save came while the push before it was on its way
                self._push_saved(LAST_CHECKPOINT)
            self._finish_current_push()
            jobs = list(self._last_pushes.values())
            self._last_pushes.clear()
            for job in jobs:
                job.result()
        return output

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # In place of Trainer's, which uploads a folder that training goes on to write into, the arguments' pickle
        # with the token in it included, and whose failures nobody ever sees.
        if self.args.hub_strategy == HubStrategy.END:
            return
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        self._push_was_skipped = busy and not self.args.hub_always_push
        if self._push_was_skipped:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._push_saved(Path(checkpoint_folder).name)

    def _push_saved(self, checkpoint: str) -> None:
        """Push what `output_dir` holds now: to the repo's root, and as a checkpoint too where the strategy says so."""
        self._push_was_skipped = False
        self._learn_whose()
        self.create_model_card()
        if self.args.save_strategy == SaveStrategy.STEPS:
            message = f"Training in progress, step {self.state.global_step}"
        else:
            message = f"Training in progress, epoch {int(self.state.epoch or 0)}"
        jobs = [self._in_background(message)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            # The adapter alone: optimizer and random states are pickles, and stay on the machine that trains.
            place = LAST_CHECKPOINT if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint
            jobs.append(self._in_background(f"{message}, checkpoint", place))
        running: Any = self.push_in_progress
        self.push_in_progress = PushInProgress([*(running.jobs if running else ()), *jobs])  # type: ignore[arg-type]

    def _in_background(
        self, message: str, place: str = "", token: str | None = None, create_pr: bool = False, **given: Any
    ) -> Future[CommitInfo]:
        """Push a copy of `output_dir`, made now, from a thread, to a place in the repo."""
        folder = str(self.args.output_dir)
        token = token or self.args.hub_token
        where: dict[str, Any] = {"private": self.args.hub_private_repo}
        where |= {"revision": None if create_pr else self.args.hub_revision}
        where |= {name: value for name, value in given.items() if value not in (None, "")}
        scratch = tempfile.TemporaryDirectory(prefix="spafit-push-")
        for path in parcel(folder, tokens=[token] if token else ()).paths:
            shutil.copyfile(path, Path(scratch.name) / path.name)

        def push() -> CommitInfo:
            try:
                done = push_adapter(
                    scratch.name,
                    self.hub_model_id or Path(folder).absolute().name,
                    token=token,
                    message=message,
                    path_in_repo=place,
                    patience=self.hub_patience,
                    create_pr=create_pr,
                    **where,
                )
            except HubError as error:
                failure = HubError(str(error).replace(scratch.name, folder))
                logger.warning("A push failed: %s", failure)
                raise failure from error
            finally:
                scratch.cleanup()
            self.hub_model_id = done.repo_id
            return done.commit_info

        job = self._last_pushes[place] = self._pushes.submit(push)
        return job


def _with(facts: Any, changes: dict[str, Any]) -> Any:
    """Facts with others in their place; a dict replaces what it names of a fact that is made of facts."""
    for name, value in changes.items():
        known = getattr(facts, name)
        if isinstance(value, dict) and dataclasses.is_dataclass(known):
            value = _with(known, value)
        facts = dataclasses.replace(facts, **{name: value})
    return facts


def _listed(value: str | list[str] | None) -> tuple[str, ...]:
    return () if not value else (value,) if isinstance(value, str) else tuple(value)


def _first(value: str | list[str] | None) -> str | None:
    return next(iter(_listed(value)), None)
