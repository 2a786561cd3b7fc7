"""Several processes as one: who they are, how they share out work, and how a model is divided among them."""
