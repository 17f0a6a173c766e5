"""The wire format between the trusted process and the sandbox: length-prefixed frames of tagged JSON with exact types.

Plain JSON carries None, bool, str, float (nan and infinities included), int below 2**62 and list. Everything else is an
object with one key, its tag: `{"t": [1, 2]}` is the tuple (1, 2). Only exact types cross; a subclass is refused, since
its `__eq__` or `__hash__` could be anything. There is no pickle, and decoding runs no code that the sender chose.

This file runs on both sides, so it imports the standard library only and nothing of ours.
"""

from __future__ import annotations

import json
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 100
"""Containers nested deeper than this are refused."""
MAX_EXPONENT = 10_000
"""Decimals of a larger exponent are refused: converting one to an integer would take unbounded memory."""
HEADER = struct.Struct(">I")
"""Every frame starts with the length of its body in bytes."""

_PLAIN_INT = 1 << 62
_ATOMS = frozenset({int, float, bool, type(None)})
# Lists of at most this many keys are not worth a check against hash flooding: even all-colliding they cost little.
_FLOOD_FREE = 64


_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class Unsupported(TypeError):
    """The value has a type (or a depth) that may not cross."""


class TooLarge(ValueError):
    """The encoded value would exceed the size limit."""


class Malformed(ValueError):
    """The bytes are not a value in this format."""


class _Packer:
    """Turns a value into JSON's own types; `room` is what is left of the size limit, a lower bound on encoded bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def spend(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise TooLarge("value too large")

    def pack(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind is int:
            if -_PLAIN_INT < value < _PLAIN_INT:
                return value
            self.spend(value.bit_length() // 4)
            return {"i": hex(value)}
        if kind is str:
            self.spend(len(value))
            return value if _is_unicode(value) else {"u": [ord(c) for c in value]}
        if kind in _ATOMS:
            return value
        if depth >= MAX_DEPTH:
            raise Unsupported(f"unsupported type {kind.__name__} nested deeper than {MAX_DEPTH}")
        if kind is list:
            return self.items(value, depth)
        if kind in (bytes, bytearray):
            self.spend(2 * len(value))
            return {"b" if kind is bytes else "ba": value.hex()}
        if kind is complex:
            return {"c": [value.real, value.imag]}
        if kind is range:
            return {"r": [self.pack(n, depth + 1) for n in (value.start, value.stop, value.step)]}
        if kind is Decimal:
            _check_decimal(value)
            text = str(value)
            self.spend(len(text))
            return {"dec": text}
        if kind is Fraction:
            return {"fr": [self.pack(value.numerator), self.pack(value.denominator)]}
        tag = _SEQUENCES.get(kind)
        if tag is not None:
            return {tag: self.items(list(value), depth)}
        tag = _MAPPINGS.get(kind)
        if tag is not None:
            return {tag: [self.items(list(value), depth), self.items(list(value.values()), depth)]}
        raise Unsupported(f"unsupported type {kind.__name__}")

    def items(self, values: list[Any], depth: int) -> list[Any]:
        self.spend(2 * len(values))
        # Flat lists of numbers are the common large case: the JSON encoder takes them as they are.
        kinds = set(map(type, values))
        if kinds <= _ATOMS and (int not in kinds or _all_small(values)):
            return values
        return [self.pack(value, depth + 1) for value in values]


_SEQUENCES: dict[type, str] = {tuple: "t", set: "s", frozenset: "f", deque: "q"}
_MAPPINGS: dict[type, str] = {dict: "d", OrderedDict: "od", Counter: "cn", defaultdict: "dd"}


def _all_small(values: list[Any]) -> bool:
    return all(-_PLAIN_INT < value < _PLAIN_INT for value in values if type(value) is int)


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON's escapes would merge into other characters."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_decimal(value: Decimal) -> None:
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and abs(exponent) > MAX_EXPONENT:
        raise Unsupported(f"unsupported type Decimal with an exponent beyond {MAX_EXPONENT}")


def dumps(value: Any, limit: int = 1 << 30) -> bytes:
    """Encode `value`. Raises `Unsupported` (type or depth) and `TooLarge` (more than `limit` bytes)."""
    body = _encode(_Packer(limit).pack(value)).encode()
    if len(body) > limit:
        raise TooLarge("value too large")
    return body


def loads(body: bytes) -> Any:
    """Decode bytes that may be hostile. Raises `Malformed`; never builds anything but the types listed above."""
    try:
        return _unpack(_decode(body.decode()), 0)
    except Malformed:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, ArithmeticError, OverflowError) as error:
        raise Malformed(f"malformed value: {type(error).__name__}") from None


def _unpack(data: Any, depth: int) -> Any:
    kind = type(data)
    if kind is list:
        if depth > MAX_DEPTH:
            raise Malformed("malformed value: nested too deep")
        if set(map(type, data)) <= _ATOMS:
            return data
        return [_unpack(item, depth + 1) for item in data]
    if kind is not dict:
        return data
    if len(data) != 1 or depth > MAX_DEPTH:
        raise Malformed("malformed value: not a tag")
    ((tag, content),) = data.items()
    return _UNPACK[tag](content, depth + 1)


def _hashable(keys: list[Any]) -> list[Any]:
    """Refuse keys made to collide: a dict of them takes quadratic time in the process that decodes it."""
    if len(keys) > _FLOOD_FREE and len(set(map(hash, keys))) < len(keys) // 2:
        raise Malformed("malformed value: colliding keys")
    return keys


def _keys(content: Any, depth: int) -> list[Any]:
    if type(content) is not list:
        raise Malformed("malformed value: keys are no list")
    return _hashable(_unpack(content, depth))


def _pairs(content: Any, depth: int) -> list[tuple[Any, Any]]:
    keys, values = content
    return list(zip(_keys(keys, depth), _unpack(values, depth), strict=True))


def _decimal(content: Any, depth: int) -> Decimal:
    value = Decimal(content)
    _check_decimal(value)
    return value


def _ints(content: Any, depth: int) -> list[int]:
    values = _unpack(content, depth)
    if any(type(value) is not int for value in values):
        raise Malformed("malformed value: not an integer")
    return values


def _floats(content: Any) -> list[float]:
    if any(type(value) is not float for value in content):
        raise Malformed("malformed value: not a float")
    return content


_UNPACK: dict[str, Any] = {
    "i": lambda c, d: int(c, 16),
    "u": lambda c, d: "".join(map(chr, c)),
    "b": lambda c, d: bytes.fromhex(c),
    "ba": lambda c, d: bytearray.fromhex(c),
    "c": lambda c, d: complex(*_floats(c)),
    "r": lambda c, d: range(*_ints(c, d)),
    "dec": _decimal,
    "fr": lambda c, d: Fraction(*_ints(c, d)),
    "t": lambda c, d: tuple(_unpack_list(c, d)),
    "s": lambda c, d: set(_keys(c, d)),
    "f": lambda c, d: frozenset(_keys(c, d)),
    "q": lambda c, d: deque(_unpack_list(c, d)),
    "d": lambda c, d: dict(_pairs(c, d)),
    "od": lambda c, d: OrderedDict(_pairs(c, d)),
    "cn": lambda c, d: Counter(dict(_pairs(c, d))),
    "dd": lambda c, d: defaultdict(None, _pairs(c, d)),
}


def _unpack_list(content: Any, depth: int) -> list[Any]:
    if type(content) is not list:
        raise Malformed("malformed value: no list")
    return _unpack(content, depth)


def frame(body: bytes) -> bytes:
    """`body` with its length in front, ready to be written."""
    return HEADER.pack(len(body)) + body
