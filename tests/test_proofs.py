"""Proofs: the reader of tactics, Coq whole and step by step, forks and snapshots, the environments, Agda, files of statements."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from envs import registry
from envs.base import InfraError
from envs.proofs import agda, confined, coqtop, lean, script, wording
from envs.proofs.backend import Goal, Reply, Theorem
from envs.proofs.confined import Job, Limits
from envs.proofs.coq import CoqBackend, _Batches, _Call
from envs.proofs.env import Proofs, ProofSteps

SWAP = Theorem("forall p q : Prop , p /\\ q -> q /\\ p")
PROOF = ("intros p q h .", "destruct h as [ h1 h2 ] .", "split .", "exact h2 .", "exact h1 .")


@pytest.fixture(scope="module")
def coq() -> Iterator[CoqBackend]:
    backend = CoqBackend.shared(Limits())
    backend.ready()
    yield backend
    backend.close()


def test_the_reader_takes_tactics_apart() -> None:
    text = "Proof.\n intros n. induction n as [|n IH].\n - reflexivity.\n - { simpl. now rewrite IH. }\n + 1: exact (a.b c).\nQed."
    assert script.sentences(text) == [
        *(
            "intros n .",
            "induction n as [|n IH] .",
            "-",
            "reflexivity .",
            "-",
            "{",
            "simpl .",
            "now rewrite IH .",
            "}",
            "+",
        ),
        "1: exact (a.b c) .",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no tactic"),
        ("Proof. Qed.", "no tactic"),
        ("intros n", "no full stop"),
        ("Admitted.", "not a tactic: Admitted"),
        ("intros. Axiom a : False.", "not a tactic: Axiom"),
        ("exact I. Qed. exact I.", "not a tactic: Qed"),
        ("#[local] Hint Resolve x.", "not a tactic"),
        ("intros. (* n", "a comment"),
        ('idtac "a".', "a string"),
        ("auto ... ", "two dots"),
        ("intros\x00.", "printed"),
        ("intros \u202e.", "printed"),
        ("x. " * 9000, "longer"),
    ],
)
def test_the_reader_refuses_what_is_no_tactic(text: str, why: str) -> None:
    with pytest.raises(script.Refused, match=why):
        script.sentences(text)


def test_goals_are_read_and_put_into_words() -> None:
    shown = (
        "2 goals (ID 4)\n  \n  p, q : Prop\n  h : p -> (q \\/ p)\n  ============================\n  ~p\n\n"
        "goal 2 (ID 7) is:\n forall n : nat,\n n <= S (n + 1)\n"
    )
    goals = coqtop.read_goals(shown)
    assert goals == [
        Goal("~p", (("p, q", "Prop"), ("h", "p -> (q \\/ p)"))),
        Goal("forall n : nat, n <= S (n + 1)"),
    ]
    assert wording.goals(Reply(tuple(goals))) == "h : p -> ( q \\/ p ) |- ~ p ; forall n : nat , n <= S ( n + 1 )"
    assert wording.error("Found no subterm matching", True) == "error match"
    assert wording.error("what is this", True) == "error failed"
    assert wording.error("what is this", False) == "error: what is this"


def test_whole_proofs(coq: CoqBackend) -> None:
    assert coq.check(SWAP, " ".join(PROOF)).proved
    assert coq.check(SWAP, "Proof. intros p q [h1 h2]. split. - exact h2. - exact h1. Qed.").proved
    for proof, why in (
        ("intros p q h . exact h .", "sentence 2: In environment"),
        ("intros p q h .", "incomplete proof"),
        ("intros p q h . admit .", "given up"),
        ("tauto", "no full stop"),
    ):
        verdict = coq.check(SWAP, proof)
        assert not verdict.proved
        assert why in verdict.note


def test_nothing_of_a_failed_proof_stays(coq: CoqBackend) -> None:
    """What comes after a sentence that fails is executed all the same; the next proof must not begin behind it."""
    for failing in ("foo . intros p q h .", "intros p . foo . intros q h . destruct h as [ h1 h2 ] ."):
        assert not coq.check(SWAP, failing).proved
        assert not coq.check(SWAP, f"destruct h as [ h1 h2 ] . {' '.join(PROOF[2:])}").proved
        coq.forget()
        assert coq.check(SWAP, " ".join(PROOF)).proved
    session = coq.open(SWAP)
    assert session.step("foo .").error
    assert not coq.check(SWAP, "foo . intros p q h .").proved
    assert session.goals().goals[0].conclusion == "forall p q : Prop, p /\\ q -> q /\\ p"


def test_the_same_step_is_asked_once() -> None:
    backend = CoqBackend()
    first, second = backend.open(SWAP), backend.open(SWAP)
    replies = [first.step(tactic) for tactic in (*PROOF[:2], "foo .")]
    sent = backend.session("")._sent
    assert [second.step(tactic) for tactic in (*PROOF[:2], "foo .")] == replies
    assert backend.session("")._sent == sent
    assert [bool(reply.error) for reply in replies] == [False, False, True]
    assert second.goals() == first.goals() == replies[1]
    # the session never went where `second` stands, and goes there when it is asked for something new
    assert not any(second.step(tactic).error for tactic in PROOF[2:])
    assert second.verdict().proved
    assert backend.open(Theorem("True")).step("intros p q h .").error  # another theorem, the same tactic
    backend.close()


def test_a_checker_that_is_made_to_end_refuses_the_proof() -> None:
    backend = CoqBackend(read=lambda text: [text])
    assert not backend.check(SWAP, "Quit .").proved
    assert backend.open(SWAP).step("Quit .").error.startswith("the checker ended")
    assert backend.check(Theorem("1 = 1"), "reflexivity .").proved
    backend.close()


def test_a_header_is_ours_and_may_hold_what_proofs_may_not_use(coq: CoqBackend) -> None:
    header = "Definition twice ( n : nat ) := n + n .\nAxiom wrong : False .\n"
    assert coq.check(Theorem("twice 2 = 4", header), "reflexivity .").proved
    assert coq.check(Theorem("False", header), "exact wrong .").note.startswith("assumptions: Axioms: wrong")
    with pytest.raises(ValueError, match="the statement is refused: Theorem proof : twice 2 = 4"):
        coq.check(Theorem("twice 2 = 4"), "reflexivity .")
    with pytest.raises(ValueError, match="the header does not compile"):
        coq.check(Theorem("True", "Definition x := y ."), "exact I .")


def test_many_at_once_are_judged_one_by_one(coq: CoqBackend) -> None:
    right, wrong = (SWAP, PROOF), (SWAP, (*PROOF[:4], "exact h2 ."))
    verdicts = coq.certify([right, (Theorem("1 = 1"), ("reflexivity .",)), wrong, right])
    assert [verdict.proved for verdict in verdicts] == [True, True, False, True]


def test_more_proofs_at_once_than_a_batch_takes(coq: CoqBackend) -> None:
    """The turn may come to a proof before which a whole batch waits."""
    batches = _Batches(coq.certify)
    before = [_Call(Theorem(f"{n} + 0 = {n}"), ("reflexivity .",)) for n in range(_Batches.MOST + 3)]
    batches._waiting = list(before)
    assert not batches.ask(Theorem("0 = 1"), ("reflexivity .",)).proved
    assert all(call.verdict and call.verdict.proved for call in before)


def test_steps_forks_and_errors(coq: CoqBackend) -> None:
    session = coq.open(SWAP)
    assert session.goals().goals[0].conclusion == "forall p q : Prop, p /\\ q -> q /\\ p"
    for tactic in PROOF[:3]:
        reply = session.step(tactic)
        assert not reply.error
    assert [goal.conclusion for goal in reply.goals] == ["q", "p"]
    fork = session.fork()
    assert "expected to have type" in session.step("exact h1 .").error
    assert session.step("exact h2 . exact h1 .").error == "refused: more than one tactic"
    assert session.script() == PROOF[:3]
    assert not session.step("exact h2 .").closed
    assert session.step("exact h1 .").closed
    assert session.verdict().proved
    assert not fork.step("assumption .").closed
    other = coq.open(Theorem("1 = 1"))
    assert other.step("reflexivity .").closed
    assert fork.step("assumption .").closed
    assert fork.verdict().proved
    assert not coq.open(SWAP, PROOF[:2]).verdict().proved


def test_a_slow_tactic_costs_its_proof_and_nothing_else(coq: CoqBackend) -> None:
    quick = CoqBackend(Limits(cpu_seconds=0.5))
    session = quick.open(SWAP, PROOF[:2])
    assert session.step("let rec f := idtac ; f in f .").error == "timeout"
    assert session.step("split .").goals[0].conclusion == "q"
    quick.close()


def test_faults_of_ours_are_no_grade(coq: CoqBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CoqBackend()
    session = backend.open(SWAP, PROOF[:1])
    session.goals()
    (outer,) = backend.process_ids()
    inside = psutil.Process(outer).children(recursive=True)[-1]
    killer = threading.Timer(0.3, inside.send_signal, [signal.SIGKILL])
    killer.start()
    with pytest.raises(InfraError, match="ended with status"):
        session.step("let rec f := idtac ; f in f .")
    assert not session.step(PROOF[1]).error  # a new one is started
    psutil.Process(backend.process_ids()[0]).children(recursive=True)[-1].send_signal(signal.SIGKILL)
    time.sleep(0.3)
    assert not session.step(PROOF[2]).error
    backend.close()
    with pytest.raises(InfraError, match="proof checker"):
        confined.run([Job("/scratch/x", ["/usr/bin/no-such-program"])], Limits())
    monkeypatch.setattr("envs.proofs.coq.COQCHK", "/usr/bin/false")
    with pytest.raises(InfraError, match="simple proof fails too"):
        coq.certify([(SWAP, PROOF)])


def test_the_environment_grades_and_snapshots() -> None:
    env = registry.make("proof_steps", {"count": 12, "families": ["and"], "held_out": ["iff"], "sizes": [3, 3]})
    env.ready()
    task = next(iter(env.tasks("train")))
    assert task.walkthrough is not None

    async def play() -> None:
        assert task.walkthrough is not None
        await env.reset(task, 0)
        lost = await env.step("apply nowhere .")
        assert lost.observation == f"error unknown |- {task.meta['statement']}"
        await env.reset(task, 0)
        for move in task.walkthrough[:-1]:
            step = await env.step(move.action)
            assert (step.observation, step.reward, step.terminated) == (move.observation, 0.0, False)
        state, shown = env.snapshot(), task.walkthrough[-2].observation
        failed = await env.step("apply nowhere .")
        assert failed.observation == f"error unknown {shown}"
        branch = ProofSteps(count=12)
        branch.restore(state)
        for player in (branch, env):
            last = await player.step(task.walkthrough[-1].action)
            assert last.terminated
            assert last.reward == 1.0
            assert last.grade is not None
            assert last.grade.solved
        env.restore(state)
        steps = [await env.step("foo .") for _ in range(5)]
        assert [step.truncated for step in steps] == [False, False, False, False, True]
        assert steps[0].observation == f"error unknown {shown}"

    asyncio.run(play())


def test_a_whole_proof_in_a_code_block_and_chat_prompts() -> None:
    env = Proofs(prompt="chat", count=5)
    task = env.tasks("train")[0]
    assert not isinstance(task.prompt, str)
    assert "addN : forall a : nat , a + 0 = a" in task.prompt[0]["content"]
    assert asyncio.run(env.grade(task, f"Here it is:\n```coq\nProof.\n{task.answer}\nQed.\n```\n")).value == 1.0
    assert Proofs(count=5).tasks("train")[0].prompt == task.meta["statement"]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"backend": "isabelle"}, "there is no backend 'isabelle'; there are: coq, agda, lean"),
        ({"families": ["nor"]}, "there is no family 'nor'; there are: imp, and"),
        ({"families": ["iff"]}, "must not share a family"),
        ({"sizes": [1, 4]}, r"sizes: \[least, most\] must lie in 2 to 12"),
        ({"sizes": "2,4"}, r"sizes: \[least, most\] must lie in 2 to 12 .* not 2,4 and 2"),
        ({"count": 0}, "count must be a whole number"),
        ({"prompt": "long"}, "there is no prompt 'long'"),
        ({"cpu_seconds": 0}, "cpu_seconds must be a positive number, not 0"),
        ({"backend": "lean"}, "for lean give a file"),
        ({"tasks": "lemmas.txt"}, "or .v file, or hf:NAME, not 'lemmas.txt'"),
    ],
)
def test_wrong_arguments_are_one_sentence(args: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Proofs(**args)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="proofs has no split 'trian'; there are: train, test, unseen, larger"):
        Proofs().tasks("trian")
    with pytest.raises(ValueError, match="agda checks whole proofs only"):
        ProofSteps(backend="agda")


def test_statements_from_files(tmp_path: Path) -> None:
    coq_file = tmp_path / "some.v"
    coq_file.write_text(
        "Require Import Arith. (* Theorem no : False. *)\nDefinition twice n := n + n.\n\n"
        "Theorem comm (n m : nat) : n + m = m + n.\nProof. intros. apply Nat.add_comm. Qed.\n"
        "Lemma two : twice 1 = 2.\nProof.\n  reflexivity.\nQed.\nExample open_one : forall n, twice n = n + n. Admitted.\n"
    )
    env = Proofs(str(coq_file))
    tasks = {task.id: task for split in env.splits() for task in env.tasks(split)}
    assert {name: task.meta["statement"] for name, task in tasks.items()} == {
        "comm": "forall (n m : nat), n + m = m + n",
        "two": "twice 1 = 2",
        "open_one": "forall n, twice n = n + n",
    }
    assert tasks["open_one"].answer is None
    for name in ("comm", "two"):
        assert asyncio.run(env.grade(tasks[name], str(tasks[name].answer))).value == 1.0
    lines = tmp_path / "some.jsonl"
    rows = [
        {"id": "a", "statement": "1 + 1 = 2.", "split": "test"},
        {"name": "b", "formal_statement": "theorem b (x : ℝ) (h : x = 2) : x + x = 4 := by sorry", "split": "train"},
    ]
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    env = Proofs(str(lines))
    assert list(env.splits()) == ["train", "test"]
    assert [task.meta["statement"] for task in env.tasks("test")] == ["1 + 1 = 2"]
    assert env.tasks("train")[0].meta["statement"] == "∀ (x : ℝ) (h : x = 2), x + x = 4"
    lines.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=r"some.jsonl, line 1: a statement is needed"):
        Proofs(str(tmp_path / "some.jsonl"), backend="lean").splits()


def test_agda_checks_its_own_lemmas() -> None:
    env = Proofs(backend="agda", sizes=(3, 5), count=10)
    try:
        env.ready()
    except RuntimeError as error:
        pytest.skip(str(error))
    tasks = env.tasks("train")[:5]
    for task in tasks:
        assert asyncio.run(env.grade(task, str(task.answer))).value == 1.0, task
    assert asyncio.run(env.grade(tasks[0], str(tasks[1].answer))).value == 0.0
    postulated = Theorem("( p : Set ) -> p", f"{agda.HEADER}\npostulate wrong : ( p : Set ) -> p\n")
    assert "postulate" in env.backend.check(postulated, "wrong").note.lower()


def test_lean_asks_for_a_toolchain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that can be tested where there is none."""
    backend = lean.LeanBackend()
    monkeypatch.delenv("POSTERIOR_LEAN", raising=False)
    with pytest.raises(RuntimeError, match="set POSTERIOR_LEAN to the folder"):
        backend.ready()
    monkeypatch.setenv("POSTERIOR_LEAN", str(tmp_path))
    with pytest.raises(RuntimeError, match="has no bin/lean"):
        backend.ready()
    for proof in ("sorry", "simp; native_decide", "exact h\nend X", "open Nat in simp", "simp -- done"):
        assert lean._refusal(proof)
    assert not lean._refusal("intro h\nexact ⟨h.2, h.1⟩")
    assert lean._goal("p q : Prop\nh : p ∧ q\n⊢ q") == Goal("q", (("p q", "Prop"), ("h", "p ∧ q")))
