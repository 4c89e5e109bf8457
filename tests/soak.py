"""Every verb that writes is killed, again and again, and then finished: the result must be that of a run left alone.

    python tests/soak.py [--minutes 60] [--seed N] [--verb NAME ...]

A verb's *phases* are the modules of rekindle that change the disc for it, found in a run that is left alone; each is
killed at least three times at a random change of its own, or a little later, and the verb as often at any time. Half
of the signals are SIGKILL, half SIGTERM. What a run left alone makes twice is what each killed one must make, file by
file; steps of an archive by their digests, rows of metrics but for their times. Ends when each verb was killed 20 times
and each phase three times, or when the time is over; the exit code is 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from soak_verbs import VERBS, Verb, make_inputs

KILLS, LEAST = 20, 3  # of a verb, and of each of its phases
ANY = "any time"
TIMES = ("tokens_per_s", "peak_memory", "seconds")
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LIMIT = 300  # seconds for one command


# -- the process that is killed --------------------------------------------------------------------------------


def child(point: int, number: int, delay: float, log: str, words: list[str]) -> None:
    """rekindle WORDS; at the point-th change of the disc below here the signal comes, `delay` seconds later."""
    here, lock, phases = os.getcwd(), threading.Lock(), list[str]()

    def changes() -> None:
        frame = sys._getframe(2)
        while frame and not frame.f_globals.get("__name__", "").startswith("rekindle."):
            frame = frame.f_back
        with lock:
            phases.append(frame.f_globals["__name__"].removeprefix("rekindle.") if frame else "libraries")
            now = len(phases) == point + 1
        if now and delay:
            threading.Timer(delay, os.kill, (os.getpid(), number)).start()
        elif now:
            os.kill(os.getpid(), number)

    def heard(event: str, arguments: tuple) -> None:
        written = event in CHANGES or (event == "open" and arguments[2] & WRITING)
        if written and isinstance(arguments[0], str | os.PathLike):
            path = os.path.abspath(os.fspath(arguments[0]))
            if path.startswith(here):
                changes()

    def wrapped(call):
        def change(*given, **named):
            changes()
            return call(*given, **named)

        return change

    for name in ("pwrite", "copy_file_range", "fsync"):
        setattr(os, name, wrapped(getattr(os, name)))
    sys.addaudithook(heard)
    if log:
        atexit.register(lambda: Path(log).write_text(json.dumps(phases)))
    from rekindle.cli import main

    main(words)


# -- runs ------------------------------------------------------------------------------------------------------


class Place:
    """Inputs, and a folder `work` in which each command runs alone."""

    def __init__(self, base: Path):
        self.base, self.work, self.temporary = base, base / "work", base / "temporary"
        (base / "inputs").mkdir()
        make_inputs(base / "inputs", lambda *words: self.well(base / "inputs", words))

    def environment(self) -> dict[str, str]:
        changed = {"TMPDIR": self.temporary, "REKINDLE_CACHE": self.base / "cache", "MPLCONFIGDIR": self.base / "plots",
                   "TORCHINDUCTOR_CACHE_DIR": self.base / "inductor"}  # fmt: skip
        fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **fixed, **{name: str(path) for name, path in changed.items()}}

    def start(self, folder: Path, words: tuple[str, ...], *prefix: str) -> subprocess.Popen:
        self.temporary.mkdir(exist_ok=True)
        program = [sys.executable, *(prefix or ("-m", "rekindle")), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(program, cwd=folder, env=self.environment(), start_new_session=True, **pipes)

    def well(self, folder: Path, words: tuple[str, ...]) -> str:
        process = self.start(folder, words)
        said, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, (words, said)
        return said

    def fresh(self, verb: Verb) -> None:
        """As it is before the verb; what is cached too."""
        for folder in (self.work, self.temporary, self.base / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        self.work.mkdir()
        if verb.old:
            shutil.copytree(self.base / "inputs" / verb.old, self.work, dirs_exist_ok=True)

    def state(self) -> dict[str, str]:
        """What there is to see in `work`: file -> what names its content."""
        paths = (path.relative_to(self.work) for path in self.work.rglob("*") if path.is_file())
        seen = [path for path in sorted(paths) if not path.parts[0].startswith(".")]
        return {f"{path}{part}": name for path in seen for part, name in named(self.work / path).items()}

    def hidden(self) -> list[str]:
        """But for locks, which go with their process and not with their file."""
        return sorted(path.name for path in self.work.glob(".*") if path.suffix != ".lock")


def named(path: Path) -> dict[str, str]:
    """A file's parts -> what names their content: an archive's steps, or the whole file."""
    if path.suffix == ".rk":
        from rekindle import api

        return {"": ""} | {f"@{step['step']}": step["digest"] for step in api.archive_info(path)["steps"]}
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in data.splitlines()]
        data = json.dumps([{k: v for k, v in row.items() if k not in TIMES} for row in rows]).encode()
    return {"": hashlib.sha256(data).hexdigest()}


class Known:
    """What a verb makes where it is left alone, by which phases, in what time."""

    def __init__(self, place: Place, verb: Verb):
        self.more, log, states = verb.more, place.base / "phases.json", []
        for _ in range(2):
            place.fresh(verb)
            began = time.monotonic()
            process = place.start(place.work, verb.words, __file__, "--child", "-1", "0", "0", str(log))
            said, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, (verb.words, said)
            self.seconds = time.monotonic() - began
            states.append(place.state())
        self.whole, again = states
        assert self.whole.keys() == again.keys()
        self.volatile = {file for file in again if again[file] != self.whole[file]}  # a picture's date, a table's times
        self.points: dict[str, list[int]] = {}
        for point, phase in enumerate(json.loads(log.read_text())):
            self.points.setdefault(phase, []).append(point)
        self.killed = Counter(dict.fromkeys([ANY, *self.points], 0))

    def differences(self, state: dict[str, str]) -> list[str]:
        files = self.whole.keys() | {file for file in state if not (self.more and file.startswith(self.more))}
        return sorted(f for f in files - self.volatile if state.get(f) != self.whole.get(f)) + sorted(
            f for f in self.volatile if f not in state
        )

    @property
    def done(self) -> bool:
        return self.killed.total() >= KILLS and min(self.killed.values()) >= LEAST


# -- one kill --------------------------------------------------------------------------------------------------


def kill(place: Place, verb: Verb, known: Known, phase: str, rng: random.Random) -> str | None:
    """Kill it once and finish it. Returns what was wrong."""
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    place.fresh(verb)
    if phase == ANY:
        process = place.start(place.work, verb.words)
        try:
            process.wait(rng.uniform(0.05, known.seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    else:
        how = (rng.choice(known.points[phase]), int(number), rng.choice([0, 0, rng.uniform(0, 0.02)]))
        process = place.start(place.work, verb.words, __file__, "--child", *map(str, how), "")
    said, _ = process.communicate(timeout=LIMIT)
    if not _alone(process.pid):
        return "a process was left behind"
    unheard = process.returncode == -signal.SIGTERM and not place.hidden()  # before the verb began, or after its end
    if number == signal.SIGTERM and not unheard:
        if process.returncode not in (0, 130, 143) or "Traceback" in said or "bug" in said:
            return f"ended by SIGTERM with {process.returncode}: {said[-600:]}"
        if left := list(place.temporary.iterdir()):
            return f"SIGTERM left {left[0].name} among temporary files"
    if process.returncode == 0 or (verb.at_once and place.state()):
        differ = known.differences(place.state())
        return f"half a result: {differ[:5]}" if differ else None
    process = place.start(place.work, (*verb.words, *verb.again))
    said, _ = process.communicate(timeout=LIMIT)
    if differ := known.differences(place.state()):
        return f"finished with {process.returncode}, and {len(differ)} files differ: {differ[:5]}\n{said[-600:]}"
    if process.returncode not in (0, 2) or "bug" in said:  # 2: it was there already
        return f"not finished: {process.returncode}: {said[-600:]}"
    if process.returncode == 0 and place.hidden():
        return f"left behind: {place.hidden()}"
    return None


def _alone(group: int, seconds: float = 30) -> bool:
    """Whether all processes of a group come to their end; those that do not are ended."""
    for _ in range(int(seconds * 10)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


def soak(place: Place, verbs: list[Verb], minutes: float, seed: int) -> int:
    """Returns how often something was wrong."""
    end, rng, wrong = time.monotonic() + 60 * minutes, random.Random(seed), Counter[str]()
    known: dict[str, Known] = {}
    waiting = list(verbs)
    while waiting:
        for verb in list(waiting):
            left = end - time.monotonic()
            if verb.name not in known and left > 0:
                known[verb.name] = Known(place, verb)
            found = known.get(verb.name)
            if found is None or found.done or end - time.monotonic() < 2 * found.seconds:
                waiting.remove(verb)
                continue
            phase = min(found.killed, key=lambda phase: (found.killed[phase], rng.random()))
            found.killed[phase] += 1
            if problem := kill(place, verb, found, phase, rng):
                wrong[verb.name] += 1
                sys.stdout.write(f"WRONG  {verb.name}, in {phase}: {problem}\n")
                sys.stdout.flush()
    for verb in verbs:
        counts = known[verb.name].killed if verb.name in known else Counter()
        phases = ", ".join(f"{phase} {count}" for phase, count in sorted(counts.items()))
        few = "" if verb.name in known and known[verb.name].done else "  (the time was too short for all)"
        sys.stdout.write(f"{verb.name:<24} {counts.total():>3} kills, {wrong[verb.name]} wrong{few}: {phases}\n")
    return wrong.total()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verb", action="append", choices=[verb.name for verb in VERBS])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as base:
        place = Place(Path(base))
        wrong = soak(place, [v for v in VERBS if v.name in (given.verb or [v.name])], given.minutes, given.seed)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__" and sys.argv[1:2] == ["--child"]:
    child(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5], sys.argv[6:])
elif __name__ == "__main__":
    main()
