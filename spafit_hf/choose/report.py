"""What a search found, for a reader: strategy.yaml, report.md and suggest.png, all from suggest.json."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spafit_hf.choose.budget import Budget
from spafit_hf.choose.candidates import REFERENCE
from spafit_hf.choose.sensitivity import shares
from spafit_hf.choose.verdict import difference_of
from spafit_hf.reproduce.pictures import COLORS, new_figure
from spafit_hf.reproduce.text import interval, points, rate_text
from spafit_hf.strategy import EVERY_ROLE, Strategy
from spafit_hf.words import ROLE_WORDS, duration, figure_name, layers_text, listing, plain, size, table

RESULT_FILE = "suggest.json"
STRATEGY_FILE, REPORT_FILE, PICTURE_FILE = "strategy.yaml", "report.md", "suggest.png"


def write_outputs(folder: Path) -> list[Path]:
    """Write strategy, picture and report of a folder's `suggest.json`; equal results give equal bytes."""
    found: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    chosen = next(each for each in found["candidates"] if each["name"] == found["recommended"])
    strategy = Strategy.from_dict(chosen["strategy"])
    strategy.to_file(folder / STRATEGY_FILE)
    _draw(found, strategy, folder / PICTURE_FILE)
    (folder / REPORT_FILE).write_text(_page(found, strategy), encoding="utf-8")
    return [folder / name for name in (STRATEGY_FILE, REPORT_FILE, PICTURE_FILE)]


def summary(found: Mapping[str, Any]) -> str:
    """The result for a terminal."""
    chosen = next(each for each in found["candidates"] if each["name"] == found["recommended"])
    lines = _strata(Strategy.from_dict(chosen["strategy"]), found["layers"])
    return "\n".join(
        [
            f"recommended: {found['recommended']}, {chosen['parameters']:,} parameters",
            *(f"  {line}" for line in lines),
            found["verdict"],
            f"written to {found['output']}: {STRATEGY_FILE}, {REPORT_FILE}, {PICTURE_FILE}, {RESULT_FILE}",
        ]
    )


def _strata(strategy: Strategy, layers: int) -> list[str]:
    """A line per run of layers: what trains in it."""
    parts = [(run, stratum.what()) for stratum, run in strategy.resolve(layers) if run]
    free = sorted(set(range(layers)) - {layer for run, _ in parts for layer in run})
    parts += [(tuple(free), "frozen")] if free else []
    return [f"{'layer' if len(run) == 1 else 'layers'} {layers_text(run)}: {what}" for run, what in sorted(parts)]


def _page(found: Mapping[str, Any], strategy: Strategy) -> str:
    asked, rows, cut = found["asked"], found["rows"], found["cut"]
    budget = Budget(**found["budget"])
    limits = [f"{duration(budget.time)} for the search"]
    limits += [f"{budget.parameters:,} parameters"] if budget.parameters else []
    limits += [f"{size(budget.memory)} for a training step"] if budget.memory else []
    taken = found["seconds"], found["training_seconds"]
    score = "kappa (of the better conditioned half of the matrices, how many a layer has)"
    roles = listing([ROLE_WORDS[role] for role in cut["roles"]])
    lines = _command(found)
    parts = [
        f"# Where to cut {plain(asked['base']['name'])} for {plain(found['title'])}",
        f"**Recommended: {found['recommended']}**",
        "\n".join(f"* {line}" for line in _strata(strategy, found["layers"])),
        found["verdict"],
        "Train it:\n\n" + " \\\n      ".join(["    " + lines[0], *lines[1:]]),
        f"Budget: {listing(limits)}. It took {duration(sum(taken))}: {duration(taken[0])} to read the layers, "
        f"{duration(taken[1])} of trainings.",
        "## What was tried",
        f"Rungs are measured on {rows['selection']:,} rows held out of train. The candidates of a rung train on the "
        "same rows with the same three seeds, at the rate "
        f"{rate_text(asked['options']['learning_rate'])}; the better half by loss goes on. Of those of the last rung "
        "within one standard error of the best the one with the fewest parameters goes to the final, in which "
        f"{REFERENCE} is in any case; the random cut is a control. These two go through all rungs and are not chosen. "
        f"In the table: mean loss, and in brackets {figure_name(found['figure'])} in points.",
        _stages(found),
        _tried(found),
        *_final(found),
        "## What the layers show",
        f"![Probes and gradients per layer]({PICTURE_FILE})",
        f"Probes: {found['probe_rows']:,} train rows, read at every layer by {found['reads']}; "
        f"{'ridge' if found['regression'] else 'logistic'} regression, each row predicted by a fit without it. N1 is "
        "the first layer whose probe is within one standard error of the best, and never one of the last two: to a "
        "linear reader, freezing up to there costs nothing. Gradients: at a trained head, with all else as "
        "pretrained. N2 is the layer below the fewest last layers that hold half of the "
        f"{score if found['kappa'] else 'relative gradient'} beyond N1. That proposes N1 = {_bound(cut['n1'])} and "
        f"N2 = {_bound(cut['n2'])}. Nine tenths of the biases' squared gradient beyond N1 are those of {roles}.",
        _layers(found),
        "Neither measure shows that knowledge sits in a layer; that is a hypothesis. Probes say what a linear reader "
        "finds in a layer's states, gradients what a first step would change. The trainings above decide.",
    ]
    return "\n\n".join(parts) + "\n"


def _bound(bound: int) -> str:
    return "none" if bound < 0 else str(bound)


def _command(found: Mapping[str, Any]) -> list[str]:
    folder = Path(found["output"])
    options = found["asked"]["options"]
    names = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "warmup_steps", "bf16")
    flags = {**found["flags"], "strategy": folder / STRATEGY_FILE}
    flags |= {name: options[name] for name in names if options[name]}
    if options["bf16"] and found["machine"]["device"] == "cpu":
        flags["use_cpu"] = True  # or Trainer looks for a GPU
    flags["output_dir"] = folder / "adapter"
    # A flag and its value stay on one line.
    words = [f"--{name} {shlex.quote(str(value))}".replace(" ", "\0") for name, value in flags.items()]
    lines = textwrap.wrap(" ".join(["spafit train", *words]), 100, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _stages(found: Mapping[str, Any]) -> str:
    there = found["rows"]
    most = {"final": there["train"]}
    return "\n".join(
        f"* {stage['name']}: {stage['rows']:,} of {most.get(stage['name'], there['rungs']):,} rows, "
        f"{stage['epochs']} epoch{'s' * (stage['epochs'] > 1)}"
        + (", as many as the time allows" if stage["rows"] < most.get(stage["name"], there["rungs"]) else "")
        for stage in found["stages"]
    )


def _tried(found: Mapping[str, Any]) -> str:
    names = [stage["name"] for stage in found["stages"]]
    lines = []
    for each in found["candidates"]:
        cells = [_cell(each["scores"][name]) if name in each["scores"] else "" for name in names]
        seconds = [one["seconds"] for runs in each["scores"].values() for one in runs]
        name = f"**{each['name']}**" if each["name"] == found["recommended"] else each["name"]
        why = each["why"] + (f"; over the budget: {each['over']}" if each["over"] else "")
        why += "" if each["tried"] or each["over"] else "; not tried"
        lines.append([name, why, f"{each['parameters']:,}", size(each["memory"]), *cells, f"{sum(seconds):.0f}"])
    header = ["cut", "what it is", "parameters", "step's memory", *names, "seconds"]
    return table(header, lines, "ll" + "r" * (len(header) - 2))


def _cell(runs: Sequence[Mapping[str, Any]]) -> str:
    if any(one["loss"] is None for one in runs):
        return "failed"
    figures = [one["figure"] or 0.0 for one in runs]
    return f"{sum(one['loss'] for one in runs) / len(runs):.4f} ({points(sum(figures) / len(figures))})"


def _final(found: Mapping[str, Any]) -> list[str]:
    if not found["comparison"]:
        return []
    by_name = {each["name"]: each["scores"]["final"] for each in found["candidates"] if "final" in each["scores"]}
    lines = [
        [name, *(points(one["figure"]) for one in runs), points(sum(one["figure"] or 0 for one in runs) / len(runs))]
        for name, runs in by_name.items()
    ]
    header = [figure_name(found["figure"]), *(f"seed {seed}" for seed in found["seeds"]), "mean"]
    return [
        "## The final",
        f"On the {found['rows']['validation']:,} validation rows, which nothing before has looked at, in points.",
        table(header, lines, "l" + "r" * (len(header) - 1)),
        f"{found['pick']} less {REFERENCE}: {interval(difference_of(found['comparison']))}; standard error "
        f"{points(found['comparison']['error'])} (paired bootstrap over rows, and the spread over seeds).",
    ]


def _layers(found: Mapping[str, Any]) -> str:
    probes, sensitivity = found["probes"], found["sensitivity"]
    relative = shares(sensitivity["relative"])
    held = [role for role in EVERY_ROLE if any(role in layer for layer in sensitivity["biases"])]
    total = sum(sum(layer.values()) for layer in sensitivity["biases"]) or 1.0
    kappa = found["kappa"]
    header = ["states after", f"probe, {figure_name(found['figure'])}", "relative gradient, share"]
    header += ["kappa, share"] if kappa else []
    header += [f"{ROLE_WORDS[role]} bias" for role in held]
    lines = []
    for place, (score, error) in enumerate(zip(probes["scores"], probes["errors"], strict=True)):
        line = ["embeddings" if not place else f"layer {place - 1}", f"{points(score)} ± {points(error)}"]
        if not place:
            lines.append(line + [""] * (len(header) - 2))
            continue
        biases = sensitivity["biases"][place - 1]
        line.append(_percent(relative[place - 1]))
        line += [_percent(kappa[place - 1])] if kappa else []
        lines.append(line + [_percent(biases.get(role, 0.0) / total) for role in held])
    return "Shares over all layers, in percent; of biases, of their squared gradient.\n\n" + table(
        header, lines, "l" + "r" * (len(header) - 1)
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _draw(found: Mapping[str, Any], strategy: Strategy, path: Path) -> None:
    """Probe scores above, shares of the gradient below, and behind both the strata that are recommended."""
    probes, layers = found["probes"], found["layers"]
    figure = new_figure(max(6.0, 2.4 + 0.45 * layers), 5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    strata = {layer: stratum for stratum, run in strategy.resolve(layers) for layer in run}
    for layer in range(layers):
        stratum = strata.get(layer)
        kind = "LoRA" if stratum and stratum.lora else "biases alone" if stratum and stratum.biases else "frozen"
        color = {"LoRA": COLORS[2], "biases alone": COLORS[1], "frozen": COLORS[7]}[kind]
        for axis in (above, below):
            axis.axvspan(layer - 0.5, layer + 0.5, color=color, alpha=0.25, linewidth=0, label=kind)
    places = range(-1, layers)
    scores, errors = ([100 * value for value in probes[name]] for name in ("scores", "errors"))
    above.errorbar(places, scores, errors, color=COLORS[0], marker="o", markersize=5, capsize=3,
                   label="probe, with its standard error")  # fmt: skip
    best = probes["best"]
    above.axhline(scores[best] - errors[best], color=COLORS[4], linestyle="--", linewidth=1,
                  label="one standard error below the best")  # fmt: skip
    above.set_ylabel(f"Probe, {figure_name(found['figure'])} in points", fontsize=9)
    width = 0.4 if found["kappa"] else 0.6
    heights = [100 * value for value in shares(found["sensitivity"]["relative"])]
    left = [layer - width / 2 * bool(found["kappa"]) for layer in range(layers)]
    below.bar(left, heights, width, color=COLORS[3], label="relative gradient")
    if found["kappa"]:
        kappa = [100 * value for value in found["kappa"]]
        below.bar([place + width for place in left], kappa, width, color=COLORS[6], label="kappa")
    below.set_ylabel("Share of all layers, percent", fontsize=9)
    below.set_xlabel("Layer", fontsize=9)
    below.set_xticks(list(places), ["emb.", *map(str, range(layers))])
    seen: dict[str, Any] = {}
    for axis in (above, below):
        axis.tick_params(labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        seen |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.suptitle(f"{found['title']}, cut by {found['recommended']}", fontsize=10)
    figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Software": None})
