"""The command line of the library: select, compress, evaluate, bench. ``python -m elder`` runs it with no pipeline.

Heavy imports stay inside the commands, so that help appears at once.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from elder.cli.options import (
    CommonOptions,
    MemoryOptions,
    ModelName,
    PlaceOptions,
    SelectionMethod,
    SelectionOptions,
    SeqLen,
    TaskData,
)
from elder.cli.output import show
from elder.cli.results import (
    EvaluationResult,
    SelectionResult,
    SpeedResult,
    compression_lines,
)
from elder.cli.services import services_of
from elder.errors import UserError
from elder.parallel.launch import launch
from elder.parallel.ranks import by_first
from elder.params import Evaluate, Params
from elder.record import Json, plain
from elder.settings import DEFAULT

if TYPE_CHECKING:
    from elder.compression.results import Chosen
    from elder.model.load import Loaded


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
            help="none, merge, magnitude, linear, ghost, concatenate, flatten, halves or refit: overrides the recipe's."
        ),
    ] = None
    recover: Annotated[
        str | None,
        typer.Option(help="none, train or distil: overrides the recipe's recovery."),
    ] = None

    def values(self) -> dict[str, str | None]:
        """Return the parameters that these options stand for, beside the method's recipe."""
        return {"compensate.method": self.compensate, "recover.mode": self.recover}


class Tasks(NamedTuple):
    """What `run_tasks` is given beside the model."""

    names: list[str]
    folder: Path | None
    limit: int | None
    batch: int


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured."""

    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text, or rows, to measure perplexity on.")
    ] = None
    seq_len: SeqLen = None
    tasks: Annotated[
        str | None, typer.Option(help="lm-eval tasks or groups, separated by commas.")
    ] = None
    task_data: TaskData = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task at most.")
    ] = None

    def tasks_of(self, default: Evaluate) -> Tasks | None:
        """Return the tasks to run, by these options before the parameters; None: none are wanted."""
        if self.tasks is None:
            return None
        words = (word.strip() for word in self.tasks.split(","))
        folder = self.task_data
        if folder is None and default.task_data:
            folder = Path(default.task_data)
        names = [word for word in words if word]
        return Tasks(names, folder, self.limit or default.limit, default.batch)


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
    from elder.compression.choice import refuse_offload
    from elder.selection import get_method

    get_method(settings.select.method)
    refuse_offload(settings.select)
    started = time.monotonic()
    services = services_of(ctx)
    local = services.with_local_model(settings)
    text = services.plain_text(local.calibration.source, local)
    chosen = _chosen(local, text)
    result = SelectionResult(
        method=settings.select.method,
        model=model,
        num_layers=chosen.num_layers,
        removed=chosen.removed,
        scores=chosen.scores,
        tokens=chosen.tokens,
        tokens_seen=chosen.spent.tokens_seen,
        search=chosen.spent.search,
        seconds=round(time.monotonic() - started, 3),
        peak_memory_bytes=chosen.peak_memory_bytes,
    )
    show(result, common.as_json, result.lines)


def _chosen(settings: Params, text: Path) -> "Chosen":
    """Load the model and choose the layers that go, on a calibration text."""
    from elder.compression.layers import layers_to_remove, select_layers
    from elder.data import choose_blocks
    from elder.model.load import block_length, check_tokens

    loaded = _loaded(settings)
    layers_to_remove(settings.select, loaded.num_layers)  # cheaper than choosing blocks
    wanted = settings.calibration
    seq_len = block_length(wanted.seq_len, loaded.model)
    blocks = choose_blocks(
        text,
        loaded.tokenizer,
        wanted.samples,
        seq_len,
        wanted.seed,
        loaded.bos,
    )
    check_tokens(loaded, blocks, text)
    return select_layers(loaded, blocks, settings)


def _loaded(settings: Params) -> "Loaded":
    """Load the model that the parameters name, with all random numbers seeded."""
    from elder.model.forward import seed_everything
    from elder.model.load import load_divided

    seed_everything(settings.calibration.seed)
    return load_divided(
        settings.model,
        bos=settings.calibration.bos,
        offload=settings.select.offload,
    )


def compress(
    ctx: typer.Context,
    model: ModelName,
    recipe: RecipeOptions,
    selection: SelectionOptions,
    place: PlaceOptions,
    memory: MemoryOptions,
    common: CommonOptions,
) -> None:
    """Make a shallower model: select, train what the method trains, remove, compensate, recover, save."""
    values = {
        "model.name": model,
        **selection.values(),
        **place.values(),
        **memory.values(),
        **recipe.values(),
    }
    given = common.settings(values, recipe.method)
    from elder.compression.compress import compress as run
    from elder.plan.plan import fitted

    services, method = services_of(ctx), recipe.method or DEFAULT
    launch(given)
    settings = by_first(lambda: fitted(services.with_local_model(given)))
    source = settings.calibration.source
    calibration = by_first(lambda: services.plain_text(source, settings))
    record = run(settings, calibration, recipe.output, method, model_name=model)
    output = str(recipe.output)
    result = plain(record) | {"model": model, "output": output}
    show(result, common.as_json, lambda: compression_lines(record, output))


def evaluate(
    ctx: typer.Context,
    model: ModelName,
    wanted: EvaluationOptions,
    place: PlaceOptions,
    common: CommonOptions,
) -> None:
    """Measure perplexity on a text, and lm-eval tasks."""
    given = common.settings({"model.name": model, **place.values()})
    tasks = wanted.tasks_of(given.evaluate)
    if wanted.text is None and not (tasks and tasks.names):
        raise UserError(
            "nothing to evaluate: give --text FILE, --tasks NAME,NAME or both"
        )
    launch(given)
    services = services_of(ctx)
    local = by_first(lambda: services.with_local_model(given))
    text = None
    if wanted.text:
        text = by_first(lambda: services.plain_text(str(wanted.text), local))
    loaded = _loaded(local)
    values: dict[str, Json] = {
        "model": model,
        "perplexity": None,
        "tokens": 0,
        "tasks": {},
    }
    if tasks is not None:
        from elder.evaluation.tasks import run_tasks, try_tasks

        try_tasks(loaded, *tasks)
    if text is not None:
        values |= _perplexity(loaded, text, wanted.seq_len, given)
    if tasks is not None:
        scores = run_tasks(loaded, *tasks)
        values["tasks"] = {name: plain(score) for name, score in scores.items()}
    result = EvaluationResult.model_validate(values)
    show(result, common.as_json, result.lines)


def _perplexity(
    loaded: "Loaded", text: Path, seq_len: int | None, settings: Params
) -> dict[str, Json]:
    from elder.evaluation.perplexity import perplexity_of_text
    from elder.model.load import block_length

    default = settings.evaluate
    length = block_length(seq_len or default.seq_len, loaded.model)
    measured = perplexity_of_text(
        loaded, text, length, default.max_tokens, default.batch
    )
    return plain(measured)


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
    services = services_of(ctx)
    settings = services.with_local_model(given)
    loaded = _loaded(settings)
    values: dict[str, Json] = {"model": model, "ratio": {}}
    if against is None:
        values |= _speed(loaded, settings)
    else:
        second = common.settings({"model.name": against}).model.name
        name = services.local_model(second, given)
        values |= {"against": against} | _speed_against(name, loaded, settings)
    result = SpeedResult.model_validate(values)
    show(result, common.as_json, result.lines)


def _speed(loaded: "Loaded", settings: Params) -> dict[str, Json]:
    from elder.evaluation.speed import measure

    return plain(measure(loaded, settings.speed))


def _speed_against(name: str, loaded: "Loaded", settings: Params) -> dict[str, Json]:
    from elder.evaluation.speed import measure_side_by_side
    from elder.model.load import load_model

    wanted = settings.model.model_copy(update={"name": name, "revision": None})
    other = load_model(wanted, bos=settings.calibration.bos)
    both = plain(measure_side_by_side(other, loaded, settings.speed))
    return both["pruned"] | {"ratio": both["ratio"], "protocol": both["protocol"]}
