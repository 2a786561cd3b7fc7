"""Models that lie in the store: an ``s3://`` prefix or a ``models:/`` name, brought to a local folder."""

from pathlib import Path

from elder.locks import FOR_EVER, hold
from elder.params import Params
from elder.progress import say
from tasks.registry.client import Registry
from tasks.store.manifest import digest
from tasks.store.open import open_model

PLACE = Path("build/models")


# how names begin that mean something in a store or a registry
STORED = ("s3:", "models:")


def local_model(name: str, settings: Params) -> str:
    """Return the local folder that a model's name means, or a folder's or a Hub model's name as it is.

    Raises:
        UserError: the name means nothing, or the bytes are damaged.
    """
    return str(fetch(name, settings)) if name.startswith(STORED) else name


def fetch(name: str, settings: Params) -> Path:
    """Bring a stored model to a folder named by the digest of its files; one that is there already is only checked.

    Args:
        name: ``s3://`` URL of a published model, ``models:/name@alias`` or ``models:/name/3``.
        settings: registry in which a name is looked up; endpoint and region of the store.

    Raises:
        UserError: the name means nothing, or the bytes are damaged.
    """
    url = (
        Registry(settings.registry).source_of(name)
        if name.startswith("models:")
        else name
    )
    store, prefix = open_model(url, settings.store.endpoint, settings.store.region)
    target = PLACE / digest(store.manifest(prefix))[:16]
    with hold(target.with_suffix(".lock"), f"{name} is being fetched", FOR_EVER):
        say(f"fetching {name}")
        return store.fetch(prefix, target)
