"""Prefect tasks and the stages they call: each validates, does one thing, and returns paths and digests."""
