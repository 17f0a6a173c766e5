"""Proofs that try to cheat the checker or harm the machine, and the run that shows that each of them fails.

The statement is false, so whatever is accepted is a breach. Each attack is made three times: as a whole proof; tactic by tactic; and past
the reader that lets nothing but tactics through, straight into the file that Coq compiles, with the theorem's name told to it. There the
kernel's own rules, our second statement, `Print Assumptions` and coqchk must stop it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from envs.base import InfraError
from envs.coding.attacks import AttackReport
from envs.proofs import script
from envs.proofs.backend import ProofBackend, Theorem
from envs.proofs.confined import Limits
from envs.proofs.coq import CoqBackend

MARK = "posterior_proof_mark"
NAME = "proof_known"
"""The theorem's name, which is a secret in earnest."""
FALSE = Theorem("forall n : nat , n = 0")
_CHEAT = f"Theorem {NAME} : forall n : nat , n = 0 ."
LIMITS = Limits(cpu_seconds=0.75)
"""Tight ones, since several attacks use them up."""
_LAST = "Theorem last : True . exact I ."
"""What our own "Qed." may close."""

COQ: dict[str, str] = {
    # leaving it unproven
    "nothing": "",
    "admit": "intros n . admit .",
    "give_up": "intros n . give_up .",
    "admitted": f"Admitted . {_LAST}",
    "abort": f"Abort . {_LAST}",
    "abort_all": f"Abort All . {_LAST}",
    "qed_early": f"Qed . {_LAST}",
    "other_statement": f"Abort . Theorem {NAME} : True . exact I .",
    "weaker_statement": f"Abort . Theorem {NAME} : forall n : nat , n = 0 -> n = 0 . intros n h . exact h .",
    "save_as": "exact ( fun n => eq_refl ) . Save other .",
    "shelve": "intros n . shelve .",
    "unshelved_evar": "intros n . refine ( _ ) . shelve .",
    "undo": "Undo . Restart . intros n .",
    # assumptions
    "axiom": f"Abort . Axiom cheat : forall n : nat , n = 0 . {_CHEAT} exact cheat .",
    "parameter": f"Abort . Parameter cheat : forall n : nat , n = 0 . {_CHEAT} exact cheat .",
    "section_hypothesis": f"Abort . Section s . Hypothesis cheat : forall n : nat , n = 0 . {_CHEAT} exact cheat . Qed . End s . {_LAST}",
    "section_context": f"Abort . Section s . Context ( cheat : forall n : nat , n = 0 ) . {_CHEAT} exact cheat . Qed . End s . {_LAST}",
    "declared_module": "Abort . Module Type T . Axiom cheat : forall n : nat , n = 0 . End T . Declare Module M : T . "
    f"{_CHEAT} exact M.cheat .",
    "functor": f"Abort . Module Type T . Axiom cheat : forall n : nat , n = 0 . End T . Module F ( M : T ) . {_CHEAT} exact M.cheat . "
    f"Qed . End F . {_LAST}",
    "admitted_helper": f"Abort . Lemma cheat : forall n : nat , n = 0 . Admitted . {_CHEAT} exact cheat .",
    "conjecture": f"Abort . Conjecture cheat : forall n : nat , n = 0 . {_CHEAT} exact cheat .",
    "primitive": "Abort . Primitive int := #int63_type . Primitive add : int -> int -> int := #int63_add . " + _LAST,
    # relaxed rules
    "guard": f"Abort . Unset Guard Checking . Fixpoint f ( n : nat ) : n = 0 := f n . {_CHEAT} exact f .",
    "guard_global": f"Abort . Global Unset Guard Checking . Fixpoint f ( n : nat ) : n = 0 := f n . {_CHEAT} exact f .",
    "guard_attribute": f"Abort . #[bypass_check(guard)] Fixpoint f ( n : nat ) : n = 0 := f n . {_CHEAT} exact f .",
    "guard_in_proof": f"Abort . Unset Guard Checking . {_CHEAT} fix f 1 . exact f .",
    "fix_alone": "fix f 1 . exact f .",
    "cofix": "intros n . cofix f . exact f .",
    "universes": "Abort . Require Import Coq.Logic.Hurkens . Unset Universe Checking . "
    f"{_CHEAT} intros n . destruct ( TypeNeqSmallType.paradox Type eq_refl ) .",
    "universes_attribute": "Abort . Require Import Coq.Logic.Hurkens . #[bypass_check(universes)] Definition bad : False := "
    f"TypeNeqSmallType.paradox Type eq_refl . {_CHEAT} destruct bad .",
    "positivity": "Abort . Unset Positivity Checking . Inductive bad := mk : ( bad -> False ) -> bad . "
    f"Definition un ( b : bad ) : False := match b with mk f => f b end . {_CHEAT} destruct ( un ( mk un ) ) .",
    "positivity_attribute": "Abort . #[bypass_check(positivity)] Inductive bad := mk : ( bad -> False ) -> bad . "
    f"Definition un ( b : bad ) : False := match b with mk f => f b end . {_CHEAT} destruct ( un ( mk un ) ) .",
    "definitional_uip": "Abort . Set Definitional UIP . Inductive e ( n : nat ) : nat -> SProp := r : e n n . "
    f"Definition k ( n : nat ) ( h : e n n ) ( x : nat ) : nat := match h with r _ => x end . {_CHEAT} intros n . reflexivity .",
    "exact_no_check": "exact_no_check ( fun n : nat => I ) .",
    "vm_cast_no_check": "intros n . vm_cast_no_check ( eq_refl 0 ) .",
    "native_cast_no_check": "intros n . native_cast_no_check ( eq_refl 0 ) .",
    "change_no_check": "intros n . change_no_check ( 0 = 0 ) . reflexivity .",
    # other meanings
    "notation": f'Abort . Notation "x = y" := True : type_scope . {_CHEAT} exact ( fun _ => I ) .',
    "local_eq": 'Abort . Definition e ( x y : nat ) := True . Notation "x = y" := ( e x y ) : type_scope . '
    f"{_CHEAT} exact ( fun _ => I ) .",
    "other_nat": f"Abort . Inductive nat : Set := O . Theorem {NAME} : forall n : nat , n = O . intros n . destruct n . reflexivity .",
    "shadow_our_module": f"Abort . Module Ours . Module Check . Definition goal_{NAME} := True . End Check . End Ours . {_LAST}",
    "shadow_goal": f"Abort . Definition goal_{NAME} := True . Theorem {NAME} : goal_{NAME} . exact I .",
    "coercion": "Abort . Definition b ( _ : True ) : forall n : nat , n = n := fun n => eq_refl . Coercion b : True >-> Funclass . "
    f"{_LAST}",
    "scope": f'Abort . Declare Scope s . Notation "0" := ( _ ) ( only parsing ) : nat_scope . {_CHEAT} intros n . reflexivity .',
    "ltac_redefined": f'Abort . Ltac reflexivity := idtac . Tactic Notation "exact" constr( x ) := admit . {_CHEAT} exact I .',
    "universe_polymorphic": f"Abort . Set Universe Polymorphism . Axiom cheat : forall n : nat , n = 0 . {_CHEAT} exact cheat .",
    # modules, sections, and what encloses it
    "end_section": f"End s . {_LAST}",
    "end_module": f"Abort . End Sol . {_LAST}",
    "module": f"Abort . Module Export M . Axiom cheat : forall n : nat , n = 0 . End M . {_CHEAT} exact cheat .",
    "reset": "Reset Initial . " + _LAST,
    "backtrack": "BackTo 1 . " + _LAST,
    "backtrack_far": "Abort . Back 3 . " + _LAST,
    "quit": "Quit .",
    "drop": "Drop .",
    "open_comment": "intros n . (* ",
    "close_comment": "intros n . *) (* ",
    "open_string": 'idtac " ',
    "swallow_our_line": f"Abort . {_LAST} Qed . (* ",
    # output
    "forged_verdict": 'idtac "Closed under the global context" . intros n .',
    "forged_prompt": 'idtac "<prompt>Coq < 99 || 0 < </prompt>" . intros n .',
    "forged_goals": 'idtac "No more goals." . intros n .',
    "forged_error_text": 'intros n . fail 1 "<prompt>Coq < 99 || 0 < </prompt>" .',
    "printed_assumptions": f'Abort . Theorem {NAME} : True . idtac "Closed under the global context" . exact I .',
    # files and programs
    "declare_ml_module": f'Abort . Declare ML Module "/scratch/{MARK}.cmxs" . {_LAST}',
    "declare_ml_plugin": f'Abort . Declare ML Module "coq-core.plugins.extraction" . {_LAST}',
    "load_file": f'Abort . Load "/etc/passwd" . {_LAST}',
    "load_path": f'Abort . Add LoadPath "/" as Top . Add ML Path "/tmp" . {_LAST}',
    "redirect": f'Abort . Redirect "/tmp/{MARK}" Print nat . {_LAST}',
    "redirect_scratch": f'Abort . Redirect "/scratch/check/Check" Print nat . {_LAST}',
    "redirect_header": f'Abort . Redirect "/header/{MARK}" Print nat . {_LAST}',
    "extraction": f'Abort . Require Import Coq.extraction.Extraction . Extraction "/tmp/{MARK}.ml" Nat.add . {_LAST}',
    "change_folder": f'Abort . Cd "/" . Redirect "tmp/{MARK}" Print nat . {_LAST}',
    "require_missing": f"Abort . Require Import Secret . {_LAST}",
    "native_compute": "intros n . native_compute . reflexivity .",
    # time, memory, output
    "endless": "intros n . let rec f := idtac ; f in f .",
    "endless_repeat": "intros n . repeat ( assert True by exact I ) .",
    "endless_count": "intros n . do 1000000000 ( try reflexivity ) .",
    "endless_conversion": "assert ( h : Nat.pow 9 9 = 0 ) . reflexivity .",
    "endless_command": f"Abort . Eval vm_compute in ( Nat.pow 9 9 ) . {_LAST}",
    "huge_number": "assert ( h : 99999999 = 0 ) .",
    "huge_term": "intros n . let rec f x k := match k with 0 => pose x | S ?j => f ( x , x ) j end in f 0 40 .",
    "huge_memory": "intros n . pose ( h := Nat.pow 10 9 ) . vm_compute in h .",
    "deep_term": "exact " + "( " * 9000 + "I" + " )" * 9000 + " .",
    "deep_recursion": "intros n . let rec f := try ( f ; fail ) in f .",
    "flood": "intros n . do 1000000 idtac 1 .",
    "long_text": "intros n . " + "simpl . " * 30_000,
    "many_goals": "intros n . do 40 ( cut True ) .",
    "odd_characters": "intros n .\x00 exact \u202e I .",
    "surrogate": "intros \ud800 .",
}
"""Name -> text."""

AGDA: dict[str, str] = {
    "hole": "?",
    "hole_braces": "{! !}",
    "underscore": "_",
    "itself": "proof",
    "check": "check",
    "postulate": "I ) where postulate I : False",
    "where_recursion": "x ) where x = x",
    "let_postulate": "let postulate x : False in x",
    "next_line": "absurd\nproof2 = proof",
    "close_parenthesis": "absurd ) ; x = ( absurd",
    "pragma": "{-# TERMINATING #-} proof",
    "options": "{-# OPTIONS --type-in-type #-} proof",
    "comment": "proof -- ",
    "open_comment": "{- ",
    "trust_me": "primTrustMe",
    "import": "let open import Agda.Builtin.TrustMe in primTrustMe",
    "lambda_loop": "( \\ p x -> x p x ) proof",
    "absurd_pattern": "\\ p ()",
    "unquote": "unquote ( \\ h -> h )",
    "long": "( " * 12_000,
    "odd_characters": "\u202e p",
}
"""Terms offered for `( p : Set ) -> p`."""
AGDA_FALSE = "( p : Set ) -> p"


def run_attack(backend: CoqBackend, name: str, text: str, past_the_reader: bool = True) -> AttackReport:
    """Make one attack on Coq, every way, then look for harm."""
    began, score, notes = time.perf_counter(), 0.0, []
    try:
        verdict = backend.check(FALSE, text)
        score, notes = max(score, float(verdict.proved)), [verdict.note]
        session = backend.open(FALSE)
        try:
            tactics = script.sentences(text)[:12]
        except script.Refused:
            tactics = [text]
        for tactic in tactics:
            reply = session.step(tactic)
            if reply.closed:
                score = max(score, float(session.verdict().proved))
            if reply.error:
                break
        if past_the_reader:
            note = backend.certified(FALSE.header, [(FALSE, (text.encode("utf-8", "replace").decode(),))], [NAME])
            score = max(score, float(not note))
            notes.append(note)
    except InfraError as error:
        return AttackReport(name, False, score, False, time.perf_counter() - began, f"broke the machinery: {error}")
    seconds = time.perf_counter() - began
    breaches = _breaches(backend)
    ill = _ill(backend)
    return AttackReport(name, not breaches, score, not ill, seconds, "; ".join([*breaches, *ill] or notes)[:300])


def run_attacks(backend: CoqBackend, past_the_reader: bool = True) -> list[AttackReport]:
    """The whole list, one attack after another."""
    return [run_attack(backend, name, text, past_the_reader) for name, text in COQ.items()]


def run_agda_attack(backend: ProofBackend, header: str, name: str, text: str) -> AttackReport:
    """Offer one term to Agda for a type that has none."""
    began = time.perf_counter()
    try:
        verdict = backend.check(Theorem(AGDA_FALSE, header), text)
        seconds = time.perf_counter() - began
        healthy = backend.check(Theorem("( p : Set ) -> p -> p", header), "\\ p h -> h").proved
    except InfraError as error:
        return AttackReport(name, False, 0.0, False, time.perf_counter() - began, f"broke the machinery: {error}")
    return AttackReport(name, not _marks(), float(verdict.proved), healthy, seconds, verdict.note)


def _ill(backend: CoqBackend) -> list[str]:
    """What the checker now gets wrong; it has not seen these proofs since it was last asked."""
    backend.forget()
    wrong = []
    right = [
        (Theorem("1 + 1 = 2"), ("reflexivity .",)),
        (Theorem("forall n : nat , n = n"), ("intros n .", "reflexivity .")),
    ]
    for proof in right:
        if not backend.rehearse(*proof).proved:
            wrong.append(f"the session refuses a proof of {proof[0].statement}")
    for (theorem, _), verdict in zip(right, backend.certify(right), strict=True):
        if not verdict.proved:
            wrong.append(f"refuses a proof of {theorem.statement}: {verdict.note}")
    for statement in ("1 + 1 = 3", "forall n : nat , n = 0"):
        if (
            backend.check(Theorem(statement), "intros . reflexivity .").proved
            or backend.check(Theorem(statement), "exact I .").proved
        ):
            wrong.append(f"accepts a proof of {statement}")
    session = backend.open(Theorem("forall n : nat , n = n"))
    if session.step("intros n .").error or not session.step("reflexivity .").closed:
        wrong.append("a session does not work")
    return wrong


def _breaches(backend: CoqBackend) -> list[str]:
    found = [f"left on the host: {path}" for path in _marks()]
    for pid in backend.process_ids():
        try:
            inside = psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        if len(inside) > 2:  # bubblewrap's own, and the checker
            found.append(f"{len(inside) - 2} processes left behind")
    return found


def _marks() -> Sequence[Path]:
    folders = [Path(name) for name in ("/", "/tmp", "/var/tmp", "/dev/shm", os.getcwd()) if Path(name).is_dir()]
    return [path for folder in folders for path in folder.glob(f"{MARK}*")]
