"""Builds the inner loops in C with the system's compiler. Without one the wheel holds those in numpy alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOMS = Path("src/rekindle")
# C source -> (the library beside it, what its arithmetic needs, who is slower without it)
LIBRARIES = {
    ROOMS / "codec/inner.c": ("_inner.so", [], "archives will be packed by numpy"),
    # no product and sum in one rounding, as numpy has none; and no care for floating-point traps, which stops vectors
    ROOMS / "store/window.c": ("_window.so", ["-ffp-contract=off", "-fno-trapping-math"], "numpy will calculate"),
}


class InnerLoops(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        flags = shlex.split(os.environ.get("CFLAGS", "-O3"))
        for source, (name, own, without) in LIBRARIES.items():
            library = source.with_name(name)
            command = [
                *shlex.split(os.environ.get("CC", "cc")),
                *flags,
                *own,
                "-shared",
                "-fPIC",
                "-fvisibility=hidden",
            ]
            try:
                subprocess.run([*command, "-o", str(root / library), str(root / source)], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"rekindle: no C loops ({error}); {without}, slower", file=sys.stderr)
                continue
            build_data["artifacts"].append(str(library))
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
