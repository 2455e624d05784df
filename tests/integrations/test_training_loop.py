# SPDX-License-Identifier: Apache-2.0
"""A shortened loop of the form of diffusers' train_unconditional: accelerate, accumulated gradients, averaged
weights, and a resumed run. Two of its lines differ from that with DDPMScheduler."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from softdiff_kernels.integrations.diffusers import (
    SoftDiffusionPipeline,
    SoftDiffusionScheduler,
    SoftPrior,
)

EPOCHS, BATCH, ACCUMULATED, IMAGES = 4, 16, 2, 320
DOCS = Path(__file__).resolve().parents[2] / "docs" / "diffusers.md"


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """accelerate keeps its state for the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(output_dir: Path, stop_at: int | None = None, resume_from_checkpoint: str | None = None) -> Any:
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATED, cpu=True)

    def save_model_hook(models: list[Any], weights: list[Any], folder: str) -> None:
        ema_model.save_pretrained(Path(folder, "unet_ema"))
        models[0].save_pretrained(Path(folder, "unet"))
        weights.pop()

    def load_model_hook(models: list[Any], folder: str) -> None:
        ema_model.load_state_dict(
            EMAModel.from_pretrained(Path(folder, "unet_ema"), UNet2DModel).state_dict()
        )
        model = models.pop()
        loaded = UNet2DModel.from_pretrained(folder, subfolder="unet")
        model.register_to_config(**loaded.config)
        model.load_state_dict(loaded.state_dict())

    accelerator.register_save_state_pre_hook(save_model_hook)
    accelerator.register_load_state_pre_hook(load_model_hook)
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    ema_model = EMAModel(
        model.parameters(),
        decay=0.95,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=0.75,
        model_cls=UNet2DModel,
        model_config=model.config,
    )
    noise_scheduler = SoftDiffusionScheduler(image_size=8, num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    digits = torch.from_numpy(load_digits().images[:IMAGES]).float()[:, None] / 8 - 1
    dataset = [{"input": image} for image in digits]
    train_dataloader: Any = DataLoader(dataset, batch_size=BATCH)  # type: ignore[arg-type]
    steps = EPOCHS * len(train_dataloader) // ACCUMULATED
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=steps)
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, lr_scheduler
    )
    global_step = first_epoch = 0
    if resume_from_checkpoint is not None:
        accelerator.load_state(str(output_dir / resume_from_checkpoint))
        global_step = int(resume_from_checkpoint.split("-")[1])
        first_epoch = global_step * ACCUMULATED // len(train_dataloader)
    losses, of_zero = [], []
    for epoch in range(first_epoch, EPOCHS):
        model.train()
        for step, batch in enumerate(train_dataloader):
            # By the number of the batch, so that a resumed run needs no state of a generator.
            torch.manual_seed(epoch * len(train_dataloader) + step)
            clean_images = batch["input"]
            noise = torch.randn(clean_images.shape, device=clean_images.device)
            bsz = clean_images.shape[0]
            timesteps = torch.randint(
                0, noise_scheduler.config.num_train_timesteps, (bsz,), device=clean_images.device
            ).long()
            noisy_images = noise_scheduler.add_noise(clean_images, noise, timesteps)
            with accelerator.accumulate(model):
                model_output = model(noisy_images, timesteps).sample
                loss = noise_scheduler.loss(model_output, clean_images, noise, timesteps)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            losses.append(float(loss.detach()))
            zero = torch.zeros_like(clean_images)
            of_zero.append(float(noise_scheduler.loss(zero, clean_images, noise, timesteps)))
            if accelerator.sync_gradients:
                ema_model.step(model.parameters())
                global_step += 1
                if global_step == stop_at:
                    accelerator.save_state(str(output_dir / f"checkpoint-{global_step}"))
                    return None
    unet = accelerator.unwrap_model(model)
    ema_model.store(unet.parameters())
    ema_model.copy_to(unet.parameters())
    noise_scheduler = SoftDiffusionScheduler.from_config(noise_scheduler.config)
    prior = SoftPrior.fit(train_dataloader, noise_scheduler)
    pipeline = SoftDiffusionPipeline(unet=unet, scheduler=noise_scheduler, prior=prior)
    pipeline.save_pretrained(output_dir)
    return losses, of_zero


def test_a_loop_of_diffusers_learns_and_resumes_exactly(tmp_path: Path) -> None:
    """Rule: from ten times the loss of a network that answers 0, the loss falls under that (much of which no
    network can avoid: noise at the frequencies of the image); the saved pipeline draws images; and a run that
    was stopped after half of its steps and resumed ends with the same network, bit for bit."""
    losses, of_zero = train(tmp_path / "whole")
    assert sum(losses[:20]) > 5 * sum(of_zero[:20])
    assert sum(losses[-20:]) < 0.95 * sum(of_zero[-20:])
    AcceleratorState._reset_state(reset_partial_state=True)
    half = EPOCHS * (IMAGES // BATCH) // ACCUMULATED // 2
    assert train(tmp_path / "halves", stop_at=half) is None
    AcceleratorState._reset_state(reset_partial_state=True)
    rest, _ = train(tmp_path / "halves", resume_from_checkpoint=f"checkpoint-{half}")
    assert rest == losses[len(losses) // 2 :]
    pipelines = [SoftDiffusionPipeline.from_pretrained(tmp_path / name) for name in ("whole", "halves")]
    first, second = (pipeline.unet.state_dict() for pipeline in pipelines)
    assert all(torch.equal(first[name], second[name]) for name in first)
    pipelines[0].set_progress_bar_config(disable=True)
    images = pipelines[0](batch_size=8, num_inference_steps=20, output_type="np").images
    assert images.shape == (8, 8, 8, 1) and images.std(axis=0).min() > 0.01  # no two alike, though none good


def test_the_documentation_shows_the_lines_of_this_loop() -> None:
    """Rule: the two lines in docs/diffusers.md are those that run here, and its programs run."""
    if not DOCS.is_file():
        pytest.skip("an installed package has no documentation beside it")
    source, docs = inspect.getsource(train), DOCS.read_text(encoding="utf-8")
    for line in (
        "noise_scheduler.loss(model_output, clean_images, noise, timesteps)",
        "SoftDiffusionScheduler(",
    ):
        assert line in source and line in docs
    blocks = docs.split("```python\n")[1:]
    assert blocks
    for block in blocks:
        exec(block.partition("```")[0], {})
