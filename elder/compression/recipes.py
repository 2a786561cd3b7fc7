"""Named recipes: what ``--method`` means for the sections select, regularise, compensate and recover.

Without a method the parameters hold as they are: they are the default recipe. A method's recipe is that method as its
paper has it; what follows the removal may then be chosen with ``--compensate`` and ``--recover``.
"""

from collections.abc import Iterable
from typing import Any

from elder.errors import UserError, nearest
from elder.params import Params
from elder.selection import METHODS
from elder.settings import validate

DEFAULT = "default"

# lambda1, lambda2, and the learning rate, warm-up and epochs of stage 2: the paper's, for LLaMA2-7B. How long stage 1
# learns is not among them: here as long as stage 2
ELDER_AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "select": {
        "place": "output",
        "lambda1": 5e-3,
        "iterative": True,
        "shortlist": 1,
        "epochs": 3,
        "batch": 4,
    },
    "regularise": {
        "anneal": 0.0,
        "optimizer": "adamw",
        "epochs": 3,
        "lr": 2e-5,
        "lambda2": 1e-3,
        "norm": "l2",
        "relative": False,
        "warmup": 0.03,
        "weight_decay": 0.0,
    },
}


def apply_method(
    params: Params, method: str | None, overrides: Iterable[str] | None = None
) -> Params:
    """Return the parameters with a method's recipe laid over them.

    Args:
        params: what the user set.
        method: name of a selection method, ``default``, or None for the default.
        overrides: what was set with ``--set``: it holds against the recipe too, but for ``select.method``.

    Raises:
        UserError: for an unknown method.
    """
    if method in (None, DEFAULT):
        return params
    if method not in METHODS:
        raise UserError(
            f"there is no method {method!r}; {nearest(str(method), [*METHODS, DEFAULT])}"
        )
    given, tree = params.model_dump(), params.model_dump()
    tree["regularise"]["epochs"] = 0
    tree["compensate"]["method"] = "merge" if method == "laco" else "none"
    tree["recover"]["mode"] = "none"
    if method == "elder":
        for section, values in ELDER_AS_PUBLISHED.items():
            tree[section] |= values
    for text in overrides or ():
        section, _, key = text.partition("=")[0].strip().partition(".")
        tree[section][key] = given[section][key]
    tree["select"]["method"] = method
    return validate(tree)
