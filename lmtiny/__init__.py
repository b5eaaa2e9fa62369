"""lmtiny: from raw text to a small language model you can talk to."""

__version__ = "0.1.0"
