"""Small untrained networks with the real classes, for tests that need no trained weights."""

from cldm.config import AutoencoderConfig, CompositorConfig, NetworkConfig, Sampling
from datasets.inputs import PairOptions

SMALL = NetworkConfig(
    size=(32, 32),
    reference_size=16,
    block_channels=(16, 32),
    heads=(2, 4),
    attention=(True, False),
    layers_per_block=1,
    norm_groups=8,
    token_width=24,
    hint_channels=(4, 8, 8),
    identity_width=32,
    identity_layers=2,
    identity_heads=4,
    identity_patch=8,
    prediction="v_prediction",
    zero_snr=True,
    zero_conv_std=0.5,
    autoencoder=AutoencoderConfig("tiny", (8, 8, 8), 1, 4),
)

SMALL_CONFIG = CompositorConfig(
    name="small",
    pair=PairOptions(size=(32, 32), reference_size=16, hf_mode="cutout"),
    sampling=Sampling(scheduler="ddim", steps=2, guidance=2.0, init="paste", strength=1.0, detail=0.5),
)
