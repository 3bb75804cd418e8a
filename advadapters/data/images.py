"""Decoding and cropping on the host, with OpenCV; images are uint8 [H, W, C]."""

import numpy as np


def decode(data, channels):
    """JPEG or PNG bytes -> uint8 [H, W, channels] (3 = RGB); None if unreadable.

    As stored: a turn that EXIF asks for is not made, as no ImageNet pipeline makes it.
    """
    import cv2

    cv2.setNumThreads(1)  # whoever calls works on many images at once
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    buffer = np.frombuffer(data, np.uint8)
    try:
        flags = flag | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(buffer, flags) if buffer.size else None
    except cv2.error:  # of sizes that OpenCV refuses
        return None
    return image if image is None or channels == 3 else image[:, :, None]


# "area" shrinks by area and enlarges bicubically, by OpenCV. The others are Pillow's, whose
# filters widen as they shrink: what torchvision and timm do with images.
INTERPOLATIONS = ("area", "bilinear", "bicubic")


def resize(image, height, width, interpolation="area"):
    """An image of another size, by one of INTERPOLATIONS; channels are kept."""
    if image.shape[:2] == (height, width):
        return image
    if interpolation != "area":
        return by_pillow(image, height, width, interpolation)
    import cv2

    shrinking = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    resized = cv2.resize(image, (width, height), interpolation=method)
    return resized.reshape(height, width, image.shape[2])


def by_pillow(image, height, width, interpolation):
    """`resize` by Pillow, which takes images of one or three channels."""
    from PIL import Image

    method = Image.Resampling[interpolation.upper()]
    planes = [image] if image.shape[2] == 3 else np.split(image, image.shape[2], axis=2)
    planes = [plane.squeeze(2) if plane.shape[2] == 1 else plane for plane in planes]
    found = [Image.fromarray(plane).resize((width, height), method) for plane in planes]
    return np.concatenate([np.asarray(f).reshape(height, width, -1) for f in found], axis=2)


def central_crop(image, size, ratio, interpolation="area"):
    """Resizes the shorter side to size / ratio, then cuts the middle [size, size, C]."""
    target = round(size / ratio)
    height, width = image.shape[:2]
    scale = target / min(height, width)
    image = resize(image, round(height * scale), round(width * scale), interpolation)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def random_resized_crop(
    image, size, rng, interpolation="area", scale=(0.08, 1.0), aspect=(3 / 4, 4 / 3)
):
    """A random part of `scale` of the area, resized to [size, size, C] (Inception crop).

    Ten tries for a box that fits, then the central square.
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
