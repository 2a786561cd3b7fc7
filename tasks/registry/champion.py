"""The present champion, as the gate needs it: its numbers, and the protocol under which they were measured."""

from elder import params
from elder.errors import UserError
from elder.files import parse_json
from elder.record import Champion, Record, read_record
from tasks.errors import Unreachable
from tasks.provenance.bom import RECORD
from tasks.registry.client import Registry
from tasks.store.manifest import fingerprint
from tasks.store.open import open_model

CHAMPION = "champion"


def champion_of(registry: Registry, store: params.Store) -> Champion | None:
    """Read the champion's numbers from the record that lies beside its weights.

    Returns:
        Its version and URL, with the numbers of its record, or with ``fault``, which says why the record cannot be
        used; None where there is no champion.
    """
    holder = registry.holder(CHAMPION)
    if holder is None:
        return None
    version, url = holder
    try:
        record = stored_record(url, store)
        row = record.candidate
    except Unreachable:
        raise
    except UserError as error:
        return Champion(version=version, url=url, fault=str(error))
    return Champion(
        version=version,
        url=url,
        run_id=record.run_id,
        perplexity=row.perplexity,
        protocol=row.protocol,
        protocol_digest=row.protocol_digest,
    )


def stored_record(url: str, settings: params.Store) -> Record:
    """Return the record of a published model, checked against the manifest.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    store, prefix = open_model(url, settings.endpoint, settings.region)
    wanted = store.manifest(prefix).get(RECORD)
    data = store.read(f"{prefix}/{RECORD}" if prefix else RECORD)
    if wanted is None or data is None:
        raise UserError(f"there is no {RECORD} beside its weights")
    if fingerprint(data) != wanted:
        raise UserError(f"its {RECORD} is not what the manifest says")
    what = f"its {RECORD}"
    return read_record(parse_json(data, what), what)
