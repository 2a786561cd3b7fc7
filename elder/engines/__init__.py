"""Engines that serve a saved model without transformers: files for them, and whether they say the same."""
