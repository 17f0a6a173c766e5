"""Formal proofs: statements of ours, proofs of the candidate's, checked in a sandbox."""
