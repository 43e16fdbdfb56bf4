"""How large objects usually are: the only knowledge of the world that the geometric placer has.

A size is the square root of width times height of the object as it stands, in metres; estimated by hand.
"""

import re
from collections.abc import Mapping

from datasets.relations import Place
from llava_bifrost.placement.ground import Ground

SIZES: dict[str, float] = {
    # people and animals
    "person": 0.9, "man": 0.95, "woman": 0.85, "child": 0.6, "boy": 0.6, "girl": 0.6, "baby": 0.4,
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
    "backpack": 0.4, "handbag": 0.3, "suitcase": 0.55, "umbrella": 0.7, "shoe": 0.2, "sneaker": 0.2,
    "boot": 0.3, "hat": 0.25, "candle": 0.12, "box": 0.4, "basket": 0.4, "can": 0.1, "guitar": 0.6,
    "cake": 0.25, "pizza": 0.3, "apple": 0.08, "orange": 0.08, "banana": 0.12, "pumpkin": 0.3,
    # outdoors
    "car": 2.4, "truck": 3.5, "bus": 4.5, "van": 2.8, "motorcycle": 1.3, "bicycle": 1.2, "bike": 1.2,
    "scooter": 1.1, "train": 6.0, "boat": 3.0, "airplane": 10.0, "tree": 4.0, "bush": 1.2, "hydrant": 0.6,
    "bin": 0.7, "sign": 0.8, "tent": 1.8, "house": 8.0, "fence": 1.8, "rock": 0.6, "surfboard": 0.9,
    "skateboard": 0.35, "snowboard": 0.7,
}  # fmt: skip
# Objects that touch the ground behind their lowest visible point: their middle is much nearer than that.
ROUND_NOUNS = {"ball", "sphere", "egg", "capsule", "balloon", "globe", "apple", "orange", "pumpkin", "melon"}
RELIEF, ROUND_RELIEF = 0.06, 0.36  # by which the middle is nearer, in units of width times scale; chosen
COMMON = 0.4  # metres, of a target that is not in the table beside an anchor that is; chosen
EDGE = 0.01  # of the image; what comes closer to its border may be cut off; chosen
UNANCHORED = 0.3  # fraction of the shorter side covered in the middle distance, where nothing helps; chosen


def usual_size(name: str) -> float | None:
    """Metres for a name such as "small brown dog", by its last word or two; None for an unknown noun."""
    words = [re.sub(r"(?<=[^s])s$", "", word) for word in name.lower().split()]
    return SIZES.get(" ".join(words[-2:]), SIZES.get(words[-1] if words else ""))


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
    if relative is not None and named:
        first = next(iter(named.values()))
        return relative * size_px(first, size_hw) / float(ground.scale(first.d))
    usual = usual_size(target)
    inner = {name: place for name, place in known.items()  # what the border of the image does not cut off
             if min(place.x0, place.y0) > EDGE and max(place.x1, place.y1) < 1 - EDGE} or known  # fmt: skip
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
