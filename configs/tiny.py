"""A first model, on two CPU cores in minutes.

Command:   python -m lmtiny.train --config configs/tiny.py
Hardware:  2 CPU cores
"""

import ml_collections

from lmtiny.config import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults()
    return config
