"""The stages of a pipeline as one: what is said to all of them, how their group is formed, what lost ones are made of.

A group is numbered, and formed anew whenever a stage has another process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rekindle.anatomy import family_of
from rekindle.recovery.fleet import Command, Fleet, Lost, Member
from rekindle.recovery.injected import injected
from rekindle.recovery.policies import Remedy, Uncovered, remedies
from rekindle.recovery.split import Part
from rekindle.recovery.wire import Message
from rekindle.train.config import TrainConfig
from rekindle.train.held import Whole
from rekindle.train.objectives import Batch


class Stages:
    """Of `parts`, each held by a member of `fleet`; `how` they are trained, see seat.Seat."""

    def __init__(self, fleet: Fleet, parts: Sequence[Part], config: TrainConfig, how: Mapping[str, Any], start: Whole):
        self.fleet, self.parts, self.config, self._how = fleet, parts, config, how
        self.norms = [1.0] * len(parts)  # of the last gradients of each stage's layers
        self.shadow_bytes = 0  # that were sent so far
        self._coded: list[int] = []  # bytes of each stage's shadow that is ready to be sent
        self._generation = 0
        self._injected = injected(config.inject, len(parts))
        of_one = parts[0].config
        self._tied = family_of(of_one).settings(of_one).tie_word_embeddings
        self.buffers = {name: x.clone() for name, x in start.buffers.items()}
        while True:
            try:
                self._seat()
                self.fill(start)
                break
            except Lost as lost:  # of those that have just come up
                fleet.forget(lost.stages)
        fleet.rehearse(self._become(len(parts) // 2, {}, "rehearse"))

    def __len__(self) -> int:
        return len(self.parts)

    def ask(
        self,
        kind: str,
        told: Mapping[str, Any] | None = None,
        rows: Batch | None = None,
        step: int | None = None,
    ) -> list[Message]:
        """Their answers, stage by stage; raises Lost. Rows go to those at ends."""
        commands = {}
        for stage, (place, _) in enumerate(self.parts):
            die = self._injected.due(step, stage, kind)
            header = {**(told or {}), **({"die": die} if die else {})}
            own = (rows or {}) if place.embeds or place.heads else {}
            commands[self.fleet.stage(stage)] = Command(kind, header, own)
        found = {member.stage: answer for member, answer in self.fleet.ask(commands).items()}
        return [found[stage] for stage in range(len(self))]

    def _one(self, stage: int, command: Command) -> Message:
        member = self.fleet.stage(stage)
        return self.fleet.ask({member: command})[member]

    # -- what they are -----------------------------------------------------------------------------------------------

    def fill(self, whole: Whole) -> None:
        """All of them, with this model and its moments."""
        held = dict(whole.weights)
        for name, state in whole.moments.items():
            if float(state["step"]):
                held |= {f"{name}.{key}": value for key, value in state.items()}
        stages = range(len(self))
        self.fleet.ask({self.fleet.stage(stage): self._become(stage, held) for stage in stages})
        if self.config.recover == "redundant":
            self.fleet.ask({self.fleet.stage(self._after(stage)): self._twin(stage, held) for stage in stages})
        self._form()
        self._lend(stages)

    def replace(self, lost: Sequence[int]) -> None:
        """Others take the places of lost stages, and know nothing yet."""
        self.fleet.forget(lost)
        commands = {one: self._become(one.stage, self.buffers) for one in self._seat() if one.stage is not None}
        self.fleet.ask(commands)
        self._form()

    def _seat(self) -> list[Member]:
        """Whoever takes a place that is free."""
        present = self.fleet.present()
        return self.fleet.appoint([stage for stage in range(len(self)) if stage not in present])

    def _become(self, stage: int, held: Mapping[str, torch.Tensor], kind: str = "become") -> Command:
        place, config = self.parts[stage]
        own = {name: x for name, x in held.items() if place.may_need(name)}
        return Command(kind, {"place": place.told(), "config": config, "how": self._how}, own)

    def _twin(self, stage: int, held: Mapping[str, torch.Tensor]) -> Command:
        return self._become(stage, held, "stand_by")

    def _after(self, stage: int) -> int:
        return (stage + 1) % len(self)

    def _form(self) -> None:
        self._generation += 1
        self._coded = []  # they are gone with the group
        self.ask("form", {"generation": self._generation})

    def _lend(self, givers: Sequence[int]) -> None:
        """The stages behind these hold a shadow of them."""
        if self.config.recover == "shadow":
            self.ask("lend", {"givers": [*givers]})

    # -- shadows -----------------------------------------------------------------------------------------------------

    def shading(self, step: int) -> list[int] | None:
        """In a step shadows are coded ([]), or sent (their sizes in bytes), or neither."""
        if self._coded:
            return self._coded
        return [] if self.config.recover == "shadow" and step % self.config.shadow_every == 0 else None

    def shaded(self, told: list[int] | None, nbytes: list[int]) -> bool:
        """All have done that; whether shadows have come to where they count from now on."""
        self._coded = nbytes if told == [] else []
        self.shadow_bytes += sum(told or [])
        return bool(told)

    # -- what lost ones are made of ----------------------------------------------------------------------------------

    def mend(self, lost: Sequence[int], seed: int) -> dict[int, float]:
        """How far apart the two were that a stage was made of, where there were two; see seat.apart.

        Raises Uncovered where there is nothing that some of them can be made of.
        """
        place = self.parts[0].place
        shared = place.swapped or self._tied
        if self._tied and {*place.firsts, *place.lasts} <= set(lost):
            raise Uncovered("all stages that hold the embeddings, which are the head, are lost")
        c = self.config
        found = remedies(c.recover, lost, len(self), self.norms, c.recover_power, c.recover_moments)
        if self.config.recover == "redundant":
            self._from_twins(lost)
            return {}
        distances: dict[int, float] = {}
        for stage, remedy in found.items():
            told = self._take(stage, remedy, seed)
            distances |= {stage: told["distance"]} if "distance" in told else {}
            if shared:
                self.ask("share", {"to": stage, "lost": [one for one in lost if one >= stage]})  # others have theirs
        self._lend([(stage - 1) % len(self) for stage in lost])
        return distances

    def _take(self, stage: int, remedy: Remedy, seed: int) -> dict[str, Any]:
        told = {"what": remedy.what, "lr_scale": self.config.recover_lr, "seed": seed + stage}
        answer = self._given(stage, remedy.what, remedy.sources, Command("take", told))
        if remedy.moments:
            self._given(stage, "moments", remedy.moments, Command("take_moments"))
        return answer.header

    def _given(self, stage: int, what: str, sources: Sequence[tuple[int, float]], take: Command) -> Message:
        """Its answer when it has taken what others gave it."""
        commands = {source: Command("give", {"to": stage, "what": what}) for source, _ in sources}
        commands[stage] = replace(take, header={**take.header, "sources": sources})
        return self.fleet.ask({self.fleet.stage(at): one for at, one in commands.items()})[self.fleet.stage(stage)]

    def _from_twins(self, lost: Sequence[int]) -> None:
        for stage in lost:
            held = self._one(self._after(stage), Command("give_back")).tensors
            self._one(stage, self._become(stage, held))
        for stage in lost:  # which were twins themselves
            before = (stage - 1) % len(self)
            self._one(stage, self._twin(before, self._one(before, Command("weights")).tensors))
        self._form()
