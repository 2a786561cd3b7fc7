"""Recipes: what ``--method`` means for the sections select, regularise, compensate and recover.

Without a method the parameters hold as they are: they are the default recipe. A method's recipe is that method as its
paper has it, and stands beside its function; what follows the removal may be chosen with ``--compensate`` and
``--recover``.
"""

from elder.params import Params
from elder.settings import DEFAULT, lay_recipe, validate


def apply_method(params: Params, method: str | None) -> Params:
    """Return the parameters with a method's recipe laid over them, whatever they were set by.

    Commands lay the recipe of ``--method`` below what was set for the run: `elder.settings.read_params`. This one is
    for models that are shown beside it, each of which is what its name says.

    Args:
        params: what the models have in common.
        method: name of a selection method, ``default``, or None for the default.

    Raises:
        UserError: for an unknown method.
    """
    if method in (None, DEFAULT):
        return params
    tree = params.model_dump()
    lay_recipe(tree, str(method))
    return validate(tree)
