"""One compression: its stages, from selection to recovery, and the recipes that set them up."""
