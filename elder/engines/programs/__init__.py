"""Programs that run in processes of their own, on an engine's packages: those are called as other packages are."""
