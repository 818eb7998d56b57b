"""Trainer's way to the Hub, mended: the named files and no others, one commit each time, and no failure in silence.

    init_hf_repo            a Hub that is busy for a moment does not end the run before it began
    create_model_card       a card from facts (`spafit_hf.card`)
    _push_from_checkpoint   a copy of what was saved goes up in the background; training goes on
    train                   raises at its end what failed in the background, with the adapter safe on disk
    push_to_hub             as Trainer's

It works on a plain `transformers.Trainer` too: `class MyTrainer(HubPushMixin, Trainer)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
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
from spafit_hf.hub import (
    BaseVersion,
    HubError,
    Patience,
    Pushed,
    base_version,
    cached_revision,
    full_repo_id,
    parcel,
    push_adapter,
)
from spafit_hf.hub.errors import FAILURES, explain, is_passing
from spafit_hf.hub.retry import patiently
from spafit_hf.names import is_hub_id
from spafit_hf.planner import Plan
from spafit_hf.trainer.facts import facts_of_run

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last-checkpoint"
#: Facts that are made of facts.
PARTS = ("base", "data", "cost")


class HubPushMixin(Trainer):
    """What a trainer does about the Hub. Comes before Trainer, or a subclass of it, among the bases."""

    plan: Plan | None = None
    """Of the wrapped model; for the card."""
    hub_model_id: str | None  # type: ignore[assignment]
    push_in_progress: PushInProgress | None  # type: ignore[assignment]
    hub_patience: Patience = Patience()
    """How long a Hub that does not answer is tried."""

    _described: dict[str, Any] | None = None
    _base: BaseVersion | None = None
    _base_was_asked = False
    _pushes: ThreadPoolExecutor | None = None
    _push_failures: dict[str, HubError] | None = None
    _push_was_skipped = False
    _push_branch: str | None = None
    """The branch that the last push was told to go to; None for that of the arguments."""

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
        self._described = {**(self._described or {}), **facts}

    def card_facts(self) -> CardFacts:
        """What the card would say now."""
        base = self._base_version()
        facts = facts_of_run(self, self.plan, base.revision if base else None, base.license if base else None)
        facts = dataclasses.replace(facts, repo_id=self._full_repo_id(), revision=self._branch())
        said = {
            name: dataclasses.replace(getattr(facts, name), **value)
            if name in PARTS and isinstance(value, dict)
            else value
            for name, value in (self._described or {}).items()
        }
        return dataclasses.replace(facts, **said)

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

        A card that somebody wrote by hand stays as it is. The arguments are Trainer's; `describe` takes every other
        fact.

        Args:
            language: code of the data's language.
            license: of the adapter; the base's by default.
            tags: further tags.
            model_name: title of the card.
            finetuned_from: Hub id of the base.
            tasks: the Hub's name of the task, such as "summarization".
            dataset_tags: Hub id of the dataset.
            dataset: its name for a reader.
            dataset_args: its configuration.
        """
        if not self.is_world_process_zero():
            return
        facts = self.card_facts()
        said: dict[str, Any] = {
            "language": _listed(language),
            "license": license,
            "tags": tuple(dict.fromkeys([*facts.tags, *_listed(tags)])),
            "title": model_name,
            "pipeline_tag": _first(tasks),
        }
        if finetuned_from is not None and is_hub_id(finetuned_from) and not os.path.exists(finetuned_from):
            said["base"] = dataclasses.replace(facts.base, id=finetuned_from)
        named = {"id": _first(dataset_tags), "name": _first(dataset), "config": _first(dataset_args)}
        if any(named.values()):
            known: dict[str, Any] = {key: value for key, value in named.items() if value}
            said["data"] = dataclasses.replace(facts.data, **known)
        facts = dataclasses.replace(facts, **{key: value for key, value in said.items() if value})
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

    def _base_version(self) -> BaseVersion | None:
        """Commit and license of the base, asked once."""
        if not self._base_was_asked:
            self._base_was_asked = True
            said = (self._described or {}).get("base")
            if not (said.get("id") if isinstance(said, dict) else said):
                config = self._plain_model().config
                self._base = base_version(getattr(config, "_name_or_path", None), token=self.args.hub_token)
        return self._base

    def _note_base_revision(self) -> None:
        """Let the folder that is saved name the commit of its base; transformers 5 no longer notes it by itself."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        config = getattr(self._plain_model(), "config", None)
        if not isinstance(config, PretrainedConfig) or getattr(config, "_commit_hash", None) is not None:
            return
        revision = cached_revision(str(config._name_or_path or ""))
        if revision is None:
            return
        config._commit_hash = revision  # in memory only: transformers does not write it
        if isinstance(model, PeftModel) and model.peft_config[model.active_adapter].revision is None:
            model.peft_config[model.active_adapter].revision = revision

    def _plain_model(self) -> nn.Module:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if isinstance(model, PeftModel) else model

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

    def _full_repo_id(self) -> str | None:
        known = self.hub_model_id or self.args.hub_model_id
        return known if known and "/" in known else None

    def _learn_whose(self, token: str | None = None) -> None:
        """Learn the full name of a repository that could not be made at the start, so that the card can name it."""
        if self.hub_model_id and "/" not in self.hub_model_id:
            with contextlib.suppress(HubError):  # the push itself says so, and tries more often
                self.hub_model_id = full_repo_id(
                    self.hub_model_id, token=token or self.args.hub_token, patience=Patience(tries=1)
                )

    def _branch(self) -> str | None:
        return self._push_branch or self.args.hub_revision

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
        job = self._in_background(
            str(self.args.output_dir),
            commit_message or "End of training",
            "",
            token=token,
            revision=revision,
            private=private,
            create_pr=create_pr,
        )
        if not blocking:
            return job
        try:
            return job.result()
        finally:
            self._failures().clear()  # what counts is the last push, and the caller hears of it

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
            failures, self._push_failures = self._failures(), {}
            for error in failures.values():
                raise error
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
        jobs = [self._in_background(str(self.args.output_dir), message, "")]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            # The adapter alone: optimizer and random states are pickles, and stay on the machine that trains.
            place = LAST_CHECKPOINT if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint
            jobs.append(self._in_background(str(self.args.output_dir), f"{message}, checkpoint", place))
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]
        else:
            self.push_in_progress.jobs.extend(jobs)  # type: ignore[union-attr]

    def _in_background(self, folder: str, message: str, place: str, **how: Any) -> Future[CommitInfo]:
        """Push a copy of a folder, made now, from a thread; pushes follow each other in their order."""
        if self._pushes is None:
            self._pushes = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spafit-push")
        token = how.pop("token", None) or self.args.hub_token
        revision = how.pop("revision", None) or (None if how.get("create_pr") else self.args.hub_revision)
        private = how.pop("private", None)
        failures = self._failures()
        scratch = Path(tempfile.mkdtemp(prefix="spafit-push-"))
        try:
            for path in parcel(folder, tokens=[token] if token else ()).paths:
                shutil.copyfile(path, scratch / path.name)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

        def push() -> CommitInfo:
            try:
                done: Pushed = push_adapter(
                    scratch,
                    self.hub_model_id or Path(folder).absolute().name,
                    token=token,
                    private=private if private is not None else self.args.hub_private_repo,
                    revision=revision,
                    message=message,
                    path_in_repo=place,
                    patience=self.hub_patience,
                    **how,
                )
            except HubError as error:
                said = HubError(str(error).replace(str(scratch), folder))
                failures[place] = said
                logger.warning("A push failed: %s", said)
                raise said from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            self.hub_model_id = done.repo_id
            failures.pop(place, None)  # what this one pushed is newer than what failed
            return done.commit_info

        return self._pushes.submit(push)

    def _failures(self) -> dict[str, HubError]:
        """What failed and has not been made good, by its place in the repo."""
        if self._push_failures is None:
            self._push_failures = {}
        return self._push_failures


def _listed(value: str | list[str] | None) -> tuple[str, ...]:
    return () if not value else (value,) if isinstance(value, str) else tuple(value)


def _first(value: str | list[str] | None) -> str | None:
    return next(iter(_listed(value)), None)
