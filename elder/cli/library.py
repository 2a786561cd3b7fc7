"""The command line of the library: select, compress, evaluate, bench. ``python -m elder`` runs it with no pipeline.

Heavy imports stay inside the commands, so that help appears at once.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from elder.cli.options import (
    CommonOptions,
    ModelName,
    PlaceOptions,
    SelectionMethod,
    SelectionOptions,
    SeqLen,
    TaskData,
)
from elder.cli.output import show
from elder.cli.services import services_of
from elder.errors import UserError
from elder.record import plain
from elder.settings import DEFAULT


@dataclass(frozen=True)
class RecipeOptions:
    """What is done to the model, and where the result goes."""

    output: Annotated[
        Path, typer.Option(help="Folder for the result; must be absent or empty.")
    ]
    method: SelectionMethod = None
    compensate: Annotated[
        str | None,
        typer.Option(
            help="none, merge, magnitude or linear: overrides the recipe's compensation."
        ),
    ] = None
    recover: Annotated[
        str | None, typer.Option(help="none, train or distil: overrides the recipe's recovery.")
    ] = None

    def values(self) -> dict[str, str | None]:
        """Return the parameters that these options stand for, beside the method's recipe."""
        return {"compensate.method": self.compensate, "recover.mode": self.recover}


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured."""

    text: Annotated[
        Path | None, typer.Option(help="Plain UTF-8 text to measure perplexity on.")
    ] = None
    seq_len: SeqLen = None
    tasks: Annotated[
        str | None, typer.Option(help="lm-eval tasks or groups, separated by commas.")
    ] = None
    task_data: TaskData = None
    limit: Annotated[int | None, typer.Option(help="Items of each task at most.")] = None


def select(
    ctx: typer.Context,
    model: ModelName,
    *,
    method: SelectionMethod = None,
    selection: SelectionOptions,
    place: PlaceOptions,
    common: CommonOptions,
) -> None:
    """Say which layers can go, in order. The model is only read."""
    values = {"model.name": model, **selection.values(), **place.values()}
    settings = common.settings(values, method)
    from elder.compression.stages import layers_to_remove, select_layers
    from elder.data import choose_blocks
    from elder.model.forward import seed_everything
    from elder.model.load import block_length, load_model
    from elder.selection import get_method

    get_method(settings.select.method)
    started = time.monotonic()
    settings = services_of(ctx).with_local_model(settings)
    seed_everything(settings.calibration.seed)
    loaded = load_model(settings.model)
    layers_to_remove(settings.select, loaded.num_layers)
    wanted = settings.calibration
    blocks = choose_blocks(
        Path(wanted.source),
        loaded.tokenizer,
        wanted.samples,
        block_length(wanted.seq_len, loaded.model),
        wanted.seed,
    )
    found = select_layers(loaded, blocks, settings)
    result = {
        "method": settings.select.method,
        "model": model,
        "num_layers": found.num_layers,
        "removed": found.removed,
        "scores": plain(found.scores),
        "tokens": found.tokens,
        "tokens_seen": found.spent.tokens_seen,
        "search": [plain(trial) for trial in found.spent.search],
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_bytes": found.peak_memory_bytes,
    }
    show(result, common.as_json, lambda: _selection_lines(result))


def compress(
    ctx: typer.Context,
    model: ModelName,
    recipe: RecipeOptions,
    selection: SelectionOptions,
    place: PlaceOptions,
    common: CommonOptions,
) -> None:
    """Make a shallower model: select, train what the method trains, remove, compensate, recover, save."""
    values = {"model.name": model, **selection.values(), **place.values(), **recipe.values()}
    given = common.settings(values, recipe.method)
    from elder.compression.compress import compress as run

    settings = services_of(ctx).with_local_model(given)
    record = run(
        settings,
        Path(settings.calibration.source),
        recipe.output,
        recipe.method or DEFAULT,
        model_name=model,
    )
    result = {**plain(record), "model": model, "output": str(recipe.output)}
    show(result, common.as_json, lambda: _compression_lines(result))


def evaluate(
    ctx: typer.Context,
    model: ModelName,
    wanted: EvaluationOptions,
    place: PlaceOptions,
    common: CommonOptions,
) -> None:
    """Measure perplexity on a text, and lm-eval tasks."""
    settings = common.settings({"model.name": model, **place.values()})
    if wanted.text is None and wanted.tasks is None:
        raise UserError("nothing to evaluate: give --text FILE, --tasks NAME,NAME or both")
    from elder.evaluation.perplexity import perplexity_of_text
    from elder.evaluation.tasks import run_tasks
    from elder.model.forward import seed_everything
    from elder.model.load import block_length, load_model

    settings = services_of(ctx).with_local_model(settings)
    seed_everything(settings.calibration.seed)
    loaded = load_model(settings.model)
    default = settings.evaluate
    result: dict[str, Any] = {"model": model, "perplexity": None, "tokens": 0, "tasks": {}}
    if wanted.text is not None:
        length = block_length(wanted.seq_len or default.seq_len, loaded.model)
        measured = perplexity_of_text(
            loaded, wanted.text, length, default.max_tokens, default.batch
        )
        result |= plain(measured)
    if wanted.tasks is not None:
        names = tuple(name.strip() for name in wanted.tasks.split(",") if name.strip())
        folder = wanted.task_data or (Path(default.task_data) if default.task_data else None)
        limit = wanted.limit or default.limit
        scores = run_tasks(loaded, names, folder, limit, default.batch)
        result["tasks"] = {name: plain(score) for name, score in scores.items()}
    show(result, common.as_json, lambda: _evaluation_lines(result))


def bench(
    ctx: typer.Context,
    model: ModelName,
    *,
    against: Annotated[
        str | None, typer.Option(help="A second model; ratios are MODEL over this one.")
    ] = None,
    place: PlaceOptions,
    common: CommonOptions,
) -> None:
    """Measure prompt and generation speed and memory, of one model or of two side by side."""
    given = common.settings({"model.name": model, **place.values()})
    from elder.evaluation.speed import measure, measure_side_by_side
    from elder.model.forward import seed_everything
    from elder.model.load import load_model

    services = services_of(ctx)
    settings = services.with_local_model(given)
    seed_everything(settings.calibration.seed)
    loaded = load_model(settings.model)
    result: dict[str, Any] = {"model": model, "ratio": {}}
    if against is None:
        result |= plain(measure(loaded, settings.speed))
    else:
        name = services.local_model(against, given)
        other = load_model(settings.model.model_copy(update={"name": name, "revision": None}))
        both = plain(measure_side_by_side(other, loaded, settings.speed))
        result |= {
            "against": against,
            **both["pruned"],
            "ratio": both["ratio"],
            "protocol": both["protocol"],
        }
    show(result, common.as_json, lambda: [f"{key}: {value}" for key, value in result.items()])


def _selection_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['method']} on {result['model']}: {len(result['removed'])} of {result['num_layers']} layers"
    ]
    for number, one in enumerate(result["scores"]["rounds"], start=1):
        shown = "  ".join("-" if value is None else f"{value:.4f}" for value in one["values"])
        lines.append(f"round {number}, {result['scores']['name']} by layer: {shown}")
    lines.append(f"removed, in order: {', '.join(map(str, result['removed']))}")
    return lines


def _compression_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"removed layers, in order: {', '.join(map(str, result['removed']))} of {result['num_layers']}",
        f"parameters: {result['parameters_before']:,} before, {result['parameters_after']:,} after",
        f"budget: {result['tokens_seen']:,} tokens, {result['optimizer_steps']:,} steps, {result['seconds']:.0f} s",
        f"saved in {result['output']}; its README.md is the model card",
    ]


def _evaluation_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    if result["perplexity"] is not None:
        lines.append(
            f"perplexity {result['perplexity']:.3f} ± {result['stderr']:.3f} on {result['tokens']:,} tokens"
        )
    for name, task in result["tasks"].items():
        lines.append(f"{name}: {task['metric']} {task['value']:.4f} ± {task['stderr']:.4f}")
    return lines
