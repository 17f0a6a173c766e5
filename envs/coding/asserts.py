"""Read simple `assert` lines into test cases without running them.

Test code in a dataset is as untrusted as a candidate. Lines of simple shapes (a call with literal arguments, compared
with a literal) are read with `ast` and become cases that the trusted process compares; everything else is left as
source, for a second sandbox.

Shapes read, where f(...) is a call of the function under test and V a literal:

    assert f(...)              assert not f(...)           assert f(...) OP V, V OP f(...)   (== != < <= > >= in is)
    assert W(f(...)) OP V      with W one of bool, set, frozenset, sorted, list, tuple, len, sum, str, dict, round, abs
    assert math.isclose(f(...), V, rel_tol=, abs_tol=)     assert abs(f(...) - V) < V
"""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from envs.coding.compare import Rule

Case = list[Any]
"""[args: list, kwargs: dict, expected, Rule]; a case of three entries is compared exactly."""

WRAPS = frozenset(
    {"bool", "set", "frozenset", "sorted", "list", "tuple", "len", "sum", "str", "dict", "round", "abs", "int", "float"}
)
_OPS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<=", "in": "contains"}
_CONTAINERS = {"set": set, "frozenset": frozenset, "list": list, "tuple": tuple, "sorted": sorted, "dict": dict}
_MAX_LITERAL_DEPTH = 50


class _NotSimpleError(Exception):
    """This piece of test code has none of the shapes above."""


def parse_asserts(source: str, entry_point: str) -> list[Case] | None:
    """The cases of test code that is nothing but simple asserts about `entry_point`; None if it is anything else."""
    try:
        return [_case(statement, entry_point) for statement in ast.parse(source).body] or None
    except (_NotSimpleError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def parse_check_function(source: str, name: str = "check") -> list[Case] | None:
    """The cases of HumanEval-style test code: `def check(candidate):` over simple asserts; None if it is anything else.

    Assignments of literals to `METADATA` and the import of `math` beside it change nothing and are passed over.
    """
    try:
        body = [statement for statement in ast.parse(source).body if not _without_effect(statement)]
        if len(body) != 1 or not isinstance(body[0], ast.FunctionDef) or body[0].name != name:
            return None
        check = body[0]
        if len(check.args.args) != 1 or check.decorator_list:
            return None
        statements = [s for s in check.body if not _is_docstring(s) and not _always_true(s)]
        return [_case(statement, check.args.args[0].arg) for statement in statements] or None
    except (_NotSimpleError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def called_names(source: str) -> list[str]:
    """Names called as plain functions, in the order of their appearance in the source; [] if it does not parse."""
    try:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = [call.func for call in calls if isinstance(call.func, ast.Name)]
    return [name.id for name in sorted(found, key=lambda name: (name.lineno, name.col_offset))]


def defined_functions(source: str) -> list[str]:
    """Names of the functions that the source defines at its top level; [] if it does not parse."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [statement.name for statement in body if isinstance(statement, ast.FunctionDef)]


def import_lines(source: str) -> list[str]:
    """The import statements at the top level of the source; [] if it does not parse."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [ast.unparse(statement) for statement in body if isinstance(statement, ast.Import | ast.ImportFrom)]


def _case(statement: ast.stmt, name: str) -> Case:
    if not isinstance(statement, ast.Assert):
        raise _NotSimpleError
    test = statement.test
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        args, kwargs, rule = _call(test.operand, name)
        return [args, kwargs, False, _as_bool(rule)]
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _comparison(test.left, test.ops[0], test.comparators[0], name)
    if isinstance(test, ast.Call) and ast.unparse(test.func) in ("math.isclose", "isclose") and len(test.args) == 2:
        options = {word.arg or "": _number(word.value) for word in test.keywords}
        if not set(options) <= {"rel_tol", "abs_tol"}:
            raise _NotSimpleError
        args, kwargs, rule = _call(test.args[0], name)
        return [args, kwargs, _number(test.args[1]), replace(rule, op="isclose", **options)]
    args, kwargs, rule = _call(test, name)
    return [args, kwargs, True, _as_bool(rule)]


def _as_bool(rule: Rule) -> Rule:
    if rule.wrap not in ("", "bool"):
        raise _NotSimpleError
    return Rule(op="==", wrap="bool")


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, name: str) -> Case:
    if isinstance(op, ast.Is | ast.IsNot):
        value = literal(right)
        if not (value is None or isinstance(value, bool)) or isinstance(op, ast.IsNot):
            raise _NotSimpleError
        args, kwargs, rule = _call(left, name)
        return [args, kwargs, value, replace(rule, op="exact")]
    if type(op) not in _OPS:
        raise _NotSimpleError
    word = _OPS[type(op)]
    difference = _difference(left)
    if difference is not None and word in ("<", "<="):
        call, value = difference if _mentions(difference[0], name) else difference[::-1]
        args, kwargs, rule = _call(call, name)
        rule = replace(rule, op="within", abs_tol=_number(right), inclusive=word == "<=")
        return [args, kwargs, _number(value), rule]
    if not _mentions(left, name):
        if word not in _MIRRORED:
            raise _NotSimpleError
        left, right, word = right, left, _MIRRORED[word]
    args, kwargs, rule = _call(left, name)
    return [args, kwargs, literal(right), replace(rule, op=word)]


def _difference(node: ast.expr) -> tuple[ast.expr, ast.expr] | None:
    """(a, b) of the expression abs(a - b)."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "abs" and len(node.args) == 1:
        inner = node.args[0]
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub):
            return inner.left, inner.right
    return None


def _mentions(node: ast.expr, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def _call(node: ast.expr, name: str) -> tuple[list[Any], dict[str, Any], Rule]:
    """Arguments of name(...) or W(name(...)), with the rule that carries the wrap."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise _NotSimpleError
    if node.func.id != name:
        if node.func.id not in WRAPS or len(node.args) != 1 or node.keywords:
            raise _NotSimpleError
        args, kwargs, rule = _call(node.args[0], name)
        if rule.wrap:
            raise _NotSimpleError
        return args, kwargs, replace(rule, wrap=node.func.id)
    if any(word.arg is None for word in node.keywords):
        raise _NotSimpleError
    return [literal(arg) for arg in node.args], {str(word.arg): literal(word.value) for word in node.keywords}, Rule()


def literal(node: ast.expr, depth: int = 0) -> Any:
    """The value of a literal, where numbers may be combined with + - * / and containers written as set([...]).

    Raises `_NotSimpleError` for anything else. Nothing is looked up or run, and nothing can grow beyond its own source.
    """
    if depth > _MAX_LITERAL_DEPTH:
        raise _NotSimpleError
    deeper = depth + 1
    match node:
        case ast.Constant(value=value) if value is not Ellipsis:
            return value
        case ast.List(elts=elements):
            return [literal(element, deeper) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(literal(element, deeper) for element in elements)
        case ast.Set(elts=elements):
            return _built(set, [literal(element, deeper) for element in elements])
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = [(literal(k, deeper), literal(v, deeper)) for k, v in zip(keys, values, strict=True) if k]
            return _built(dict, pairs)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, deeper)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, deeper)
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(_number(left, deeper), op, _number(right, deeper))
        case ast.Call(func=ast.Name(id=word), args=arguments, keywords=[]) if word in _CONTAINERS:
            return _built(_CONTAINERS[word], *[literal(argument, deeper) for argument in arguments])
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(text))], keywords=[]):
            return _built(float, text)
    raise _NotSimpleError


def _built(constructor: Any, *args: Any) -> Any:
    try:
        return constructor(*args)
    except (TypeError, ValueError) as error:
        raise _NotSimpleError from error


def _number(node: ast.expr, depth: int = 0) -> Any:
    value = literal(node, depth)
    if not isinstance(value, int | float | complex):
        raise _NotSimpleError
    return value


def _arithmetic(a: Any, op: ast.operator, b: Any) -> Any:
    try:
        match op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
            case ast.Div():
                return a / b
    except ArithmeticError as error:
        raise _NotSimpleError from error
    raise _NotSimpleError


def _without_effect(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        return [ast.unparse(target) for target in statement.targets] == ["METADATA"]
    if isinstance(statement, ast.Import):
        return [name.name for name in statement.names] == ["math"] and statement.names[0].asname is None
    return _is_docstring(statement)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _always_true(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Assert)
        and isinstance(statement.test, ast.Constant)
        and bool(statement.test.value)
        and statement.test.value is not Ellipsis
    )
