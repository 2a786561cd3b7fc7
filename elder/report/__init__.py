"""What a run found, for people: the report, the model card, and the charts in both."""
