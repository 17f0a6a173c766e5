"""Environments of other libraries as ours, and ours as theirs. Each file needs its own library and no other."""
