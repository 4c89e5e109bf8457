"""A probe: what a model is shown, and which of its outputs are compared. One for each kind of output.

`verify` and calibration show a text; training and `evaluate` show their batches to models in the same words.

N rows   T tokens   D hidden size   V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from rekindle.anatomy import family_of
from rekindle.edit.promise import EXACT
from rekindle.errors import RekindleError

if TYPE_CHECKING:
    import torch

    from rekindle.anatomy import Settings
    from rekindle.store.folder import Folder

Shown = Mapping[str, Any]  # tensors by name, a row of each along the first axis


def one_tower(input_ids: Any, attention_mask: Any = None) -> dict[str, Any]:
    """What a model of one tower is called with; a mask where rows are padded."""
    mask = {} if attention_mask is None else {"attention_mask": attention_mask}
    return {"input_ids": input_ids, **mask, "use_cache": False}


def two_towers(model: Any, input_ids: Any, attention_mask: Any, labels: Any) -> dict[str, Any]:
    """What an encoder-decoder is called with, teacher-forced; `labels` are -100 where nothing is foreseen.

    The decoder reads the labels by the model's own shift. The mask is always given: without one, padding is read.
    """
    shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return _both(input_ids, attention_mask, shifted)


def check_shift(folder: Folder) -> None:
    """Raises RekindleError where a config has not what an encoder-decoder shifts labels with, see `two_towers`."""
    family = family_of(folder.config)
    if key := family.unsaid(folder.config):
        what = f"{key} is null: a {family.model_type} is shown no target without it."
        raise RekindleError(what, where=folder.path / "config.json", hint=f"{key} in config.json: the id of a token")


def _both(input_ids: Any, attention_mask: Any, decoder_input_ids: Any) -> dict[str, Any]:
    """Nothing of what is written is hidden: by themselves some classes hide what looks like padding, and where a text
    begins with that token, its first places then look at all that follow.
    """
    import torch

    own = {"decoder_attention_mask": torch.ones_like(decoder_input_ids), "use_cache": False}
    return {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids, **own}


class Probe:
    """Of a model that puts out logits for each token it is shown."""

    compared = "logits"
    exact = EXACT  # largest difference, of the largest output, that is none

    def least(self, settings: Settings) -> int:
        """How many tokens a text must have for all of the model to be at work on it."""
        return 1

    def shown(self, ids: torch.Tensor) -> Shown:
        """What of a text [N, T] goes where."""
        return {"input_ids": ids}

    def inputs(self, model: Any, shown: Shown) -> dict[str, Any]:
        """What `model` is called with."""
        return one_tower(shown["input_ids"], shown.get("attention_mask"))

    def outputs(self, out: Any) -> torch.Tensor:
        """What is compared [N, T, ...], float32."""
        return out.logits.float()

    def loss(self, outputs: torch.Tensor, shown: Shown) -> float | None:
        """Nats per token; None where the next token is not foreseen."""
        return None

    def difference(self, worst: float, largest: float) -> float:
        """The largest difference, of the largest output; of outputs that are all zero any is infinitely large."""
        return worst / largest if largest else float("inf") if worst else 0.0


class Causal(Probe):
    def loss(self, outputs: torch.Tensor, shown: Shown) -> float | None:
        return _cross_entropy(outputs[:, :-1], shown["input_ids"][:, 1:])


class Masked(Probe):
    compared = "logits of all tokens"


class Hidden(Probe):
    """Of a model without a head."""

    compared = "hidden states"

    def outputs(self, out: Any) -> torch.Tensor:
        """Hidden states [N, T, D], and what a pooler makes of them, where there is one, as one more: [N, T + 1, D]."""
        import torch

        pooled = getattr(out, "pooler_output", None)
        parts = [out.last_hidden_state] + ([] if pooled is None else [pooled[:, None]])
        return torch.cat(parts, 1).float()


class EncoderDecoder(Probe):
    """The encoder reads the first half of each row, the decoder foresees the second."""

    compared = "logits of the decoder"

    def least(self, settings: Settings) -> int:
        """In each half there are two tokens so far apart that all that are farther have the same bias."""
        return 2 * (1 + max(tower.relative_distance for tower in settings.towers.values()))

    def shown(self, ids: torch.Tensor) -> Shown:
        import torch

        source, labels = (half.contiguous() for half in ids.tensor_split(2, dim=1))
        return {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": labels}

    def inputs(self, model: Any, shown: Shown) -> dict[str, Any]:
        import torch

        try:
            return two_towers(model, **shown)
        except (AttributeError, ValueError):  # no first token is said, or no padding, which labels have none of
            first = torch.full_like(shown["labels"][:, :1], _first(model.config))
            return _both(shown["input_ids"], shown["attention_mask"], torch.cat([first, shown["labels"][:, :-1]], 1))

    def loss(self, outputs: torch.Tensor, shown: Shown) -> float | None:
        return _cross_entropy(outputs, shown["labels"])


class Reading(Probe):
    """Of the half of an encoder-decoder that reads, and of what it was."""

    compared = "hidden states of the encoder"

    def inputs(self, model: Any, shown: Shown) -> dict[str, Any]:
        import torch

        ids = shown["input_ids"]
        if getattr(model.config, "is_encoder_decoder", False):
            return _both(ids, torch.ones_like(ids), ids[:, :1])
        return super().inputs(model, shown) | {"output_hidden_states": True}

    def outputs(self, out: Any) -> torch.Tensor:
        read = getattr(out, "encoder_last_hidden_state", None)  # of a class of both towers
        return (out.hidden_states[-1] if read is None else read).float()


class Writing(Causal):
    """Of the half that writes, and of what it was: it is shown something that was read, and the other nothing."""

    compared = "logits of the decoder"

    def inputs(self, model: Any, shown: Shown) -> dict[str, Any]:
        import torch

        own = super().inputs(model, shown)
        if getattr(model.config, "is_encoder_decoder", False):
            source = shown["input_ids"].flip(1)
            if not hasattr(model.config.decoder, "cross_attention_hidden_size"):
                return self._reading_nothing(model, shown["input_ids"])
            return _both(source, torch.ones_like(source), shown["input_ids"])
        if not getattr(model.config, "add_cross_attention", False):
            return own
        size, draw = model.config.hidden_size, torch.Generator().manual_seed(0)
        return own | {"encoder_hidden_states": torch.randn(len(shown["input_ids"]), 8, size, generator=draw)}

    def _reading_nothing(self, model: Any, ids: torch.Tensor) -> dict[str, Any]:
        """Of a decoder whose self-attention looks at what was read as well, and of which nothing is silent."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        read = torch.zeros(len(ids), 1, model.config.decoder.hidden_size, dtype=model.dtype)
        hidden = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=read),
            "attention_mask": torch.zeros(len(ids), 1),
        }
        return {**hidden, "decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids), "use_cache": False}


class Seen(Probe):
    """Of a model that is shown images [N, channels, height, width]."""

    def shown(self, ids: torch.Tensor) -> Shown:
        return {"pixel_values": ids}

    def inputs(self, model: Any, shown: Shown) -> dict[str, Any]:
        return {"pixel_values": shown["pixel_values"]}


class SeenLabels(Seen):
    compared = "logits of the labels"


class SeenTaught(Seen):
    compared = "logits of the labels, its own and its teacher's"

    def outputs(self, out: Any) -> torch.Tensor:
        import torch

        return torch.cat([out.cls_logits, out.distillation_logits], 1).float()


class SeenHidden(Seen, Hidden):
    pass


class ByClass(Probe):
    """Of a model that no table knows and that reads a text: the first of its outputs."""

    compared = "first outputs"

    def inputs(self, model: Any, shown: Shown) -> dict[str, Any]:
        ids, writes = shown["input_ids"], "decoder_input_ids" in signature(model.forward).parameters
        return {"input_ids": ids, **({"decoder_input_ids": ids} if writes else {})}

    def outputs(self, out: Any) -> torch.Tensor:
        return out[0].float()


PROBES: Mapping[str, Probe] = {
    "causal": Causal(),
    "masked": Masked(),
    "none": Hidden(),
    "seq2seq": EncoderDecoder(),
    "class": ByClass(),
    "labels": SeenLabels(),
    "taught": SeenTaught(),
}
"""By Settings.output, of models that read a text or have labels."""

HALVES: Mapping[str, Probe] = {"encoder": Reading(), "decoder": Writing()}
"""By tower, of models that were joined."""


def probe_of(settings: Settings) -> Probe:
    """What a model with these settings is shown, and which of its outputs are compared."""
    return SeenHidden() if settings.num_channels and settings.output == "none" else PROBES[settings.output]


def _first(config: Any) -> int:
    """A token that a decoder's text may begin with, in the order in which `generate` looks for one; or 0."""
    writer = getattr(config, "decoder", config)  # where an encoder-decoder's towers have configs of their own
    said = (getattr(writer, key, None) for key in ("decoder_start_token_id", "bos_token_id", "pad_token_id"))
    return next((token for token in said if token is not None), 0)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    from torch.nn.functional import cross_entropy

    return float(cross_entropy(logits.flatten(0, 1), labels.flatten()))
