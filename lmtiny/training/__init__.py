"""Gradients -> better weights: loss, optimizer, step, checkpoint."""
