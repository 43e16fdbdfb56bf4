"""Chat with a vision-language model: prompts, training examples with labels on the answers only, answers.

Everything goes through the processor's chat template, so one code serves every family. Image placeholders
are expanded by the processor and nothing is ever truncated. Of the templates of the LLaVA family, `vicuna_v1`
is what LLaVA-1.5 and the Bifrost locator were trained with; `llava_v1` has the system sentence that the
published inference script picked by the folder's name; `llava_hub` is the form of the converted weights.

Legend: b rows of a batch, t tokens.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from ldm.mllm.constrain import ConstrainedChoice, end_token
from ldm.mllm.load import Mllm

IGNORED = -100  # label of tokens that no loss is computed for
# A template statement that marks what the model itself says.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, eq=False)
class ChatExample:
    """A question about an image, and in training its answer."""

    image_u8: np.ndarray  # RGB (h, w, 3) uint8
    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Answer:
    """text: as the tokenizer decodes it. spelled: the texts of its tokens. log_probability: see constrain."""

    text: str
    spelled: str
    log_probability: float


class Chat:
    """A processor with its chat template.

    template: replaces the processor's own. Answers end with the tokenizer's end-of-sequence token, also where
    the template leaves it out, so that a trained model stops.
    """

    def __init__(self, processor: Any, template: str | None = None) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.template = template or processor.chat_template
        if not isinstance(self.template, str):
            raise ValueError("the processor has no chat template; name one of ldm.mllm.templates.TEMPLATES")
        self.end = end_token(self.tokenizer)
        self.marks_answers = bool(_GENERATION.search(self.template)) and bool(self.tokenizer.is_fast)
        self.ends_itself = True  # until the template shows otherwise
        rendered = self.text(ChatExample(np.zeros((1, 1, 3), np.uint8), "question", "ANSWER"))
        tail = rendered.rpartition("ANSWER")[2]
        self.ends_itself = self.tokenizer.eos_token in tail

    def text(self, ask: ChatExample) -> str:
        """The rendered conversation, up to where the model speaks if there is no answer."""
        return self.processor.apply_chat_template(
            self._messages(ask),
            chat_template=self.template,
            add_generation_prompt=ask.answer is None,
            tokenize=False,
        )

    def prompts(self, asks: Sequence[ChatExample]) -> dict[str, Any]:
        """Model inputs for questions, padded on the left, on the CPU."""
        return dict(self._encode([replace(ask, answer=None) for ask in asks], "left", mask=False))

    def examples(self, asks: Sequence[ChatExample]) -> dict[str, Tensor]:
        """Model inputs for training, padded on the right, with `labels` (b, t): the answer's tokens and the
        end, -100 elsewhere.

        Raises ValueError for an ask without answer, and if no token of an answer is left to learn.
        """
        if any(ask.answer is None for ask in asks):
            raise ValueError("a training example needs an answer")
        encoded = self._encode(asks, "right", mask=self.marks_answers)
        batch = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
        real = batch["attention_mask"].bool()
        answers = torch.zeros_like(real)  # (b, t), what follows the prompt
        for row, ask in enumerate(asks):
            # The answer holds no image, so its tokens are counted on the texts before images are expanded.
            texts = self.text(ask), self.text(replace(ask, answer=None))
            whole, prompt = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
            common = len(os.path.commonprefix([whole, prompt]))
            length = int(real[row].sum())
            answers[row, length - (len(whole) - common) : length] = True
        if self.marks_answers:
            # With the tail: a template may mark the answer after the space that the model has to say first.
            answers |= torch.as_tensor(encoded["assistant_masks"]).bool()
        batch["labels"] = torch.where(answers & real, batch["input_ids"], IGNORED)
        for ask, labels in zip(asks, batch["labels"], strict=True):
            ends = (labels == self.end).nonzero()
            if len(ends):  # a template may write more behind it, such as a line break
                labels[int(ends[-1]) + 1 :] = IGNORED
            if not (labels != IGNORED).any():
                raise ValueError(f"the chat template leaves nothing of the answer {ask.answer!r} to learn")
        return batch

    def _messages(self, ask: ChatExample, pil_image: Image.Image | None = None) -> list[dict[str, Any]]:
        image = {"type": "image"} if pil_image is None else {"type": "image", "image": pil_image}
        messages = [{"role": "user", "content": [image, {"type": "text", "text": ask.question}]}]
        if ask.answer is not None:
            answer = ask.answer if self.ends_itself else ask.answer + self.tokenizer.eos_token
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return messages

    def _encode(self, asks: Sequence[ChatExample], side: str, mask: bool) -> Mapping[str, Any]:
        return self.processor.apply_chat_template(
            [self._messages(ask, Image.fromarray(ask.image_u8)) for ask in asks],
            chat_template=self.template,
            add_generation_prompt=asks[0].answer is None,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=mask,
            processor_kwargs={"padding": True, "padding_side": side},
        )


def to_device(batch: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Tensors on the device, floating ones as dtype."""
    return {
        key: value.to(device, dtype if value.is_floating_point() else None)
        for key, value in batch.items()
        if isinstance(value, Tensor)
    }


def generate(
    mllm: Mllm, batch: Mapping[str, Any], choice: ConstrainedChoice | None = None, longest: int = 128
) -> list[Answer]:
    """Let the model answer a batch of prompts, greedily; one Answer per row.

    choice: chooses the tokens instead, within a form. Without it spelled is the text, log_probability nan.
    """
    model: Any = mllm.model
    tokenizer = mllm.processor.tokenizer
    inputs = to_device(batch, mllm.device, mllm.dtype)
    end = end_token(tokenizer)
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    settings = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=end, pad_token_id=pad)
    with torch.no_grad():
        rows = model.generate(
            **inputs, generation_config=settings, logits_processor=[] if choice is None else [choice]
        )
    answers = rows[:, inputs["input_ids"].shape[1] :].tolist()
    texts = [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
    if choice is None:
        return [Answer(text, text, math.nan) for text in texts]
    return [
        Answer(text, choice.grammar.spell(tokens).strip(), log_p)
        for text, tokens, log_p in zip(texts, answers, choice.log_probability, strict=True)
    ]
