"""Vision-language models of the LLaVA family: loading, chat, LoRA, constrained decoding."""
