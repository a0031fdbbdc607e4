"""The whole report of a run, from the files that the run left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from matchlib.completion import digest_file
from matchlib.datasets.pose_pairs import read_pose_pairs
from matchlib.evaluation.homography_result import HomographyResult, read_homography_result
from matchlib.evaluation.hpatches import HPatchesResult, read_published_cache, read_result
from matchlib.evaluation.localisation import read_localisation
from matchlib.evaluation.pck_result import read_pck_ablation, read_pck_result
from matchlib.evaluation.pose_result import read_pose_result
from matchlib.evaluation.published import PublishedResult
from matchlib.evaluation.reconstruction import read_reconstruction
from matchlib.features.store import FeatureReader
from matchlib.visualization.hpatches_pictures import hpatches_pictures
from matchlib.visualization.hpatches_tables import homography_table, hpatches_curves, hpatches_tables
from matchlib.visualization.localisation_section import localisation_section
from matchlib.visualization.model_pictures import picture_of_model
from matchlib.visualization.pck_section import pck_section
from matchlib.visualization.pose_pictures import pose_pictures
from matchlib.visualization.pose_section import pose_section
from matchlib.visualization.reconstruction_section import reconstruction_section
from matchlib.visualization.report import Column, Headline, Report, Row, Section, Table, write_report
from matchlib.visualization.sfm_entries import localisation_entries, pose_entries, reconstruction_entry
from matchlib.visualization.training_section import training_section, weights_table

_PROVENANCE = "provenance"
_TITLE, _SUMMARY = "title", "summary"
_DEFAULT_TITLE = "Local features: training and evaluation"


def build_report(
    out: Path,
    *,
    results: Sequence[Path],
    training: Sequence[Path],
    features: Mapping[str, Path],
    hpatches_root: Path | None,
    published: Sequence[Path],
    about: Mapping[str, str],
    homographies: Sequence[Path] = (),
    pck: Sequence[Path] = (),
    pck_ablation: Sequence[Path] = (),
    poses: Sequence[Path] = (),
    pose_features: Mapping[str, Path] | None = None,
    pose_pairs: Path | None = None,
    pose_root: Path | None = None,
    localisations: Sequence[Path] = (),
    reconstructions: Sequence[Path] = (),
) -> None:
    """Write the report as one HTML file, atomically. Equal inputs give equal bytes.

    results:       JSON files of `matchlib.evaluation.hpatches.write_result`
    training:      finished output folders of training stages
    features:      label of a result -> the features file that it was evaluated with, for pictures of
                   matches; may lack some labels
    hpatches_root: folder of the sequences that the results were measured on; None where `features` is empty
    homographies:  JSON files of `matchlib.evaluation.homography_result.write_homography_result`
    pck, pck_ablation: JSON files of `matchlib.evaluation.pck_result`, in table order
    poses:         JSON files of `matchlib.evaluation.pose_result`, in table order
    pose_features: label of such a result -> its features file, for pictures of matches; may lack some labels
    pose_pairs, pose_root: the list of pairs that they were measured on, and the folder of its images; None where
                   `pose_features` is empty
    localisations: folders of one method's localisation: `scores/result.json`, and for the picture `model`, `poses` and
                   `verified.db`, as the graph leaves them
    reconstructions: folders of one method on one scene: `result.json` and `model-0`
    published:     result files of other projects (`.npy`), drawn beside ours
    about:         what ran, as text by name, in the order to be shown. `title` and `summary` head the page. A
                   name `group/item` (`datasets/demo`, `licences/demo`, `runs/base`) stands under its group;
                   the group `provenance` (`provenance/torch version`) stands in the last section.
    Raises DataError naming the file that is missing, broken, or not of this run.
    """
    ours = [read_result(path) for path in results]
    theirs = [read_published_cache(path) for path in published]
    sections = [
        _about_section(about),
        _hpatches_section(ours, theirs, [read_homography_result(path) for path in homographies])
        if ours or theirs
        else None,
        pck_section(
            [read_pck_result(path) for path in pck], [read_pck_ablation(path) for path in pck_ablation]
        )
        if pck
        else None,
        _pose_section(poses, pose_features or {}, pose_pairs, pose_root) if poses else None,
        _localisation_section(localisations) if localisations else None,
        _reconstruction_section(reconstructions) if reconstructions else None,
        training_section(training) if training else None,
        _pictures_section(ours, features, hpatches_root) if features and hpatches_root else None,
        _provenance_section(about, ours, results, features, training, published),
    ]
    report = Report(
        title=about.get(_TITLE, _DEFAULT_TITLE),
        summary=about.get(_SUMMARY, ""),
        headlines=_headlines(ours, training),
        sections=[section for section in sections if section is not None],
    )
    write_report(out, report)


def _pose_section(
    paths: Sequence[Path], features: Mapping[str, Path], pairs: Path | None, root: Path | None
) -> Section:
    results = [read_pose_result(path) for path in paths]
    entries = [pose_entries(result) for result in results]
    every = [entry for of_result in entries for entry in of_result]
    if not features or pairs is None or root is None:
        return pose_section(every)
    first = [(result, of_result[0]) for result, of_result in zip(results, entries, strict=True)]
    listed = read_pose_pairs(pairs, kind="matchlib", root=root)
    best, worst = pose_pictures(first, features, listed)
    return pose_section(every, best=best, worst=worst)


def _localisation_section(folders: Sequence[Path]) -> Section:
    results = [read_localisation(folder / "scores" / "result.json") for folder in folders]
    maps = [
        picture_of_model(
            folder / "model",
            f"{result.dataset}, {result.label}",
            poses=folder / "poses",
            database=folder / "verified.db",
        )
        for folder, result in zip(folders, results, strict=True)
    ]
    entries = [entry for result in results for entry in localisation_entries(result)]
    return localisation_section(entries, [picture for picture in maps if picture is not None])


def _reconstruction_section(folders: Sequence[Path]) -> Section:
    results = [read_reconstruction(folder / "result.json") for folder in folders]
    models = [
        picture_of_model(folder / "model-0", f"{result.scene}, {result.label}")
        for folder, result in zip(folders, results, strict=True)
    ]
    entries = [reconstruction_entry(result) for result in results]
    return reconstruction_section(entries, [picture for picture in models if picture is not None])


def _headlines(results: Sequence[HPatchesResult], training: Sequence[Path]) -> list[Headline]:
    headlines = []
    if results:
        best = max(results, key=lambda result: float(result.mma("all")[2]))
        low, high = best.mma_interval("all")[:, 2]
        # one sequence alone has no interval
        note = f"{best.label}, interval {low:.3f}–{high:.3f}" if np.isfinite(low) else best.label
        headlines.append(Headline(name="Best MMA @3 px", value=f"{best.mma('all')[2]:.3f}", note=note))
        headlines.append(
            Headline(name="Evaluated", value=str(len(results)), note="methods or weights on HPatches")
        )
        largest = max(results, key=lambda result: len(result.pairs))
        note = f"in {len(largest.sequences_of('all'))} sequences"
        headlines.append(Headline(name="Image pairs", value=str(len(largest.pairs)), note=note))
    if training:
        headlines.append(Headline(name="Trained", value=str(len(training)), note="stages"))
    return headlines


def _about_section(about: Mapping[str, str]) -> Section | None:
    shown = {
        name: text
        for name, text in about.items()
        if name not in (_TITLE, _SUMMARY) and not name.startswith(f"{_PROVENANCE}/")
    }
    return Section(title="What ran", tables=[_about_table(shown)]) if shown else None


def _about_table(about: Mapping[str, str]) -> Table:
    """One row for each name, by group, the groups in the order in which they first occur."""
    rows: dict[str, list[Row]] = {}
    for name, text in about.items():
        group, _, item = name.rpartition("/")
        title = group.replace("/", ", ").replace("_", " ")
        title = title[:1].upper() + title[1:]
        rows.setdefault(title, []).append(Row(cells=[item, text], group=title))
    caption = ", ".join(title for title in rows if title) or "This run"
    columns = [Column(name="name"), Column(name="description")]
    ordered = [row for group in rows.values() for row in group]
    return Table(columns=columns, rows=ordered, caption=caption, sortable=False)


def _hpatches_section(
    results: Sequence[HPatchesResult],
    published: Sequence[PublishedResult],
    homographies: Sequence[HomographyResult],
) -> Section:
    return Section(
        title="HPatches",
        text=[
            "Each method finds keypoints in both images of a pair; descriptors that are each other's nearest "
            "become matches. A match is right at a threshold if the true homography brings its first "
            "keypoint that close to its second."
        ],
        tables=[
            *hpatches_tables(results, published),
            *([homography_table(homographies)] if homographies else []),
        ],
        figures=[hpatches_curves(results, published)],
    )


def _pictures_section(
    results: Sequence[HPatchesResult], features: Mapping[str, Path], hpatches_root: Path
) -> Section:
    return Section(
        title="Matches",
        text=[
            "The same pairs for all methods: those on which they do best, middling and worst together. Green "
            "lines err by up to 1 px, yellow by 3 px, orange by 5 px or more. Select a picture to enlarge it."
        ],
        sections=hpatches_pictures(results, features, hpatches_root),
    )


# ---------------------------------------------------------------- provenance
def _provenance_section(
    about: Mapping[str, str],
    results: Sequence[HPatchesResult],
    result_paths: Sequence[Path],
    features: Mapping[str, Path],
    training: Sequence[Path],
    published: Sequence[Path],
) -> Section:
    tables = []
    if results:
        tables += [_results_table(results, result_paths), _protocol_table(results)]
    if features:
        tables.append(_features_table(features))
    if training:
        tables.append(weights_table(training))
    if published:
        tables.append(_files_table("Published results", [path.name for path in published], published))
    prefix = f"{_PROVENANCE}/"
    stated = {name.removeprefix(prefix): text for name, text in about.items() if name.startswith(prefix)}
    return Section(
        title="Provenance",
        text=["Every number above can be traced to these files by their digests."],
        tables=[*tables, _about_table(stated)] if stated else tables,
    )


def _files_table(caption: str, names: Sequence[str], paths: Sequence[Path]) -> Table:
    rows = [Row(cells=[name, digest_file(path)]) for name, path in zip(names, paths, strict=True)]
    columns = [Column(name="file"), Column(name="sha256", code=True)]
    return Table(columns=columns, rows=rows, caption=caption, sortable=False)


def _results_table(results: Sequence[HPatchesResult], paths: Sequence[Path]) -> Table:
    rows = [
        Row(cells=[result.label, path.name, digest_file(path), result.features_digest])
        for result, path in zip(results, paths, strict=True)
    ]
    columns = [
        Column(name="result"),
        Column(name="file"),
        Column(name="sha256", code=True),
        Column(name="features digest", code=True),
    ]
    return Table(columns=columns, rows=rows, caption="Results on HPatches", sortable=False)


def _protocol_table(results: Sequence[HPatchesResult]) -> Table:
    rows = []
    for result in results:
        protocol = result.protocol
        limit = "all" if protocol.max_keypoints is None else f"best {protocol.max_keypoints}"
        ratio = "none" if protocol.ratio is None else f"{protocol.ratio:g}"
        rows.append(
            Row(
                cells=[
                    result.label,
                    protocol.sequences.replace("_", " "),
                    limit,
                    ratio,
                    protocol.homography.estimator_name,
                    f"{protocol.bootstrap.resamples} resamples, seed {protocol.bootstrap.seed}",
                ]
            )
        )
    names = ("result", "sequences", "keypoints", "ratio test", "homography", "bootstrap")
    return Table(
        columns=[Column(name=name) for name in names],
        rows=rows,
        caption="Protocol of each result",
        sortable=False,
    )


def _features_table(features: Mapping[str, Path]) -> Table:
    rows = []
    for label, path in features.items():
        with FeatureReader(path) as reader:
            fingerprint = reader.header.fingerprint if reader.header is not None else "unknown"
            rows.append(Row(cells=[label, path.name, len(reader), reader.digest, fingerprint]))
    columns = [
        Column(name="features"),
        Column(name="file"),
        Column(name="images", decimals=0),
        Column(name="digest", code=True),
        Column(name="extractor fingerprint", code=True),
    ]
    return Table(columns=columns, rows=rows, caption="Features", sortable=False)
