"""Every attack on the proof checkers scores 0, harms nothing, and leaves the checker healthy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from envs.check import check_env
from envs.proofs.agda import HEADER, AgdaBackend, installed
from envs.proofs.attacks import AGDA, COQ, FALSE, LIMITS, NAME, run_agda_attack, run_attack
from envs.proofs.backend import Theorem
from envs.proofs.coq import CoqBackend

DEEP = (
    "admitted",
    "axiom",
    "guard_global",
    "universes",
    "positivity",
    "notation",
    "open_comment",
    "redirect",
    "forged_verdict",
)
"""Made past the reader in every test run; the slow test makes all of them."""
REFUSED = [name for name in COQ if not name.startswith(("endless", "huge", "deep", "many", "flood"))]


@pytest.fixture(scope="module")
def coq() -> Iterator[CoqBackend]:
    backend = CoqBackend(LIMITS)
    yield backend
    backend.close()


def test_the_reader_or_the_session_stops_them(coq: CoqBackend) -> None:
    for name in REFUSED:
        assert not coq.check(FALSE, COQ[name]).proved, name
    assert coq.check(Theorem("1 = 1"), "reflexivity .").proved


@pytest.mark.parametrize("name", DEEP)
def test_what_the_reader_would_stop_is_stopped_without_it(coq: CoqBackend, name: str) -> None:
    assert coq.certified("", [(FALSE, (COQ[name],))], [NAME])


def test_the_statement_would_be_granted_without_our_checks(coq: CoqBackend) -> None:
    """The list is no straw man: Coq itself compiles the files of these, and a proof under the same name is accepted."""
    for name in ("admitted", "axiom", "guard_global", "universes", "positivity", "notation", "other_statement"):
        note = coq.certified("", [(FALSE, (COQ[name],))], [NAME])
        assert note.startswith(("assumptions", "the statement", "the second checker")), (name, note)
    assert not coq.certified(
        "",
        [
            (
                Theorem("forall n : nat , n = n"),
                (f"Abort . Theorem {NAME} : forall n : nat , n = n . intros n . reflexivity .",),
            )
        ],
        [NAME],
    )


def test_one_that_burns_time_and_one_that_floods(coq: CoqBackend) -> None:
    for name in ("endless", "flood"):
        report = run_attack(coq, name, COQ[name], past_the_reader=False)
        assert report.score == 0, report
        assert report.contained, report
        assert report.healthy_after, report


@pytest.mark.slow
@pytest.mark.parametrize("name", COQ)
def test_every_attack_every_way(coq: CoqBackend, name: str) -> None:
    report = run_attack(coq, name, COQ[name])
    assert report.score == 0, report
    assert report.contained, report
    assert report.healthy_after, report


@pytest.mark.slow
@pytest.mark.skipif(
    installed() is None,
    reason="Agda is not installed; `bash setup_env/setup.sh` unpacks it into the virtual environment",
)
@pytest.mark.parametrize("name", AGDA)
def test_agda(name: str) -> None:
    report = run_agda_attack(AgdaBackend(), HEADER, name, AGDA[name])
    assert report.score == 0, report
    assert report.contained, report
    assert report.healthy_after, report


@pytest.mark.slow
@pytest.mark.parametrize("name", ["proofs", "proof_steps"])
def test_conformance(name: str) -> None:
    result = asyncio.run(check_env(name, {"count": 100}, samples=50))
    assert result["ok"], [check for check in result["checks"] if not check["ok"]]
