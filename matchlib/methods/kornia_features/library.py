"""Which kornia computes: part of the fingerprint of every result, because its detectors change between versions."""

from __future__ import annotations

import kornia

CODE = f"kornia {kornia.__version__}"
