"""The present champion, as the gate needs it: its numbers, and the protocol under which they were measured."""

import json
from typing import Any

from prefect import task

from elder import params
from elder.errors import UserError
from tasks.errors import Unreachable
from tasks.provenance.bom import RECORD
from tasks.registry import mlflow as registry
from tasks.retry import try_again
from tasks.store.manifest import fingerprint
from tasks.store.open import open_model

CHAMPION = "champion"


@task(name="champion", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def present_champion(settings: params.Registry, store: params.Store) -> dict[str, Any] | None:
    """Read the champion's numbers from the record that lies beside its weights.

    Returns:
        ``version`` and ``url``, with ``run_id``, ``perplexity``, ``protocol`` and ``protocol_digest`` of its record, or
        with ``fault``, which says why the record cannot be used; None where there is no champion.
    """
    found = registry.holder(settings, CHAMPION)
    if found is None:
        return None
    version, url = found
    named = {"version": version, "url": url}
    try:
        record = stored_record(url, store)
        row = next(row for row in record["rows"] if row["kind"] == "candidate")
        numbers = {key: row[key] for key in ("perplexity", "protocol", "protocol_digest")}
        return named | {"run_id": record["run_id"]} | numbers
    except Unreachable:
        raise
    except UserError as error:
        return named | {"fault": str(error)}
    except (KeyError, TypeError, StopIteration) as error:
        return named | {
            "fault": f"its {RECORD} lacks what the gate compares: {str(error) or 'a candidate'}"
        }


def stored_record(url: str, settings: params.Store) -> dict[str, Any]:
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
    try:
        return json.loads(data)
    except ValueError:
        raise UserError(f"its {RECORD} is not JSON") from None
