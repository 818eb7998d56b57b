"""The parts of a model, as names of its modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spafit_hf.strategy import EVERY_ROLE


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    path: str
    """Its name in the model, such as "bert.encoder.layer.3"."""
    modules: dict[str, tuple[str, ...]]
    """Role -> full names of the modules that play it. Every role of `ROLES` is a key; () where there is none: the norm
    is missing, the feed-forward is made of experts, a mixer stands in the place of the attention."""
    others: tuple[str, ...] = ()
    """Linear layers and norms that play no role and so never train: the norms of single heads in Qwen3, Gemma 3."""
    more: tuple[str, ...] = ()
    """Other modules that it is made of, where a model keeps its layers in lists side by side, as XLM does."""
    experts: tuple[str, ...] = ()
    """Full names of the parameters that hold a matrix for each expert: the role "experts"."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """How the full names of its modules begin."""
        return tuple(f"{path}." for path in (self.path, *self.more))

    def names(self, roles: Iterable[str]) -> tuple[str, ...]:
        """Full names of the modules that play any of `roles`, in reading order, each once (one may play three)."""
        wanted = set(roles)
        return tuple(
            dict.fromkeys(name for role in EVERY_ROLE if role in wanted for name in self.modules.get(role, ()))
        )


@dataclass(frozen=True)
class Stack:
    """A run of layers, each feeding the next. A strategy is put on each stack of a model by itself."""

    name: str
    """"encoder", "decoder", or "layers" in models that have only one kind."""
    path: str
    """Name of the list of layers in the model, such as "bert.encoder.layer"; of the list of stages, or of what holds
    several lists, where the layers are in those."""
    layers: tuple[Layer, ...]
    depth: int | None = None
    """How many layers run, where fewer are used again and again (ALBERT); None where each runs once."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """How the full names of its layers' modules begin."""
        return tuple(prefix for layer in self.layers for prefix in layer.prefixes)


@dataclass(frozen=True)
class Architecture:
    """Names of all the parts of a model that a strategy can speak of. All are full names for `model.get_submodule`."""

    model_type: str
    """`config.model_type`, such as "bert"."""
    stacks: tuple[Stack, ...]
    """In the order in which the data flows: encoder before decoder. () where no layers can be told."""
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
        return len(self.stacks[0].layers) if self.stacks else 0
