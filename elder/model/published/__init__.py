"""Forms in which models are published that are no plain checkpoint: quantised, inside a larger one, as an adapter."""
