"""``python -m elder stage ...``: the steps that a flow runs in processes of their own.

Each writes its result to a file by rename, and is done at once where that file is there already. A wrong input ends
with exit status 2 and the sentence in ``ELDER_ERROR_FILE``, so that the flow can say it once, at its end.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from elder.parallel.launch import ERROR_FILE, launch
from elder.parallel.ranks import is_first, was_started_as_rank
from elder.params import Params
from elder.process import end_with_stdin, prepare_libraries
from elder.record import json_safe, plain
from elder.settings import load_params

PATIENCE = 30.0  # seconds that a stage's process may take to end once the one that started it was killed
app = typer.Typer(no_args_is_help=True)
ParamsFile = Annotated[Path, typer.Option("--params", help="All parameters, as YAML.")]
Result = Annotated[Path, typer.Option(help="JSON file to write.")]


@app.callback()
def follow() -> None:
    """Run one step of a flow, in a process of its own that ends with the one that started it."""
    if ERROR_FILE in os.environ and not was_started_as_rank():
        end_with_stdin()


@app.command()
def job(
    names: Annotated[
        str,
        typer.Argument(
            help="Names of stages, with commas; an unknown one lists those that there are."
        ),
    ],
    work: Annotated[Path, typer.Option(help="Work folder of the compression.")],
    params: ParamsFile,
    calibration: Annotated[Path, typer.Option(help="Text or calibration blocks.")],
) -> None:
    """Run stages of a compression in its work folder."""
    from elder.compression.job import get_stage, open_job
    from elder.compression.stages import STAGES

    wanted = [get_stage(STAGES, name).name for name in names.split(",")]
    settings = _read(params)
    launch(settings)
    with open_job(work, settings, calibration, STAGES, PATIENCE) as opened:
        for name in wanted:
            opened.run(name)


@app.command()
def finish(
    output: Annotated[Path, typer.Option(help="Folder of the finished model.")],
    work: Annotated[Path, typer.Option(help="Work folder of the compression.")],
    params: ParamsFile,
    calibration: Annotated[Path, typer.Option(help="Text or calibration blocks.")],
    method: Annotated[str, typer.Option(help="Name of the recipe.")],
) -> None:
    """Save the shallower model with its record."""
    from elder.compression.compress import finish as run
    from elder.compression.job import open_job
    from elder.compression.stages import STAGES

    if not (output / "elder.json").is_file():
        with open_job(work, _read(params), calibration, STAGES, PATIENCE) as opened:
            run(opened, output, method)


@app.command()
def evaluate(model: str, params: ParamsFile, result: Result) -> None:
    """Measure perplexities and tasks of a model."""
    if result.is_file():
        return
    from elder.evaluation.evaluate import evaluate as run
    from elder.evaluation.evaluate import evaluation_length
    from elder.files import write_json
    from elder.model.forward import seed_everything
    from elder.model.load import load_divided

    settings = _read(params)
    launch(settings)
    seed_everything(settings.calibration.seed)
    wanted = settings.model.model_copy(
        update={"name": model, "revision": _revision(settings, model)}
    )
    loaded = load_divided(wanted, bos=settings.calibration.bos)
    evaluation = run(loaded, settings.evaluate, evaluation_length(settings, loaded))
    if is_first():
        write_json(result, json_safe(plain(evaluation)))


@app.command("try")
def try_evaluation(dense: str, params: ParamsFile, result: Result) -> None:
    """Try one item of each task on the dense model: what fails would otherwise do so after the compression."""
    if result.is_file():
        return
    from elder.evaluation.tasks import try_tasks
    from elder.files import write_json
    from elder.model.load import load_divided

    settings = _read(params)
    launch(settings)
    wanted = settings.evaluate
    folder = Path(wanted.task_data) if wanted.task_data else None
    place = settings.model.model_copy(update={"name": dense})
    loaded = load_divided(place, bos=settings.calibration.bos)
    try_tasks(loaded, wanted.tasks, folder, wanted.limit, wanted.batch)
    if is_first():
        write_json(result, {"tried": list(wanted.tasks)})


@app.command()
def bench(dense: str, pruned: str, params: ParamsFile, result: Result) -> None:
    """Measure the speed of two models side by side, and check what else the gate asks of the second one."""
    if result.is_file():
        return
    from elder.engines.trial import try_engines
    from elder.evaluation.plain_transformers import load_in_plain_transformers
    from elder.evaluation.repetition import repetition
    from elder.evaluation.speed import generation_agrees, measure_side_by_side
    from elder.files import write_json
    from elder.model.finite import compare_weights
    from elder.model.forward import seed_everything
    from elder.model.load import load_model

    settings = _read(params)
    seed_everything(settings.calibration.seed)
    first, second = (
        load_model(
            settings.model.model_copy(update=place), bos=settings.calibration.bos
        )
        for place in ({"name": dense}, {"name": pruned, "revision": None})
    )
    speed = measure_side_by_side(first, second, settings.speed)
    agrees = generation_agrees(second)
    text = Path(settings.evaluate.out_of_domain)
    # nothing is timed any more, and starting a process takes seconds
    with ThreadPoolExecutor() as beside:
        trust = settings.model.trust_remote_code
        trial = beside.submit(load_in_plain_transformers, Path(pruned), trust)
        shares = repetition(first, second, text, settings.speed.batch)
        asked = {
            "generation_agrees": agrees,
            "repetition": shares,
            "loads": trial.result(),
            "weights": compare_weights(first.model, second.model),
        }
    work = result.absolute().parent
    asked["engines"] = try_engines(
        settings.gate.engines, second, Path(pruned), text, work
    )
    write_json(result, json_safe(plain(speed.model_copy(update=asked))))


def _read(params: Path) -> Params:
    prepare_libraries()
    return load_params(params)


def _revision(settings: Params, model: str) -> str | None:
    return settings.model.revision if model == settings.model.name else None
