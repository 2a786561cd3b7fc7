"""Selection methods: one file each. To add one, write its file and import it here."""

from elder.methods import angular, elder, floors, laco, shortened, shortgpt, sleb
from elder.methods.base import METHODS, Problem, Round, Selection, get_method

__all__ = ["METHODS", "Problem", "Round", "Selection", "get_method"]
__all__ += ["angular", "elder", "floors", "laco", "shortened", "shortgpt", "sleb"]
