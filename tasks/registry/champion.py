"""The present champion, as the gate needs it: its numbers, and the protocol under which they were measured."""

from elder.errors import UserError
from elder.record import Champion
from tasks.errors import Unreachable
from tasks.registry.ledger import Ledger, disagreement
from tasks.registry.versions import CHAMPION, same_model


def champion_of(ledger: Ledger) -> Champion | None:
    """Read the champion's numbers from the signed record that lies beside its weights.

    Who is champion follows from the signed history; before the first decision, from the registry's alias.

    Returns:
        Its version and URL, with the numbers of its record, or with ``fault``, which says why they cannot be used;
        None where there is no champion.
    """
    history, faults = ledger.look()
    holder = ledger.registry.holder(CHAMPION)
    last = history.entries[-1] if history.entries else None
    number = last.version if last else holder and holder[0]
    if faults:
        fault = disagreement(ledger.name, faults)
        return Champion(version=number or "unknown", fault=fault)
    if number is None:
        return None
    try:
        version = ledger.version(number)
        if last:
            same_model(ledger.registry, number, version.digest, last.digest)
        row = version.record.candidate
    except Unreachable:
        raise
    except UserError as error:
        return Champion(
            version=number, url=holder[1] if holder else None, fault=str(error)
        )
    return Champion(
        version=number,
        url=version.url,
        run_id=version.record.run_id,
        perplexity=row.perplexity,
        protocol=row.protocol,
        protocol_digest=row.protocol_digest,
    )
