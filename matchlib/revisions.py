"""One integer per kind of job: raise it when the job's results change meaning, and the graph makes them again.

The graph does not watch the code itself: a comment must not retrain anything.
"""

from __future__ import annotations

REVISIONS = {
    "mirror": 1,
    "download": 1,
    "unpack": 1,
    "match_sets": 1,
    "train": 1,
    "features": 1,
    "hpatches": 1,
    "labels": 1,
    "pck": 1,
    "caps_dataset": 1,
    "matches": 1,
    "retrieval": 1,
    "pose": 1,
    "localisation": 2,
    "reconstruction": 2,
    "report": 1,
}
