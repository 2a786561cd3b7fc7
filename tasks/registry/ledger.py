"""All that a decision on a registered model rests on: the registry, the signed history, and whom to believe."""

import time
from dataclasses import dataclass
from pathlib import Path

from elder import params
from elder.errors import UserError
from tasks.provenance.trust import Trust, trust_of
from tasks.registry.client import Registry
from tasks.registry.history import History, read_history
from tasks.registry.verified import VerifiedVersion, verify_version
from tasks.registry.versions import disagreements
from tasks.store.base import Store
from tasks.store.open import history_store

# somebody else may be telling the registry a decision at this moment
LOOKS, PAUSE = 3, 0.5  # times, seconds


class Disagreement(UserError):
    """History and registry do not tell the same, or the history does not hold: nothing may be moved."""


@dataclass(frozen=True)
class Ledger:
    """Where decisions on a model are read and written.

    Attributes:
        registry: of the model.
        models: endpoint and region of the store that its versions lie in.
        decisions: the store that its history lies in.
        trust: whose signatures count.
    """

    registry: Registry
    models: params.Store
    decisions: Store
    trust: Trust

    @property
    def name(self) -> str:
        """Return the registered model's name."""
        return self.registry.name

    def history(self) -> History:
        """Read the decisions that can be believed."""
        return read_history(self.decisions, self.name, self.trust)

    def faults(self, history: History) -> list[str]:
        """Say what is wrong with the history, and where the registry tells something else."""
        return history.faults or disagreements(self.registry, history)

    def look(self, alone: bool = False) -> tuple[History, list[str]]:
        """Read the history, and say what is wrong; what is wrong is looked at again, and may have been so once only.

        Somebody else may have been telling the registry, or a byte got lost on its way from the store.

        Args:
            alone: look at the history, whatever the registry tells.
        """
        for look in range(LOOKS):
            if look:
                time.sleep(PAUSE)
            history = self.history()
            faults = history.faults if alone else self.faults(history)
            if not faults:
                break
        return history, faults

    def agreed(self, alone: bool = False) -> History:
        """Return a history in which nothing is wrong, of which the registry tells as much or less.

        Args:
            alone: whatever the registry tells.

        Raises:
            Disagreement: the history does not hold, or the registry tells something else.
        """
        history, faults = self.look(alone)
        if faults:
            raise Disagreement(disagreement(self.name, faults))
        return history

    def version(self, number: str) -> VerifiedVersion:
        """Return a version of the model whose signatures hold; see `verify_version` for what is refused."""
        return verify_version(self.registry, self.models, self.trust, number)


def open_ledger(settings: params.Params, root: Path, name: str) -> Ledger:
    """Open registry and history of a model.

    Args:
        settings: registry, store, and whom to believe.
        root: folder below which relative places lie.
        name: registered model.
    """
    registry = Registry(settings.registry.model_copy(update={"name": name}))
    decisions = history_store(settings.store, root)
    return Ledger(registry, settings.store, decisions, trust_of(settings.signing, root))


def disagreement(name: str, faults: list[str]) -> str:
    """Say what does not hold, and how to go on."""
    return (
        f"{'; '.join(faults)}. Nothing is moved while this is so: put right what was changed, from a backup if need"
        f" be; or, if the history of {name} is right as it lies, promote with --accept-history, which says so for good"
    )
