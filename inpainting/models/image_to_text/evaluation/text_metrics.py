"""Numbers about one predicted prompt and its true caption, all in lower case, each a share up to 1.

accuracy         the noun root stands somewhere in the prediction, also within a word (published)
accuracy_words   the noun root stands there as a word of its own
bleu1, bleu4     of the whole corpus, so that a row gives counts; no smoothing, words split at spaces
rouge*           fmeasure, precision, recall per row
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torchmetrics
from torchmetrics.functional.text.rouge import rouge_score
from torchmetrics.text import BLEUScore

from inpainting.models.image_to_text.evaluation.predictions import Prediction

GRAMS = 4
BLEU = {"bleu1": 1, "bleu4": GRAMS}
ROUGE = ("rouge1", "rouge2", "rougeL")
SENTENCES = "rougeLsum"  # per sentence, which nltk's data must split
SIDES = ("fmeasure", "precision", "recall")
PUNKT = "tokenizers/punkt_tab"
NO_PUNKT = "nltk's sentence splitter is not installed; `python -m nltk.downloader punkt_tab` gets it"
LIBRARY = f"torchmetrics {torchmetrics.__version__}"
JUDGES = {
    "accuracy": "noun root as a substring (published)",
    "accuracy_words": "noun root as a whole word",
    **dict.fromkeys(BLEU, f"counts of {LIBRARY}"),
    **{f"{name}_{side}": LIBRARY for name in (*ROUGE, SENTENCES) for side in SIDES},
}


def says(prediction: str, root: str) -> bool:
    """The root is a substring: "man" is found in "a woman" (published)."""
    return root.lower() in prediction.lower()


def says_word(prediction: str, root: str) -> bool:
    """The root is a word, or words, of the prediction: "man" is not found in "a woman" nor in "two men"."""
    return re.search(rf"(?<!\w){re.escape(root.lower())}(?!\w)", prediction.lower()) is not None


def splits_sentences() -> bool:
    """Whether nltk's data for rougeLsum is on this disk; it is never downloaded from here."""
    import nltk

    try:
        nltk.data.find(PUNKT)
    except LookupError:
        return False
    return True


def text_numbers(row: Prediction, sentences: bool = False) -> dict[str, float]:
    """Everything about one row but BLEU, whose counts `bleu_counts` gives. sentences: also rougeLsum."""
    said, truth = row.prediction.lower(), row.caption.lower()
    keys = (*ROUGE, SENTENCES) if sentences else ROUGE
    numbers = {
        "accuracy": float(says(said, row.root)),
        "accuracy_words": float(says_word(said, row.root)),
    }
    return numbers | {name: float(value) for name, value in rouge_score(said, truth, rouge_keys=keys).items()}


def bleu_counts(rows: Sequence[Prediction]) -> np.ndarray:
    """(rows, 2 * 4 + 2): matching n-grams, n-grams said (n = 1..4), words said, words of the caption."""
    metric = BLEUScore(n_gram=GRAMS)
    counts = []
    for row in rows:
        metric.reset()
        metric.update([row.prediction.lower()], [[row.caption.lower()]])
        parts = (metric.numerator, metric.denominator, metric.preds_len[None], metric.target_len[None])
        counts.append(np.concatenate([part.numpy() for part in parts]))
    return np.array(counts, np.float64).reshape(len(rows), 2 * GRAMS + 2)


def bleu(counts: np.ndarray, grams: int) -> float:
    """BLEU@grams of a corpus (Papineni et al. 2002) from the sum (2 * 4 + 2,) of its rows' counts."""
    right, said = counts[:grams], counts[GRAMS : GRAMS + grams]
    words_said, words_true = counts[2 * GRAMS :]
    if not right.min():
        return 0.0
    brevity = np.exp(min(0.0, 1 - words_true / words_said))
    return float(brevity * np.exp(np.log(right / said).mean()))
