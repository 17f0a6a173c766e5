"""Anchoring metrics on examples worked by hand, and their edges."""

from __future__ import annotations

import math

import pytest

from algorithms.anchoring import entropic, lexical, probabilistic, step_means, zone


def test_lexical_is_the_longest_common_subsequence() -> None:
    assert lexical([1, 9, 2, 9, 3], [1, 2, 3]) == 1.0
    assert lexical([3, 2, 1], [1, 2, 3]) == pytest.approx(1 / 3)
    assert lexical([2, 1, 2, 4], [1, 2, 3, 4]) == pytest.approx(3 / 4)
    assert lexical([], [1]) == 0.0
    with pytest.raises(ValueError, match="at least one token"):
        lexical([1], [])


def test_entropic_by_hand() -> None:
    """Entropies 1, 3, 2: u = 0, 1, 1/2; changes 1, 1/2."""
    cv = 0.25 / 0.75
    spread = ((0 - 0.5) ** 2 + (1 - 0.5) ** 2 + 0) / 3
    paper = math.sqrt(1 / (1 + spread / 0.1) * cv / (1 + cv))
    earlier = math.sqrt((1 - spread / 0.25) * (1 - math.exp(-cv)))
    assert entropic([1.0, 3.0, 2.0]) == pytest.approx(paper)
    assert entropic([1.0, 3.0, 2.0], "earlier") == pytest.approx(earlier)
    assert entropic([10.0, 30.0, 20.0]) == pytest.approx(paper)  # units cancel
    assert paper == pytest.approx(0.3062, abs=1e-4)


@pytest.mark.parametrize("variant", ["paper", "earlier"])
@pytest.mark.parametrize("steps", [[], [2.0], [2.0, 2.0, 2.0], [1.0, 2.0]])
def test_entropic_without_uneven_changes_is_zero(steps: list[float], variant: str) -> None:
    """No step, one, constant ones; and two, whose single change has no spread."""
    assert entropic(steps, variant) == 0.0  # type: ignore[arg-type]


def test_probabilistic_by_hand() -> None:
    assert probabilistic(-1.0, -1.0 - 3 * math.log(2), 3) == pytest.approx(1.0)
    assert probabilistic(-2.0, -1.0, 2) == pytest.approx(-1 / math.log(2) / 2)
    assert probabilistic(-1.0, -4.0, 3, "earlier") == pytest.approx(0.75)
    assert probabilistic(-5.0, -4.0, 3, "earlier") == 0.0
    assert probabilistic(-1.0, 0.0, 3, "earlier") == 0.0  # certain without it
    with pytest.raises(ValueError, match="at least one token"):
        probabilistic(-1.0, -2.0, 0)


def test_zones() -> None:
    assert [zone(a, b) for a, b in ((0.1, 0.1), (0.1, 0.5), (0.5, 0.1), (0.9, 0.9))] == [
        "reason",
        "encode",
        "cloze",
        "copy",
    ]


def test_step_means() -> None:
    assert step_means([1.0, 3.0, 5.0, 7.0], [False, True, True, False]).tolist() == [2.0, 5.0, 7.0]
    assert step_means([1.0, 3.0], [False, True]).tolist() == [2.0]
    assert step_means([], []).tolist() == []
