"""Fabricated datasets: three items in the layout of every source, at the paths of configs/datasets.yaml."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from ldm.files import write_atomic
from ldm.images import write_depth, write_mask, write_png
from tests.images import room, room_depth

SIZE = (120, 160)  # (h, w)
ITEMS = 3


def image(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Image k (h, w, 3) uint8 with a round object, and the object's mask (h, w) bool."""
    h, w = SIZE
    y, x = np.mgrid[0:h, 0:w]
    mask = ((x - 60 - 4 * (k % 10)) / 34) ** 2 + ((y - 62) / 40) ** 2 < 1
    stripes = np.dstack([200 - 0 * x, (x + y) // 5 % 2 * 200, 40 + 0 * x])
    return np.where(mask[..., None], stripes, room(h, w)).astype(np.uint8), mask


def save_jpeg(path: Path, rgb_u8: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb_u8).save(path, quality=95)


def save_ids(path: Path, ids_u8: np.ndarray) -> None:
    """A palette image of ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids_u8, "P")
    image.putpalette([value for k in range(256) for value in (k * 37 % 256, k * 91 % 256, k)])
    image.save(path)


def save_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value).encode())


def coded(mask: np.ndarray) -> dict[str, Any]:
    """COCO run lengths that fit into JSON."""
    found = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def frame(images: Path, depth: Path, name: str, k: int) -> np.ndarray:
    """Write image k as NAME.jpg with its depth map; returns its mask."""
    rgb_u8, mask = image(k)
    save_jpeg(images / f"{name}.jpg", rgb_u8)
    write_depth(depth / f"{name}.png", room_depth(*SIZE))
    return mask


def youtube(root: Path) -> None:
    videos = {}
    for item in range(ITEMS):
        names = [f"{k:05d}" for k in range(4)]
        for k, name in enumerate(names):
            mask = frame(root / "JPEGImages", root / "Depth", f"v{item}/{name}", k)
            save_ids(root / "Annotations" / f"v{item}" / f"{name}.png", mask.astype(np.uint8) * 3)
        videos[f"v{item}"] = {"objects": {"3": {"category": "ball", "frames": names}}}
    save_json(root / "meta.json", {"videos": videos})


def vipseg(root: Path) -> None:
    for item in range(ITEMS):
        for k in range(4):
            name = f"v{item}/{k:05d}"
            mask = frame(root / "images", root / "depth", name, k)
            write_png(root / "panomasksRGB" / f"{name}.png", mask[..., None] * np.array([7, 1, 2], np.uint8))


def mose(root: Path) -> None:
    for item in range(ITEMS):
        for k in range(4):
            name = f"v{item}/{k:05d}"
            mask = frame(root / "JPEGImages", root / "depth", name, k)
            save_ids(root / "Annotations" / f"{name}.png", mask.astype(np.uint8))


def uvo(root: Path, images: str, depth: str, annotations: str) -> None:
    videos, objects = [], []
    for item in range(ITEMS):
        names = [f"v{item}/{k}.jpg" for k in range(4)]
        masks = [frame(root / images, root / depth, f"v{item}/{k}", k) for k in range(4)]
        videos.append({"id": item, "file_names": names, "height": SIZE[0], "width": SIZE[1]})
        segments = [None if k == 1 else coded(mask) for k, mask in enumerate(masks)]
        objects.append({"id": item, "video_id": item, "segmentations": segments})
    save_json(root / annotations, {"videos": videos, "annotations": objects})


def mvimgnet(root: Path) -> None:
    for item in range(ITEMS):
        for k in range(4):
            name = f"7/o{item}/images/{k:03d}"
            mask = frame(root / "views", root / "depth", name, k)
            cutout = root / "views" / f"{name}_bg_removed.png"
            write_png(cutout, image(k)[0], alpha_u8=mask.astype(np.uint8) * 255)
    lines = [f"MVDir/7/o{item}/images" for item in range(ITEMS)]
    write_atomic(root / "mvimagenet.txt", "\n".join(lines).encode())


def viton_hd(root: Path) -> None:
    for item in range(ITEMS):
        mask = frame(root / "image", root / "depth", f"{item}", item)
        save_ids(root / "image-parse-v3" / f"{item}.png", np.where(mask, 5, 9).astype(np.uint8))
        garment_u8, garment = image(item + 5)
        save_jpeg(root / "cloth" / f"{item}.jpg", garment_u8)
        save_jpeg(root / "cloth-mask" / f"{item}.jpg", garment.astype(np.uint8) * 255)


def dress_code(root: Path) -> None:
    for item in range(ITEMS):
        mask = frame(root / "images", root / "depth", f"{item}_0", item)
        save_ids(root / "label_maps" / f"{item}_4.png", np.where(mask, 4, 1).astype(np.uint8))
        garment_u8, garment = image(item + 5)
        save_jpeg(
            root / "images" / f"{item}_1.jpg", np.where(garment[..., None], garment_u8, 255).astype(np.uint8)
        )


def fashion_tryon(root: Path) -> None:
    for item in range(ITEMS):
        garment_u8, garment = image(item + 5)
        save_jpeg(root / "train" / f"{item}" / "target.jpg", garment_u8)
        save_jpeg(root / "train" / f"{item}" / "mask.jpg", garment.astype(np.uint8) * 255)
        for person in "ab":
            mask = frame(root / "train", root / "train_depth", f"{item}/{person}", item)
            save_ids(root / "train" / f"{item}" / person / "segment.png", mask.astype(np.uint8) * 7)


def lvis(root: Path) -> None:
    images, annotations = [], []
    box = [26.0, 22.0, 94.0, 22.0, 94.0, 102.0, 26.0, 102.0]
    for item in range(ITEMS):
        frame(root / "COCO/train2017", root / "COCO/train2017_depth", f"{item:012d}", item)
        address = f"http://images.cocodataset.org/train2017/{item:012d}.jpg"
        images.append({"id": item, "coco_url": address, "height": SIZE[0], "width": SIZE[1]})
        annotations += [
            {"id": 2 * item, "image_id": item, "area": 5440, "segmentation": [box]},
            {"id": 2 * item + 1, "image_id": item, "area": 100, "segmentation": [[0, 0, 10, 0, 10, 10]]},
        ]
    save_json(root / "LVIS/lvis_v1_train.json", {"images": images, "annotations": annotations})


def coco_panoptic(root: Path) -> None:
    images, annotations = [], []
    for item in range(ITEMS):
        name = f"{item:012d}"
        mask = frame(root / "train2017", root / "train2017_depth", name, item)
        ids = np.where(mask[..., None], np.array([1, 2, 3], np.uint8), np.array([9, 0, 0], np.uint8))
        write_png(root / f"annotations/panoptic_train2017/{name}.png", ids)
        images.append({"id": item, "file_name": f"{name}.jpg"})
        thing = {"id": 1 + 2 * 256 + 3 * 65536, "category_id": 1, "area": int(mask.sum()), "iscrowd": 0}
        stuff = {"id": 9, "category_id": 2, "area": int((~mask).sum()), "iscrowd": 0}
        annotations.append({"image_id": item, "file_name": f"{name}.png", "segments_info": [thing, stuff]})
    categories = [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    save_json(root / "annotations/panoptic_train2017.json", document)


def sam(root: Path) -> None:
    for item in range(ITEMS):
        mask = frame(root / "SAM", root / "SAM_depth", f"000{item}/sa_{item}", item)
        large = {"area": int(mask.sum()), "segmentation": coded(mask)}
        small = {"area": 4, "segmentation": coded(np.pad(np.ones((2, 2), bool), ((0, 118), (0, 158))))}
        image = {"height": SIZE[0], "width": SIZE[1]}
        save_json(root / f"SAM/000{item}/sa_{item}.json", {"image": image, "annotations": [large, small]})


def saliency(root: Path) -> None:
    parts = {
        "MSRA10K_Imgs_GT": ("", "../MSRA10K_Depth_GT", ""),
        "DUTS-TR": ("DUTS-TR-Image", "DUTS-TR-Depth", "DUTS-TR-Mask"),
        "DUTS-TE": ("DUTS-TE-Image", "DUTS-TE-Depth", "DUTS-TE-Mask"),
        "HFlickr": ("real_images", "real_depth", "masks"),
    }
    for k, (part, (images, depth, masks)) in enumerate(parts.items()):
        mask = frame(root / part / images, root / part / depth, f"f{k}", k)
        name = f"f{k}_1" if part == "HFlickr" else f"f{k}"
        write_mask(root / part / masks / f"{name}.png", mask)


def dreambooth(root: Path) -> None:
    for item in range(ITEMS):
        rgb_u8, mask = image(item)
        cutout = root / "AnyDoor_DreamBooth" / f"thing{item}" / "00.png"
        write_png(cutout, rgb_u8, alpha_u8=mask.astype(np.uint8) * 255)
        write_png(root / "v1_800" / f"{item}_GT.png", room(*SIZE))
        write_mask(root / "v1_800" / f"{item}_mask.png", mask)
        write_depth(root / "v1_800_depth" / f"{item}_GT.png", room_depth(*SIZE))


def own_folder(root: Path) -> None:
    for item in range(ITEMS):
        mask = frame(root / "images", root / "depth", f"cup{item}", item)
        write_mask(root / "masks" / f"cup{item}.png", mask)


TREES: dict[str, Callable[[Path], None]] = {
    "youtube_vos": lambda data: youtube(data / "YouTubeVOS/train"),
    "youtube_vis": lambda data: youtube(data / "YouTubeVIS/train"),
    "vipseg": lambda data: vipseg(data / "VIPSeg"),
    "mose": lambda data: mose(data / "MOSE/train"),
    "uvo": lambda data: uvo(
        data / "UVO",
        "uvo_videos_sparse_frames",
        "uvo_videos_sparse_depth",
        "UVO_sparse_train_video_with_interpolation.json",
    ),
    "uvo_val": lambda data: uvo(
        data / "UVO", "uvo_videos_dense_frames", "uvo_videos_dense_depth", "UVO_video_val_dense.json"
    ),
    "mvimgnet": lambda data: mvimgnet(data / "MVImgNet"),
    "viton_hd": lambda data: viton_hd(data / "VITON-HD/train"),
    "dress_code": lambda data: dress_code(data / "DressCode/upper_body"),
    "fashion_tryon": lambda data: fashion_tryon(data / "FashionTryOn"),
    "lvis": lvis,
    "coco_panoptic": lambda data: coco_panoptic(data / "COCO"),
    "sam": sam,
    "saliency": lambda data: saliency(data / "Saliency"),
    "dreambooth": lambda data: dreambooth(data / "DreamBooth"),
    "folder": lambda data: own_folder(data / "mine"),
}
