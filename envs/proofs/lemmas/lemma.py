"""One generated lemma, and the header whose definitions and facts all of them may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lemma:
    """family: which generator. size: connectives or operations in it. statement: Coq, closed, words apart by blanks. tactics: a proof,
    one sentence each. agda: (statement, term) of the same in Agda, where there is one."""

    family: str
    size: int
    statement: str
    tactics: tuple[str, ...]
    agda: tuple[str, str] | None = None


FACTS = {
    "addN": "forall a : nat , a + 0 = a",
    "addR": "forall a b : nat , a + S b = S ( a + b )",
    "addA": "forall a b c : nat , a + ( b + c ) = a + b + c",
    "mulN": "forall a : nat , a * 0 = 0",
    "mulR": "forall a b : nat , a * S b = a + a * b",
    "mulD": "forall a b c : nat , a * ( b + c ) = a * b + a * c",
    "appN": "forall l : list nat , l ++ nil = l",
    "appA": "forall l m k : list nat , ( l ++ m ) ++ k = l ++ m ++ k",
    "revA": "forall l m : list nat , rev ( l ++ m ) = rev m ++ rev l",
    "revR": "forall l : list nat , rev ( rev l ) = l",
    "mapA": "forall ( f : nat -> nat ) ( l m : list nat ) , map f ( l ++ m ) = map f l ++ map f m",
    "mapR": "forall ( f : nat -> nat ) ( l : list nat ) , map f ( rev l ) = rev ( map f l )",
    "lenA": "forall l m : list nat , len ( l ++ m ) = len l + len m",
    "lenR": "forall l : list nat , len ( rev l ) = len l",
    "lenM": "forall ( f : nat -> nat ) ( l : list nat ) , len ( map f l ) = len l",
    "leR": "forall a : nat , a <= a",
    "leW": "forall a b : nat , a <= b -> a <= S b",
    "leS": "forall a b : nat , a <= b -> S a <= S b",
    "leA": "forall a b c d : nat , a <= b -> c <= d -> a + c <= b + d",
    "leT": "forall a b c : nat , a <= b -> b <= c -> a <= c",
    "memH": "forall ( x : nat ) ( l : list nat ) , mem x ( x :: l )",
    "memT": "forall ( x y : nat ) ( l : list nat ) , mem x l -> mem x ( y :: l )",
    "memL": "forall ( x : nat ) ( l m : list nat ) , mem x l -> mem x ( l ++ m )",
    "memR": "forall ( x : nat ) ( l m : list nat ) , mem x l -> mem x ( m ++ l )",
}
"""Name -> statement of the facts that proofs of generated lemmas may use."""

_DEFINITIONS = """
#[global] Open Scope list_scope.
Fixpoint len ( l : list nat ) : nat := match l with nil => 0 | _ :: l => S ( len l ) end.
Fixpoint rev ( l : list nat ) : list nat := match l with nil => nil | x :: l => rev l ++ x :: nil end.
Fixpoint map ( f : nat -> nat ) ( l : list nat ) : list nat := match l with nil => nil | x :: l => f x :: map f l end.
Fixpoint mem ( x : nat ) ( l : list nat ) : Prop := match l with nil => False | y :: l => y = x \\/ mem x l end.
"""
_PROOFS = {
    "addN": "induction a as [ | a IH ]. reflexivity. simpl. rewrite IH. reflexivity.",
    "addR": "intros a b. induction a as [ | a IH ]. reflexivity. simpl. rewrite IH. reflexivity.",
    "addA": "intros a b c. induction a as [ | a IH ]. reflexivity. simpl. rewrite IH. reflexivity.",
    "mulN": "induction a as [ | a IH ]. reflexivity. simpl. exact IH.",
    "mulR": "intros a b. induction a as [ | a IH ]. reflexivity. simpl. rewrite IH, !addA, (addC b a). reflexivity.",
    "mulD": "intros a b c. induction a as [ | a IH ]. reflexivity. "
    "simpl. rewrite IH, !addA. f_equal. rewrite <- !addA. f_equal. apply addC.",
    "appN": "induction l as [ | x l IH ]. reflexivity. simpl. rewrite IH. reflexivity.",
    "appA": "intros l m k. induction l as [ | x l IH ]. reflexivity. simpl. rewrite IH. reflexivity.",
    "revA": "intros l m. induction l as [ | x l IH ]. simpl. rewrite appN. reflexivity. simpl. rewrite IH, appA. reflexivity.",
    "revR": "induction l as [ | x l IH ]. reflexivity. simpl. rewrite revA, IH. reflexivity.",
    "mapA": "intros f l m. induction l as [ | x l IH ]. reflexivity. simpl. rewrite IH. reflexivity.",
    "mapR": "intros f l. induction l as [ | x l IH ]. reflexivity. simpl. rewrite mapA, IH. reflexivity.",
    "lenA": "intros l m. induction l as [ | x l IH ]. reflexivity. simpl. rewrite IH. reflexivity.",
    "lenR": "induction l as [ | x l IH ]. reflexivity. simpl. rewrite lenA, IH. simpl. rewrite addR, addN. reflexivity.",
    "lenM": "intros f l. induction l as [ | x l IH ]. reflexivity. simpl. rewrite IH. reflexivity.",
    "leR": "exact le_n.",
    "leW": "exact le_S.",
    "leS": "exact le_n_S.",
    "leA": "intros a b c d h k. induction h as [ | b h IH ]. "
    "induction a as [ | a IH ]. exact k. exact (le_n_S _ _ IH). exact (le_S _ _ IH).",
    "leT": "intros a b c h k. induction k as [ | c k IH ]. exact h. exact (le_S _ _ IH).",
    "memH": "intros x l. left. reflexivity.",
    "memT": "intros x y l h. right. exact h.",
    "memL": "intros x l m h. induction l as [ | y l IH ]. destruct h. destruct h as [ e | h ]. "
    "left. exact e. right. exact (IH h).",
    "memR": "intros x l m h. induction m as [ | y m IH ]. exact h. right. exact IH.",
}
_SWAP = """
Lemma addC : forall a b : nat, a + b = b + a.
Proof. intros a b. induction a as [ | a IH ]. rewrite addN. reflexivity. simpl. rewrite addR, IH. reflexivity. Qed.
"""


def header() -> str:
    """Definitions and facts as a Coq file."""
    parts = [_DEFINITIONS]
    for name, statement in FACTS.items():
        parts.append(f"Lemma {name} : {statement} .\nProof. {_PROOFS[name]} Qed.\n")
        if name == "addR":
            parts.append(_SWAP)
    return "".join(parts)
