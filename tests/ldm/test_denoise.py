"""The sampling loop: per-image noise, strength, the known region, guidance, cancelling, any scheduler."""

import re

import pytest
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from ldm.denoise import Cancelled, Known, Monitor, denoise, noise_for, set_steps, start_latents
from ldm.latents import make_scheduler
from ldm.settings.choices import SCHEDULERS

QUIET = Monitor(progress=False)
CPU = torch.device("cpu")
SCHEDULE = dict(
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=False,
        steps_offset=1,
    ).config
)


def toward(target: Tensor, scheduler_config: dict):
    """A perfect velocity predictor for one known image."""
    schedule = DDIMScheduler.from_config(scheduler_config)

    def predict(x: Tensor, t: Tensor, guided: bool) -> Tensor:
        alpha = schedule.alphas_cumprod[t.long()].sqrt()
        sigma = (1 - schedule.alphas_cumprod[t.long()]).sqrt()
        wanted = target.repeat(2, 1, 1, 1) if guided else target
        noise = (x - alpha * wanted) / sigma.clamp(min=1e-4)
        return alpha * noise - sigma * wanted

    return predict


def test_noise_of_an_image_depends_on_its_seed_only() -> None:
    together, _ = noise_for([3, 4, 5], (4, 8, 8))
    alone, _ = noise_for([4], (4, 8, 8))
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_reaches_the_target(name: str) -> None:
    config = {**SCHEDULE, "rescale_betas_zero_snr": False}
    scheduler = make_scheduler(name, config)
    target = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(2, 4, 8, 8)
    schedule = set_steps(scheduler, 30, 1.0, CPU)
    noise, generators = noise_for([0, 1], (4, 8, 8))
    latents = start_latents(schedule, noise, None)
    out = denoise(toward(target, config), latents, schedule, generators=generators, monitor=QUIET)
    assert (out - target).abs().mean() < 0.08


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpm++", "euler"])
def test_zero_terminal_snr_works(name: str) -> None:
    scheduler = make_scheduler(name, SCHEDULE)
    target = torch.full((1, 4, 8, 8), 0.5)
    schedule = set_steps(scheduler, 20, 1.0, CPU)
    noise, _ = noise_for([0], (4, 8, 8))
    out = denoise(
        toward(target, SCHEDULE),
        start_latents(schedule, noise, None),
        schedule,
        monitor=QUIET,
    )
    assert torch.isfinite(out).all()
    assert (out - target).abs().mean() < 0.05


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_zero_terminal_snr_is_kept_or_refused(name: str) -> None:
    """A scheduler of a model that starts from noise alone does so too."""
    if name in ("pndm", "lms", "heun", "deis"):
        with pytest.raises(ValueError, match=f"scheduler '{name}' cannot keep the zero terminal SNR.*unipc"):
            make_scheduler(name, SCHEDULE)
        return
    assert make_scheduler(name, SCHEDULE).alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpm++"])
def test_strength_is_the_share_of_steps_and_noise(name: str) -> None:
    image, (noise, _) = torch.full((1, 4, 8, 8), 2.0), noise_for([0], (4, 8, 8))
    distances = []
    for strength in (0.1, 0.5, 0.9):
        scheduler = make_scheduler(name, SCHEDULE)
        schedule = set_steps(scheduler, 20, strength, CPU)
        assert len(schedule.timesteps) == round(20 * strength)
        distances.append((start_latents(schedule, noise, image) - image).abs().mean().item())
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[2]


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpm++", "euler"])
def test_known_region_is_reimposed(name: str) -> None:
    scheduler = make_scheduler(name, SCHEDULE)
    schedule = set_steps(scheduler, 10, 1.0, CPU)
    noise, _ = noise_for([0], (4, 8, 8))
    keep = torch.zeros(1, 1, 8, 8)
    keep[..., :4] = 1
    known = Known(torch.full((1, 4, 8, 8), -1.5), keep, noise)
    out = denoise(
        toward(torch.full((1, 4, 8, 8), 0.5), SCHEDULE),
        start_latents(schedule, noise, None),
        schedule,
        known=known,
        monitor=QUIET,
    )
    assert torch.equal(out[..., :4], known.latents[..., :4])
    assert (out[..., 4:] - 0.5).abs().mean() < 0.1


def test_guidance_formula_and_single_batch() -> None:
    calls = []

    def predict(x: Tensor, t: Tensor, guided: bool) -> Tensor:
        calls.append((len(x), guided))
        one = torch.ones_like(x[:1])
        return torch.cat([one, 2 * one]) if guided else 4 * one

    def run(guidance: float) -> Tensor:
        schedule = set_steps(make_scheduler("ddim", SCHEDULE), 4, 1.0, CPU)
        return denoise(predict, torch.zeros(1, 4, 4, 4), schedule, guidance=guidance, monitor=QUIET)

    guided = run(3.0)
    assert calls == [(2, True)] * 4
    assert torch.equal(guided, run(1.0))  # 1 + 3 (2 - 1) = 4


def test_cancel_and_previews() -> None:
    scheduler = make_scheduler("ddim", SCHEDULE)
    schedule = set_steps(scheduler, 10, 1.0, CPU)
    seen: list[int] = []
    with pytest.raises(Cancelled, match="after 3 of 10"):
        denoise(
            lambda x, t, guided: x,
            torch.zeros(1, 4, 4, 4),
            schedule,
            monitor=Monitor(lambda step: seen.append(step.index), lambda: len(seen) == 3, False),
        )
    assert seen == [0, 1, 2]


def test_unknown_scheduler_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="dpm\\+\\+"):
        make_scheduler("dpm+", SCHEDULE)
    plain = {**SCHEDULE, "rescale_betas_zero_snr": False}
    single = make_scheduler("DPMSolverSinglestepScheduler", plain)
    assert type(single).__name__ == "DPMSolverSinglestepScheduler"
    assert type(make_scheduler("UniPCMultistepScheduler", SCHEDULE)).__name__ == "UniPCMultistepScheduler"


@pytest.mark.parametrize(("steps", "strength"), [(0, 1.0), (10, 0.0), (10, 1.5)])
def test_nonsense_is_refused(steps: int, strength: float) -> None:
    with pytest.raises(ValueError, match="must"):
        set_steps(make_scheduler("ddim", SCHEDULE), steps, strength, CPU)


def bumpy(x: Tensor, t: Tensor, guided: bool) -> Tensor:
    """Noise predicted by a smooth function of latents and time, for which the order of a solver matters."""
    return torch.tanh(x) + 0.3 * torch.sin(3 * x + t / 200)


@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - {"ddpm", "euler-a"}))
@pytest.mark.parametrize(("strength", "most"), [(0.2, 0.02), (0.5, 0.02), (0.9, 0.05), (1.0, 0.06)])
def test_a_midway_start_follows_the_same_path_with_every_scheduler(
    name: str, strength: float, most: float
) -> None:
    config = {**SCHEDULE, "rescale_betas_zero_snr": False, "prediction_type": "epsilon"}
    image, (noise, _) = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8), noise_for([0], (4, 8, 8))
    results = []
    for each, steps in ((name, 50), ("ddim", 500)):
        schedule = set_steps(make_scheduler(each, config), steps, strength, CPU)
        start = start_latents(schedule, noise, image)
        results.append(denoise(bumpy, start, schedule, monitor=QUIET))
    assert (results[0] - results[1]).abs().mean() < most


@pytest.mark.parametrize("name", ["ddim", "euler", "lms", "pndm", "dpm++", "unipc"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_one_step_near_the_end_of_the_schedule_is_said(
    name: str, spacing: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = {**SCHEDULE, "rescale_betas_zero_snr": False, "timestep_spacing": spacing}
    set_steps(make_scheduler(name, config), 2, 1.0, CPU)
    assert not caplog.messages
    schedule = set_steps(make_scheduler(name, config), 1, 1.0, CPU)
    said = [
        message for message in caplog.messages if "one step of" in message and "use more steps" in message
    ]
    assert len(said) == (float(schedule.timesteps[0]) < 900) == (spacing == "leading")


COUNTS = (2, 50, 61, 150, 240, 400, 490, 600)


def of_known_pixels(scheduler: SchedulerMixin, steps: int) -> float:
    """Standard deviation of samples whose true one is .5, by the exact noise prediction."""
    schedule = set_steps(scheduler, steps, 1.0, CPU)
    kept = scheduler.alphas_cumprod

    def predict(x: torch.Tensor, t: torch.Tensor, guided: bool) -> torch.Tensor:
        a = kept[t.long().clamp(0, 999)].reshape(-1, 1, 1, 1)
        return (1 - a).sqrt() * x / (0.25 * a + 1 - a)

    noise, _ = noise_for([0], (4, 32, 32))
    return float(denoise(predict, start_latents(schedule, noise, None), schedule, monitor=QUIET).std())


@pytest.mark.parametrize("name", ["ddim", "euler", "pndm", "dpm++", "unipc"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_number_of_steps_that_is_taken_removes_the_noise(name: str, spacing: str) -> None:
    config = {**SCHEDULE, "rescale_betas_zero_snr": False, "timestep_spacing": spacing, "steps_offset": 1}
    config |= {"prediction_type": "epsilon"}
    taken = []
    for steps in COUNTS:
        scheduler = make_scheduler(name, config)
        try:
            set_steps(scheduler, steps, 1.0, CPU)
        except ValueError as error:
            found = re.fullmatch(f"{steps} steps of .* from all noise to none: use ([0-9]+)", str(error))
            assert found
            assert steps / 2 < int(found[1]) < steps
            set_steps(scheduler, int(found[1]), 1.0, CPU)
        else:
            taken.append(steps)
            if steps >= 50:
                assert of_known_pixels(scheduler, steps) == pytest.approx(0.5, abs=0.04)
    refused = {400, 600} if spacing == "leading" or name in ("ddim", "pndm") else set()
    refused |= {61} if spacing == "trailing" else set()
    assert taken == [steps for steps in COUNTS if steps not in refused]


@pytest.mark.parametrize("name", ["ddim", "euler", "unipc"])
def test_steps_beyond_the_schedule_are_refused(name: str) -> None:
    config = {**SCHEDULE, "rescale_betas_zero_snr": False, "timestep_spacing": "leading", "steps_offset": 1}
    with pytest.raises(ValueError, match="^1000 steps of .*: use [0-9]+$"):
        set_steps(make_scheduler(name, config), 1000, 1.0, CPU)
