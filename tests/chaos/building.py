"""Makes the worlds that trials begin with, each by commands of ``elder`` where nothing goes wrong.

model       a model and a text: for `elder compress`
fresh       a project with data, a registry and a key, in which nothing was run
settled     the same, with what a run finds out: its end can begin at once
versions    three registered versions; the second is champion, the first was
"""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.chaos import driver
from tests.chaos.worlds import REPLAY, World
from tests.flows.conftest import make_project

NAME = "tiny"
LIGHT: dict[str, dict[str, Any]] = {
    "evaluate": {"baselines": [], "tasks": ["blimp_passive_1"], "max_tokens": 256},
    "energy": {"measure": False},
}
# what makes another run of it, and changes nothing that it finds out here
OTHER_RUNS = ("speed.prompt_iterations=3", "speed.prompt_iterations=4")


def build(world: World, versions: bool, beside: World | None = None) -> None:
    """Make all templates of a world.

    Args:
        world: empty.
        versions: whether there are to be any.
        beside: another one, whose templates are there: what a run finds out does not depend on services.
    """
    folder = world.disk.folder
    driver.empty(folder)
    if beside is None:
        _build_model(world)
        _build_head(world)
    else:
        shutil.copytree(
            beside.place / "templates" / "settled" / "disk", folder, dirs_exist_ok=True
        )
        world.begin()
        world.ask(_make_registry)
    world.save("settled")
    if versions:
        _build_versions(world)


def _build_model(world: World) -> None:
    world.project.mkdir()
    world.ask(lambda: make_project(world.project) and None)
    for name in ("dvc.yaml", "params.yaml"):
        (world.project / name).rename(world.disk.folder / name)
    world.save("model")
    for name in ("dvc.yaml", "params.yaml"):
        (world.disk.folder / name).rename(world.project / name)


def _build_head(world: World) -> None:
    """Run all but a run's end."""
    params = world.project / "params.yaml"
    tree = yaml.safe_load(params.read_text())
    for section, values in LIGHT.items():
        tree[section] |= values
    params.write_text(yaml.safe_dump(tree))
    replay = world.disk.folder / REPLAY

    def stop() -> None:
        driver.without_prefect(driver.stop_before_end(replay))

    _run(world, "run", arm=stop)
    (run,) = world.project.glob("runs/*-*-*")
    kept = world.place / "kept"
    kept.mkdir()
    shutil.move(replay, kept)
    for name in driver.MADE.values():
        shutil.move(run / name, kept)
    driver.empty(world.project / "runs")
    world.save("fresh")
    shutil.copytree(kept, world.disk.folder, dirs_exist_ok=True)


def _build_versions(world: World) -> None:
    _run(world, "run")
    for other in OTHER_RUNS:
        _run(world, "run", "--set", other)
    for version in ("1", "2"):
        _run(world, "promote", NAME, version, "--yes", "--reason", "chaos")
    world.save("versions")


def _make_registry() -> None:
    from elder.settings import read_params
    from tasks.registry.client import Registry

    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    settings = read_params(Path("params.yaml"), None, {}, None)
    Registry(settings.registry)


def _run(world: World, *command: str, **more: Any) -> None:
    ending = world.run(*command, **more)
    if ending.status != 0:
        raise RuntimeError(f"{command} ended with {ending.status}:\n{ending.said}")
