"""The stages of a pipeline as one: what is said to all of them, how their group is formed, what lost ones are made of.

A group is numbered, and formed anew whenever a stage has another process. With replicas each has its rank, see Place;
stages of the first replica have their own number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rekindle.anatomy import family_of
from rekindle.errors import CheckFailed
from rekindle.recovery.fleet import Command, Fleet, Lost, Member
from rekindle.recovery.injected import injected
from rekindle.recovery.policies import Remedy, Uncovered, remedies
from rekindle.recovery.recovering import TWIN
from rekindle.recovery.split import Part
from rekindle.recovery.stage import Place
from rekindle.recovery.wire import Message
from rekindle.train.config import TrainConfig
from rekindle.train.held import Whole
from rekindle.train.objectives import Batch

MOST = 20  # deaths one after the other that no step comes between


class Stages:
    """Of `parts`, each held by a member of `fleet`, rank by rank; `how` they are trained, see seat.Seat."""

    def __init__(self, fleet: Fleet, parts: Sequence[Part], config: TrainConfig, how: Mapping[str, Any], start: Whole):
        self.fleet, self.parts, self.config, self._how = fleet, parts, config, how
        self.stages = parts[0].place.stages
        self.norms = [1.0] * self.stages  # of the last gradients of each stage's layers
        self._raised: set[int] = set()  # stages with another learning rate
        self.shadow_bytes = 0  # that were sent so far
        self._coded: list[int] = []  # bytes of each stage's shadow that is ready to be sent
        self._due = False  # they are to be coded
        self._generation = 0
        self._injected = injected(config.inject, len(parts))
        of_one = parts[0].config
        self._tied = family_of(of_one).settings(of_one).tie_word_embeddings
        self.buffers = {name: x.clone() for name, x in start.buffers.items()}
        self._begin(start)
        fleet.rehearse(self._become(len(parts) // 2, {}, "rehearse"))

    def _begin(self, start: Whole) -> None:
        for last in range(MOST, -1, -1):
            try:
                self._seat()
                self.fill(start)
                return
            except Lost as lost:  # of those that have just come up
                if not last:
                    raise CheckFailed(f"Stage {lost.stages[0] % self.stages} died {MOST} times at its start.") from None
                self.fleet.forget(lost.stages)

    def __len__(self) -> int:
        return len(self.parts)

    def ask(
        self,
        kind: str,
        told: Mapping[str, Any] | None = None,
        rows: Batch | None = None,
        step: int | None = None,
    ) -> list[Message]:
        """Their answers, rank by rank; raises Lost. Rows go to those at ends, to each replica its part."""
        commands = {}
        for rank, (place, _) in enumerate(self.parts):
            die = self._injected.due(step, rank, kind)
            header = {**(told or {}), **({"die": die} if die else {})}
            own = _part(rows, place) if rows and (place.embeds or place.heads) else {}
            commands[rank] = Command(kind, header, own)
        return [*self._those(commands).values()]

    def ask_first(self, kind: str, told: Mapping[str, Any] | None = None, rows: Batch | None = None) -> list[Message]:
        """Answers of the first replica's stages, which all rows go to; raises Lost."""
        places = [part.place for part in self.parts[: self.stages]]
        own = [rows if rows and (place.embeds or place.heads) else {} for place in places]
        return [*self._those({rank: Command(kind, told or {}, x) for rank, x in enumerate(own)}).values()]

    def _one(self, rank: int, command: Command) -> Message:
        return self._those({rank: command})[rank]

    def _those(self, commands: Mapping[int, Command]) -> dict[int, Message]:
        found = self.fleet.ask({self.fleet.stage(rank): command for rank, command in commands.items()})
        answers = {member.stage: answer for member, answer in found.items()}
        return {rank: answers[rank] for rank in commands}

    # -- what they are -----------------------------------------------------------------------------------------------

    def fill(self, whole: Whole) -> None:
        """All of them, with this model and its moments."""
        held = dict(whole.weights)
        for name, state in whole.moments.items():
            if float(state["step"]):
                held |= {f"{name}.{key}": value for key, value in state.items()}
        ranks = range(len(self))
        self._raised = set()
        self._those({rank: self._become(rank, held) for rank in ranks})
        if self.config.recover == "redundant":
            places = [part.place for part in self.parts]
            self._those({place.after: self._become(place.rank, held, "stand_by") for place in places})
        self._form()
        self._lend(ranks)

    def replace(self, lost: Sequence[int], left: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Others take the places of lost stages, and know what these have left, or nothing yet."""
        self.fleet.forget(lost)
        ranks = [one.stage for one in self._seat() if one.stage is not None]
        self._those({rank: self._become(rank, left.get(rank, self.buffers)) for rank in ranks})
        for rank in left.keys() & ranks if self.config.recover == "redundant" else ():
            twin = {name.removeprefix(TWIN): x for name, x in left[rank].items() if name.startswith(TWIN)}
            self._one(rank, self._become(self.parts[rank].place.before, twin, "stand_by"))
        self._form()

    def _seat(self) -> list[Member]:
        """Whoever takes a place that is free."""
        present = self.fleet.present()
        return self.fleet.appoint([rank for rank in range(len(self)) if rank not in present])

    def _become(self, rank: int, held: Mapping[str, torch.Tensor], kind: str = "become") -> Command:
        place, config = self.parts[rank]
        own = {name: x for name, x in held.items() if place.may_need(name) and not name.startswith(TWIN)}
        told = {"place": place.told(), "config": config, "how": self._how, "lr_scale": self._lr_scale(rank)}
        return Command(kind, told, own)

    def _lr_scale(self, rank: int) -> float:
        return self.config.recover_lr if rank % self.stages in self._raised else 1.0

    def _form(self) -> None:
        self._generation += 1
        self._coded = []  # they are gone with the group
        self.ask("form", {"generation": self._generation})

    def _lend(self, givers: Iterable[int]) -> None:
        """The stages behind these hold a shadow of them."""
        if self.config.recover == "shadow":
            self.ask("lend", {"givers": [*givers]})

    # -- shadows -----------------------------------------------------------------------------------------------------

    def shading(self, step: int) -> list[int] | None:
        """In a step shadows are coded ([]), or sent (their sizes in bytes), or neither."""
        if self._coded:
            return self._coded
        self._due |= self.config.recover == "shadow" and step % self.config.shadow_every == 0
        return [] if self._due else None

    def shaded(self, told: list[int] | None, nbytes: list[int]) -> bool:
        """All have done that; whether shadows have come to where they count from now on."""
        self._coded = nbytes if told == [] else []
        self.shadow_bytes += sum(told or [])
        self._due &= not told  # a round that a death cut off begins again
        return bool(told)

    # -- what lost ones are made of ----------------------------------------------------------------------------------

    def mend(self, lost: Sequence[int], left: Collection[int], seed: int) -> dict[int, dict[str, Any]]:
        """Of each lost one by which policy it was made again, and how far apart the two were that were averaged.

        `left`: those that know already what was left of them. Where a replica of its stage lives one is a copy of that.
        Where none does the first is made again, and the others are copies. Raises Uncovered where there is nothing that
        some can be made of.
        """
        whole = [rank for rank in range(len(self)) if rank not in lost or rank in left]  # shadows and twins included
        living = {rank % self.stages: rank for rank in reversed(whole)}
        gone = sorted({rank % self.stages for rank in lost} - living.keys())
        found = self._remedies(gone)
        copies = [rank for rank in lost if rank % self.stages in living and rank not in left]
        for rank in copies:
            self._copy(living[rank % self.stages], rank)
        done: dict[int, dict[str, Any]] = {rank: {"policy": "left"} for rank in left}
        done |= {rank: {"policy": "replica"} for rank in copies}
        if self.config.recover == "redundant":
            self._from_twins(gone, living)
        for stage in gone:
            done[stage] = {"policy": self.config.recover, **self._made(stage, found[stage], living, gone, seed)}
        for rank in set(lost) - done.keys():
            self._copy(rank % self.stages, rank)
            done[rank] = done[rank % self.stages]
        self._stand_by(lost)
        before = {self.parts[rank].place.before for rank in set(lost) - set(left)}
        self._lend(before | (done.keys() - set(gone) - set(left)))
        return done

    def _remedies(self, gone: Sequence[int]) -> dict[int, Remedy]:
        c, place = self.config, self.parts[0].place
        if not gone:
            return {}
        if self._tied and {*place.firsts, *place.lasts} <= set(gone):
            raise Uncovered("all stages that hold the embeddings, which are the head, are lost")
        return remedies(c.recover, gone, self.stages, self.norms, c.recover_power, c.recover_moments)

    def _made(
        self, stage: int, remedy: Remedy, living: Mapping[int, int], gone: Sequence[int], seed: int
    ) -> dict[str, Any]:
        """Of the first replica; `living`: of each other stage the rank that gives what it has."""
        if remedy.what == "twin":
            return {}
        self._raised.add(stage)
        told = {"what": remedy.what, "lr_scale": self._lr_scale(stage), "seed": seed + stage}
        sources = [(living[source], share) for source, share in remedy.sources]
        answer = self._given(stage, remedy.what, sources, Command("take", told))
        if remedy.moments:
            sources = [(living[source], share) for source, share in remedy.moments]
            self._given(stage, "moments", sources, Command("take_moments"))
        if self.parts[0].place.swapped or self._tied:
            self.ask("share", {"to": stage, "lost": [one for one in gone if one >= stage]})  # others have theirs
        return {"distance": answer.header["distance"]} if "distance" in answer.header else {}

    def _given(self, stage: int, what: str, sources: Sequence[tuple[int, float]], take: Command) -> Message:
        """Its answer when it has taken what others gave it."""
        commands = {source: Command("give", {"to": stage, "what": what}) for source, _ in sources}
        commands[stage] = replace(take, header={**take.header, "sources": sources})
        return self._those(commands)[stage]

    def _copy(self, source: int, to: int) -> None:
        told = {"source": source, "to": to, "lr_scale": self._lr_scale(to)}
        self._those(dict.fromkeys((source, to), Command("copy", told)))

    def _from_twins(self, gone: Sequence[int], living: Mapping[int, int]) -> None:
        for stage in gone:
            held = self._one(living[(stage + 1) % self.stages], Command("give_back")).tensors
            self._one(stage, self._become(stage, held))
        if gone:
            self._form()

    def _stand_by(self, ranks: Sequence[int]) -> None:
        """They have a twin of the stage before, where stages are to have one."""
        for rank in ranks if self.config.recover == "redundant" else ():
            before = self.parts[rank].place.before
            self._one(rank, self._become(before, self._one(before, Command("weights")).tensors, "stand_by"))


def _part(rows: Batch, place: Place) -> Batch:
    return {name: x.tensor_split(place.replicas)[place.replica] for name, x in rows.items()}
