"""One paper, one file. This table is what the command line, the documentation and the contract test read.

What else a new method needs is in CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rekindle.anatomy import Adapter, Nameless
from rekindle.errors import RekindleError, nearest

if TYPE_CHECKING:
    from rekindle.edit import Checkpoint


BOTH = "both"  # towers, each by itself


class Method(NamedTuple):
    verb: str
    where: str  # "module:function"; its Config is in the module
    summary: str
    paper: str  # title and arXiv id, or "" where there is none
    url: str = ""
    trial: Mapping[str, Any] = MappingProxyType({})  # options that show whether it applies to a checkpoint
    examples: tuple[str, ...] = ()  # what to type after the verb, for help and documentation; a test runs each
    takes: Literal["tower", "model", "models"] = "tower"  # one tower of a model, all of it, or several models by name
    beside: str = ""  # the option that may name one more model
    named_by: tuple[str, ...] = ()  # options that name all of its models, each by a word of its own: no SRC does

    @property
    def commands(self) -> list[str]:
        return [f"rekindle {self.verb} {words}" for words in self.examples]

    @property
    def module(self) -> Any:
        return import_module(self.where.split(":")[0])

    @property
    def config(self) -> type:
        return self.module.Config

    @property
    def function(self) -> Callable[[Any, Any], Checkpoint]:
        return getattr(self.module, self.where.split(":")[1])

    def cited(self, options: Mapping[str, Any]) -> str:
        """The papers behind it, and a link: of a method of several ways those of the one that these options name."""
        own = getattr(self.module, "cited", None)
        return own(options) if own else f"{self.paper} {self.url}".strip()

    def renamed(self, config: Any, names: Mapping[str, str]) -> Any:
        """The config with other names for the models that options name; `random:NAME` names one too."""
        new = {}
        for option in (*self.named_by, *([self.beside] if self.beside else [])):
            text = getattr(config, option) or ""
            word, _, name = text.partition(":")
            if text in names or name in names:
                new[option] = names[text] if text in names else f"{word}:{names[name]}"
        return replace(config, **new)

    def combine(self, parents: Mapping[str, Checkpoint], config: Any) -> Checkpoint:
        """What it makes of several models by name; of a method that takes one it is the first."""
        if self.takes == "models":
            return self.function(parents, config)
        first, *others = parents
        return self.apply(replace(parents[first], beside={name: parents[name] for name in others}), config)

    def apply(self, parent: Checkpoint, config: Any, tower: str | None = None) -> Checkpoint:
        """What it makes of a checkpoint; where that has several towers, and the method sees one, of `tower`, or "both".

        Raises RekindleError where it does not fit, or no tower is named.
        """
        if isinstance(parent.family, Adapter) or (self.takes == "tower" and isinstance(parent.family, Nameless)):
            raise parent.family.refusing(self.verb)
        if self.takes != "tower" or not parent.family.towers:
            if tower:
                why = "it has one tower" if self.takes == "tower" else f"{self.verb} takes all of it"
                raise RekindleError(f"No tower of this {parent.family.model_type} can be chosen: {why}.")
            return self.function(parent, config)
        towers = _towers(parent, tower)
        return parent.with_towers({name: self.function(parent.tower(name), config) for name in towers})


METHODS = {
    method.verb: method
    for method in (
        Method(
            "upcycle",
            "rekindle.methods.sparse_upcycling:sparse_upcycling",
            "Turn a dense model into a mixture of experts that computes the same function.",
            "Komatsuzaki et al. 2023, Sparse Upcycling (arXiv 2212.05055); its drop: Nakamura et al. 2025, "
            "Drop-Upcycling (arXiv 2502.19261); its virtual groups: He et al. 2024, Upcycling Large Language Models "
            "into Mixture of Experts (arXiv 2410.07524)",
            "https://arxiv.org/abs/2212.05055",
            {"experts": 8},
            examples=(
                "SRC OUT --experts 8 --top-k 2",
                "SRC OUT --experts 4 --dry-run",
                "SRC OUT --experts 8 --engine llama.cpp",
                "SRC OUT --experts 8 --init drop --drop-ratio 0.5",
                "SRC OUT --experts 64 --top-k 8 --init virtual-group --granularity 8",
                "SRC OUT --experts 60 --top-k 4 --init virtual-group --granularity 4 --shared-experts 4",
            ),
        ),
        Method(
            "grow-depth",
            "rekindle.methods.grow_depth:grow_depth",
            "Make a model deeper out of copies of its own layers.",
            "Orthogonal Growth (arXiv 2510.08008), LLaMA Pro (arXiv 2401.02415), SOLAR (arXiv 2312.15166)",
            "https://arxiv.org/abs/2510.08008",
            {"factor": 2},
            examples=(
                "SRC OUT --factor 2",
                "SRC OUT --layers 3 --order llama-pro",
                "T5 OUT --factor 2 --tower decoder",
            ),
        ),
        Method(
            "grow-experts",
            "rekindle.methods.grow_experts:grow_experts",
            "Give a mixture of experts more of them, copies with a little noise.",
            "Orthogonal Growth (arXiv 2510.08008); Dwivedi et al. 2026, Expert Upcycling (arXiv 2604.19835)",
            "https://arxiv.org/abs/2510.08008",
            examples=(
                "MOE OUT --factor 2 --noise 0.01",
                "MOE OUT --top-k keep --copies utility --scores scores.json",
            ),
        ),
        Method(
            "gqa",
            "rekindle.methods.gqa:gqa",
            "Pool key-value heads, for a smaller cache and faster decoding; or repeat them.",
            "Ainslie et al. 2023, GQA (arXiv 2305.13245)",
            "https://arxiv.org/abs/2305.13245",
            {"kv_heads": 1},
            examples=(
                "SRC OUT --kv-heads 1",
                "SRC OUT --kv-heads 2 --pool aligned --data stdlib --data-tokens 8k",
            ),
        ),
        Method(
            "rewrite",
            "rekindle.methods.rewrite:rewrite",
            "Write the same checkpoint in other shards, another dtype or another layout.",
            "",
            examples=(
                "SRC OUT --max-shard-size 2GB",
                "SRC OUT --dtype bfloat16",
            ),
            takes="model",
        ),
        Method(
            "merge",
            "rekindle.methods.merge:merge",
            "Make one model of several, or of a run's saved checkpoints.",
            "Wortsman et al. 2022, Model soups (arXiv 2203.05482); Yadav et al. 2023, TIES (arXiv 2306.01708); "
            "Yu et al. 2023, DARE (arXiv 2311.03099); Jang et al. 2024, Model Stock (arXiv 2403.19522); Tian et al. "
            "2025, WSM (arXiv 2507.17634)",
            "https://arxiv.org/abs/2203.05482",
            examples=(
                "SRC SRC2 OUT --weights 0.3,0.7",
                "SRC SRC2 OUT --how slerp --t 0:1",
                "SRC SRC2 OUT --how ties --base SRC3 --density 0.5",
                "'run/checkpoint-*' OUT --how ema --decay 0.9",
            ),
            takes="models",
            beside="base",
        ),
        Method(
            "repair",
            "rekindle.methods.repair:repair",
            "Make a checkpoint whole again that has lost layers or a shard.",
            "All is Not Lost: LLM Recovery without Checkpoints (arXiv 2506.15461)",
            "https://arxiv.org/abs/2506.15461",
            {"lost": "layers:1"},
            examples=(
                "SRC OUT --lost layers:1",
                "SRC OUT --lost layers:0-1 --from SRC2",
            ),
            takes="model",
            beside="from_",
        ),
        Method(
            "warm-start",
            "rekindle.methods.warm_start:warm_start",
            "Join checkpoints into an encoder-decoder: one reads, one writes.",
            "Rothe, Narayan and Severyn 2020, Leveraging Pre-trained Checkpoints for Sequence Generation Tasks "
            "(arXiv 1907.12461)",
            "https://arxiv.org/abs/1907.12461",
            examples=(
                "OUT --encoder BERT --decoder same --share all",
                "OUT --encoder BERT --decoder GPT2 --cross silent",
                "OUT --variant bert2rnd --encoder BERT",
            ),
            takes="models",
            named_by=("encoder", "decoder"),
        ),
    )
}


def _towers(parent: Checkpoint, tower: str | None) -> list[str]:
    names = list(parent.family.towers)
    if tower == BOTH:
        return names
    if tower in names:
        return [tower]
    has = f"This {parent.family.model_type} has {len(names)} towers, {' and '.join(names)}"
    what = f"{has}: none is named {tower!r}." if tower else f"{has}: which of them is meant?"
    raise RekindleError(what, hint=f"--tower {', '.join(names)} or {BOTH}")


def method_named(verb: str) -> Method:
    if verb in METHODS:
        return METHODS[verb]
    raise RekindleError(f"There is no method {verb!r}.", hint=nearest(verb, METHODS) or ", ".join(METHODS))
