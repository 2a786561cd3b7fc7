"""Prefect flows, which only chain tasks, and the command line."""
