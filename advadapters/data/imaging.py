"""Decoding and cropping on the host, with OpenCV; images are uint8 [H, W, C]."""

import os

import numpy as np

from advadapters.data.splits import Image
from advadapters.shapes import UInt8

# OpenCV reads this when it is first imported, and refuses larger images by their headers. A
# file of 48 kB can hold an image of gigabytes. It is three quarters of Pillow's limit.
PIXELS = 2**27
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(PIXELS))


def decode(data: bytes, channels: int) -> Image | None:
    """Decodes an image as it is stored: a turn that EXIF asks for is not made.

    No pipeline of ImageNet makes it. JPEGs are decoded at full scale: a reduced scale helps
    only crops of at least twice 224 pixels, which an image of 500x375 does not have.

    Args:
      data: the bytes of a JPEG, a PNG or another format that OpenCV reads.
      channels: 3 for RGB or 1 for gray.

    Returns:
      The image, or None where it cannot be decoded, or has more pixels than the variable
      OPENCV_IO_MAX_IMAGE_PIXELS of the environment allows (by default 2**27).
    """
    import cv2

    cv2.setNumThreads(1)  # whoever calls works on many images at once
    color = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    buffer = np.frombuffer(data, np.uint8)
    try:
        flags = color | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(buffer, flags) if buffer.size else None
    except cv2.error:  # of sizes that OpenCV refuses
        return None
    return image if image is None or channels == 3 else image[:, :, None]


# "area" shrinks by area and enlarges bicubically, by OpenCV. The others are Pillow's, whose
# filters widen as they shrink: what torchvision and timm do with images. "area" is the
# default because it is faster, and nothing published depends on it.
INTERPOLATIONS = ("area", "bilinear", "bicubic")


def resize(
    image: Image, height: int, width: int, interpolation: str = "area"
) -> UInt8[np.ndarray, "h w C"]:
    """An image in another size, by one of INTERPOLATIONS."""
    if image.shape[:2] == (height, width):
        return image
    if interpolation != "area":
        return _resize_by_pillow(image, height, width, interpolation)
    import cv2

    shrinking = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    resized = cv2.resize(image, (width, height), interpolation=method)
    return resized.reshape(height, width, image.shape[2])


def _resize_by_pillow(
    image: Image, height: int, width: int, interpolation: str
) -> UInt8[np.ndarray, "h w C"]:
    """`resize` by Pillow, which takes images of one or three channels."""
    import PIL.Image

    method = PIL.Image.Resampling[interpolation.upper()]
    planes = [image] if image.shape[2] == 3 else np.split(image, image.shape[2], axis=2)
    planes = [plane.squeeze(2) if plane.shape[2] == 1 else plane for plane in planes]
    resized = [
        PIL.Image.fromarray(plane).resize((width, height), method) for plane in planes
    ]
    arrays = [np.asarray(plane).reshape(height, width, -1) for plane in resized]
    return np.concatenate(arrays, axis=2)


def central_crop(
    image: Image, size: int, ratio: float, interpolation: str = "area"
) -> UInt8[np.ndarray, "size size C"]:
    """Resizes the shorter side to size / ratio, then cuts out the middle square.

    An image that is such a square already stays as it is: it was cut before, like those of
    the published ImageNet-C, which zooming would change.
    """
    if image.shape[:2] == (size, size):
        return image
    target = round(size / ratio)
    height, width = image.shape[:2]
    scale = target / min(height, width)
    image = resize(image, round(height * scale), round(width * scale), interpolation)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def random_resized_crop(
    image: Image,
    size: int,
    rng: np.random.Generator,
    interpolation: str = "area",
    scale: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> UInt8[np.ndarray, "size size C"]:
    """A random box of an image, resized to a square (the crop of Inception).

    Ten boxes are tried; if none fits into the image, the central square is taken.

    Args:
      image: the image.
      size: the side of the result in pixels.
      rng: the generator that draws.
      interpolation: one of INTERPOLATIONS.
      scale: bounds of the box's area, as shares of the image's.
      aspect: bounds of the box's width by its height.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = rng.integers(height - h + 1)
            left = rng.integers(width - w + 1)
            part = image[top : top + h, left : left + w]
            return resize(part, size, size, interpolation)
    return central_crop(image, size, 1.0, interpolation)
