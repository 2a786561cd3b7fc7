"""What a compression will take: memory, time and micro-batch of each stage, worked out before any work."""
