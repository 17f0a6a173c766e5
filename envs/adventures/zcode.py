"""What a Z-machine story file says about its objects: names and where they lie. After the Z-Machine Standards Document 1.1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

DICTIONARY_AT, OBJECTS_AT, GLOBALS_AT, SHORT_FORMS_AT, ALPHABET_AT = 0x08, 0x0A, 0x0C, 0x18, 0x34
"""Header words: the addresses of five tables (section 11)."""
_ROWS = ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "\0\n0123456789.,!?_#'\"/\\-:()")


class Story:
    """A story file. version: 3 to 5, 7 or 8. Raises ValueError for anything else."""

    def __init__(self, content: bytes) -> None:
        self.version = content[0] if content else 0
        if len(content) < 64 or self.version not in (3, 4, 5, 7, 8):
            raise ValueError("it is not a Z-machine story of version 3, 4, 5, 7 or 8")
        self._content = content
        self.globals_at = self._word(GLOBALS_AT)
        small = self.version == 3
        self._size, self._parent, self._properties = (9, 4, 7) if small else (14, 6, 12)
        self._first = self._word(OBJECTS_AT) + (62 if small else 126)
        self.objects = self._count()
        table = self._word(ALPHABET_AT) if self.version >= 5 else 0
        own = content[table : table + 78].decode("latin-1") if table else ""
        self._rows = (own[:26], own[26:52], "\0\n" + own[54:78]) if table else _ROWS
        self.name = lru_cache(maxsize=None)(self._name)
        self.tree = slice(self._first, self._first + self.objects * self._size)
        """Of dynamic memory: attributes and places of all objects."""

    def parent(self, memory: Sequence[int], number: int) -> int:
        """The object that an object lies in, 0 if none. memory: dynamic memory as it is now."""
        at = self._first + (number - 1) * self._size + self._parent
        return memory[at] if self.version == 3 else memory[at] << 8 | memory[at + 1]

    def knows(self, word: str) -> bool:
        """Whether a word is in the dictionary, which holds the first 6 (version 3) or 9 letters."""
        return word[: 6 if self.version == 3 else 9] in self._words

    @cached_property
    def _words(self) -> frozenset[str]:
        at = self._word(DICTIONARY_AT)
        at += 1 + self._content[at]  # the separators
        size, count = self._content[at], self._word(at + 1)
        letters = 4 if self.version == 3 else 6
        entries = (self._content[at + 3 + i * size : at + 3 + i * size + letters] for i in range(count))
        return frozenset(self._text(0, content=entry) for entry in entries)

    def _count(self) -> int:
        """The table ends where the first property list begins."""
        at, end = self._first, len(self._content)
        while at + self._size <= end:
            end = min(end, self._word(at + self._properties) or end)
            at += self._size
        return (end - self._first) // self._size

    def _name(self, number: int) -> str:
        """The short name of an object, lower case; "" if it has none."""
        if not 1 <= number <= self.objects:
            return ""
        at = self._word(self._first + (number - 1) * self._size + self._properties)
        return self._text(at + 1).strip().lower() if 0 < at < len(self._content) and self._content[at] else ""

    def _text(self, at: int, short: bool = True, content: bytes | None = None) -> str:
        """The string at an address (section 3). short: whether it may hold abbreviations. content: other bytes than the story's."""
        content = self._content if content is None else content
        codes: list[int] = []
        while at + 1 < len(content):
            word = content[at] << 8 | content[at + 1]
            codes += [word >> 10 & 31, word >> 5 & 31, word & 31]
            if word & 0x8000:
                break
            at += 2
        out, row, i = "", 0, 0
        while i < len(codes):
            code, i = codes[i], i + 1
            if code == 0:
                out += " "
            elif code < 4:
                if short and i < len(codes):
                    entry = self._word(SHORT_FORMS_AT) + 2 * (32 * (code - 1) + codes[i])
                    out += self._text(2 * self._word(entry), short=False)
                i += 1
            elif code < 6:
                row = code - 3
                continue
            elif row == 2 and code == 6:
                out += chr((codes[i] << 5 | codes[i + 1]) & 0xFF) if i + 1 < len(codes) else ""
                i += 2
            else:
                out += self._rows[row][code - 6]
            row = 0
        return out

    def _word(self, at: int) -> int:
        return self._content[at] << 8 | self._content[at + 1] if at + 1 < len(self._content) else 0
