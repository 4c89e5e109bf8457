"""Encoder-decoders of two models that have classes of their own: transformers' EncoderDecoderModel.

Any of `READERS` stands beside any of `WRITERS`, each with tensors of its own, under `encoder.` and `decoder.`, and
its config. The decoder is the class that writes, with cross-attention in each layer. Where the hidden sizes differ, a
matrix above both brings what was read to the decoder's.

Source: Rothe, Narayan and Severyn 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", arXiv
1907.12461, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rekindle.anatomy.dense import GPT2, G
from rekindle.anatomy.encoders import BERT, BERT_GENERATION, MLM, MODERNBERT, ROBERTA
from rekindle.anatomy.family import Family
from rekindle.anatomy.rows import layer_norm, with_bias
from rekindle.anatomy.settings import Settings
from rekindle.anatomy.spelling import Config, Reading, Spelling
from rekindle.anatomy.tensor import Tensor
from rekindle.anatomy.towers import Towers

PAIR = "encoder-decoder"
READS = "cross_attention_hidden_size"
MASKED, HEADLESS = "output=masked", "output=none"  # the conditions of rows with a head, and without


def _read_cross(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    size = config.get(READS) or given["hidden_size"]
    return {"cross_size": size, "cross_projected": size != given["hidden_size"]}


def _write_cross(settings: Settings, config: dict[str, Any]) -> str | None:
    config.pop(READS, None)  # these classes do not read it, and the model would leave the projection out
    return None


CROSS = Spelling(("cross_size", "cross_projected"), _read_cross, _write_cross)


def _bert_cross(base: str) -> tuple[Tensor, ...]:
    at = f"{base}.encoder.layer.{{layer}}.crossattention."
    return (
        *with_bias(Tensor("cross.q", f"{at}self.query.weight", "H D")),
        *with_bias(Tensor("cross.k", f"{at}self.key.weight", "K D")),
        *with_bias(Tensor("cross.v", f"{at}self.value.weight", "K D")),
        *with_bias(Tensor("cross.o", f"{at}output.dense.weight", "D H")),
        *layer_norm("cross.post_norm", f"{at}output.LayerNorm"),
    )


GPT2_CROSS = (
    *with_bias(Tensor("cross.q", f"{G}crossattention.q_attn.weight", "H D", transposed=True)),
    *(
        row
        for part in ("k", "v")
        for row in with_bias(
            Tensor(f"cross.{part}", f"{G}crossattention.c_attn.weight", "K D", packed="rows", transposed=True)
        )
    ),
    *with_bias(Tensor("cross.o", f"{G}crossattention.c_proj.weight", "D H", transposed=True)),
    *layer_norm("cross.pre_norm", f"{G}ln_cross_attn"),
)


@dataclass(frozen=True)
class Writer:
    """The tower, and what it calls its head."""

    tower: Family
    head: str
    copies: Mapping[str, str]


def _reader(family: Family) -> Family:
    """The class without a head."""
    rows = [row for row in family.top if row.part != "head" and MASKED not in row.when]
    top = tuple(replace(row, when="" if row.when == HEADLESS else row.when) for row in rows)
    return replace(
        _tower(family, "encoder", top, family.block, family.prefix), fixed={**family.fixed, "output": "none"}
    )


def _writer(family: Family, head: str, cross: tuple[Tensor, ...], own: tuple[Tensor, ...] = ()) -> Writer:
    """The class with a head, that looks back only."""
    top = tuple(
        replace(row, when="" if row.when == MASKED else row.when)
        for row in (*family.top, *own)
        if row.part != "head" and row.when != HEADLESS
    )
    tower = _tower(family, "decoder", top, family.block + cross, "")
    made = {"is_decoder": True, "add_cross_attention": True}
    tower = replace(
        tower, defaults={**family.defaults, **made}, only={**(family.only or {}), **made}, written=made,
        spelt=(*family.spelt, CROSS), fixed={**family.fixed, "bidirectional": False, "output": "seq2seq"},
    )  # fmt: skip
    copies = {f"decoder.{name}": f"decoder.{of}" for name, of in (family.copies or {}).items()}
    return Writer(tower, f"decoder.{head}", copies)


def _tower(family: Family, name: str, top: tuple[Tensor, ...], block: tuple[Tensor, ...], cut: str) -> Family:
    def under(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(row, name=f"{name}.{row.name.removeprefix(cut)}") for row in rows)

    return replace(
        family, classes={}, top=under(top), block=under(block), dense=under(family.dense), section=(name,), prefix="",
        twins=(), copies=None,
    )  # fmt: skip


READERS = {family.model_type: _reader(family) for family in (BERT, ROBERTA, BERT_GENERATION, MODERNBERT)}
LM_BIAS = Tensor("head.bias", "lm_head.bias", "V")
WRITERS = {
    "bert": _writer(BERT, MLM + "decoder.weight", _bert_cross("bert")),
    "roberta": _writer(ROBERTA, "lm_head.decoder.weight", _bert_cross("roberta")),
    "bert-generation": replace(
        _writer(BERT_GENERATION, "lm_head.decoder.weight", _bert_cross("bert"), (LM_BIAS,)),
        copies={"decoder.lm_head.decoder.bias": "decoder.lm_head.bias"},
    ),
    "gpt2": _writer(GPT2, "lm_head.weight", GPT2_CROSS),
}  # fmt: skip


def _pair(encoder: str, decoder: str) -> Towers:
    writer = WRITERS[decoder]
    above = (
        Tensor("head", writer.head, "V D", when="not tie_word_embeddings"),
        *with_bias(Tensor("cross.project", "enc_to_dec_proj.weight", "D Y", when="cross_projected"), "cross_projected"),
    )
    return Towers(
        PAIR, {"seq2seq": "EncoderDecoderModel"}, above, (), (), (), keys={}, fixed={},
        defaults={
            "encoder": None, "decoder": None, "is_encoder_decoder": True, "pad_token_id": None,
            "decoder_start_token_id": None,
        },
        prefix="", rope="none", only={"is_encoder_decoder": True}, copies=writer.copies, called=f"{encoder}-{decoder}",
        ignorable=(*READERS[encoder].ignorable, *writer.tower.ignorable),
        towers={"encoder": READERS[encoder], "decoder": writer.tower}, embeddings="decoder", reads=READS,
        start_above=True,
    )  # fmt: skip


PAIRS = {(encoder, decoder): _pair(encoder, decoder) for encoder in READERS for decoder in WRITERS}
