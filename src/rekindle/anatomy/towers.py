"""Families of several towers: an encoder and a decoder, each with a table, settings and layers as a model has.

A tower is a `Family` of its own, whose `section` says where in config.json its config stands. What belongs to no tower,
such as embeddings that all share, is in `top`; `keys` and `fixed` hold what the model's config says above theirs. The
settings of such a model are those of its last tower, the one that writes, with all of them in `towers`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

from rekindle.anatomy.family import Family
from rekindle.anatomy.kinds import mended, misfits
from rekindle.anatomy.settings import Role, Settings, role_of
from rekindle.anatomy.sizes import check_each
from rekindle.anatomy.tensor import Placed
from rekindle.errors import RekindleError, together

ABOVE = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version"}  # a model's, not a tower's


@dataclass(frozen=True)
class Towers(Family):
    embeddings: str = ""  # the tower whose embeddings are the head where it is tied; "": those of `top`
    reads: str = ""  # a tower's config key of the size of what it reads: the first tower's, which it need not tell
    start: str = "decoder_start_token_id"  # the config key of the token that the last tower's texts begin with
    start_above: bool = False  # it stands in the model's config, as does that of padding, and not in the tower's

    @property
    def embed(self) -> Role:
        return Role("embed", tower=self.embeddings)

    def settings(self, config: Mapping[str, Any]) -> Settings:
        config = mended(self, config)
        if problems := list(misfits(self, config)):
            raise together(problems)
        check_each(self, {}, config)
        towers: dict[str, Settings] = {}
        for name, tower in self.towers.items():
            own = tower.own(config)
            if towers and self.reads:
                own = {**own, self.reads: next(iter(towers.values())).hidden_size}
            towers[name] = tower.settings(own)
        above = {name: self.value(config, key) for name, key in self.keys.items()} | dict(self.fixed)
        return replace(towers[next(reversed(towers))], towers=towers, output=self._output(config), **above)

    def config(
        self, settings: Settings, parent: Mapping[str, Any], parent_family: Family, asked: Container[str] = ()
    ) -> dict[str, Any]:
        config = {key: value for key, value in parent.items() if key not in ABOVE}
        for name, tower in self.towers.items():
            own = tower.config(settings.towers[name], tower.own(config), parent_family.towers[name])
            config = tower.put(config, own)
        config |= {key: getattr(settings, name) for name, key in self.keys.items()}
        config = self._class(settings) | {key: value for key, value in config.items() if key not in ABOVE}
        dtype = parent.get("torch_dtype", parent.get("dtype"))
        config |= {"torch_dtype": dtype} if dtype is not None else {}
        config |= self.generating(settings)
        self._check_says(config, settings)
        return config

    def _check_says(self, config: Mapping[str, Any], settings: Settings) -> None:
        """Refuse towers that differ in what the config has one key for."""
        problems = []
        for name, found in self.settings(config).towers.items():
            wanted = settings.towers[name]
            for setting in (f.name for f in fields(Settings) if getattr(found, f.name) != getattr(wanted, f.name)):
                what = f"{self.model_type} has one value of {setting} for all towers: {getattr(found, setting)!r}"
                problems.append(RekindleError(f"{what}, not {getattr(wanted, setting)!r} for its {name}."))
        if problems:
            raise together(problems)

    def remarks(self, settings: Settings) -> list[str]:
        """What users of a model with these settings should know."""
        if not self.generating(settings):
            return []
        reads, writes = (own.num_layers for own in settings.towers.values())
        depths = f"the decoder has {writes} layers, the encoder {reads}, as has transformers' cache (5.23)"
        return [f"{depths}: it generates with use_cache=False alone, and what is made says so"]

    def generating(self, settings: Settings) -> dict[str, Any]:
        reads, writes = (own.num_layers for own in settings.towers.values())
        alike = any(tower.section for tower in self.towers.values())  # the cache is told of each tower's own config
        return {} if alike or writes <= reads else {"use_cache": False}

    def unsaid(self, config: Mapping[str, Any]) -> str | None:
        """Targets are shown with a token before their first, and with padding."""
        *_, writer = self.towers.values()
        says: Family = self if self.start_above else writer
        keys = (key for key in (self.start, "pad_token_id") if says.value(says.own(config), key) is None)
        return next((".".join((*says.section, key)) for key in keys), None)

    def parameters(self, settings: Settings) -> dict[str, int]:
        counts = [super().parameters(settings)]
        counts += [tower.parameters(settings.towers[name]) for name, tower in self.towers.items()]
        return {key: sum(count[key] for count in counts) for key in counts[0]}

    def table(self, settings: Settings, *, fused: bool = False) -> Iterator[tuple[Role, Placed]]:
        yield from super().table(settings, fused=fused)
        for name, tower in self.towers.items():
            for (part, layer, expert, _), placed in tower.table(settings.towers[name], fused=fused):
                yield role_of((part, layer, expert, name)), placed

    def names_of(self, part: str, settings: Settings) -> tuple[str, ...]:
        theirs = (tower.names_of(part, settings.towers[name]) for name, tower in self.towers.items())
        return (*super().names_of(part, settings), *chain.from_iterable(theirs))

    def name_in_memory(self, name: str) -> str:
        for family in self.towers.values():
            name = family.name_in_memory(name)
        return super().name_in_memory(name)

    def name_on_disk(self, name: str) -> str:
        for family in self.towers.values():
            name = family.name_on_disk(name)
        return super().name_on_disk(name)

    def _in_memory(self, part: str, settings: Settings) -> str:
        if part == "embed" and self.embeddings:
            return self.towers[self.embeddings]._in_memory(part, settings)
        return super()._in_memory(part, settings)
