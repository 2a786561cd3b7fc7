"""A causal language model: loading it, finding and removing its layers, running it, saving it."""
