"""The processes of a pipeline: strangers, deaths and signals, and that nothing is left of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from recovery.test_recovery_train import losses, options, while_it_runs
from store.folders import hashes
from train.train_helpers import recoveries, rows

import rekindle
from rekindle.errors import RekindleError
from rekindle.recovery import door as doors
from rekindle.recovery import wire, worker
from rekindle.recovery.door import Member, versions
from rekindle.recovery.fleet import Fleet
from rekindle.recovery.group import Group
from rekindle.recovery.meeting import LOOPBACK, met
from rekindle.recovery.nursery import Nursery, _environment, nursery
from rekindle.recovery.stage import Place
from rekindle.recovery.wire import Gone, Link, admitted, connect
from rekindle.train.config import TrainConfig

pytestmark = pytest.mark.xdist_group("recovery")


def until(true: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether it has become true."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(true())


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@contextmanager
def fleet(folder: Path, spares: int = 0, patience: float = 10.0) -> Iterator[Fleet]:
    with met(TrainConfig(stages=2)) as meeting, ExitStack() as stack:
        how = {"threads": 1, "patience": patience, "register": folder / "workers.json", "model_type": "llama"}
        found = Fleet(meeting, spares, **how)
        stack.callback(found.close)
        yield found


def hello(found: Fleet, **told) -> Link:
    """Of a worker who comes."""
    link = connect(found._door.address, found._door._token)
    link.send("hello", **{"pid": os.getpid(), "name": "else/0", "role": "worker", "versions": versions()} | told)
    return link


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What is told to make workers; each is a process that ends at once."""
    found: list[dict] = []

    def fake(**told) -> int:
        found.append(told)
        with subprocess.Popen(["true"]) as process:
            return process.pid

    monkeypatch.setattr(nursery, "worker", fake)
    return found


# -- strangers -------------------------------------------------------------------------------------------------------


def drip(sock: socket.socket, ends: threading.Event) -> None:
    with closing(sock), suppress(OSError):
        while not ends.wait(0.05):
            sock.sendall(b"x")


@pytest.mark.parametrize("side", [lambda sock: admitted(sock, b"token"), None])
def test_a_byte_now_and_then_gains_nobody_time(monkeypatch, side):
    monkeypatch.setattr(wire, "PATIENCE", 0.3)
    ends = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as door, ExitStack() as stack:
        stack.callback(ends.set)
        if side:
            stranger = stack.enter_context(closing(socket.create_connection(door.getsockname())))
            met, _ = door.accept()
            threading.Thread(target=drip, args=(stranger, ends), daemon=True).start()
        else:
            threading.Thread(target=lambda: drip(door.accept()[0], ends), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(Gone):
            side(met) if side else connect(door.getsockname(), b"token")
        assert time.monotonic() - began < 1


def closed(sock: socket.socket, seconds: float) -> bool:
    """By the other side, whatever it said before."""
    sock.settimeout(seconds)
    try:
        while sock.recv(100):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_no_more_strangers_are_heard_at_once_than_there_are_places(monkeypatch, tmp_path):
    monkeypatch.setattr(doors, "STRANGERS", 3)
    monkeypatch.setattr(wire, "PATIENCE", 1.0)
    with fleet(tmp_path) as found, ExitStack() as stack:
        address = found._door.address
        come = [stack.enter_context(closing(socket.create_connection(address))) for _ in range(3)]
        assert all(sock.recv(32) for sock in come)
        more = stack.enter_context(closing(socket.create_connection(address)))
        assert closed(more, 0.5)
        assert all(closed(sock, 3) for sock in come)  # their time is over
        with closing(hello(found)):  # and the places are free
            assert until(lambda: found._hear(0.05) or found.members, 5)


def test_no_file_left_for_a_connection_does_not_shut_the_door():
    failed = []

    class Door(socket.socket):
        def accept(self):
            if len(failed) < 3:
                failed.append(1)
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    with closing(socket.create_server(("127.0.0.1", 0))) as made, ExitStack() as stack:
        door = doors.Door(Door(fileno=made.detach()), b"token")
        stack.callback(door.close)
        with closing(connect(door.address, b"token")):
            assert len(failed) == 3


def test_where_the_door_is_full_a_worker_comes_again(monkeypatch):
    """Some times, and then no more: its supervisor may have gone."""
    tried: list[int] = []

    def full(address, token):
        tried.append(1)
        if len(tried) < 3:
            raise Gone
        return "a link"

    monkeypatch.setattr(worker, "PAUSE", 0.0)
    monkeypatch.setattr(worker, "connect", full)
    assert worker._arrive(("127.0.0.1", 1), b"token") == "a link"
    assert len(tried) == 3
    monkeypatch.setattr(worker, "connect", connect)
    with pytest.raises(Gone):
        worker._arrive(("127.0.0.1", 1), b"token")


# -- where workers come from -----------------------------------------------------------------------------------------

ANSWERS = """
import json, os, sys, time
for line in sys.stdin:
    time.sleep(0.01)
    asked = json.loads(line)
    print(asked["line"], asked["told"]["number"], flush=True)
    {then}
"""


def answering(monkeypatch, *then: str) -> list[subprocess.Popen]:
    """Nurseries that answer with the number that they are told; each then does the next of these."""
    made: list[subprocess.Popen] = []

    def process() -> subprocess.Popen:
        words = [sys.executable, "-c", ANSWERS.format(then=then[min(len(made), len(then) - 1)])]
        made.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return made[-1]

    monkeypatch.setattr("rekindle.recovery.nursery._process", process)
    return made


def test_several_threads_may_ask_for_workers_at_once(monkeypatch):
    made, found, own = answering(monkeypatch, "pass"), {}, Nursery()
    ask = [threading.Thread(target=lambda n=n: found.update({n: own.worker(number=n)})) for n in range(1, 21)]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    own.close()
    assert found == {n: n for n in range(1, 21)}
    assert len(made) == 1


def test_an_answer_that_nobody_read_is_not_the_next_ones(monkeypatch):
    made, own = answering(monkeypatch, "pass"), Nursery()
    assert own.worker(number=1) == 1
    made[0].stdin.write('{"line": 1, "told": {"number": 7}}\n')  # as if a signal had come meanwhile
    assert own.worker(number=2) == 2
    own.close()


def test_another_nursery_takes_the_place_of_one_that_was_killed(monkeypatch):
    made, own = answering(monkeypatch, "pass"), Nursery()
    assert own.worker(number=1) == 1
    made[0].kill()
    assert own.worker(number=2) == 2
    own.close()
    assert len(made) == 2
    made = answering(monkeypatch, "sys.exit()")
    assert own.worker(number=1) == 1
    monkeypatch.setattr("rekindle.recovery.nursery._process", lambda: subprocess.Popen(
        ["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ))  # fmt: skip
    with pytest.raises(RekindleError, match="The process that makes workers died"):
        own.worker(number=2)


def test_a_package_that_this_process_alone_knows_of_is_found(tmp_path):
    """By a script that puts its folder into sys.path."""
    there = tmp_path / "there"
    shutil.copytree(Path(rekindle.__file__).parent, there / "rekindle", ignore=shutil.ignore_patterns("*.pyc", "*.so"))
    said = f"print(1, {4242}, flush=True)\nimport time; time.sleep(60)\n"
    (there / "rekindle/recovery/__main__.py").write_text(said)
    script = f"import sys; sys.path.insert(0, {str(there)!r}); from rekindle.recovery.nursery import nursery as own\n"
    script += "print(own.worker()); own._process.kill()\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "4242\n", done.stderr


def test_the_users_own_paths_and_words_stand(monkeypatch):
    home = str(Path(rekindle.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", "/some/where")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "INFO")
    assert _environment()["PYTHONPATH"] == f"{home}{os.pathsep}/some/where"
    assert _environment()["TORCH_CPP_LOG_LEVEL"] == "INFO"
    monkeypatch.setattr("site.getsitepackages", lambda: [home])  # whose modules must not precede Python's own
    assert _environment()["PYTHONPATH"] == "/some/where"


# -- who is dead -----------------------------------------------------------------------------------------------------


def test_workers_that_die_as_they_start_end_in_a_sentence(asked, tmp_path):
    with fleet(tmp_path) as found, pytest.raises(RekindleError, match="3 workers in a row died before they said a"):
        found.appoint([0])
    assert len(asked) >= 3


@pytest.mark.parametrize(("patience", "beat"), [(10.0, 1.0), (1.0, 0.2)])
def test_signs_of_life_come_several_times_as_often_as_they_are_missed(tmp_path, patience, beat):
    with fleet(tmp_path, patience=patience) as found, closing(hello(found)) as link:
        assert link.receive().header["beat"] == beat


def test_a_long_answer_is_a_sign_of_life_while_it_comes():
    one, other = socket.socketpair()
    with closing(Link(one)) as link, closing(other):

        def receive():
            with suppress(Gone):
                link.receive()

        thread = threading.Thread(target=receive)
        thread.start()
        heard: list[float] = []
        other.sendall(wire.LENGTHS.pack(2, 1 << 16) + b"{}")
        for _ in range(3):
            other.sendall(b"x" * 1000)
            assert until(lambda: link.heard > max(heard, default=0.0), 5)
            heard.append(link.heard)
            time.sleep(0.05)
        assert heard == sorted(set(heard))
        other.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_who_stood_still_himself_takes_nobody_for_dead(tmp_path):
    """A supervisor that was stopped (Ctrl-Z) has not read yet what came meanwhile."""
    one, other = socket.socketpair()
    with fleet(tmp_path, patience=2.0) as found, closing(other):
        member = Member(Link(one), os.getpid(), "else/0")  # of another machine, so that it is not killed
        found.members.append(member)
        for _ in range(2):
            member.link.heard -= 5
            found._looked -= 5
            found._hear(0.01)
            found._hear(0.01)  # at once after it, too: others must have had the time to read
            assert not member.dead
        found._awake -= 5
        found._hear(0.01)
        assert member.dead


JOINS = """
import sys
from rekindle.recovery.group import Group
from rekindle.recovery.stage import Place
Group(("127.0.0.1", int(sys.argv[1]))).form(2, Place(1, 2, 0, 1), "gloo")
"""


def test_who_waits_for_a_member_to_come_is_released_and_forms_another_group(tmp_path):
    """With one that is new and has waited for nobody yet."""
    with fleet(tmp_path) as found:
        group, failed = Group((LOOPBACK, found._store.port)), []

        def form():
            try:
                group.form(1, Place(0, 2, 0, 1), "gloo")
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=form)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        began = time.monotonic()
        while thread.is_alive() and time.monotonic() - began < 20:
            group.release()  # again and again: it may not have begun to wait
            thread.join(0.2)
        assert not thread.is_alive()
        assert "TypeError" not in repr(failed[0])
        assert time.monotonic() - began < 10
        other = subprocess.Popen([sys.executable, "-c", JOINS, str(found._store.port)], env=_environment())
        try:
            group.form(2, Place(0, 2, 0, 1), "gloo")
            assert other.wait(30) == 0
        finally:
            other.kill()
            group.leave()


FORMS = """
import threading
from torch.distributed import TCPStore
from rekindle.recovery.group import Group
from rekindle.recovery.stage import Place

store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
group, failed = Group(("127.0.0.1", store.port)), []

def form():
    try:
        group.form(1, Place(0, 2, 0, 1), "gloo")
    except Exception as error:
        failed.append(error)

thread = threading.Thread(target=form)
thread.start()
thread.join(0.3)
assert thread.is_alive()
while thread.is_alive():
    group.release()
    thread.join(0.3)
assert failed and not isinstance(failed[0], TypeError), failed
"""


@pytest.mark.slow
def test_who_is_released_prints_no_pages(tmp_path):
    """Of C++, about a connection that we closed; what went wrong is in the exception."""
    done = subprocess.run([sys.executable, "-c", FORMS], env=_environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- real ones -------------------------------------------------------------------------------------------------------


def refuses(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.slow
def test_nothing_is_left_of_a_fleet_that_is_closed(tmp_path):
    with fleet(tmp_path, spares=1) as found:
        found.appoint([0])
        pids = {hand.pid for hand in found._crew._hands.values()}
        ports = [found._door.address[1], found._store.port]
        assert len(pids) == 2
        assert not any(map(refuses, ports))
    assert all(map(refuses, ports))
    assert until(lambda: not any(map(lives, pids)))
    assert not list(tmp_path.iterdir())


def command(source: Path, corpus: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "rekindle", "train", str(source), "out", "--data", str(corpus), "-q", "--seq-len",
            "32", "--batch-tokens", "256", "--lr", "1e-2", "--stages", "2", *more]  # fmt: skip


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_run_ends_it_in_order(small, corpus, tmp_path):
    there: list[psutil.Process] = []

    def end(found: dict[int, int]) -> None:
        there.extend(psutil.Process(process.pid).children(recursive=True))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            for one in there:
                one.send_signal(number)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGTERM)

    words = command(small(layers=4), corpus, "--tokens", "1M")
    how = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(words, **how) as process:
        thread = while_it_runs(tmp_path / "out", end)
        said = process.communicate(timeout=120)[1]
        thread.join()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.strip().startswith("Stopped after step")
    assert "--resume goes on where it stopped" in said
    assert '"recovery"' not in (tmp_path / ".out.training/metrics.jsonl").read_text()
    assert len(there) >= 3
    assert not (tmp_path / "out.workers.json").exists()
    assert until(lambda: not any(lives(one.pid) for one in there))


@pytest.mark.slow
def test_who_waits_for_a_stage_that_gives_nothing_ends_with_the_supervisor(small, corpus, tmp_path):
    """Without the process that made it, too, which else would kill it."""
    there: dict[int, int] = {}

    def end(found: dict[int, int]) -> None:
        there.update(found)
        os.kill(psutil.Process(found[0]).ppid(), signal.SIGKILL)
        os.kill(found[1], signal.SIGSTOP)
        time.sleep(1)
        process.kill()

    with subprocess.Popen(command(small(layers=4), corpus, "--tokens", "1M"), cwd=tmp_path) as process:
        thread = while_it_runs(tmp_path / "out", end)
        assert process.wait(120) == -signal.SIGKILL
        thread.join()
    assert until(lambda: not lives(there[0]))
    os.kill(there[1], signal.SIGCONT)
    assert until(lambda: not lives(there[1]))


@pytest.mark.slow
def test_all_that_listens_is_on_the_loopback_device(small, corpus, tmp_path):
    listening: dict[int, set[str]] = {}

    def look(found: dict[int, int]) -> None:
        pids = {os.getpid(), psutil.Process(found[0]).ppid(), *found.values()}
        pids |= {row["pid"] for row in json.loads((tmp_path / "out.workers.json").read_text())}
        for pid in pids:
            there = psutil.Process(pid).net_connections(kind="inet")
            listening[pid] = {one.laddr.ip for one in there if one.status == psutil.CONN_LISTEN}
        assert all(listening[pid] for pid in (os.getpid(), *found.values()))

    thread = while_it_runs(tmp_path / "out", look)
    rekindle.train(small(layers=4), tmp_path / "out", **options(corpus, tokens=25600, stages=2))
    thread.join()
    assert len(listening) >= 4
    assert set().union(*listening.values()) == {"127.0.0.1"}


STANDS_STILL = """
import gc, sys, threading
if "rekindle.recovery" in sys.orig_argv:
    from torch.distributed.pipelining import schedules
    wait = schedules._wait_batch_p2p
    def rank():
        from rekindle.recovery.recovering import Recovering
        return next(one for one in gc.get_objects() if isinstance(one, Recovering)).place.rank
    def forgotten(works):
        try:
            wait(works)
        except Exception:
            if rank() in (2, 3):
                threading.Event().wait()
            raise
    schedules._wait_batch_p2p = forgotten
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--recover", "shadow"), ("--recover", "redundant")])
def test_who_stands_still_leaves_all_that_it_knows(small, corpus, tmp_path, how):
    """Stages 2 and 3 of four: what they were, and held for others, is there to the bit."""
    (tmp_path / "sitecustomize.py").write_text(STANDS_STILL)
    source, before = small(layers=4), os.environ.get("PYTHONPATH", "")
    for out, path in (("whole", before), ("still", os.pathsep.join([str(tmp_path), before]))):
        words = command(source, corpus, "--tokens", "2048", "--stages", "4", *how, "--inject", "3:1:backward,5:0:begin",
                        "--spares", "3", "--shadow-every", "2")  # fmt: skip
        (tmp_path / out).mkdir()
        environment = os.environ | {"PYTHONPATH": path}
        subprocess.run(words, cwd=tmp_path / out, env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    whole, still = (tmp_path / out / "out" for out in ("whole", "still"))
    found = [(row["step"], row["stage"], row["policy"]) for row in rows(still, "recovery")]
    killed = {policy for step, stage, policy in found if (step, stage) in ((3, 1), (5, 0))}
    assert killed - {"left"} == {how[1]}
    assert {policy for _, stage, policy in found if stage > 1} == {"left"}
    assert losses(still) == losses(whole)
    assert hashes(still)["model.safetensors"] == hashes(whole)["model.safetensors"]


NO_OBJECTS = """
import os, sys
if "rekindle.recovery" in sys.orig_argv:
    import torch.distributed as dist
    from torch.distributed import distributed_c10d
    def refuse(*words, **more):
        raise AssertionError("an object is sent, which would be unpickled")
    for name in ("broadcast_object_list", "send_object_list", "recv_object_list", "all_gather_object",
                 "gather_object", "scatter_object_list"):
        assert hasattr(dist, name)
        setattr(dist, name, refuse)
        setattr(distributed_c10d, name, refuse)
    open(os.environ["REFUSED"], "w").close()
"""


@pytest.mark.slow
def test_no_object_is_sent_from_stage_to_stage(small, corpus, tmp_path):
    """torch unpickles those."""
    (tmp_path / "sitecustomize.py").write_text(NO_OBJECTS)
    paths = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "REFUSED": str(tmp_path / "refused")}
    words = command(small(layers=4), corpus, "--tokens", "2048", "--inject", "3:1:backward")
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert (tmp_path / "refused").exists()
    assert len(losses(tmp_path / "out")) == 8
    assert len(recoveries(tmp_path / "out")) == 1


@pytest.mark.slow
def test_two_runs_at_once_are_what_each_is_alone(small, corpus, tmp_path):
    source, found = small(layers=4), {}

    def run(out: str, seed: int) -> None:
        rekindle.train(source, tmp_path / out, **options(corpus, stages=2, seed=seed, inject="4:1:backward"))
        found[out] = losses(tmp_path / out)

    both = [threading.Thread(target=run, args=(f"at once {seed}", seed)) for seed in (1, 2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    for seed in (1, 2):
        run(f"alone {seed}", seed)
        assert found[f"at once {seed}"] == found[f"alone {seed}"]


STANDING = """
import socket, sys, threading, time
from rekindle.recovery.wire import Link
from rekindle.recovery.worker import Worker

class Group:
    def release(self):
        pass

class Standing(Worker):
    def _done(self, message):
        until = time.monotonic() + 60
        while message.kind == "busy" and time.monotonic() < until:
            pass
        time.sleep(60)

Standing(Link(socket.socket(fileno=int(sys.argv[1]))), Group(), __import__("torch").device("cpu"), 1.0).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["still", "busy"])
def test_a_worker_that_was_released_and_stands_still_ends_one_that_works_does_not(command):
    """As a send of gloo's does now and then, which forgets that its connection was closed."""
    ours, theirs = socket.socketpair()
    words = [sys.executable, "-c", STANDING, str(theirs.fileno())]
    with closing(ours), closing(theirs), subprocess.Popen(words, pass_fds=[theirs.fileno()]) as process:
        link = Link(ours)
        link.receive()  # it lives
        link.send(command)
        for _ in range(12):
            with suppress(Gone):
                link.send("release")
            time.sleep(0.5)
        assert process.poll() == (1 if command == "still" else None)
        process.kill()
