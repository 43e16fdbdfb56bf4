"""Dividing a list of work between machines: `--shard i/n`."""


def shard_of(text: str) -> tuple[int, int]:
    """ "i/n" -> (i, n) with 0 <= i < n; the work of shard i is every n-th item from the i-th."""
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise ValueError(f"shard must be i/n with 0 <= i < n, got {text!r}")
