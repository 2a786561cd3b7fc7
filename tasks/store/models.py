"""Models that lie in the store: an ``s3://`` prefix or a ``models:/`` name, brought to a local folder.

Nothing is brought that nobody who is trusted has signed, unless ``signing.required`` is false.
"""

from pathlib import Path

from elder.errors import UserError
from elder.locks import FOR_EVER, hold
from elder.params import Params
from elder.progress import say
from tasks.provenance.bundle import BadSignature
from tasks.provenance.trust import trust_of
from tasks.registry.client import Registry, parse_reference
from tasks.registry.ledger import Ledger, open_ledger
from tasks.registry.verified import name_of, signed_record
from tasks.registry.versions import CHAMPION
from tasks.store.base import Store
from tasks.store.manifest import digest
from tasks.store.open import open_model

PLACE = Path("build/models")


# how names begin that mean something in a store or a registry
STORED = ("s3:", "models:")


def local_model(name: str, settings: Params) -> str:
    """Return the local folder that a model's name means, or a folder's or a Hub model's name as it is.

    Raises:
        UserError: the name means nothing, the bytes are damaged, or nobody who is trusted has signed them.
    """
    return str(fetch(name, settings)) if name.startswith(STORED) else name


def fetch(name: str, settings: Params) -> Path:
    """Bring a stored model to a folder named by the digest of its files; one that is there already is only checked.

    Args:
        name: ``s3://`` URL of a published model, ``models:/name@alias`` or ``models:/name/3``.
        settings: registry in which a name is looked up; endpoint and region of the store; whom to believe.

    Raises:
        UserError: the name means nothing, the bytes are damaged, or nobody who is trusted has signed them.
    """
    url = _registered(name, settings) if name.startswith("models:") else name
    store, prefix = open_model(url, settings.store.endpoint, settings.store.region)
    if settings.signing.required:
        wanted = _signed_digest(name, store, prefix, settings)
    else:
        wanted = digest(store.manifest(prefix))
    target = PLACE / wanted[:16]
    with hold(target.with_suffix(".lock"), f"{name} is being fetched", FOR_EVER):
        say(f"fetching {name}")
        return store.fetch(prefix, target, wanted)


def _registered(name: str, settings: Params) -> str:
    """Return the URL of a version of the registry, after checks that it is what its name and number stand for.

    Raises:
        UserError: there is none, or its registration, or that it is champion, is not signed by a trusted key.
    """
    if not settings.signing.required:
        return Registry(settings.registry).source_of(name)
    wanted = parse_reference(name)
    if wanted is None:
        raise UserError(
            f"{name}: name a registered model as models:/name@alias or models:/name/3"
        )
    ledger = open_ledger(settings, Path.cwd(), wanted.name)
    number = str(ledger.registry.look_up(wanted).version)
    try:
        version = ledger.version(number)
    except BadSignature as error:
        raise _unsigned(name, str(error)) from None
    if wanted.alias == CHAMPION:
        _check_champion(ledger, number)
    return version.url


def _check_champion(ledger: Ledger, number: str) -> None:
    """Refuse a version that has the alias, and is not champion by the signed history.

    Raises:
        UserError: if so.
    """
    log = ledger.agreed().entries
    champion = log[-1].version if log else "none"
    if champion != number:
        raise UserError(
            f"models:/{ledger.name}@{CHAMPION} is version {number} in the registry, by the signed history champion is"
            f" version {champion}: elder history {ledger.name} shows what was decided"
        )


def _signed_digest(name: str, store: Store, prefix: str, settings: Params) -> str:
    """Return the digest of a model that a trusted key has signed, as a model of the name that it lies under.

    Raises:
        UserError: it is none.
    """
    try:
        trust = trust_of(settings.signing, Path.cwd())
        record, _, files_digest = signed_record(store, prefix, trust)
    except BadSignature as error:
        raise _unsigned(name, str(error)) from None
    folder = prefix.split("/")[-2:-1]  # models/NAME/DIGEST
    if folder and folder != [name_of(record)]:
        raise _unsigned(name, f"it was signed as a model of {name_of(record)!r}")
    return files_digest


def _unsigned(name: str, why: str) -> UserError:
    return UserError(
        f"{name} is not loaded: {why}; signing.required=false loads what nobody who is trusted has signed"
    )
