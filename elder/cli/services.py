"""What the commands are given by whoever builds the application: the meaning of names that are no local files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from elder.errors import INSTALL, UserError
from elder.model.hub import MODEL, find
from elder.names import format_of, is_hub_id, refuse_revision, split_revision
from elder.params import Params

if TYPE_CHECKING:
    from elder.compare.run import Measuring

TEXTS = Path("build/texts")  # where plain texts are made of others
# how a model's name begins that only the pipeline can bring here
STORED = ("s3:", "models:")


@dataclass(frozen=True)
class Services:
    """What the library's commands cannot do by themselves.

    Attributes:
        local_model: turns a model's name into a local folder, or hands on a folder or a Hub id as it is; the
            parameters say where store and registry are.
        text_of_dataset: turns the name of a dataset, or of a file with rows, into a text file below a folder.
        measuring: gives what makes the measurements of a comparison: here, or on the machines of ``launch.ray``.
    """

    local_model: Callable[[str, Params], str]
    text_of_dataset: Callable[[Params, str, Path], Path]
    measuring: Callable[[Params], "Measuring"]

    def with_local_model(self, settings: Params) -> Params:
        """Return parameters whose ``model.name`` needs no service any more; a model of the Hub gets its commit."""
        refuse_revision(settings.model.name, settings.model.revision)
        name, named = split_revision(self.local_model(settings.model.name, settings))
        revision = named or settings.model.revision
        if is_hub_id(name):
            revision = find(name, revision, MODEL).commit
        place = {"name": name, "revision": revision}
        model = settings.model.model_copy(update=place)
        return settings.model_copy(update={"model": model})

    def plain_text(self, name: str, settings: Params) -> Path:
        """Return the file of a plain text: of one that has rows or is compressed, what it holds, in build/texts."""
        path = Path(name)
        if not path.is_file():
            return path
        if format_of(name) is None:
            from elder.data import refuse_rows_in  # here, since it needs torch

            refuse_rows_in(path)
            return path
        try:
            TEXTS.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"a text is made of {name!r} in {str(TEXTS)!r} below this folder, which cannot be written "
                f"({error.strerror}); work in a folder where you may write"
            ) from None
        return self.text_of_dataset(settings, name, TEXTS)


def _only_local_models(name: str, _: Params) -> str:
    if name.startswith(STORED):
        raise UserError(
            f"{name!r} needs the pipeline's packages; install them with: {INSTALL}"
        )
    return name


def _no_datasets(_: Params, name: str, __: Path) -> Path:
    if Path(name).is_file():
        return Path(name)  # whoever reads it says what is missing
    raise UserError(
        f"there is no text file {name!r}; give the path of a UTF-8 text, or for a dataset install "
        f"the pipeline's packages with: {INSTALL}"
    )


def _only_here(settings: Params) -> "Measuring":
    if settings.launch.ray is not None:
        raise UserError(
            f"launch.ray is {settings.launch.ray!r}, which needs the pipeline's packages; install them with: {INSTALL}"
        )
    from elder.compare.run import one_by_one

    return one_by_one


LIBRARY = Services(_only_local_models, _no_datasets, _only_here)


def services_of(context: typer.Context) -> Services:
    """Return the services that the application was built with."""
    services = context.find_object(Services)
    if services is None:
        raise TypeError(
            "a command was called outside of an application that has services"
        )
    return services
