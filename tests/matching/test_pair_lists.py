"""Pair lists: the published ones by their published counts, round trips, and lines that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchlib.errors import DataError
from matchlib.matching.pair_lists import check_pairs, exhaustive_pairs, read_pair_list, write_pair_list


@pytest.mark.parametrize(
    ("name", "pairs", "images"),
    [("image_pairs_to_match.txt", 14941, 1182), ("pairs-query-netvlad20-night.txt", 1960, 1255)],
)
def test_published_aachen_lists_have_their_counts(
    shared_data: Callable[[str], Path], name: str, pairs: int, images: int
) -> None:
    found = read_pair_list(shared_data("aachen_lists") / name)
    assert (found.lines, found.duplicates, found.selves, len(found.pairs)) == (pairs, 0, 0, pairs)
    assert len({image for pair in found.pairs for image in pair}) == images
    if name == "image_pairs_to_match.txt":
        with_query = sum(any(image.startswith("query/") for image in pair) for pair in found.pairs)
        assert (with_query, pairs - with_query) == (1957, 12984)


def test_duplicates_reversed_lines_and_selves_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("b a\r\n\n a\tb \nc c\nb  a\na c\n", encoding="utf-8")
    found = read_pair_list(path)
    assert found.pairs == (("b", "a"), ("a", "c"))
    assert (found.lines, found.duplicates, found.selves) == (5, 2, 1)


NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="\x85\xa0\xad"), min_size=1
)


@settings(max_examples=50, deadline=None)
@given(names=st.lists(NAMES, min_size=2, max_size=8, unique=True))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("lists") / "pairs.txt"
    pairs = exhaustive_pairs(names)
    write_pair_list(path, pairs)
    found = read_pair_list(path)
    assert found.pairs == pairs and found.lines == len(names) * (len(names) - 1) // 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a b\na b c\n", r"pairs.txt:2: expected two image names, got 3"),
        (b"a b\n\nonly\n", r"pairs.txt:3: expected two image names, got 1"),
        (b"a a\n", r"at least one pair"),
        (b"", r"at least one pair"),
        (b"a \xff\xfe\n", r"not a readable pair list"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pair_list(path)


def test_an_absent_list_and_names_with_spaces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such pair list"):
        read_pair_list(tmp_path / "none.txt")
    with pytest.raises(DataError, match="without white space"):
        write_pair_list(tmp_path / "pairs.txt", [("a b.jpg", "c.jpg")])
    assert not (tmp_path / "pairs.txt").exists()


def test_exhaustive_pairs_are_every_two_once() -> None:
    assert exhaustive_pairs(["c", "a", "b", "a"]) == (("c", "a"), ("c", "b"), ("a", "b"))
    assert exhaustive_pairs(["a"]) == () and exhaustive_pairs([]) == ()


def test_images_without_features_are_found() -> None:
    assert check_pairs([("d", "a"), ("b", "c"), ("d", "b")], ["a", "b"]) == ("c", "d")
    assert check_pairs([("a", "b")], ["b", "a", "x"]) == ()
