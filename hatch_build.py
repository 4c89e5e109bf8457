"""Builds the codec's inner loops with the system's compiler. Without one the wheel holds the loops in numpy alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/rekindle/codec/inner.c")
LIBRARY = SOURCE.with_name("_inner.so")


class InnerLoops(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        flags = shlex.split(os.environ.get("CFLAGS", "-O3"))
        command = [*shlex.split(os.environ.get("CC", "cc")), *flags, "-shared", "-fPIC", "-fvisibility=hidden", "-o"]
        try:
            subprocess.run([*command, str(root / LIBRARY), str(root / SOURCE)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"rekindle: no C loops ({error}); archives will be packed by numpy, slower", file=sys.stderr)
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
