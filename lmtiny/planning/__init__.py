"""What a training step needs before it runs: memory, traffic and time by formula, and by the real TPU compiler."""
