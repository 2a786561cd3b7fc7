"""Make large language models shallower: learn layer weights, regularise, remove, recover, and judge the result."""

__version__ = "0.1.0"
