"""Chat templates of the LLaVA family.

vicuna_v1 is what LLaVA-1.5 and the Bifrost locator were trained with, llava_v1 what the published inference
script picked by the folder's name, and llava_hub the form of the converted weights.
"""

LLAVAS = ("llava", "llava_next")  # families whose images stand in a text as <image>
LLAVA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
VICUNA_SYSTEM = LLAVA_SYSTEM.replace("human", "user")
_PARTS = (
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}"
)
_TURNS = (
    "{% for message in messages %}{% if message.role == 'user' %}USER: " + _PARTS + " "
    "{% elif message.role == 'assistant' %}ASSISTANT: {% generation %}" + _PARTS + "</s>{% endgeneration %}"
    "{% else %}" + _PARTS + " {% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEMPLATES = {
    "vicuna_v1": VICUNA_SYSTEM + " " + _TURNS,
    "llava_v1": LLAVA_SYSTEM + " " + _TURNS,
    "llava_hub": _TURNS,
}
