"""Whether an encoder-decoder works as one: what goes wrong when two models are joined, looked for in what was made.

The failures are those that users of such models met: a decoder that sees what it is to write, an output that is the
same whatever was read, cross-attention that is not there or not trained, padding that counts, a cache that writes
something else. No text is needed: sources and targets are random tokens. What is shown is what `train` shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rekindle.anatomy import runtime_names
from rekindle.apply.load import load_model, quietly
from rekindle.apply.probe import check_shift, two_towers
from rekindle.edit import Checkpoint
from rekindle.errors import first_line

if TYPE_CHECKING:
    import torch

IGNORED = -100  # a label that has no loss
ROWS, READ, WRITTEN = 2, 9, 8  # texts, tokens of a source and of a target
NONE = 1e-5  # change of logits, of the largest, that is none


@dataclass(frozen=True)
class Sound:
    """Changes are the largest of the logits, of the largest logit, in float32."""

    ahead: float  # before a token that was changed: what a decoder sees of what it is to write
    source: float  # where the source is another
    padding: float  # where sources and targets are padded
    cross_tensors: int  # that bring what was read into the decoder
    cross_trained: int  # of these, with a gradient
    cached: bool | None  # whether it writes the same with a cache; None where it writes without one alone
    cannot_write: str  # why it generates nothing
    silent: bool  # it was made so that what it writes does not depend on the source yet

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def problems(self) -> Iterator[str]:
        if self.ahead > NONE:
            yield f"its decoder sees what it is to write: logits before a changed token differ by {self.ahead:.1e}"
        if self.source <= NONE and not self.silent:
            yield "what it writes does not depend on what it reads"
        if self.padding > NONE:
            yield f"padding counts: logits change by {self.padding:.1e}"
        if not self.cross_trained:
            yield "no gradient reaches its cross-attention"
        if self.cached is False:
            yield "it writes something else with a cache than without"
        if self.cannot_write:
            yield f"it cannot write: {self.cannot_write}"


def sound(checkpoint: Checkpoint, *, silent: bool = False) -> Sound:
    """Raises RekindleError where transformers cannot load it, and where it does not say with what its texts begin."""
    import torch

    check_shift(checkpoint.folder)
    model = load_model(checkpoint.folder, output="seq2seq").eval()
    draw = torch.Generator().manual_seed(0)
    vocab = min(own.vocab_size for own in checkpoint.settings.towers.values())
    source, target = (torch.randint(vocab // 4, vocab, (ROWS, n), generator=draw) for n in (READ, WRITTEN))
    with torch.no_grad():
        whole = _logits(model, source, target)
        largest = float(whole.abs().max())
        later = target.clone()
        later[:, WRITTEN // 2 :] = target[:, : WRITTEN - WRITTEN // 2]
        ahead = (_logits(model, source, later) - whole)[:, : WRITTEN // 2 + 1]  # which is foreseen from those before it
        other = _logits(model, source.flip(1), target) - whole
        padded = _logits(model, source, target, padding=3) - whole
    changes = {
        name: float(x.abs().max()) / largest for name, x in (("ahead", ahead), ("source", other), ("padding", padded))
    }
    trained = _with_gradient(model, checkpoint, source, target)
    cached, cannot = _written(model, source)
    cannot = "; ".join(checkpoint.family.remarks(checkpoint.settings)) or cannot if cannot else ""
    return Sound(**changes, cross_tensors=len(trained), cross_trained=sum(trained), cached=cached, cannot_write=cannot,
                 silent=silent)  # fmt: skip


def _logits(model: Any, source: torch.Tensor, target: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """Of the target, which so many tokens of padding may follow, as they may follow the source [N, T, V]."""
    import torch

    pad = torch.full((len(source), padding), getattr(model.config, "pad_token_id", None) or 0)
    mask = torch.cat([torch.ones_like(source), torch.zeros_like(pad)], 1)
    labels = torch.cat([target, torch.full_like(pad, IGNORED)], 1)
    out = model(**two_towers(model, torch.cat([source, pad], 1), mask, labels))
    return out.logits[:, : target.shape[1]].float()


def _with_gradient(model: Any, checkpoint: Checkpoint, source: torch.Tensor, target: torch.Tensor) -> list[bool]:
    """Of each tensor that reads what the encoder has read."""
    import torch

    parameters = dict(model.named_parameters())
    disk = {name: on for name, on in runtime_names(model.config.to_dict(), parameters).items() if isinstance(on, str)}
    writer = list(checkpoint.settings.towers)[-1]
    part = "attn." if checkpoint.settings.merged_attention else "cross."
    wanted = {
        name for role, (name, _, _) in checkpoint.rows.items() if role.tower == writer and role.part.startswith(part)
    }
    model(**two_towers(model, source, torch.ones_like(source), target)).logits.float().logsumexp(-1).sum().backward()
    read = [parameters[name] for name, on in disk.items() if on in wanted]
    return [p.grad is not None and bool(p.grad.any()) for p in read]


def _written(model: Any, source: torch.Tensor) -> tuple[bool | None, str]:
    """Whether it writes the same with a cache, and why it writes nothing."""
    import torch

    how = {"attention_mask": torch.ones_like(source), "max_new_tokens": WRITTEN, "do_sample": False}
    try:
        with quietly():
            without = model.generate(source, use_cache=False, **how)
            if getattr(model.config, "use_cache", True) is False:
                return None, ""
            return torch.equal(model.generate(source, use_cache=True, **how), without), ""
    except Exception as error:  # of tokens that are not said, and of what else a class wants
        return None, first_line(error)
