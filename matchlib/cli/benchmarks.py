"""Verbs that evaluate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matchlib.cli.verbs import Verbs, add_method, add_settings


def add_verbs(verbs: Verbs) -> None:
    """Declare this module's verbs."""
    one = verbs.add("evaluate-hpatches", _evaluate_hpatches, "HPatches accuracy of a features file.")
    one.add_argument("--features", type=Path, required=True, metavar="FILE.h5")
    one.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the sequences")
    one.add_argument("--label", help="name in tables; default: the file's name")
    one.add_argument("--out", type=Path, metavar="FILE.json")
    add_settings(one, "of the protocol, e.g. sequences=all_present")
    one = verbs.add("evaluate-pck", _evaluate_pck, "PCK of a method's descriptors on HPatches sequences.")
    one.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the sequences")
    one.add_argument("--protocol", default="as-coded", help="as-coded or as-described; default: as-coded")
    one.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the protocol, e.g. sequences=all_present; may be repeated",
    )
    one.add_argument(
        "--points",
        type=Path,
        metavar="FILE",
        help="query points, drawn into this file where it does not exist; default: drawn anew and not kept",
    )
    one.add_argument("--label", help="name in tables; default: the method's name")
    one.add_argument("--out", type=Path, metavar="FILE.json")
    add_method(one)


def _evaluate_hpatches(options: argparse.Namespace) -> None:
    from matchlib.evaluation.config import HPatchesProtocol
    from matchlib.evaluation.hpatches import write_result
    from matchlib.evaluation.hpatches_run import evaluate_hpatches
    from matchlib.typed_yaml import load_typed, parse_overrides

    protocol = load_typed(HPatchesProtocol, parse_overrides(options.settings), "protocol")
    result = evaluate_hpatches(options.features, options.root, protocol=protocol, label=options.label)
    if options.out is not None:
        write_result(result, options.out)
    print(json.dumps(result.summary(), indent=1))


def _evaluate_pck(options: argparse.Namespace) -> None:
    import tempfile

    from matchlib.api import build_describer
    from matchlib.errors import ConfigError
    from matchlib.evaluation.pck import evaluate_pck
    from matchlib.evaluation.pck_config import PCK_PROTOCOLS, PCKProtocol
    from matchlib.evaluation.pck_points import write_points
    from matchlib.evaluation.pck_result import write_pck_result
    from matchlib.typed_yaml import dump_typed, load_typed, merged, parse_overrides

    known = {protocol.name: protocol for protocol in PCK_PROTOCOLS}
    if options.protocol not in known:
        raise ConfigError(f"--protocol: expected {' or '.join(known)}, got '{options.protocol}'")
    changed = merged(dump_typed(known[options.protocol]), parse_overrides(options.changes))
    protocol = load_typed(PCKProtocol, changed, "protocol")
    describer = build_describer(
        options.method,
        weights=options.weights,
        settings=parse_overrides(options.settings),
        device=options.device,
    )
    with tempfile.TemporaryDirectory() as folder:
        points = options.points or Path(folder) / "points.h5"
        if not points.exists():
            write_points(options.root, protocol, points)
        result = evaluate_pck(
            describer, options.root, points, protocol=protocol, label=options.label or options.method
        )
    if options.out is not None:
        write_pck_result(result, options.out)
    print(json.dumps(result.summary(), indent=1))
