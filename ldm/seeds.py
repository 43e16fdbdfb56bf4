"""Seeds that follow from what they are for: no result depends on order, workers or an interruption."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2^63) from any parts, such as (seed of the run, epoch, number of the example)."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
