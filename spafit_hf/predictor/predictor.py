"""`SpafitPredictor`: adapters by name, texts in, answers out, for any number of threads."""

from __future__ import annotations

import copy
import difflib
import logging
import math
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spafit_hf.adapter import AdapterError
from spafit_hf.adapter.fit import head_names
from spafit_hf.adapter.load import local_folder
from spafit_hf.adapter.tokenizer import tokenizer_of
from spafit_hf.architecture import find_architecture
from spafit_hf.predictor.base import load_base, longest
from spafit_hf.predictor.cache import AdapterCache, Entry, stamp_of
from spafit_hf.predictor.facts import AdapterFacts, NoAnswer, Prediction, overflow
from spafit_hf.predictor.patch import LoadedAdapter, read_adapter
from spafit_hf.predictor.serving import PROBE_TEXTS, Serving
from spafit_hf.predictor.text import UNORDERED, Encoded, Text, check_text, check_texts, encode, grouped, is_list
from spafit_hf.tuner.plain import plain_view
from spafit_hf.words import first_line

logger = logging.getLogger(__name__)

BATCH_SIZE = 32


class SpafitPredictor:
    """Many adapters on one base, an adapter per row.

        predictor = SpafitPredictor("google-bert/bert-large-cased")
        predictor.add("user/bert-large-sst2-spafit", "sst2")
        predictor.add("runs/mrpc", "mrpc")
        predictor.predict(["A fine film.", ("It rains.", "It is raining.")], adapter=["sst2", "mrpc"])
        predictor.predict_all("A fine film.")["sst2"].scores      # {"negative": 0.02, "positive": 0.98}

    Every method may be called by any thread at any time. Forward passes run one after the other, so that memory stays
    that of one batch; a request uses the adapters that were there when it came. The base's weights are never written
    to. While the predictor is used the base is its own: train and call another copy.

    Args:
        base: Hub id or folder of a pretrained model; or a model for sequence classification, which stays where it is.
        tokenizer: the base's, if not the one that comes with it.
        revision: branch, tag or commit of the base on the Hub.
        device: for a base by name; a GPU if there is one, where it is None.
        token: for private repositories.
        max_length: tokens per text, special ones included; longer texts lose their end. None: what base and tokenizer
            allow, up to 512.
        max_adapter_bytes: limit of the adapters in memory. Those not used for longest are unloaded, and come back from
            their folders when they are asked for. None: all stay. A pass for several adapters copies what
            it takes of them.
        batch_size: rows per forward pass.

    Raises:
        ValueError: for a base that cannot be loaded or cannot serve, and for limits that cannot be.
    """

    def __init__(
        self,
        base: PreTrainedModel | str | os.PathLike[str],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        token: str | bool | None = None,
        max_length: int | None = None,
        max_adapter_bytes: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        limits = {"max_length": max_length, "max_adapter_bytes": max_adapter_bytes, "batch_size": batch_size}
        for name, value in limits.items():
            if value is not None and not (isinstance(value, Real) and value >= 1 and value % 1 == 0):
                raise ValueError(f"{name} is {value!r:.40}; it must be a whole number of at least 1.")
        self._base = load_base(base, tokenizer, revision, device, token)
        self._token = token
        if self._base.tokenizer is not None:
            longest(self._base.model, self._base.tokenizer, max_length)  # what cannot be is said before adapters come
        self._max_length = max_length
        self._batch_size = int(batch_size)  # 8.0 and numpy's are whole, too
        # Adapters are verified against the view: the same tensors in modules that no forward pass puts hooks on.
        self._view = plain_view(self._base.model)
        self._architecture = find_architecture(self._view)
        heads = head_names(self._view)
        self._heads = {
            name: copy.deepcopy(module) for name, module in self._base.model.named_modules() if name in heads
        }
        self._serving = Serving(self._base.model, self._architecture, self._heads)
        self._cache = AdapterCache(self._reread, max_adapter_bytes)
        # Replaced and never changed, so that whoever has it sees one state of it.
        self._entries: dict[str, Entry] = {}
        self._lock = threading.RLock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they were added."""
        return tuple(self._entries)

    @property
    def adapter_bytes(self) -> int:
        """Memory that adapters take at the moment."""
        with self._lock:
            return self._cache.num_bytes

    @property
    def model(self) -> PreTrainedModel:
        """The base."""
        return self._base.model

    def facts(self, name: str) -> AdapterFacts:
        """What is known of an adapter."""
        return _known(self._entries, name).facts

    def fitting(self, text: Text) -> tuple[str, ...]:
        """Names of the adapters that were trained on so many texts per row, and of those that do not say."""
        return tuple(name for name, entry in self._entries.items() if entry.facts.texts in (None, _count(text)))

    def add(
        self,
        folder_or_repo: str | os.PathLike[str],
        name: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        own_tokenizer: bool | None = None,
    ) -> AdapterFacts:
        """Add an adapter. It is verified and tried on the base first; one that is refused leaves no trace.

        Its texts go through the base's tokenizer if the folder has none, or the same. Another is the folder's own
        program: it has to be of plain parts, and is tried within limits in a process of its own before it is used.

        Args:
            folder_or_repo, revision, token: as in `load_adapter`; the token is the predictor's, if none is given.
            name: what it is called from now on.
            own_tokenizer: whether texts go through a tokenizer that comes along and differs from the base's. None: of
                a folder here they do, of a repository not; a warning says so. On a base without one they do.

        Raises:
            AdapterError: for a folder that does not fit the base or cannot be trusted.
            ValueError: for a name that is taken or empty.
        """
        source = os.fspath(folder_or_repo)
        self._check_free(name)
        folder = local_folder(source, revision=revision, token=token if token is not None else self._token)
        stamp = stamp_of(folder)
        facts, adapter = self._read(name, source, folder)
        own = os.path.isdir(source) if own_tokenizer is None else own_tokenizer
        # Outside of the lock: a tokenizer that is tried takes its time, and requests go on.
        tokenizer, difference = tokenizer_of(folder, self._tokenizers(), own=own)
        if difference:
            facts = replace(facts, tokenizer=difference)
            logger.warning("The tokenizer of %s is not used, the base's is: %s.", source, difference)
        limit = self._cache.max_bytes
        if limit is not None and facts.memory_bytes > limit:
            raise AdapterError(
                f"{source} takes {facts.memory_bytes:,} bytes, and max_adapter_bytes is {limit:,}; raise the limit."
            )
        with self._lock:
            self._check_free(name)
            entry = self._entry(facts, folder, stamp, tokenizer)
            self._try(entry, adapter)
            self._cache.put(entry, adapter)
            self._entries = {**self._entries, name: entry}
        return entry.facts

    def remove(self, name: str) -> None:
        """Remove an adapter. Requests that began before still get their answers; then its memory is free."""
        with self._lock:
            entry = _known(self._entries, name)
            entry.removed = True
            self._entries = {other: kept for other, kept in self._entries.items() if other != name}
            self._cache.drop(entry)

    def predict(self, texts: Sequence[Text], adapter: str | Sequence[str] | None = None) -> list[Prediction]:
        """Ask adapters about texts, an adapter per row; a prediction for each, in their order.

        Args:
            texts: a text is a string, or a tuple of two.
            adapter: a name for all rows, or a name for each. None where there is only one adapter.

        Raises:
            ValueError: for an empty text, an unknown adapter, a pair for an adapter of single texts or the reverse,
                and numbers of texts and names that differ.
            NoAnswer: a ValueError with the answers that there are, where an adapter's numbers for a text are not
                finite, or it was unloaded and cannot be read again.
        """
        checked = check_texts(texts)
        entries = self._chosen(adapter, len(checked))
        for index, (text, entry) in enumerate(zip(checked, entries, strict=True)):
            facts, found = entry.facts, _count(text)
            if facts.texts not in (None, found):
                wants = "a pair: ('first text', 'second text')" if facts.texts == 2 else "a single text"
                raise ValueError(
                    f"text {index} is {'a single text' if found == 1 else 'a pair'}; {facts.name!r} was trained on "
                    f"{wants}."
                )
        return self._answer(checked, entries)

    def predict_all(self, text: Text, adapters: Iterable[str] | None = None) -> dict[str, Prediction]:
        """Ask every adapter about one text, in one pass: name -> prediction.

        Adapters trained on pairs answer to a single text too, and the reverse, for what that is worth;
        `adapters=predictor.fitting(text)` asks those that were trained on such texts.

        Args:
            text: a string, or a tuple of two.
            adapters: names; None for all.

        Raises:
            ValueError, NoAnswer: as in `predict`.
        """
        checked = check_text(text)
        known = self._entries
        if not known:
            raise ValueError("the predictor has no adapters; add one: predictor.add(folder, name).")
        names = known if adapters is None else [adapters] if isinstance(adapters, str) else _listed(adapters, bytes)
        entries = list(dict.fromkeys(_known(known, name) for name in names))
        return {answer.adapter: answer for answer in self._answer([checked] * len(entries), entries)}

    def _answer(self, texts: list[Text], entries: list[Entry]) -> list[Prediction]:
        answers: dict[int, Prediction] = {}
        problems: dict[str, str] = {}
        encoded = self._encoded(texts, entries)
        for text, tokens in zip(texts, encoded, strict=True):
            if tokens.empty:
                raise ValueError(f"{text!r:.60} holds nothing that the tokenizer knows.")
        for group in self._that_fit(entries):
            # Rows of a text side by side, so that a batch holds them all; of like lengths, to pad little.
            group.sort(key=lambda row: (len(encoded[row].ids), encoded[row].ids))
            for start in range(0, len(group), self._batch_size):
                rows = group[start : start + self._batch_size]
                adapters: dict[Entry, LoadedAdapter] = {}
                with self._lock:
                    for entry in dict.fromkeys(entries[row] for row in rows):
                        try:
                            adapters[entry] = self._cache.get(entry)
                        except AdapterError as error:
                            problems[entry.facts.name] = str(error)
                    rows = [row for row in rows if entries[row] in adapters]
                    logits = self._serving.logits([(encoded[row], adapters[entries[row]]) for row in rows])
                for row, values in zip(rows, logits, strict=True):
                    facts = entries[row].facts
                    if torch.isfinite(values).all():
                        answers[row] = Prediction.from_logits(facts, values, encoded[row].truncated)
                    else:
                        problems[facts.name] = overflow(facts.name, texts[row])
        found = [answers[row] for row in sorted(answers)]
        if problems:
            raise NoAnswer(problems, found)
        return found

    def _encoded(self, texts: list[Text], entries: list[Entry]) -> list[Encoded]:
        """Each text through its adapter's tokenizer; each once, however many rows have it."""
        found: dict[int, Encoded] = {}
        with self._lock:  # tokenizers keep the settings of a call in themselves
            for rows in grouped([(id(entry.tokenizer), entry.max_length) for entry in entries]):
                entry = entries[rows[0]]
                distinct = list(dict.fromkeys(texts[row] for row in rows))
                encoded = encode(distinct, entry.tokenizer, entry.max_length)
                self._check_tokens(encoded)
                of_text = dict(zip(distinct, encoded, strict=True))
                found |= {row: of_text[texts[row]] for row in rows}
        return [found[row] for row in range(len(texts))]

    def _check_tokens(self, rows: list[Encoded]) -> None:
        # An index beyond a table is an obscure error on a CPU, and the end of the process's use of a GPU.
        try:
            tokens: float = self.model.get_input_embeddings().get_parameter("weight").shape[0]
        except NotImplementedError:  # CANINE has no table of tokens; it hashes characters
            tokens = math.inf
        types = getattr(self.model.config, "type_vocab_size", None)  # models without token types have no such field
        for row in rows:
            if max(row.ids, default=0) >= tokens or (types and row.types and max(row.types) >= types):
                raise ValueError(
                    f"the tokenizer gives token {max(row.ids)} of type {max(row.types or (0,))}, and the base has "
                    f"{tokens} tokens and {types or 1} types; it is another base's tokenizer."
                )

    def _that_fit(self, entries: list[Entry]) -> list[list[int]]:
        """Rows in groups whose adapters are within the limit together."""
        limit = self._cache.max_bytes
        group_of: dict[Entry, int] = {}
        group = together = 0
        for entry in dict.fromkeys(entries):
            together += entry.facts.memory_bytes
            if limit is not None and together > limit:
                group, together = group + 1, entry.facts.memory_bytes
            group_of[entry] = group
        return grouped([group_of[entry] for entry in entries])

    def _read(self, name: str, source: str, folder: Path) -> tuple[AdapterFacts, LoadedAdapter]:
        return read_adapter(
            name, source, folder, self._view, self._architecture, self._heads, untrained=self._base.untrained
        )

    def _reread(self, entry: Entry) -> LoadedAdapter:
        facts, adapter = self._read(entry.facts.name, entry.facts.source, entry.folder)
        if replace(facts, tokenizer=entry.facts.tokenizer) != entry.facts or stamp_of(entry.folder) != entry.stamp:
            raise AdapterError(f"{entry.folder} has changed since it was added; remove {facts.name!r} and add it.")
        return adapter

    def _tokenizers(self) -> list[PreTrainedTokenizerBase]:
        """Those in use, the base's first."""
        used = [self._base.tokenizer, *(entry.tokenizer for entry in self._entries.values())]
        return [each for each in used if each is not None]

    def _entry(
        self, facts: AdapterFacts, folder: Path, stamp: tuple[int, int], tokenizer: PreTrainedTokenizerBase | None
    ) -> Entry:
        if tokenizer is None:
            raise AdapterError(
                f"neither {facts.source} nor the base comes with a tokenizer; give one: "
                "SpafitPredictor(base, tokenizer=...)."
            )
        try:
            limit = longest(self._base.model, tokenizer, self._max_length)
        except ValueError as error:
            raise AdapterError(f"{facts.source} cannot be served: {error}") from error
        config = self._base.model.config.get_text_config()
        if config.pad_token_id is None:
            # Decoders come without one, and their heads look for it to find a text's last token.
            config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return Entry(facts, folder, stamp, tokenizer, limit)

    def _try(self, entry: Entry, adapter: LoadedAdapter) -> None:
        source = entry.facts.source
        try:
            texts = encode(PROBE_TEXTS, entry.tokenizer, entry.max_length)
            self._check_tokens(texts)
            logits = self._serving.admit(adapter, texts)
        except (RuntimeError, IndexError, TypeError, AttributeError) as error:  # fits in parts, and not as a whole
            kind = type(self.model).__name__
            raise AdapterError(f"{source} does not run on {kind}: {first_line(error)}") from error
        if logits.shape != (len(entry.facts.labels),) or not torch.isfinite(logits).all():
            raise AdapterError(
                f"{source} gives {logits.tolist()} for a short text, where {len(entry.facts.labels)} finite numbers "
                "were to come; the adapter is broken."
            )

    def _check_free(self, name: str) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{name!r} cannot name an adapter; give it a name that is not empty.")
        if name in self._entries:
            raise ValueError(
                f"there is an adapter {name!r} already; remove it first, or choose a name other than "
                f"{', '.join(self._entries)}."
            )

    def _chosen(self, adapter: str | Sequence[str] | None, rows: int) -> list[Entry]:
        known = self._entries
        if adapter is None:
            if len(known) != 1:
                raise ValueError(f"name an adapter: there are {', '.join(known) or 'none yet'}.")
            return [*known.values()] * rows
        if isinstance(adapter, str):
            return [_known(known, adapter)] * rows
        names = _listed(adapter, bytes, *UNORDERED)
        if len(names) != rows:
            raise ValueError(f"there are {rows} texts and {len(names)} adapter names; give one, or one per text.")
        return [_known(known, name) for name in names]


def _listed(names: Iterable[str], *wrong: type) -> list[str]:
    if not is_list(names, *wrong):
        raise ValueError(f"adapter is a {type(names).__name__}; give a name, or a list of names.")
    return list(names)


def _known(entries: dict[str, Entry], name: str) -> Entry:
    entry = entries.get(name) if isinstance(name, str) else None
    if entry is None:
        close = difflib.get_close_matches(str(name), entries, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no adapter {name!r:.80}; there are {', '.join(entries) or 'none yet'}.{hint}")
    return entry


def _count(text: Text) -> int:
    return 1 if isinstance(text, str) else 2
