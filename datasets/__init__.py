"""Sources of compositing pairs. Import submodules: `from datasets.pairs import Pair`.

This package hides the Hugging Face library of the same name when run from the repository root.
transformers and accelerate look up the two names below with isinstance; nothing of ours is one.
"""


class Dataset: ...


class IterableDataset: ...
