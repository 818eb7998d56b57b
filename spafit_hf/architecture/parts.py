"""The parts of a model, as names of its modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

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

    @property
    def num_layers(self) -> int:
        """Number of layers of the first stack."""
        return len(self.stacks[0].layers)

    @classmethod
    def describe(
        cls,
        model: nn.Module,
        *,
        layers: str | Mapping[str, str],
        roles: Mapping[str, str | Iterable[str]],
        head: Iterable[str] | None = None,
        pooler: Iterable[str] | None = None,
        outer_norms: Iterable[str] | None = None,
    ) -> Architecture:
        """The architecture of a model that cannot be found by itself, from what you know about it.

            Architecture.describe(
                model,
                layers="model.blocks",
                roles={
                    "query": "att.q", "key": "att.k", "value": "att.v", "attention_output": "att.o",
                    "intermediate": ("ff.gate", "ff.up"), "output": "ff.down",
                    "attention_norm": "norm_a", "output_norm": "norm_f",
                },
                head=["classifier"],
            )

        Args:
            model: the model, on any device.
            layers: name of the list of layers, or several as {"encoder": name, "decoder": name}.
            roles: role of `ROLES` -> name or names relative to a layer. Norms may be left out.
            head, pooler, outer_norms: names in the model; None: found as for any other model.

        Raises:
            ValueError: for an unknown role, a name that is not in the model, or a role no module plays.
        """
        # Finding is built on these parts, so it can only be imported once they exist.
        from spafit_hf.architecture.find import complete, model_type_of
        from spafit_hf.architecture.stacks import make_stack

        names = {name for name, _ in model.named_modules()}
        for role in roles:
            if role not in ROLES:
                raise ValueError(f"roles: unknown role {role!r}; allowed are {', '.join(ROLES)}.")
        layout = {role: (paths,) if isinstance(paths, str) else tuple(paths) for role, paths in roles.items()}
        stacks = []
        for stack_name, path in ({"layers": layers} if isinstance(layers, str) else layers).items():
            if path not in names:
                raise ValueError(f"layers: the model has no module {path!r}; see model.named_modules() for the names.")
            stacks.append(make_stack(model, stack_name, path, layout, model_type_of(model)))
        found = complete(model, tuple(stacks))
        parts = {"head": head, "pooler": pooler, "outer_norms": outer_norms}
        given = {part: tuple(value) for part, value in parts.items() if value is not None}
        for part, part_names in given.items():
            for name in part_names:
                if name not in names:
                    raise ValueError(
                        f"{part}: the model has no module {name!r}; see model.named_modules() for the names."
                    )
        return cls(
            model_type=found.model_type,
            stacks=found.stacks,
            embeddings=found.embeddings,
            outer_norms=given.get("outer_norms", found.outer_norms),
            pooler=given.get("pooler", found.pooler),
            projections=found.projections,
            head=given.get("head", found.head),
        )


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix LoRA can go on: nn.Linear and its quantized kinds, or the Conv1D of GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a weight, with or without a bias. By name: models bring classes of their own."""
    return "norm" in type(module).__name__.lower() and has_weight(module)


def has_weight(module: nn.Module) -> bool:
    """Whether a module has a weight of its own; the Identity that stands for a missing norm has none."""
    return "weight" in module._parameters and module._parameters["weight"] is not None
