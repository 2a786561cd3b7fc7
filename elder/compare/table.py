"""From the measurements of a comparison to its table: means over seeds, the gap closed, and what is best.

Rows are evaluated on the same blocks, so two rows are compared in pairs, block by block: see `elder.compare.marks`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from elder.compare.marks import Mark, mark_perplexities, mark_task_means
from elder.compare.plan import DENSE
from elder.compare.result import Result, nll_of
from elder.compare.rows import FLOORS
from elder.record import DOMAINS, Budget, Mean, Number, Perplexity, Plain, TaskResult

SORTED_BY = "out_of_domain"
LARGEST_EXPONENT = 700  # above it, exp leaves the range of float64

Kind = Literal["dense", "floor", "row"]


class TableRow(Plain):
    """One row of the table, over all its seeds.

    Attributes:
        name: as the user wrote it.
        kind: the dense model, a floor that any selection should beat, or a row.
        seeds: that are measured.
        removed: for each seed, which layers went.
        perplexity: {domain: that of the mean loss, with the error over seeds, or of the text for a single seed}.
        tasks: {name: result}, likewise.
        task_mean: likewise; None without tasks.
        tokens_seen: mean over the seeds, as the other counts.
        trainable_parameters: the largest over the seeds, as the memory.
        parameters: of the model.
        untrained: a selection alone, neither trained nor compensated.
        over_budget: more tokens were seen than the budget allows: it cannot be best.
        gap_closed: share of the gap in loss between the dense model and the best untrained selection.
        mark: {domain, or task_mean: whether it is best there, or ties with the best}.
    """

    name: str
    kind: Kind
    seeds: list[int]
    removed: list[list[int]]
    perplexity: dict[str, Perplexity]
    tasks: dict[str, TaskResult]
    task_mean: Mean | None
    tokens_seen: int
    tokens_generated: int
    flops: int = 0
    optimizer_steps: int
    trainable_parameters: int
    seconds: Number
    peak_memory_bytes: int
    parameters: int
    untrained: bool
    over_budget: bool
    gap_closed: Number | None = None
    mark: dict[str, Mark | None] = {}


class Section(Plain):
    """The rows of one number of removed layers and one calibration text: dense on top, floors at the bottom."""

    layers: int
    num_layers: int
    calibration: str
    rows: list[TableRow]


Group = dict[str, list[Result]]  # {row: its results, one a seed}


def build(dense: Result, results: Sequence[Result], passes: float) -> list[Section]:
    """Return the sections of the table, one for each number of removed layers and calibration text.

    Args:
        dense: the dense model's result.
        results: those of all rows and seeds.
        passes: the budget: tokens that may pass through training, over the tokens of the calibration blocks.

    Returns:
        Sections whose rows stand by perplexity out of domain, between the dense model and the floors.
    """
    groups: dict[tuple[int, str], Group] = {}
    for result in results:
        group = groups.setdefault((len(result.removed), result.calibration), {})
        group.setdefault(result.name, []).append(result)
    sections = []
    for layers, calibration in sorted(groups):
        rows = _rows(dense, groups[layers, calibration], passes)
        sections.append(
            Section(
                layers=layers,
                num_layers=dense.num_layers,
                calibration=calibration,
                rows=rows,
            )
        )
    return sections


def _rows(dense: Result, group: Group, passes: float) -> list[TableRow]:
    """Return the rows of a section in their order, with all that depends on the other rows."""
    rows = [_row(name, results, passes) for name, results in group.items()]
    rows.sort(key=_place)
    rows = [_row(DENSE, [dense], passes), *rows]
    closed = _gaps_closed(rows)
    fair = [row for row in rows if row.kind != DENSE and not row.over_budget]
    marks: dict[str, dict[str, Mark]] = {}
    for domain in DOMAINS:
        marks[domain] = mark_perplexities(_losses(fair, domain), group, domain)
    if rows[0].task_mean:
        means = {row.name: row.task_mean for row in fair if row.task_mean}
        marks["task_mean"] = mark_task_means(means)
    finished = []
    for row in rows:
        own = {what: marked.get(row.name) for what, marked in marks.items()}
        finished.append(
            row.model_copy(update={"gap_closed": closed[row.name], "mark": own})
        )
    return finished


def _place(row: TableRow) -> tuple[bool, float]:
    return row.kind == "floor", nll_of(row.perplexity[SORTED_BY])


def _losses(rows: list[TableRow], domain: str) -> dict[str, float]:
    return {row.name: nll_of(row.perplexity[domain]) for row in rows}


def _row(name: str, results: list[Result], passes: float) -> TableRow:
    """Sum up one row over its seeds."""
    kind = _kind(name)
    first = results[0]
    spent = _budget_over_seeds(results)
    tokens = max(result.tokens_seen for result in results)
    allowed = passes * max(result.tokens for result in results)
    perplexity: dict[str, Perplexity] = {}
    for domain in DOMAINS:
        perplexity[domain] = _perplexity_over_seeds(
            [result.perplexity[domain] for result in results]
        )
    return TableRow(
        name=name,
        kind=kind,
        seeds=[] if kind == DENSE else [result.seed for result in results],
        removed=[result.removed for result in results],
        perplexity=perplexity,
        tasks=_tasks_over_seeds([result.tasks for result in results]),
        task_mean=_mean_over_seeds([result.task_mean for result in results]),
        **spent.model_dump(),
        parameters=first.parameters,
        untrained=kind != DENSE and tokens == 0 and not first.compensated,
        over_budget=tokens > allowed,
    )


def _kind(name: str) -> Kind:
    if name == DENSE:
        return "dense"
    return "floor" if name in FLOORS else "row"


def _budget_over_seeds(results: list[Result]) -> Budget:
    """Return mean counts and seconds; of memory and trainable parameters the largest."""
    return Budget(
        tokens_seen=round(_mean([result.tokens_seen for result in results])),
        tokens_generated=round(_mean([result.tokens_generated for result in results])),
        flops=round(_mean([result.flops for result in results])),
        optimizer_steps=round(_mean([result.optimizer_steps for result in results])),
        trainable_parameters=max(result.trainable_parameters for result in results),
        seconds=round(_mean([result.seconds for result in results]), 1),
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
    )


def _perplexity_over_seeds(measured: list[Perplexity]) -> Perplexity:
    """Return the perplexity of the mean loss; its error is that over seeds, or the evaluation's for a single one."""
    tokens = measured[0].tokens
    losses = [nll_of(one) for one in measured]
    nll = _mean(losses)
    if not math.isfinite(nll):
        return Perplexity(perplexity=math.inf, stderr=None, nll=math.inf, tokens=tokens)
    value = math.exp(nll) if nll < LARGEST_EXPONENT else math.inf
    stderr = measured[0].stderr if len(measured) == 1 else value * _error(losses)
    return Perplexity(perplexity=value, stderr=stderr, nll=nll, tokens=tokens)


def _tasks_over_seeds(measured: list[dict[str, TaskResult]]) -> dict[str, TaskResult]:
    tasks = {}
    for name, first in measured[0].items():
        values = [one[name].value for one in measured]
        summed = _value_over_seeds(values, first.stderr)
        update = {"value": summed.value, "stderr": summed.stderr}
        tasks[name] = first.model_copy(update=update)
    return tasks


def _mean_over_seeds(means: list[Mean | None]) -> Mean | None:
    known = [mean for mean in means if mean is not None]
    if not known or len(known) < len(means):
        return None
    return _value_over_seeds([mean.value for mean in known], known[0].stderr)


def _value_over_seeds(values: list[Number | None], stderr: Number | None) -> Mean:
    """Return the mean over seeds and its error; of a single seed, its own error."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Mean(value=None, stderr=None)
    if len(known) > 1:
        stderr = _error(known)
    return Mean(value=_mean(known), stderr=stderr)


def _gaps_closed(rows: list[TableRow]) -> dict[str, float | None]:
    """Return by row the share of the gap in loss to the dense model that the best untrained selection leaves."""
    losses = _losses(rows, SORTED_BY)
    dense = losses[DENSE]
    untrained = [losses[row.name] for row in rows if row.untrained]
    gap = min(untrained) - dense if untrained else 0.0
    closed: dict[str, float | None] = {}
    for name, loss in losses.items():
        left = loss - dense
        known = name != DENSE and gap > 0 and math.isfinite(left)
        closed[name] = 1 - left / gap if known else None
    return closed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
