"""Several machines: here several commands of one, each in a folder of its own; and ranks of torchrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psutil
import pytest
from api.commands import ran, refused
from recovery.test_recovery_fleet import lives, until
from recovery.test_recovery_train import losses, options
from train.train_helpers import recoveries

import rekindle
from rekindle.config import resolve
from rekindle.errors import CheckFailed, Ended, RekindleError
from rekindle.ranks import alone, number_of_ranks
from rekindle.recovery import crew as crews
from rekindle.recovery import fleet as fleets
from rekindle.recovery import lender, meeting
from rekindle.recovery.crew import Crew
from rekindle.recovery.door import Door, interface_of, listening, versions
from rekindle.recovery.fleet import Fleet
from rekindle.recovery.lender import lend
from rekindle.recovery.meeting import Meeting, address_of, lends, met
from rekindle.recovery.wire import Gone, connect
from rekindle.recovery.worker import device_of
from rekindle.train.config import TrainConfig

pytestmark = pytest.mark.xdist_group("recovery")

SECRET = "0123456789abcdef"
OWN = [one.address for there in psutil.net_if_addrs().values() for one in there if one.family == socket.AF_INET]
ELSE = next((address for address in OWN if not address.startswith("127.")), None)  # of this machine, but loopback
TRAIN = ["--seq-len", "32", "--batch-tokens", "256", "--micro-batch", "2", "--lr", "1e-2", "--recover", "redundant",
         "--patience", "4", "--eval-tokens", "256", "--eval-every", "1M", "--save-every", "1M"]  # fmt: skip


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("REKINDLE_TOKEN", SECRET)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    """Of what works in a folder of the test."""
    yield

    def left() -> list[str]:
        every = psutil.process_iter(["cwd"])
        return [str(one) for one in every if (one.info["cwd"] or "").startswith(str(tmp_path))]

    assert until(lambda: not left()), left()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        return sock.getsockname()[1]


class Machine:
    """A folder, and a command that was typed in it."""

    def __init__(self, folder: Path, words: list[str], environment: dict[str, str]):
        folder.mkdir()
        self.folder = folder
        how = {"cwd": folder, "env": {**os.environ, **environment}, "start_new_session": True}
        with (folder.parent / f"{folder.name}.said").open("w") as said:
            self.process = subprocess.Popen(words, stdout=said, stderr=said, **how)

    def said(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.said").read_text()

    def ends(self) -> int:
        return self.process.wait(180)

    def pids(self) -> list[int]:
        return [one.pid for one in psutil.Process(self.process.pid).children(recursive=True)]

    def listed(self) -> list[dict]:
        """Of the supervisor: all workers that live."""
        try:
            found = json.loads((self.folder / "out.workers.json").read_text())
        except OSError:
            return []
        return [row for row in found if row["role"] != "supervisor"]

    def steps(self) -> int:
        try:
            return (self.folder / ".out.training/metrics.jsonl").read_text().count('"kind": "step"')
        except OSError:
            return 0

    def reaches(self, more: int) -> bool:
        """Some steps more than it has done now."""
        return until((lambda at: lambda: self.steps() >= at)(self.steps() + more), 120)


@pytest.fixture
def machine(tmp_path, corpus) -> Iterator[Callable[..., Machine]]:
    """machine("name", "--join", ...): `train` typed there; without a `source` there is none."""
    made = []

    def start(name: str, *more: object, source: Path = Path("no-such-model"), launch: tuple = (), **environment: str):
        words = [sys.executable, "-m", *launch, "rekindle", "train", str(source), "out", "--data", str(corpus), *TRAIN]
        made.append(Machine(tmp_path / name, [*words, *map(str, more)], environment))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()


# -- several commands ------------------------------------------------------------------------------------------------


def listening_addresses(pids: list[int]) -> set[str]:
    every = [one for pid in pids for one in psutil.Process(pid).net_connections(kind="inet")]
    return {one.laddr.ip for one in every if one.status == psutil.CONN_LISTEN}


def supervises(join: str) -> bool:
    """Whether somebody does at last: the port is taken, so that who comes now lends."""
    return until(lambda: lends(resolve(TrainConfig, {"join": join, "stages": 2}).config), 60)


@pytest.mark.slow
def test_several_machines_train_as_one(small, corpus, tmp_path, machine):
    """To the bit, with workers that die and hang on other machines, which put others in their places."""
    host, tokens = ELSE or "127.0.0.1", 30720
    source, join = small(layers=4), ("--join", f"{host}:{free_port()}", "--stages", 4, "--tokens", tokens)
    first = machine("first", *join, "--workers", 1, source=source)
    assert supervises(join[1])
    others = [machine(name, *join, "--workers", 2) for name in ("second", "third")]
    assert first.reaches(2), first.said()
    there = first.listed()
    assert [row["role"] for row in there].count("spare") == 1
    assert [row.get("host") for row in there].count(host) == 4
    pids = [first.process.pid, *first.pids(), *(pid for one in others for pid in (one.process.pid, *one.pids()))]
    assert listening_addresses(pids) == {host}
    for stage, number in ((2, signal.SIGKILL), (3, signal.SIGSTOP)):
        there = first.listed()
        lost = next(row for row in there if row["stage"] == stage)
        os.kill(lost["pid"], number)
        assert until(lambda pid=lost["pid"]: not lives(pid), 10)
        known = {row["pid"] for row in there}
        assert until(lambda known=known: len({row["pid"] for row in first.listed()} - known) == 1, 30)
    assert [one.ends() for one in (first, *others)] == [0, 0, 0], [one.said() for one in (first, *others)]
    assert all("2 workers lent to" in one.said() and not [*one.folder.iterdir()] for one in others)
    assert [row["stage"] for row in recoveries(first.folder / "out")] == [2, 3]
    assert {"join": None, "workers": None}.items() <= recipe(first.folder / "out").items()
    rekindle.train(source, tmp_path / "one", **options(corpus, tokens=tokens, stages=4, recover="redundant"))
    assert losses(first.folder / "out") == losses(tmp_path / "one")


def recipe(out: Path) -> dict:
    from rekindle.config import read_yaml

    return read_yaml(out / "rekindle.yaml")["steps"][0]["train"]


@pytest.mark.slow
def test_machines_may_go_and_others_come(small, machine):
    """One is killed with its workers, one is asked to end; the run waits for who is typed then."""
    join = ("--join", f"127.0.0.1:{free_port()}", "--stages", 2, "--tokens", 102400)
    first = machine("first", *join, source=small(layers=4))
    assert supervises(join[1])
    second = machine("second", *join)
    assert first.reaches(2), first.said()
    third = machine("third", *join)
    assert until(lambda: len(first.listed()) == 3, 60), third.said()
    pids = [second.process.pid, *second.pids()]
    os.killpg(second.process.pid, signal.SIGKILL)
    assert until(lambda: not any(map(lives, pids[1:])))
    assert first.reaches(5), first.said()
    pids = third.pids()
    third.process.terminate()
    assert third.ends() == 128 + signal.SIGTERM, third.said()
    assert until(lambda: not any(map(lives, pids)))
    fourth = machine("fourth", *join)
    assert first.reaches(5), first.said()
    first.process.send_signal(signal.SIGINT)
    assert first.ends() == 130, first.said()
    assert fourth.ends() == 0, fourth.said()
    rows = [json.loads(row) for row in (first.folder / ".out.training/metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows if row["kind"] == "recovery"] == [1, 1]


@pytest.mark.slow
def test_who_lends_ends_with_the_supervisor(small, machine):
    join = ("--join", f"127.0.0.1:{free_port()}", "--stages", 2, "--tokens", 102400)
    first = machine("first", *join, source=small(layers=4))
    assert supervises(join[1])
    second = machine("second", *join)
    assert first.reaches(2), first.said()
    pids = second.pids()
    first.process.kill()
    assert second.ends() == 1
    assert "The supervisor at 127.0.0.1:" in second.said()
    assert "is gone without a word" in second.said()
    assert until(lambda: not any(map(lives, pids)))


@pytest.mark.slow
def test_who_lends_may_come_first_and_hears_of_a_refusal(machine):
    """The port is taken, so that it lends, and nobody answers; then somebody supervises whose model is not there."""
    port = free_port()
    join = ("--join", f"127.0.0.1:{port}", "--stages", 2, "--tokens", 2048)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", port))
        second = machine("second", *join)
        assert until(lambda: "lends 1 worker" in second.said()), second.said()
        time.sleep(2)
    first = listening("127.0.0.1", port)
    door = Door(first, SECRET.encode())
    assert until(lambda: door._lenders)
    door.close()
    assert second.ends() == 0, second.said()


# -- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_of_torchrun_meet_by_themselves(small, corpus, tmp_path, machine):
    """And it sees no failure where a stage is killed."""
    source = small(layers=4)
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    how = ("--stages", 2, "--workers", 2, "--tokens", 15360)
    both = machine("both", *how, source=source, launch=launch)
    assert both.reaches(2), both.said()
    assert len(both.listed()) == 4
    lost = next(row for row in both.listed() if row["stage"] == 1)
    os.kill(lost["pid"], signal.SIGKILL)
    assert both.ends() == 0, both.said()
    assert both.said().count("rekindle train:") == 1  # the main rank speaks
    assert len(recoveries(both.folder / "out")) == 1
    rekindle.train(source, tmp_path / "one", **options(corpus, tokens=15360, stages=2, recover="redundant"))
    assert losses(both.folder / "out") == losses(tmp_path / "one")


@pytest.mark.slow
def test_torchrun_that_is_asked_to_end_leaves_a_saved_state(small, machine):
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    both = machine("both", "--stages", 2, "--tokens", 102400, source=small(layers=4), launch=launch)
    assert both.reaches(2), both.said()
    both.process.terminate()
    assert both.ends()
    assert "Stopped after step" in both.said()
    assert [*(both.folder / ".out.training").glob("state-*")]


def test_what_a_launcher_sets_is_hidden_for_a_while(monkeypatch):
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node"}.items():
        monkeypatch.setenv(name, value)
    with alone():
        assert number_of_ranks() == 1
        assert "MASTER_ADDR" not in os.environ
    assert number_of_ranks() == 2
    monkeypatch.delenv("LOCAL_RANK")
    with alone():
        assert os.environ["WORLD_SIZE"] == "2"  # a cluster's


@pytest.mark.parametrize(("local", "found"), [("2", "127.0.0.1"), ("1", ELSE)])
def test_the_main_rank_listens_where_others_can_come(monkeypatch, local, found):
    if not found:
        pytest.skip("this machine has its loopback device alone")
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": local, "MASTER_ADDR": found, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert meeting._reachable() == found
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    if local == "1":
        with pytest.raises(RekindleError, match="no other machine can come to it there"):
            meeting._reachable()


# -- who supervises --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [("node-1:29500", ("node-1", 29500)), ("10.0.0.5:1", ("10.0.0.5", 1)), ("[fd00::2]:65535", ("fd00::2", 65535))],
)
def test_addresses(text, address):
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["", "node", "node:", ":29500", "node:0", "node:65536", "node:-1", "node:²", "::"])
def test_what_is_no_address(text):
    with pytest.raises(RekindleError, match="no HOST:PORT"):
        address_of(text)
    with pytest.raises(RekindleError, match="names all machines"):
        address_of("0.0.0.0:29500")


def joined(join: str, **more) -> TrainConfig:
    return TrainConfig(join=join, stages=2, **more)


def test_the_machine_whose_address_it_is_supervises_and_all_others_lend():
    port = free_port()
    config = joined(f"localhost:{port}", workers=3)
    assert not lends(config)
    with met(config) as first:
        assert first.door
        assert (first.address, first.workers) == (("127.0.0.1", port), 3)
        assert lends(config)
        with met(config) as second:  # on the same machine
            assert (second.door, second.workers) == (None, 3)
            assert first.name != second.name
    assert not lends(config)  # it is free again
    assert lends(joined("203.0.113.77:29500"))  # of a net that is nobody's
    with met(TrainConfig(stages=2)) as here:
        assert here.door
        assert (here.address[0], here.workers) == ("127.0.0.1", None)
    with met(TrainConfig()) as none:
        assert none is None
    with pytest.raises(RekindleError, match="has no address here"):
        lends(joined("no-such-host.invalid:29500"))


def test_all_that_is_wrong_with_a_meeting_is_told_together(monkeypatch, tmp_path):
    monkeypatch.setenv("REKINDLE_TOKEN", "short")
    words = ("train", tmp_path / "none", tmp_path / "out", "--lr", "1e-2", "--tokens", "2k")
    for more in ((), ("--dry-run",)):
        told = refused(*words, "--join", "nowhere", "--workers", 0, *more)
        assert "4 problems" in told
        assert "there are none" in told
        assert "REKINDLE_TOKEN has 5 characters" in told
        assert "openssl rand -hex 16" in told
        assert "no HOST:PORT" in told
        assert "workers is 0: 1 is the least" in told
    assert "--join HOST:PORT with it" in refused(*words, "--stages", 2, "--workers", 2)
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "one of 2 processes that" in refused(*words, "--stages", 2, "--join", "127.0.0.1:29500")


def test_dry_runs(small, corpus, tmp_path):
    words = ("--stages", 2, "--lr", "1e-2", "--tokens", "20k", "--seq-len", 32, "--data", corpus, "--dry-run")
    told = ran("train", small(layers=4), tmp_path / "out", *words, "--join", f"127.0.0.1:{free_port()}")
    assert "lends" not in told
    told = ran("train", "none", tmp_path / "out", *words, "--join", "203.0.113.77:29500", "--workers", 2)
    assert "[dry-run] lends 2 workers to 203.0.113.77:29500" in told


# -- who lends -------------------------------------------------------------------------------------------------------


def test_a_wrong_token_and_a_stranger_are_told_in_a_sentence(monkeypatch):
    with closing(listening("127.0.0.1")) as sock:
        door = Door(sock, b"another")
        with pytest.raises(RekindleError, match="does not take this token"):
            lend(Meeting(door.address, SECRET.encode()))
        door.close()
    with closing(listening("127.0.0.1")) as sock:

        def greet():
            met, _ = sock.accept()
            with closing(met):
                met.sendall(b"220 mail.example ESMTP, at your service, and so on and on" * 2)
                met.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(RekindleError, match="or no supervisor at all"):
            lend(Meeting(sock.getsockname(), SECRET.encode()))
        thread.join()


def test_who_finds_nobody_gives_up_after_a_while(monkeypatch):
    monkeypatch.setattr(lender, "LATE", 0.5)
    with pytest.raises(RekindleError, match="Nobody supervises at 127.0.0.1:"):
        lend(Meeting(("127.0.0.1", free_port()), b"token"))


@contextmanager
def lending(**how) -> Iterator[tuple[Door, list]]:
    """A door, and what became of one who lends to it."""
    door, ended = Door(listening("127.0.0.1"), b"token"), []

    def go():
        try:
            ended.append(lend(Meeting(door.address, b"token", workers=2, **how)))
        except RekindleError as error:
            ended.append(error)

    thread = threading.Thread(target=go)
    with ExitStack() as stack:
        stack.callback(thread.join)
        stack.callback(door.close)
        thread.start()
        assert until(lambda: door._lenders)
        yield door, ended


def test_who_lends_waits_as_long_as_a_model_is_loaded_and_ends_when_it_is_told_to():
    with lending() as (_, ended):
        time.sleep(0.5)
        assert not ended
    assert ended == [None]


def test_other_versions_are_refused_and_what_is_no_hello(monkeypatch):
    monkeypatch.setattr("rekindle.recovery.lender.versions", lambda: "rekindle 0.0.1, torch 1.0")
    with closing(Door(listening("127.0.0.1"), b"token")) as door:
        with pytest.raises(RekindleError, match=r"has rekindle .*, this machine rekindle 0\.0\.1, torch 1\.0"):
            lend(Meeting(door.address, b"token"))
        for told in ({}, {"pid": "x", "name": "a"}, {"pid": 1}):
            with closing(connect(door.address, b"token")) as link:
                link.send("hello", **told)
                with pytest.raises(Gone):
                    link.receive()
        assert door.inbox.empty()


def test_workers_that_die_as_they_start_are_not_made_for_ever(monkeypatch):
    monkeypatch.setattr(crews.nursery, "worker", lambda **told: dead_process())
    with lending() as (door, ended):
        door.open(store=1, beat=1.0, model_type="llama")
        assert until(lambda: ended)
    assert isinstance(ended[0], CheckFailed)
    assert "3 workers in a row died" in str(ended[0])


def dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_places_that_become_free_are_taken_again(monkeypatch):
    """Each has its own number, and so its own GPU where there are as many."""
    told: list[dict] = []
    with ExitStack() as stack:

        def worker(**how) -> int:
            told.append(how)
            return stack.enter_context(subprocess.Popen(["sleep", "60"])).pid

        monkeypatch.setattr(crews.nursery, "worker", worker)
        crew = Crew(Meeting(("127.0.0.1", 1), b"token", name="crew", first=4), threads=1, model_type="llama")
        crew.keep(3)
        assert [(how["name"], how["number"]) for how in told] == [("crew/0", 4), ("crew/1", 5), ("crew/2", 6)]
        crew.kill("else/1")  # an equal number of another machine
        crew.kill("crew/1")
        crew.keep(3)
        assert (told[-1]["name"], told[-1]["number"]) == ("crew/3", 5)
        assert len(told) == 4
        crew.close()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [str(device_of(how["number"])) for how in told] == ["cuda:0", "cuda:1", "cuda:2", "cuda:1"]


def test_workers_of_another_machine_are_not_killed_by_their_numbers(tmp_path):
    """One has the number of a process of this machine: it is closed, and who lent it is told."""
    with met(TrainConfig(stages=2)) as here, ExitStack() as stack:
        how = {"threads": 1, "patience": 2.0, "register": tmp_path / "workers.json", "model_type": "llama"}
        found = Fleet(here, 0, **how)
        stack.callback(found.close)
        links = []
        for name, role in (("far", "lender"), ("far/0", "worker")):
            link = stack.enter_context(closing(connect(here.address, here.token)))
            link.send("hello", pid=os.getpid(), name=name, role=role, versions=versions())
            assert link.receive().kind == "welcome"
            links.append(link)
        assert until(lambda: found._hear(0.05) or found.members)
        assert json.loads((tmp_path / "workers.json").read_text())[1]["host"] == "127.0.0.1"
        said = links[0].receive()
        assert (said.kind, said.header["name"]) == ("came", "far/0")
        found.members[0].link.heard -= 5
        found._looked, found._awake = time.monotonic(), time.monotonic() - 5
        found._hear(0.01)
        assert not found.members
        said = links[0].receive()
        assert (said.kind, said.header["name"]) == ("kill", "far/0")
    assert lives(os.getpid())


def test_who_waits_for_others_says_so_and_may_be_interrupted(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(fleets, "SOON", 0.3)
    monkeypatch.setattr(crews.nursery, "worker", lambda **told: os.getpid())
    monkeypatch.setattr(Crew, "close", lambda self: None)
    with met(joined(f"127.0.0.1:{free_port()}")) as here, fleets.Interrupts() as asked, ExitStack() as stack:
        how = {"threads": 1, "patience": 10.0, "register": tmp_path / "workers.json", "model_type": "llama"}
        found = Fleet(here, 0, **how)
        stack.callback(found.close)
        threading.Timer(1, setattr, (asked, "number", signal.SIGTERM)).start()
        with pytest.raises(Ended, match="Stopped while stage 1 had no worker"):
            found.appoint([1, 2])
    assert caplog.messages == ["waiting for 2 workers, up to 600 s: the same command on other machines lends them"]


def test_who_was_asked_to_end_says_so(monkeypatch):
    class Asked(lender.Interrupts):
        number = signal.SIGTERM

    monkeypatch.setattr(lender, "Interrupts", Asked)
    with closing(listening("127.0.0.1")) as sock, ExitStack() as stack:
        door = Door(sock, b"token")
        stack.callback(door.close)
        with pytest.raises(Ended):
            lend(Meeting(door.address, b"token"))
        threading.Timer(1, door.close).start()
        began = time.monotonic()
        with pytest.raises(Ended):  # with others, whom the supervisor still needs
            lend(Meeting(door.address, b"token", launched=True))
        assert time.monotonic() - began > 0.9


def test_interfaces_are_found_by_their_addresses():
    assert interface_of("127.0.0.1") in ("lo", "lo0")
    assert interface_of("203.0.113.77") is None
    if ELSE:
        assert interface_of(ELSE) not in (None, "lo", "lo0")
