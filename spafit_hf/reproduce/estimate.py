"""What a grid would take: cells, parameters, hours and bytes, from a base's configuration and one measured step.

    plan(base, method) -> FLOPs of a row ---+--> FLOPs of a cell / FLOPs per second --> hours
    a step of its first layers, here -------+

Neither rows nor weights are needed: without a folder of rows GLUE's own numbers count.
"""

from __future__ import annotations

import math
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from spafit_hf.data.glue import get_task
from spafit_hf.names import resolve_base
from spafit_hf.planner import plan
from spafit_hf.reproduce.grid import PROCESSES, Grid
from spafit_hf.reproduce.methods import TOKENS, Methods, flops
from spafit_hf.reproduce.work import load_rows
from spafit_hf.trainer.machine import hardware
from spafit_hf.tuner import get_spafit_model
from spafit_hf.words import duration, listing, size

PADDED = {"group_by_length": 1.03}
"""Tokens with padding over tokens, in batches of 16 rows, the mean of GLUE's tasks; 2 in any other order."""
START_SECONDS = 3.0
"""What a cell takes to load the base and to tokenize some thousand rows."""
ROWS, STEP_TOKENS, LAYERS = 16, 32, 2
"""The measured step's."""


def estimate(grid: Grid) -> str:
    """The dry run's page."""
    methods, cells = Methods(grid), grid.wanted()
    workers = grid.workers or (PROCESSES if grid.backend == "processes" else 1)
    # Processes share the cores that the step is measured on.
    faster = 1 if grid.backend == "processes" and not torch.cuda.is_available() else workers
    per_second, measured = measure(grid)
    width = next(iter(methods.plan("lora-II", 0, 2).linear.values()))[0]
    lines = [f"{'task':6s} {'method':24s} {'trained':>12s} {'cells':>6s} {'hours':>9s} {'bytes':>8s}"]
    total_seconds = total_bytes = state_bytes = 0.0
    for task in grid.tasks:
        train, validation, selection = rows = _rows(grid, task)
        outputs = get_task(task).num_labels
        for method in grid.methods:
            own = [cell for cell in cells if (cell.task, cell.method) == (task, method)]
            work = sum(flops(methods, cell, train, validation + selection) for cell in own)
            seconds = work * PADDED.get(grid.train_sampling_strategy, 2) / per_second + START_SECONDS * len(own)
            # Labels, two predictions, two times logits in 16 bits; and some kilobytes of JSON.
            kept = len(own) * (validation * (3 * 8 + 4 * outputs) + 4000)
            trained = methods.plan(method, grid.seeds[0], outputs).trainable_parameters
            lines.append(f"{task:6s} {method:24s} {trained:12,} {len(own):6d} {seconds / 3600:9.2f} {size(kept):>8s}")
            total_seconds, total_bytes = total_seconds + seconds, total_bytes + kept
        prefixes = {methods.prefix(method, seed) for method in grid.methods for seed in grid.seeds} - {0}
        state_bytes += len(prefixes) * 2 * width * TOKENS[task] * sum(rows)
    searches = sum(cell.stage == "search" for cell in cells)
    rates = listing([str(count) for count in sorted({len(grid.rates_of(method)[0]) for method in grid.methods})], "or")
    counts = len(grid.methods), len(grid.tasks)
    lines += [
        "",
        f"{grid.preset}, base {grid.base}: {math.prod(counts)} cells of a table ({counts[0]} methods x {counts[1]} "
        f"tasks), times rates ({rates}) and seeds ({len(grid.seeds)}): {len(cells):,} trainings"
        + (f", {searches} of them short, to find the rate" if searches else ""),
        f"{duration(total_seconds / faster)} with {workers} at a time; {size(int(total_bytes))} of results"
        + (f", {size(int(state_bytes))} of hidden states" if state_bytes else ""),
        f"measured: {measured}",
    ]
    return "\n".join(lines)


def _rows(grid: Grid, task: str) -> tuple[int, int, int]:
    """Rows to train on, of the validation set, and held out of train."""
    if grid.data_dir:
        splits = load_rows(grid, task).text.splits
        others = [split.num_rows for name, split in splits.items() if name.startswith("validation")]
        return splits["train"].num_rows, others[0], splits["selection"].num_rows if "selection" in splits else 0
    train, validation = list(get_task(task).rows.values())[:2]
    wanted = min(grid.max_train_rows or train, train)
    held = min(grid.selection_rows, wanted // 10)
    return min(wanted, train - held), min(grid.max_validation_rows or validation, validation), held


def measure(grid: Grid) -> tuple[float, str]:
    """FLOPs per second of a training step of lora-II on the base's first layers, with random weights.

    Returns:
        The figure, and in words what was measured where.
    """
    config = AutoConfig.from_pretrained(resolve_base(grid.base))
    layers = min(LAYERS, config.num_hidden_layers)
    config.num_hidden_layers = layers
    config.pad_token_id = config.pad_token_id or 0  # as a run gives one to a base that has none
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForSequenceClassification.from_config(config)
    wrapped = get_spafit_model(model, "lora-II").to(device).train()
    work = plan(model.config, "lora-II").flops(ROWS, STEP_TOKENS).total
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(config.vocab_size, (ROWS, STEP_TOKENS), device=device)
    if config.is_encoder_decoder:  # whose head reads the one token that ends a row
        ids[ids == config.eos_token_id] = config.pad_token_id
        ids[:, -1] = config.eos_token_id
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.zeros(ROWS, dtype=torch.long, device=device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=grid.bf16):
            loss = wrapped(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    rate = work / statistics.median(seconds[1:])  # the first also makes buffers
    precision = "bf16" if grid.bf16 else "fp32"
    what = (
        f"{rate / 1e9:,.0f} GFLOP/s in a step of lora-II on {layers} layers with random weights, {ROWS} x "
        f"{STEP_TOKENS} tokens, {precision}, on {hardware(device)}, {torch.get_num_threads()} threads"
    )
    return rate, what
