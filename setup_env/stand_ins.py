"""Write metadata-only stand-in wheels for packages that vLLM's wheel demands and Posterior never imports.

The default builds of torchvision, torchaudio and torchcodec are CUDA builds whose import breaks transformers beside a CPU
torch, and triton is a gigabyte that no CPU uses. A wheel with the name, a version and nothing inside satisfies pip.

Usage: python stand_ins.py FOLDER
"""

import sys
import zipfile
from pathlib import Path

STAND_INS = ("torchvision", "torchaudio", "torchcodec", "triton")
VERSION = "99.0"


def write_wheel(folder: Path, name: str) -> Path:
    """Write FOLDER/NAME-99.0-py3-none-any.whl holding metadata only; return its path."""
    info = f"{name}-{VERSION}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\nSummary: empty stand-in\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: posterior\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = folder / f"{name}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for package in STAND_INS:
        print(write_wheel(target, package).name)
