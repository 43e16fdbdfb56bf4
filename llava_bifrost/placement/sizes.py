"""How large objects usually are: the only knowledge of the world that the geometric placer has.

A size is the square root of width times height of the object as it stands, in metres; estimated by hand.
"""

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import TypeVar

from datasets.relations import Place
from llava_bifrost.language.instruction import GROUND_NAMES
from llava_bifrost.placement.ground import EDGE, Ground

T = TypeVar("T")

SIZES: dict[str, float] = {
    # people and animals
    "person": 0.9, "man": 0.95, "woman": 0.85, "child": 0.6, "boy": 0.6, "girl": 0.6, "baby": 0.4,
    **dict.fromkeys(("player", "skier", "singer", "referee", "guard", "tourist", "worker", "lady"), 0.9),
    "dog": 0.55, "puppy": 0.3, "cat": 0.35, "kitten": 0.2, "bird": 0.2, "horse": 1.9, "sheep": 0.9,
    "cow": 1.8, "elephant": 3.2, "bear": 1.5, "zebra": 1.8, "giraffe": 3.2, "rabbit": 0.3, "duck": 0.35,
    "chicken": 0.4,
    # toys
    "toy": 0.25, "plushie": 0.3, "doll": 0.3, "ball": 0.22, "kite": 1.0, "frisbee": 0.25, "teddy bear": 0.35,
    # furniture and rooms
    "sofa": 1.3, "couch": 1.3, "armchair": 0.9, "chair": 0.65, "stool": 0.5, "bench": 1.1, "bed": 1.3,
    "table": 1.0, "desk": 1.0, "nightstand": 0.5, "shelf": 1.2, "bookcase": 1.3, "cabinet": 1.1,
    "wardrobe": 1.5, "dresser": 1.0, "lamp": 0.6, "rug": 1.2, "door": 1.3, "window": 1.2, "mirror": 0.8,
    "toilet": 0.6, "sink": 0.5, "bathtub": 1.1, "fridge": 1.2, "refrigerator": 1.2, "oven": 0.75,
    "stove": 0.75, "microwave": 0.4, "tv": 0.9, "television": 0.9, "platform": 1.5,
    # household objects
    "plant": 0.6, "vase": 0.25, "bottle": 0.15, "cup": 0.1, "mug": 0.1, "glass": 0.1, "bowl": 0.15,
    "plate": 0.2, "teapot": 0.2, "book": 0.2, "clock": 0.3, "laptop": 0.3, "keyboard": 0.25, "phone": 0.11,
    "piano": 1.6, "pillow": 0.5, "cushion": 0.4, "curtain": 1.6, "monitor": 0.45, "computer": 0.4,
    "mouse": 0.08, "speaker": 0.25, "saucer": 0.15, "spoon": 0.1, "carton": 0.15, "helmet": 0.28,
    "muffin": 0.08, "cookie": 0.06, "towel": 0.6, "statue": 1.2, "pillar": 1.6, "microphone": 0.2,
    "trash can": 0.7, "gas can": 0.4, "watering can": 0.35, "rubber duck": 0.1, "skateboard": 0.4,
    "backpack": 0.4, "handbag": 0.3, "suitcase": 0.55, "umbrella": 0.7, "shoe": 0.2, "sneaker": 0.2,
    "boot": 0.3, "hat": 0.25, "candle": 0.12, "box": 0.4, "basket": 0.4, "can": 0.1, "guitar": 0.6,
    "cake": 0.25, "pizza": 0.3, "apple": 0.08, "orange": 0.08, "banana": 0.12, "pumpkin": 0.3,
    # outdoors
    "car": 2.4, "truck": 3.5, "bus": 4.5, "van": 2.8, "motorcycle": 1.3, "motorbike": 1.3, "bicycle": 1.2,
    "bike": 1.2, "scooter": 1.1, "train": 6.0, "boat": 3.0, "airplane": 10.0, "tree": 4.0, "bush": 1.2,
    "hydrant": 0.6, "bin": 0.7, "sign": 0.8, "tent": 1.8, "house": 8.0, "fence": 1.8, "rock": 0.6,
    "surfboard": 0.9, "snowboard": 0.7}  # fmt: skip
ADJECTIVE_FACTORS = {"tiny": 0.4, "small": 0.6, "little": 0.6, "large": 1.4, "big": 1.4, "huge": 2.0}
# Objects without depth of their own, and what others stand on.
FLAT_NOUNS = ("curtain", "window", "door", "mirror", "picture", "painting", "poster", "sign", "wall", "fence",
              "shelf", "gate", "board")  # fmt: skip
# Objects that lie on what they are on, so that their box shows where they are on it.
LYING_NOUNS = ("saucer", "plate", "tray", "pizza", "book", "newspaper", "magazine", "keyboard", "mousepad")
LEVEL_NOUNS = (*GROUND_NAMES, "rug", "carpet", "stage", "field", "mat")
# Objects that touch the ground behind their lowest visible point: their middle is much nearer than that.
ROUND_NOUNS = {"ball", "sphere", "egg", "capsule", "balloon", "globe", "apple", "orange", "pumpkin", "melon"}
# Where the upper side of an object lies in its box, from the top, by hand: seats have backs, and many
# surfaces are seen from above.
UPPER_SIDES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("chair", "armchair", "toilet"), (0.5, 0.62)),
    **dict.fromkeys(("bench", "sofa", "couch"), (0.46, 0.6)),
    **dict.fromkeys(("motorcycle", "motorbike", "bicycle", "bike", "scooter", "horse"), (0.24, 0.36)),
    **dict.fromkeys(("bed", "table", "desk"), (0.25, 0.6)),
    **dict.fromkeys(("laptop", "keyboard", "stove"), (0.5, 0.64)),
    **dict.fromkeys(("nightstand", "piano", "cabinet", "dresser"), (0.03, 0.25)),
    **dict.fromkeys(("fridge", "shelf", "tv", "box"), (0.03, 0.25)),
}
TOP_SIDE = (0.03, 0.35)  # of all others
RELIEF, ROUND_RELIEF = 0.06, 0.36  # by which the middle is nearer, in units of width times scale; chosen
# What follows the noun that a name is about: "man in the field", "dog playing with a ball".
_MODIFIER = re.compile(
    r" (?:with|in|from|on|at|by|to|near|next|beside|under|above|behind|between|holding|wearing|carrying"
    r"|\w+ing (?:an?|the|his|her|its|with|in|on|at|to))\b"
)
COMMON = 0.4  # metres, of a target that is not in the table beside an anchor that is; chosen
UNANCHORED = 0.3  # fraction of the shorter side covered in the middle distance, where nothing helps; chosen


def usual_size(name: str) -> float | None:
    """Metres for a name such as "small brown dog in the grass", by its noun; None for an unknown one."""
    words = set(_MODIFIER.split(name.lower())[0].split())
    size = SIZES["toy"] if {"toy", "model", "miniature"} & words else by_noun(SIZES, name)
    return size and size * prod(factor for word, factor in ADJECTIVE_FACTORS.items() if word in words)


def by_noun(table: Mapping[str, T], name: str) -> T | None:
    """What a table says of a name, by its noun of one or two words, singular; None for an unknown noun.

    The noun stands before "in the field" and the like; of "pair of shoes" the second counts where the first
    is unknown.
    """
    nouns = map(str.split, _MODIFIER.split(name.lower())[0].split(" of "))
    last = [word for words in nouns for word in (" ".join(words[-2:]), *words[-1:])]
    return next((table[key] for word in last for key in (word, word.removesuffix("s")) if key in table), None)


def is_one_of(nouns: Iterable[str], name: str) -> bool:
    """Whether the noun of a name is one of these."""
    return by_noun(dict.fromkeys(nouns, True), name) is not None


def is_level(name: str, place: Place) -> bool:
    """Whether an object is what others stand on: a floor, a rug, a table from border to border."""
    spans = place.x0 <= EDGE and place.x1 >= 1 - EDGE
    return spans or is_one_of(LEVEL_NOUNS, name)


def size_px(place: Place, size_hw: tuple[int, int]) -> float:
    """Square root of the box's area in pixels."""
    return float((place.width * size_hw[1] * (place.y1 - place.y0) * size_hw[0]) ** 0.5)


def size_at_one(
    target: str,
    named: Mapping[str, Place],
    known: Mapping[str, Place],
    ground: Ground,
    size_hw: tuple[int, int],
    relative: float | None = None,
) -> float:
    """Pixels (square root of the box's area) of the target per unit of `Ground.scale`.

    named:    the anchors of the request; known: everything whose place is known
    relative: size of the target relative to the first named anchor at equal distance, instead of the table
    """
    named = {name: place for name, place in named.items() if not is_level(name, place)}
    known = {name: place for name, place in known.items() if not is_level(name, place)}
    if relative is not None and named:
        first = next(iter(named.values()))
        return relative * size_px(first, size_hw) / float(ground.scale(first.d))
    usual = usual_size(target)
    inner = {name: place for name, place in known.items()  # what the border of the image does not cut off
             if not place.touches_border(EDGE)} or known  # fmt: skip
    # Like with like: an object of known size beside such objects, an unknown one beside unknown ones.
    alike = {name: place for name, place in inner.items() if (usual_size(name) is None) == (usual is None)}
    sizes = []
    for name, place in (alike or inner).items():
        other = usual_size(name)
        ratio = 1.0 if other is None else (usual or COMMON) / other
        sizes.append(ratio * size_px(place, size_hw) / float(ground.scale(place.d)))
    if sizes:
        sizes.sort()
        middle = len(sizes) // 2
        return sizes[middle] if len(sizes) % 2 else (sizes[middle - 1] * sizes[middle]) ** 0.5
    return UNANCHORED * min(size_hw) / float(ground.scale(0.5))
