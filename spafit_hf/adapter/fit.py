"""Whether a verified adapter fits a base: the same base by its facts, and every tensor of the shape it asks for."""

from __future__ import annotations

from torch import nn

from spafit_hf.adapter.folder import (
    BOTTLENECK_PARTS,
    KEY_PREFIX,
    AdapterError,
    BaseFacts,
    TensorName,
    endings,
    facts_of_plain,
)
from spafit_hf.adapter.verified import VerifiedAdapter
from spafit_hf.architecture import find_architecture, find_head, in_out, is_linear, takes_delta
from spafit_hf.architecture.experts import expert_biases, expert_delta_shape, lora_places
from spafit_hf.architecture.labels import labels_of
from spafit_hf.names import MAX_LABELS, is_remote
from spafit_hf.tuner.config import PEFT_HEADS


def check_same_base(trained_on: BaseFacts, plain: nn.Module) -> None:
    """Refuse another base than the adapter's own. Where a name is all that is known (plain PEFT), repositories' names
    count."""
    loaded = facts_of_plain(plain)
    difference = trained_on.difference(loaded)
    if difference:
        raise AdapterError(f"the adapter does not belong to this base ({loaded.name_or_path}): {difference}.")
    names = trained_on.name_or_path, loaded.name_or_path
    if not trained_on.vectors and names[0] != names[1] and all(name and is_remote(name) for name in names):
        raise AdapterError(f"the adapter was trained on {names[0]}, the loaded base is {names[1]}; load the first.")


def check_fit(adapter: VerifiedAdapter, plain: nn.Module) -> None:
    """Refuse an adapter whose tensors are not those that the modules of the base, a `plain_view`, ask for."""
    modules = dict(plain.named_modules())
    _check_complete(adapter, plain, modules)
    _check_shapes(adapter, plain, modules, _expert_shapes(adapter, plain, modules))
    _check_whole_deltas(adapter, modules)
    _check_bottlenecks(adapter, plain, modules)
    _check_heads(adapter, plain)


def head_names(plain: nn.Module) -> set[str]:
    """Modules that an adapter may bring whole: the task head's, others that no checkpoint brought, and no pretrained
    part."""
    head, new = find_head(plain)
    return {*PEFT_HEADS, *head, *new}


def head_output(plain: nn.Module, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Names of weight and bias of a head's last layer, whose number of outputs is that of the labels."""
    below = tuple(f"{head}." for head in heads)
    last: tuple[str, ...] = ()
    for name, module in plain.named_modules():
        if (name in heads or name.startswith(below)) and isinstance(module, nn.Linear):
            last = (f"{name}.weight", f"{name}.bias")
    return last


def _check_complete(adapter: VerifiedAdapter, plain: nn.Module, modules: dict[str, nn.Module]) -> None:
    stored = {name.module for name in adapter.tensors.values() if name.part == "lora_A.weight"}
    in_head = tuple(f"{head}." for head in adapter.head)
    for module in modules if adapter.targets else ():
        if module in stored or f"{module}.".startswith(in_head):
            continue
        if not adapter.targets.isdisjoint(endings(module)):
            raise AdapterError(
                f"the configuration targets {module} of {type(plain).__name__}, for which the file holds no LoRA: it "
                "is incomplete."
            )


def _check_whole_deltas(adapter: VerifiedAdapter, modules: dict[str, nn.Module]) -> None:
    """Refuse experts of which a file has some of the biases: they are one delta."""
    stored: dict[str, set[str]] = {}
    for name in adapter.tensors.values():
        stored.setdefault(name.module, set()).add(name.part)
    for module in adapter.bias_modules:
        wanted = {} if "lora_delta" in stored[module] else expert_biases(modules[module])
        if missing := sorted(wanted.keys() - stored[module]):
            raise AdapterError(f"{module}.{missing[0]} is missing beside its other biases: the file is cut.")


def _expert_shapes(
    adapter: VerifiedAdapter, plain: nn.Module, modules: dict[str, nn.Module]
) -> dict[str, tuple[int, ...]]:
    """Tensor names of the LoRA on experts -> shapes."""
    try:
        places = lora_places(adapter.experts, modules)
    except LookupError as error:
        raise AdapterError(
            f"it has LoRA on {error.args[0]}, which is no tensor of experts in {type(plain).__name__}; it was trained "
            "on another class of model."
        ) from error
    return {
        str(TensorName(wrapper, part)): shape
        for name, (wrapper, matrix) in places.items()
        for part, shape in matrix.lora_shapes(adapter.experts[name].r).items()
    }


def _check_shapes(
    adapter: VerifiedAdapter,
    plain: nn.Module,
    modules: dict[str, nn.Module],
    of_experts: dict[str, tuple[int, ...]],
) -> None:
    for key, name in adapter.tensors.items():
        if not name.module:
            continue
        if key in of_experts:
            _check_shape(key, adapter.shapes[key], of_experts[key], plain)
            continue
        if name.module not in modules:
            raise AdapterError(
                f"the adapter has tensors for {name.module}, which {type(plain).__name__} does not have; it was "
                "trained on another class of model."
            )
        if name.part in BOTTLENECK_PARTS:
            continue
        shape = adapter.shapes[key]
        expected = _expected_shape(modules[name.module], name.part, shape)
        _check_shape(key, shape, expected, plain)


def _check_shape(key: str, shape: tuple[int, ...], expected: tuple[int, ...], plain: nn.Module) -> None:
    if shape != expected:
        raise AdapterError(
            f"{key} has shape {list(shape)}; {type(plain).__name__} asks for {list(expected)}. "
            "The adapter was trained on a base of another size."
        )


def _expected_shape(module: nn.Module, part: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if biases := expert_biases(module):
        shapes = {key: tuple(bias.shape) for key, bias in biases.items()} | {"lora_delta": expert_delta_shape(biases)}
        if part not in shapes:
            raise AdapterError(f"it has {part} for experts; allowed are {sorted(shapes)}.")
        return shapes[part]
    if not is_linear(module) and not (takes_delta(module) and part in ("bias", "lora_delta")):
        raise AdapterError(f"it has {part} for a {type(module).__name__}; allowed are dense modules and norms.")
    if not is_linear(module):
        return tuple(module.get_parameter("weight").shape)
    inputs, outputs = in_out(module)
    if part == "lora_A.weight":
        return (shape[0], inputs)
    if part == "lora_B.weight":
        return (outputs, shape[1])
    if part in ("bias", "base_layer.bias") and module.bias is None:
        raise AdapterError("the adapter has an absolute bias for a module of the base that has none.")
    return (outputs,)


def _check_bottlenecks(adapter: VerifiedAdapter, plain: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Refuse a bottleneck on what is no matrix, one that reads another layer's input, and tensors of other shapes."""
    beside = _feed_forwards(plain) if any(own.reads for own in adapter.bottlenecks.values()) else None
    for module, settings in adapter.bottlenecks.items():
        if not is_linear(modules[module]):
            raise AdapterError(
                f"it has a bottleneck on a {type(modules[module]).__name__}, {module}; allowed are dense modules."
            )
        source = modules.get(settings.reads) if beside is None or beside.get(module) == settings.reads else None
        if settings.reads and (source is None or not is_linear(source)):
            raise AdapterError(
                f"the bottleneck on {module} reads {settings.reads}, which does not begin the feed-forward that "
                f"{module} ends."
            )
        outputs = in_out(modules[module])[1]
        inputs = in_out(source)[0] if settings.reads and source is not None else outputs
        for part, expected in settings.shapes(inputs, outputs).items():
            shape = adapter.shapes[f"{KEY_PREFIX}{module}.{part}"]
            if shape != expected:
                raise AdapterError(f"{part} of {module} has shape {list(shape)}; expected is {list(expected)}.")


def _feed_forwards(plain: nn.Module) -> dict[str, str] | None:
    """The last module of each feed-forward of one part -> its first; None for layers that were described by hand."""
    try:
        stacks = find_architecture(plain).stacks
    except ValueError:
        return None
    ends = [(layer.names(("intermediate",)), layer.names(("output",))) for each in stacks for layer in each.layers]
    return {last[0]: first[0] for first, last in ends if first and len(last) == 1}


def _check_heads(adapter: VerifiedAdapter, plain: nn.Module) -> None:
    found = adapter.head_shapes()
    expected = {
        f"{head}.{name}": tuple(parameter.shape)
        for head in adapter.head
        for name, parameter in plain.get_submodule(head).named_parameters()
    }
    if set(found) != set(expected):
        odd = sorted(set(found) ^ set(expected))[0]
        raise AdapterError(f"the head does not match that of {type(plain).__name__}: {odd} is missing or unknown.")
    base_labels = labels_of(plain)
    if base_labels is not None:
        # The head's last layer may have another number of outputs than the base's: that of the adapter's labels.
        output = [name for name in head_output(plain, adapter.head) if name in expected]
        rows = (*found[output[0]], 0)[0] if output else base_labels["num_labels"]
        if adapter.labels is not None and adapter.labels["num_labels"] != rows:
            raise AdapterError(f"the labels name {adapter.labels['num_labels']} outputs, but the head has {rows}.")
        if not 0 < rows <= max(MAX_LABELS, base_labels["num_labels"]):
            raise AdapterError(f"the head has {rows:,} outputs; an adapter has 1 to {MAX_LABELS:,}.")
        expected.update({name: (rows, *expected[name][1:]) for name in output})
    for name, shape in found.items():
        if shape != expected[name]:
            raise AdapterError(f"{name} of the head has shape {list(shape)}; expected is {list(expected[name])}.")
