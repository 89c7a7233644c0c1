"""Lets the tests of logs share `session_logs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
