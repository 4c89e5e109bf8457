"""What the checkpoint on disk computes on a text, where a method asks for it."""

from __future__ import annotations

from rekindle.edit import Checkpoint
from rekindle.edit.measure import Activations


def calibration(origin: Checkpoint, data: str) -> Activations:
    """What the checkpoint on disk computes on `DATA:TOKENS`, tokens of DATA's training part.

    Behind a NUL may follow the column of DATA's rows that holds the text.
    Block by block where model and moments do not fit into memory. Raises RekindleError where there is no tokenizer.
    """
    import torch

    from rekindle.apply.calibrate import Calibration, nbytes
    from rekindle.apply.load import fit
    from rekindle.apply.probe import probe_of
    from rekindle.train.model import check_ids
    from rekindle.train.tokens import sample_tokens

    text, _, column = data.partition("\0")
    name, _, tokens = text.rpartition(":")
    length = min(512, origin.settings.context, int(tokens))
    sample = sample_tokens(origin.folder.path, name, int(tokens), length, "train", column=column or None)
    rows = torch.from_numpy(sample)
    check_ids(int(rows.max()), origin.settings.vocab_size, text)
    probe = probe_of(origin.settings)
    batches = (probe.shown(ids) for ids in rows.split(max(1, 4096 // length)))
    return Calibration(origin, batches, blockwise=not fit(origin, besides=nbytes(origin)))
