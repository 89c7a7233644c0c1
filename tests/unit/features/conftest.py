"""Lets the tests here import their helpers `plain_operators` and `random_columns`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
