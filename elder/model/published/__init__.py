"""Forms in which models are published that are no plain checkpoint: GGUF, quantised, part of a larger one, adapters."""
