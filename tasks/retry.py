"""Which failures of a task are worth another try."""

from typing import Any

from elder.errors import UserError
from tasks.errors import Unreachable


def try_again(_: Any, __: Any, state: Any) -> bool:
    """Say whether a failed task is worth another try: not for what the user has to mend first."""
    try:
        state.result()
    except Unreachable:
        return True
    except UserError:
        return False
    except Exception:
        return True
    return False
