"""The same small project as in the tests of the flows."""

import importlib.util
from pathlib import Path

_place = Path(__file__).parents[1] / "flows" / "conftest.py"
_spec = importlib.util.spec_from_file_location("conftest_of_flows", _place)
_flows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_flows)
project = _flows.project
