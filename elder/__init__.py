"""Make large language models shallower: learn layer weights, regularise, remove layers, recover, and judge the result."""

__version__ = "0.1.0"
