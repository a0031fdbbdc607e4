"""Makes `graph` importable for the tests of this folder (import mode importlib adds no folder by itself)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
