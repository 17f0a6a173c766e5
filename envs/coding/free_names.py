"""The names that a piece of test code takes from elsewhere; found without running it."""

from __future__ import annotations

import ast
import builtins


def free_names(source: str) -> set[str]:
    """Names that `source` reads and that are neither builtins nor bound anywhere in it. Raises SyntaxError."""
    read: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add(asname or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
    return read - bound
