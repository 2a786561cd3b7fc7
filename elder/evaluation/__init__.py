"""What a model is worth: perplexity, tasks, speed, its own text, and the gate that judges them."""
