"""One run of the flow: its folder, its turn, its GPU slot, and who is told how it ended."""
