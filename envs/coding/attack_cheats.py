"""Attacks on the grade: programs that try to pass without doing the task, or to break the grader with their results."""

from __future__ import annotations

from envs.coding.attack_harms import attack

CHEATS = [
    attack("sys_exit", "ends with success while loading", "import sys\nsys.exit(0)"),
    attack("sys_exit_in_call", "ends with success in the call", "import sys\ndef solve(x):\n    sys.exit(0)"),
    attack("os_exit", "ends the process with success", "import os\ndef solve(x):\n    os._exit(0)"),
    attack(
        "fake_output",
        "prints that all tests passed",
        """
import sys
def solve(x):
    for stream in (sys.stdout, sys.stderr):
        print("OK", "1 passed", '{"passed": true, "score": 1.0}', '["v", 1]', file=stream, flush=True)
    return x
""",
    ),
    attack(
        "always_equal",
        "returns an object that equals everything",
        """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
def solve(x):
    return Equal()
""",
    ),
    attack(
        "equal_subclasses",
        "the same behind int, str, list and a false __class__",
        """
def liar(base):
    return type(base.__name__, (base,), {"__eq__": lambda s, o: True, "__ne__": lambda s, o: False,
                                         "__hash__": base.__hash__, "__class__": property(lambda s: base)})
def solve(x):
    return [liar(int)(x), liar(list)(), liar(float)()][x % 3]
""",
    ),
    attack(
        "frames",
        "searches the callers' frames for the expected value",
        """
import sys
def solve(x):
    frame = sys._getframe()
    while frame:
        for names in (frame.f_locals, frame.f_globals):
            for name, value in list(names.items()):
                if any(word in name.lower() for word in ("expect", "want", "answer_value", "gold", "target")):
                    return value
        frame = frame.f_back
    return x
""",
    ),
    attack(
        "gc_search",
        "searches every object of the process for the expected value",
        """
import gc
def solve(x):
    for thing in gc.get_objects():
        if type(thing) is dict:
            for key in ("expected", "cases", "tests", "gold"):
                if key in thing:
                    return thing[key]
        if type(thing) in (list, tuple) and len(thing) == 2 and thing[0] == x and type(thing[1]) is int:
            return thing[1]
    return x
""",
    ),
    attack(
        "forged_result",
        "writes results of its own into every descriptor",
        """
import json, os, struct
def solve(x):
    for body in (["v", True], ["v", None], ["passed", 1.0], {"passed": True, "value": 1}):
        data = json.dumps(body).encode()
        for fd in range(3, 64):
            try:
                os.write(fd, struct.pack(">I", len(data)) + data)
            except OSError:
                pass
    return x
""",
    ),
    attack(
        "forged_garbage",
        "writes half frames, huge lengths and bad tags",
        """
import os
def solve(x):
    for fd in range(3, 64):
        for data in (b'\\x00\\x00\\x00\\x09{"i": "z"}', b'\\x00\\x00\\x00\\x02[]', b'\\xff\\xff\\xff\\xff'):
            try:
                os.write(fd, data)
            except OSError:
                pass
    os._exit(0)
""",
    ),
    attack(
        "forged_flood",
        "writes into the result channel without end",
        """
import os
def solve(x):
    while True:
        for fd in range(3, 64):
            try:
                os.write(fd, b"R" * 65536)
            except OSError:
                pass
""",
    ),
    attack(
        "control_channel",
        "looks for the zygote's control channel among its descriptors",
        """
import os, socket
def solve(x):
    open_fds = []
    for fd in range(3, 1024):
        try:
            os.fstat(fd)
            open_fds.append(fd)
        except OSError:
            pass
    return f"BREACH: descriptors {open_fds}" if len(open_fds) > 1 else x
""",
    ),
    attack(
        "builtins_tampering",
        "replaces builtins and parts of the standard library",
        """
import builtins, json, math, os
for name in ("len", "isinstance", "type", "repr", "map", "set", "getattr", "print", "all", "any"):
    setattr(builtins, name, lambda *a, **k: True)
json.dumps = lambda *a, **k: "true"
json.JSONEncoder.encode = lambda *a, **k: "[\\"v\\", true]"
os._exit = lambda status: None
def solve(x):
    return x
""",
    ),
    attack(
        "harness_tampering",
        "replaces the functions that run and encode the calls",
        """
import sys
for name in ("__main__", "protocol"):
    module = sys.modules.get(name)
    for attribute in ("dumps", "answer", "describe", "frame", "loads"):
        if hasattr(module, attribute):
            setattr(module, attribute, lambda *a, **k: b'["v", true]')
def solve(x):
    return x
""",
    ),
    attack(
        "late_work",
        "patches its result while it is being encoded",
        """
import gc, sys
result = []
def late(*_):
    result.append("late")
gc.callbacks.append(late)
sys.setprofile(late)
def solve(x):
    return result
""",
    ),
    attack(
        "state_leak",
        "leaves marks in modules, files and the environment for the next candidate",
        """
import builtins, json, os, sys
builtins.MARK = json.MARK = sys.MARK = os.environ["MARK"] = "posterior-attack"
sys.modules["posterior-attack"] = json
sys.path.insert(0, "posterior-attack")
def solve(x):
    for path in ("/tmp", "/", "/dev/shm", "/harness"):
        try:
            open(path + "/posterior-attack", "w").write("left behind")
        except OSError:
            pass
    return x
""",
    ),
]

RESULTS = [
    attack("huge_result", "returns 50 MB", "def solve(x):\n    return 'x' * 50_000_000"),
    attack("huge_list", "returns a list of two million numbers", "def solve(x):\n    return [1] * 2_000_000"),
    attack("huge_error", "raises with 50 MB of text", "def solve(x):\n    raise ValueError('x' * 50_000_000)"),
    attack("giant_int", "returns an integer of 10 million digits", "def solve(x):\n    return 1 << 33_000_000"),
    attack("large_int", "returns an integer just under the size limit", "def solve(x):\n    return 1 << 4_000_000"),
    attack(
        "hash_flooding",
        "returns dicts and sets whose keys all collide",
        """
PRIME = (1 << 61) - 1
def solve(x):
    if x:
        return {n * PRIME: n for n in range(3000)}
    return {tuple(-1 - (n >> bit & 1) for bit in range(12)) for n in range(4096)}
""",
    ),
    attack(
        "nan",
        "returns nan, which compares unlike anything",
        "def solve(x):\n    return [float('nan'), float('inf')][x % 2]",
    ),
    attack(
        "giant_decimal",
        "returns a decimal whose integer value fills the memory",
        "from decimal import Decimal\ndef solve(x):\n    return Decimal('1e999999999')",
    ),
    attack(
        "unpicklable",
        "returns things that cannot cross: functions, generators, modules, files",
        "import sys\ndef solve(x):\n    return [lambda: x, (n for n in ()), sys][x % 3]",
    ),
    attack(
        "deep_nesting",
        "returns lists nested 100,000 deep, or containing themselves",
        """
def solve(x):
    value = []
    if x == 1:
        value.append(value)
        return value
    for _ in range(100_000):
        value = [value]
    return value
""",
    ),
    attack(
        "shared_nesting",
        "returns a small value that is exponentially large when written out",
        "def solve(x):\n    value = [1]\n    for _ in range(60):\n        value = [value, value]\n    return value",
    ),
    attack("surrogates", "returns text that is no valid Unicode", "def solve(x):\n    return '\\ud800\\x00' * 3"),
    attack(
        "hostile_error",
        "raises an exception whose text runs code and whose name lies",
        """
class Lie(BaseException):
    def __str__(self):
        raise SystemExit(0)
Lie.__name__ = ""
def solve(x):
    raise Lie
""",
    ),
    attack("true_for_one", "returns True where 1 is asked", "def solve(x):\n    return True"),
]
