"""Labelled images: what is read, what is held out, what a model is shown, and a training on them."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tiny_models import NO_HEAD

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.train.config import TrainConfig
from rekindle.train.glyphs import glyphs
from rekindle.train.image_source import open_images
from rekindle.train.objectives import open_objective
from rekindle.train.objectives.image_classification import ImageClassification
from rekindle.train.pixels import Processing
from rekindle.train.step import Stepper

SHAPE = {"hidden": 32, "layers": 2, "heads": 4, "set": {"image_size": 8, "patch_size": 2, "num_channels": 1}}
DRAW = np.random.default_rng(0)


def blobs(n: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Bytes [n, 8, 8] that are bright in one of four corners, and in which."""
    labels = np.arange(n) % classes
    images = np.random.default_rng(1).integers(0, 60, (n, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[label // 2 * 4 :, label % 2 * 4 :][:4, :4] += 150
    return images.astype(np.uint8), labels


@pytest.fixture
def data(tmp_path):
    images, labels = blobs(300)
    np.savez(tmp_path / "blobs.npz", images=images, labels=labels)
    return tmp_path / "blobs.npz"


@pytest.fixture
def folder(tmp_path):
    """A folder for each class, of files of several kinds."""
    from PIL import Image

    images, labels = blobs(60)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "corners" / f"corner {'dabc'[label]}"
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{number}.{('png', 'bmp')[number % 2]}")
    return tmp_path / "corners"


# -- what is read ----------------------------------------------------------------------------------------------------


def test_an_npz_is_images_and_labels(data):
    found, (images, labels) = open_images(str(data)), blobs(300)
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(np.stack(found.read(np.arange(300)))[..., 0], images)
    both = np.concatenate(list(found.sides.values()))
    assert sorted(both) == list(range(300))
    assert 1 <= len(found.sides["validation"]) < 40


def test_copies_of_an_image_are_held_out_together(tmp_path):
    images, labels = blobs(40)
    np.savez(tmp_path / "twice.npz", x=np.concatenate([images, images]), y=np.concatenate([labels, labels]))
    found = open_images(str(tmp_path / "twice.npz"))
    held = set(found.sides["validation"].tolist())
    assert held == {(i + 40) % 80 for i in held}


@pytest.mark.parametrize(
    ("names", "held"), [(("train", "test"), "test"), (("x_train", "x_val"), "x_val"), (("train", "valid"), "valid")]
)
def test_parts_that_are_named_say_what_is_held_out(tmp_path, names, held):
    (images, labels), own = blobs(50), {}
    for name, part in zip(names, (slice(0, 40), slice(40, 50)), strict=True):
        key = name.replace("x_", "")
        own |= {f"{key}_images": images[part], f"{key}_labels": labels[part][:, None]}
    np.savez(tmp_path / "parts.npz", **own)
    found = open_images(str(tmp_path / "parts.npz"))
    validation = np.stack(found.read(found.sides["validation"]))[..., 0]
    assert np.array_equal(validation, images[40:])
    assert np.array_equal(found.labels[found.sides["validation"]], labels[40:])


def test_a_test_part_is_left_alone_beside_another_that_is_held_out(tmp_path):
    images, labels = blobs(60)
    parts = {"train": slice(0, 40), "val": slice(40, 52), "test": slice(52, 60)}
    own = {f"{name}_images": images[part] for name, part in parts.items()}
    np.savez(tmp_path / "three.npz", **own, **{f"{name}_labels": labels[part] for name, part in parts.items()})
    found = open_images(str(tmp_path / "three.npz"))
    assert [len(found.sides[side]) for side in ("train", "validation")] == [40, 12]
    assert len(found.labels) == 52


NAMES = st.sampled_from(["x", "y", "x_train", "y_train", "x_val", "y_test", "images"])
KINDS = st.sampled_from([np.uint8, np.uint16, np.int64, np.float32, np.bool_])
SHAPES = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(st.dictionaries(NAMES, arrays(KINDS, SHAPES), max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_of_any_kind_are_images_or_a_sentence(tmp_path, held):
    np.savez(tmp_path / "any.npz", **held)
    with contextlib.suppress(RekindleError):
        found = open_images(str(tmp_path / "any.npz"))
        pixels = Processing(tmp_path, 3, (4, 4))(found.read(found.sides["validation"]))
        assert pixels.shape[1:] == (3, 4, 4)
        assert pixels.isfinite().all()


def test_a_folder_has_a_folder_for_each_class(folder):
    found = open_images(str(folder))
    assert found.classes == ("corner a", "corner b", "corner c", "corner d")
    assert np.bincount(found.labels).tolist() == [15] * 4
    own = found.named_by({"corner d": 0, "corner c": 1, "corner b": 2, "corner a": 3})
    assert np.array_equal(own.labels, 3 - found.labels)
    assert np.array_equal(found.named_by({"LABEL_0": 0}).labels, found.labels)


def test_a_folder_says_its_parts(folder, tmp_path):
    (tmp_path / "parts").mkdir()
    for name in ("train", "val"):
        (tmp_path / "parts" / name).mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        there = tmp_path / "parts" / ("val" if number % 10 == 0 else "train") / path.parent.name
        there.mkdir(exist_ok=True)
        path.rename(there / path.name)
    assert len(open_images(str(tmp_path / "parts")).sides["validation"]) == 6


def dataset(n: int = 60):
    """Such a folder's images in a dataset, their classes by name."""
    import datasets
    from PIL import Image

    images, labels = blobs(n)
    kinds = {
        "picture": datasets.Image(),
        "corner": datasets.ClassLabel(names=list("dabc")),
        "id": datasets.Value("int8"),
    }
    rows = {"picture": [Image.fromarray(image) for image in images], "corner": labels, "id": [0] * n}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def test_a_dataset_has_a_column_of_images_and_one_of_labels(tmp_path, monkeypatch):
    import datasets

    images, labels = blobs(60)
    dataset().save_to_disk(tmp_path / "saved")
    found = open_images(str(tmp_path / "saved"))
    assert found.classes == tuple("dabc")
    assert np.array_equal(found.labels, labels)
    assert sorted(np.concatenate(list(found.sides.values()))) == list(range(60))
    assert np.array_equal(np.stack(found.read(np.array([41, 0, 7])))[..., 0], images[[41, 0, 7]])
    splits = datasets.DatasetDict({"train": dataset(), "validation": dataset(8), "test": dataset(4)})
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, own, split: splits if (name, own, split) == ("us/corners", "grey", None) else 0,
    )
    named = open_images("us/corners:grey")
    assert [len(side) for side in named.sides.values()] == [60, 8]
    assert np.array_equal(named.read(np.array([67]))[0][..., 0], images[7])
    assert open_images("us/corners:grey").digest == named.digest != found.digest


def test_datasets_that_are_no_labelled_images_are_sentences(tmp_path, monkeypatch):
    import datasets

    with pytest.raises(RekindleError, match="nowhere is no file, no folder, and no dataset"):
        open_images("nowhere")
    rows = dataset(9)
    odd = {
        "These columns are no images": rows.remove_columns("picture"),
        r"no images with a label each: picture(.|\n)*text string": datasets.Dataset.from_dict(
            {"picture": rows["picture"], "text": ["x"] * 9},
            features=datasets.Features(picture=datasets.Image(), text=datasets.Value("string")),
        ),
        "A label is -1": rows.cast_column("corner", datasets.Value("int64"))
        .map(lambda row: {"corner": -1})
        .rename_column("corner", "label"),
        "has no rows": rows.select([]),
        "none is for train": rows.select([0]),
    }
    for said, held in odd.items():
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, held=held, **__: held)
        with pytest.raises(RekindleError, match=said):
            open_images("us/odd")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": blobs(9)[0]}, "no images"),
        ({"images": blobs(9)[0], "labels": np.zeros(8, int)}, "no images"),
        ({"images": blobs(9)[0], "labels": np.zeros(9)}, "no images"),
        ({"images": blobs(9)[0], "labels": -np.ones(9, int)}, "A label is -1"),
        ({"images": 9.0 * blobs(9)[0], "labels": np.arange(9)}, "values from 0"),
        ({"images": blobs(1)[0], "labels": np.zeros(1, int)}, "none is for train"),
    ],
)
def test_what_are_no_labelled_images_is_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(RekindleError, match=said):
        open_images(str(tmp_path / "odd.npz"))


def test_files_that_are_none_are_refused(tmp_path, folder):
    with pytest.raises(RekindleError, match=r"There are no images nowhere\.npz"):
        open_images("nowhere.npz")
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    with pytest.raises(RekindleError, match="cannot be read"):
        open_images(str(tmp_path / "broken.npz"))
    (folder / "corner a" / "broken.png").write_bytes(b"no image")
    found = open_images(str(folder))
    with pytest.raises(RekindleError, match=r"cannot be read(.|\n)*broken\.png"):
        found.read(np.arange(len(found.labels)))
    (folder / "beside.png").write_bytes(b"")
    with pytest.raises(RekindleError, match="beside the folders of classes"):
        open_images(str(folder))


def test_glyphs_are_a_function_of_their_number():
    found = glyphs()
    assert len(found.classes) % 62 == 0
    assert len(set(found.classes)) == len(found.classes) >= 62
    rows = np.array([5, 100_000, 5 + len(found.classes)])
    three, again = found.read(rows), found.read(rows[[1]])
    assert np.array_equal(three[1], again[0])
    assert found.labels[rows[0]] == found.labels[rows[2]]
    assert np.abs(three[0] - three[2]).max() > 0.1  # one letter, otherwise distorted
    assert all(image.shape == (16, 16, 1) and image.min() >= 0 and image.max() <= 1 for image in three)


# -- as a model reads them -------------------------------------------------------------------------------------------


def test_pixels_are_from_minus_1_to_1_in_the_models_size(tmp_path):
    image = DRAW.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    plain = Processing(tmp_path, 1, (8, 8))([image])
    assert torch.allclose(plain[0, 0], torch.from_numpy(image[..., 0]) / 127.5 - 1)
    assert torch.allclose(Processing(tmp_path, 1, (8, 8))([(image / 255).astype(np.float32)]), plain, atol=1e-6)
    assert torch.allclose(Processing(tmp_path, 3, (8, 8))([image]), plain.repeat(1, 3, 1, 1))
    flat = np.full((20, 30, 3), (255, 0, 0), np.uint8)
    red = Processing(tmp_path, 3, (8, 4))([flat, flat[:10]])
    assert red.shape == (2, 3, 8, 4)
    assert torch.allclose(red[:, 0], torch.ones(2, 8, 4))
    grey = Processing(tmp_path, 1, (8, 4))([flat])
    assert torch.allclose(grey, torch.full((1, 1, 8, 4), 2 * 76 / 255 - 1), atol=1e-5)  # as Pillow's L
    with pytest.raises(RekindleError, match="have 2 channels, and the model reads 3"):
        Processing(tmp_path, 3, (8, 8))([flat[..., :2]])


def test_a_processor_that_lies_beside_the_model_is_used(tmp_path):
    from transformers import AutoImageProcessor, ViTImageProcessor

    how = {"size": {"height": 8, "width": 8}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    ViTImageProcessor(**how).save_pretrained(tmp_path)
    images = [DRAW.integers(0, 256, (12, 9, 3), dtype=np.uint8), DRAW.integers(0, 256, (5, 8, 3), dtype=np.uint8)]
    own = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(images=images, return_tensors="pt")
    assert torch.equal(Processing(tmp_path, 3, (8, 8))(images), own["pixel_values"])
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(RekindleError, match="cannot read this processor"):
        Processing(tmp_path, 3, (8, 8))(images)


# -- a training ------------------------------------------------------------------------------------------------------


def test_a_vit_learns_and_its_mixture_goes_on(tmp_path, data):
    api.init(tmp_path / "start", family="vit", labels=4, **SHAPE)
    how = {"data": str(data), "batch_tokens": 17 * 20, "eval_tokens": 17 * 40, "lr": 2e-3}
    ran = api.train(tmp_path / "start", tmp_path / "vit", tokens=17 * 20 * 60, **how)
    assert ran["val_accuracy"] > 0.9
    assert ran["val_loss_before"] == pytest.approx(np.log(4), abs=0.1)
    assert ran["epochs"] == pytest.approx(1200 / len(open_images(str(data)).sides["train"]))
    api.upcycle(tmp_path / "vit", experts=4).save(tmp_path / "mixture")
    assert api.verify(tmp_path / "mixture", against=tmp_path / "vit").held
    on = api.train(tmp_path / "mixture", tmp_path / "on", tokens=17 * 20 * 10, **how)
    assert on["val_loss_before"] == pytest.approx(ran["val_loss"], rel=1e-4)
    assert "held-out images of" in api.verify(tmp_path / "mixture", against=tmp_path / "vit", data=str(data)).text
    found = api.evaluate(tmp_path / "on", data=str(data))
    assert found["accuracy"] > 0.9
    assert "perplexity" not in found
    steps = [json.loads(line) for line in (tmp_path / "on" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["aux_loss"] is None for row in steps if row["kind"] == "step")  # experts that choose are balanced
    api.upcycle(tmp_path / "vit", experts=4, routing="tokens").save(tmp_path / "tokens")
    api.train(tmp_path / "tokens", tmp_path / "by-tokens", tokens=17 * 20 * 4, **how)
    steps = [json.loads(line) for line in (tmp_path / "by-tokens" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["aux_loss"] > 0.9 for row in steps if row["kind"] == "step")
    assert len(steps[-1]["expert_load"]) == 1


def test_a_training_that_is_cut_off_goes_on_to_the_same_bits(tmp_path, data, monkeypatch):
    api.init(tmp_path / "start", family="vit", labels=4, **SHAPE)
    how = {"data": str(data), "batch_tokens": 17 * 20, "tokens": 17 * 20 * 12, "lr": 2e-3}
    api.train(tmp_path / "start", tmp_path / "whole", **how)
    real = Stepper.__call__

    def cut(self, step, *given):
        if step == 7:
            raise KeyboardInterrupt
        return real(self, step, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            api.train(tmp_path / "start", tmp_path / "again", **how)
    api.train(tmp_path / "start", tmp_path / "again", **how, resume=True)
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert saved[0] == saved[1]


def test_rows_are_the_same_in_whatever_batch(tiny, data):
    source = api.open(tiny("vit")).checkpoint.folder
    objective = open_objective(ImageClassification, TrainConfig(data=str(data), tokens=1), 17, source)
    whole, part = objective.batch(0, 8), objective.batch(3, 2)
    assert torch.equal(whole["pixel_values"][3:5], part["pixel_values"])
    assert torch.equal(whole["label"][3:5], part["label"])
    assert objective.total(0, 8) == 8
    assert len(objective.sample("validation", 17 * 5)["label"]) == 5


def test_options_that_do_not_fit_are_sentences(tiny, tmp_path, data):
    images, labels = blobs(60, classes=4)
    np.savez(tmp_path / "six.npz", images=images, labels=labels + 2)
    with pytest.raises(RekindleError, match="There are 6 classes of images, and the model knows 5 labels"):
        api.train(tiny("vit"), tmp_path / "out", data=str(tmp_path / "six.npz"), tokens="20k", lr=1e-3)
    with pytest.raises(RekindleError, match="an image is 17 tokens"):
        api.train(tiny("vit"), tmp_path / "out", data=str(data), tokens="20k", seq_len=16, batch_tokens=160, lr=1e-3)
    with pytest.raises(RekindleError, match="has no language-model head"):
        api.train(tiny("vit", **NO_HEAD), tmp_path / "out", data=str(data), tokens="20k", lr=1e-3)
    with pytest.raises(RekindleError, match="text_column is an option of"):
        api.train(tiny("vit"), tmp_path / "out", data=str(data), tokens="20k", text_column="a", lr=1e-3)
    with pytest.raises(RekindleError, match="no decoder, and pipelines"):
        api.train(tiny("vit"), tmp_path / "out", data=str(data), tokens="20k", stages=2, lr=1e-3)
    with pytest.raises(RekindleError, match="gives nothing a label"):
        api.init(tmp_path / "out", labels=3)
    with pytest.raises(RekindleError, match="as many tokens of a vit as it has patches"):
        api.init(tmp_path / "out", family="vit", context=17)
    with pytest.raises(RekindleError, match=r"gives an image a label(.|\n)*predicts the next token"):
        api.train(tiny("vit"), tmp_path / "out", objective="next-token", tokens="20k", lr=1e-3)
