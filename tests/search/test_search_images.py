"""Samples of diffusers' pipelines as objectives, and what of a pipeline is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rekindle
from rekindle.errors import RekindleError
from rekindle.search.distances import nearest
from rekindle.search.draw import Draw
from rekindle.search.quality import Quality, real
from rekindle.search.sampling import sample

diffusers = pytest.importorskip("diffusers")

UNET = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
        "add_attention": False}  # fmt: skip

DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
       "sample_size": 4, "patch_size": 2, "num_embeds_ada_norm": 10}  # fmt: skip
VAE = {"block_out_channels": (4, 4), "norm_num_groups": 2, "latent_channels": 4, "sample_size": 8,
       "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip


def unet(seed: int = 0, **changes):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(**{**UNET, **changes})


def ddim():
    return diffusers.DDIMScheduler(num_train_timesteps=50, clip_sample=False)


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    """run/checkpoint-10 to 40: a UNet that moves at random; images.npz beside them."""
    folder = tmp_path_factory.mktemp("pipes")
    model, g = unet(), torch.Generator().manual_seed(0)
    for step in (10, 20, 30, 40):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * torch.randn(p.shape, generator=g)
        diffusers.DDIMPipeline(model, ddim()).save_pretrained(folder / "run" / f"checkpoint-{step}")
    np.savez(folder / "images.npz", images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8))
    return folder


HOW = {"samples": 24, "sampling_steps": 2, "budget": 20}


def test_a_part_of_a_pipeline_is_combined_and_the_rest_travels(pipes, tmp_path):
    found = rekindle.combine(f"{pipes}/run/checkpoint-*", "fd", data=str(pipes / "images.npz"), **HOW)
    assert found.data["search"] == "gradient"
    assert list(found.data["rows"][-1]["reported"]) == ["fd", "kid", "pixel fd", "sliced W", "nearest"]
    assert list(found.data["floor"]) == ["fd", "kid", "pixel fd", "sliced W", "nearest"]
    assert "real data" in str(found)
    assert "real data" in found.page(tmp_path / "page").read_text()
    out = found.save(tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(out)
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler)
    parts = [diffusers.UNet2DModel.from_pretrained(pipes / f"run/checkpoint-{step}/unet") for step in (10, 20, 30, 40)]
    own = dict(pipe.unet.named_parameters())
    for name, x in own.items():
        wanted = sum(a * dict(part.named_parameters())[name] for a, part in zip(found.coefficients.values(), parts))
        assert (x - wanted).abs().max() < 1e-5
    assert (out / "model_index.json").read_bytes() == (pipes / "run/checkpoint-40/model_index.json").read_bytes()
    merged = rekindle.merge([pipes / f"run/checkpoint-{step}/unet" for step in (10, 20)]).save(tmp_path / "merged")
    assert diffusers.UNet2DModel.from_pretrained(merged).config.sample_size == 8


def test_samples_are_those_of_diffusers_own_loop(pipes):
    model, scheduler = unet(), ddim()
    x = sample(lambda x, t: model(x, t).sample, scheduler, (3, 1, 8, 8), 5, seed=7)
    pipe, g = diffusers.DDIMPipeline(model, scheduler), torch.Generator().manual_seed(7)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(batch_size=3, generator=g, num_inference_steps=5, output_type="np", use_clipped_model_output=False)
    assert np.abs((x.detach() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() - theirs.images).max() < 1e-5
    assert scheduler.num_inference_steps == 5 or scheduler.num_inference_steps is None  # ours was a copy


@pytest.mark.parametrize("kind", ["CMStochasticIterativeScheduler", "DDPMScheduler", "EDMEulerScheduler"])
def test_every_kind_of_scheduler_samples_alike_for_one_seed(kind):
    model, scheduler = unet(), getattr(diffusers, kind)(num_train_timesteps=40)
    one, other = (sample(lambda x, t: model(x, t).sample, scheduler, (n, 1, 8, 8), 3, seed=1) for n in (4, 4))
    assert torch.equal(one, other)
    assert one.requires_grad
    assert not torch.equal(one, sample(lambda x, t: model(x, t).sample, scheduler, (4, 1, 8, 8), 3, seed=2))


def test_a_model_of_classes_is_told_classes(tmp_path, pipes):
    for step in (10, 20):
        model = unet(step, num_class_embeds=3)
        diffusers.DDIMPipeline(model, ddim()).save_pretrained(tmp_path / f"run/checkpoint-{step}")
    found = rekindle.combine(f"{tmp_path}/run/checkpoint-*", "kid", data=str(pipes / "images.npz"), **HOW)
    assert list(found.coefficients) == ["step-10", "step-20"]
    assert next(iter(found.data["rows"][-1]["reported"])) == "kid"


def test_a_transformer_of_latents_and_groups_of_its_blocks(tmp_path):
    """DiT: it is told classes and a time for each image, and the pipeline's vae decodes what it makes."""
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(**DIT)
    vae = diffusers.AutoencoderKL(**VAE)
    for step in (10, 20, 30):
        with torch.no_grad():
            for p in net.parameters():
                p += 0.05 * torch.randn_like(p)
        pipe = diffusers.DiTPipeline(net, vae, ddim(), id2label={i: str(i) for i in range(10)})
        pipe.save_pretrained(tmp_path / f"run/checkpoint-{step}")
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8))
    how = {**HOW, "data": str(tmp_path / "images.npz"), "component": "transformer", "groups": "layer"}
    found = rekindle.combine(f"{tmp_path}/run/checkpoint-*", "fd", **how)
    blocks = [f"transformer_blocks.{i}" for i in range(2)]
    assert found.data["groups"] == ["pos_embed", "proj_out_1", "proj_out_2", *blocks]
    found.data["result"] = "combination"
    out = found.save(tmp_path / "out")
    made = diffusers.DiffusionPipeline.from_pretrained(out).transformer
    parts = [diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / f"run/checkpoint-{step}/transformer")
             for step in (10, 20, 30)]  # fmt: skip
    for name, x in made.named_parameters():
        if own := next((own for group, own in found.coefficients.items() if name.startswith(f"{group}.")), None):
            wanted = sum(a * dict(part.named_parameters())[name] for a, part in zip(own.values(), parts, strict=True))
            assert (x - wanted).abs().max() < 1e-5, name


def test_pixels_are_searched_too_where_features_are():
    g = torch.Generator().manual_seed(0)
    data = torch.randn(200, 6, generator=g)
    of = {share: Quality(lambda t, n, seed: t["x"][:n], lambda x: x[:, :2], real(data[:100], lambda x: x[:, :2]),
                         real(data[100:], lambda x: x[:, :2]), n=100, plain=share) for share in (0.0, 2.0)}  # fmt: skip
    x = {"x": torch.randn(100, 6, generator=g)}
    alone, both = (of[share](x, Draw("search")) for share in of)
    assert list(alone) == ["fd"]
    far = {"x": x["x"] + torch.tensor([0, 0, 0, 0, 0, 3.0])}  # nothing that the features see
    assert torch.allclose(of[0.0](far, Draw("search"))["fd"], alone["fd"])
    assert of[2.0](far, Draw("search"))["searched"] > 2 * both["searched"]
    assert list(of[2.0](x, Draw("report"))) == ["fd", "kid", "pixel fd", "sliced W"]
    floor, told = of[0.0].floor(), of[0.0]({"x": data[:100]}, Draw("report"))
    assert floor == {name: float(value) for name, value in told.items()}  # real data in place of samples
    some = replace(of[0.0], n=40, train=data[:100]).floor()  # of as many as are sampled
    told = replace(of[0.0], n=40)({"x": data[:40]}, Draw("report"))
    assert {name: some[name] for name in told} == {name: float(value) for name, value in told.items()}
    assert some["nearest"] == float(nearest(data[100:140], data[:100]))
    assert floor["fd"] < float(of[0.0]({"x": x["x"] + 1}, Draw("report"))["fd"])


def test_images_that_are_none(pipes, tmp_path):
    def refused(data: Path | str, **how) -> str:
        with pytest.raises(RekindleError) as error:
            rekindle.combine(f"{pipes}/run/checkpoint-*", "fd", data=str(data), **{**HOW, **how})
        return str(error.value)

    assert "needs real images" in refused("stdlib")
    assert "There is no" in refused(tmp_path / "none.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    assert "cannot be read" in refused(tmp_path / "torn.npz")
    np.savez(tmp_path / "words.npz", words=np.array(["a"] * 40))
    assert "No array in it holds images" in refused(tmp_path / "words.npz")
    np.savez(tmp_path / "few.npz", x=np.zeros((9, 8, 8), np.uint8))
    assert "There are 9 images" in refused(tmp_path / "few.npz")
    np.savez(tmp_path / "large.npz", x=np.zeros((40, 16, 16, 3), np.uint8))
    assert "makes images of [1, 8, 8]" in refused(tmp_path / "large.npz")
    from PIL import Image

    (tmp_path / "folder").mkdir()
    assert "no images in" in refused(tmp_path / "folder")
    for i in range(33):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(tmp_path / f"folder/{i}.png")
    found = rekindle.combine(f"{pipes}/run/checkpoint-*", "fd", data=str(tmp_path / "folder"), **HOW)
    assert found.data["held_out"]
    Image.new("L", (9, 8)).save(tmp_path / "folder/odd.png")
    assert "Images differ in size" in refused(tmp_path / "folder")
    index = json.loads((pipes / "run/checkpoint-40/model_index.json").read_text())
    assert "unet" in index
    text = refused(pipes / "images.npz", component="lost")
    assert "checkpoint-10 has no lost" in text
    assert "--component unet" in text
