"""Run as a program: the same write again and again, killed (SIGKILL) at each call that changes the disc.

    python kill_points.py SOURCE WORK OPTIONS

prints one JSON object per kill (of every third call with {"every": 3}): what was on disc then, and after `resume`. A
kill in a write or a copy comes when half of its bytes are there. No thread is alive when this process forks, so a
child is as good as a process of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path

from rekindle import api
from rekindle.apply.crew import JOURNAL
from rekindle.store.publish import partial_path

CHANGES = ["open", "pwrite", "copy_file_range", "replace", "rename", "unlink", "rmdir", "mkdir", "fsync"]


def kill_at(point: int) -> itertools.count:
    """Die at the point-th call. Returns the count of calls, for a run that is to reach its end."""
    counter, lock = itertools.count(), threading.Lock()

    def counted(name, call):
        def wrapper(*args, **kwargs):
            with lock:
                die = next(counter) == point
            if die and name == "pwrite":
                call(args[0], args[1][: len(args[1]) // 2], args[2])
            if die and name == "copy_file_range":
                call(args[0], args[1], args[2] // 2, *args[3:])
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in CHANGES:
        setattr(os, name, counted(name, getattr(os, name)))
    Path.write_text = counted("write_text", Path.write_text)
    shutil.copyfile = counted("copyfile", shutil.copyfile)
    return counter


def in_child(action) -> int:
    """The exit status of a forked child that did this: 0 well, 9 killed."""
    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        action()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def state(folder: Path) -> dict | None:
    """{file: SHA-256} of everything in a folder, or None where there is none."""
    if not folder.exists():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def finished(folder: Path) -> dict:
    """{shard: [inode, time of change]} of the shards that the journals of an unfinished write count as finished."""
    found = {}
    for journal in folder.rglob(JOURNAL):
        for file in json.loads(journal.read_text())["done"]:
            path = journal.parent / file
            found[str(path.relative_to(folder))] = [path.stat().st_ino, path.stat().st_mtime_ns]
    return found


def say(data: dict) -> None:
    sys.stdout.write(json.dumps(data) + "\n")


def main(source: str, work: str, options: dict) -> None:
    out, old = Path(work) / "out", options.pop("old", None)
    experts, every, joins = options.pop("experts", 0), options.pop("every", 1), options.pop("join", False)
    merge = options.pop("merge", None)

    def save(**how):
        if joins:
            api.join(out) if (out / "parts").exists() else None
        else:
            model = api.merge(**merge) if merge else api.upcycle(source, experts=experts)
            model.save(out, **options, **how)

    def fresh():
        for path in Path(work).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if old:
            shutil.copytree(old, out)

    def count():
        counter = kill_at(-1)
        save()
        total = next(counter)
        (Path(work) / "count").mkdir()
        (Path(work) / "count" / str(total)).touch()

    fresh()
    assert in_child(count) == 0
    total = int(next((Path(work) / "count").iterdir()).name)
    say({"whole": state(out)})
    for point in range(0, total, every):
        fresh()

        def killed(point=point):
            kill_at(point)
            save()

        status = in_child(killed)
        said = {"point": point, "status": status, "out": state(out), "done": finished(partial_path(out))}
        if said["out"] is None or old or "part" in options:
            assert in_child(lambda: save(resume=True)) == 0
        said["resumed"] = state(out)
        places = {name: out / name for name in said["done"]}
        said["kept"] = {name: [path.stat().st_ino, path.stat().st_mtime_ns] for name, path in places.items()}
        said["left"] = sorted(path.name for path in Path(work).iterdir())
        say(said)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
