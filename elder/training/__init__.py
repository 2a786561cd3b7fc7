"""Training the dense and the shallower model: one loop, automatic choices, and what each stage minimises."""
