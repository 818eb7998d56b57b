"""The parts of a model, as names of its modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spafit_hf.strategy import ROLES


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    path: str
    """Its name in the model, such as "bert.encoder.layer.3"."""
    modules: dict[str, tuple[str, ...]]
    """Role -> full names of the modules that play it. Every role of `ROLES` is a key; () where the norm is missing."""
    others: tuple[str, ...] = ()
    """Linear layers and norms that play no role and so never train: the norms of single heads in Qwen3, Gemma 3."""

    def names(self, roles: Iterable[str]) -> tuple[str, ...]:
        """Full names of the modules that play any of `roles`, in reading order, each once (one may play three)."""
        wanted = set(roles)
        return tuple(dict.fromkeys(name for role in ROLES if role in wanted for name in self.modules[role]))


@dataclass(frozen=True)
class Stack:
    """A run of layers, each feeding the next. A strategy is put on each stack of a model by itself."""

    name: str
    """"encoder", "decoder", or "layers" in models that have only one kind."""
    path: str
    """Name of the list of layers in the model, such as "bert.encoder.layer"."""
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Architecture:
    """Names of all the parts of a model that a strategy can speak of. All are full names for `model.get_submodule`."""

    model_type: str
    """`config.model_type`, such as "bert"."""
    stacks: tuple[Stack, ...]
    """In the order in which the data flows: encoder before decoder."""
    embeddings: str | None = None
    """The embeddings, or the table of word embeddings where they have no module of their own."""
    outer_norms: tuple[str, ...] = ()
    """Norms outside the layers: of the embeddings, after the last layer."""
    pooler: tuple[str, ...] = ()
    """Pretrained linear layers between the last layer and the head (BERT's pooler)."""
    projections: tuple[str, ...] = ()
    """Other linear layers outside the layers: ELECTRA's embeddings_project, OPT's project_in and project_out."""
    head: tuple[str, ...] = ()
    """The task head, new with the task: ("classifier",), ("score",), ("pre_classifier", "classifier").
    () for a bare encoder and for a language model, whose head is pretrained and must not train."""
    new: tuple[str, ...] = ()
    """Other modules that the checkpoint did not bring, in the layers or outside: a pooler that a masked language model
    had not, an encoder-decoder's first cross attention. Random at each load, so they train with the head."""
    new_biases: tuple[str, ...] = ()
    """Modules of which the checkpoint lacked the bias alone: an output matrix that is the word embeddings' too."""

    @property
    def num_layers(self) -> int:
        """Number of layers of the first stack."""
        return len(self.stacks[0].layers)
