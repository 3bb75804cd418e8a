"""The published corruptions once more, in numpy, SciPy and OpenCV, to compare with.

Written from the published description, with the parameters typed again; slow where the
published algorithm is. Images [H, W, 3] float64 in [0, 1], `draw` is a numpy generator.
"""

import colorsys

import cv2
import numpy as np
from scipy import ndimage

PARAMETERS = {  # by shorter side, then severity
    "gaussian_noise": {
        224: [0.08, 0.12, 0.18, 0.26, 0.38], 32: [0.04, 0.06, 0.08, 0.09, 0.10],
    },
    "shot_noise": {224: [60, 25, 12, 5, 3], 32: [500, 250, 100, 75, 50]},
    "impulse_noise": {
        224: [0.03, 0.06, 0.09, 0.17, 0.27], 32: [0.01, 0.02, 0.03, 0.05, 0.07],
    },
    "speckle_noise": {224: [0.15, 0.2, 0.35, 0.45, 0.6], 32: [0.06, 0.1, 0.12, 0.16, 0.2]},
    "gaussian_blur": {224: [1, 2, 3, 4, 6], 32: [0.4, 0.6, 0.7, 0.8, 1]},
    "glass_blur": {
        224: [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        32: [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    },
    "defocus_blur": {
        224: [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        32: [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    },
    "motion_blur": {
        224: [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        32: [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    },
    "zoom_blur": {
        224: [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        32: [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
    },
    "fog": {
        224: [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        32: [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    },
    "snow": {
        224: [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
        32: [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    },
    "spatter": {
        224: [
            (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0), (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ],
        32: [
            (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0), (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ],
    },
    "contrast": {224: [0.4, 0.3, 0.2, 0.1, 0.05], 32: [0.75, 0.5, 0.4, 0.3, 0.15]},
    "brightness": {224: [0.1, 0.2, 0.3, 0.4, 0.5], 32: [0.05, 0.1, 0.15, 0.2, 0.3]},
    "saturate": {
        224: [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
        32: [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
    },
    "jpeg_compression": {224: [25, 18, 15, 10, 7], 32: [80, 65, 58, 50, 40]},
    "pixelate": {224: [0.6, 0.5, 0.4, 0.3, 0.25], 32: [0.95, 0.9, 0.85, 0.75, 0.65]},
    "elastic_transform": {  # in pixels
        224: [
            (488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ],
        32: [
            (0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6),
            (3.2, 0.96, 0.96),
        ],
    },
}  # fmt: skip


def cut(image):
    return np.floor(np.clip(image, 0, 1) * 255 + 1e-3) / 255


def gaussian(image, sigma, mode="nearest", truncate=4.0):
    sigmas = (sigma, sigma, 0)[: image.ndim]
    return ndimage.gaussian_filter(image, sigmas, mode=mode, truncate=truncate)


def zoomed(image, factor):
    """The middle of an image [S, S, C], enlarged by scipy."""
    side = len(image)
    crop = int(np.ceil(side / factor))
    top = (side - crop) // 2
    grown = ndimage.zoom(
        image[top : top + crop, top : top + crop], (factor, factor, 1), order=1
    )
    trim = (len(grown) - side) // 2
    return grown[trim : trim + side, trim : trim + side]


def moved(image, radius, sigma, degrees):
    """ImageMagick's motion blur: each pixel looks along a line."""
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    y, x = np.indices(image.shape[:2])
    found, angle = np.zeros_like(image), np.deg2rad(degrees)
    for tap, weight in zip(taps, weights / weights.sum(), strict=True):
        rows = np.clip(y + np.ceil(tap * np.sin(angle) - 0.5), 0, image.shape[0] - 1)
        columns = np.clip(x + np.ceil(tap * np.cos(angle) - 0.5), 0, image.shape[1] - 1)
        found += weight * image[rows.astype(int), columns.astype(int)]
    return np.round(255 * found) / 255


def plasma(draw, side, decay):
    """Diamond-square on a torus whose side is a power of two, a point after another."""
    grid, step, rough = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2
        diagonal = [(-half, -half), (-half, half), (half, -half), (half, half)]
        straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for places, near in (((half, half),), diagonal), (((0, half), (half, 0)), straight):
            for row, column in places:
                rows, columns = np.mgrid[row:side:step, column:side:step]
                mean = sum(grid[(rows + y) % side, (columns + x) % side] for y, x in near)
                noise = draw.uniform(-rough, rough, rows.shape)
                grid[rows, columns] = mean / 4 + rough * noise
        step, rough = half, rough / decay
    grid -= grid.min()
    return grid / grid.max()


def gaussian_noise(draw, image, deviation):
    return image + draw.normal(0, deviation, image.shape)


def shot_noise(draw, image, photons):
    return draw.poisson(image * photons) / photons


def impulse_noise(draw, image, share):
    hit = draw.random(image.shape) < share
    return np.where(hit, draw.random(image.shape) < 0.5, image)


def speckle_noise(draw, image, deviation):
    return image * (1 + draw.normal(0, deviation, image.shape))


def gaussian_blur(draw, image, sigma):
    return gaussian(image, sigma)


def defocus_blur(draw, image, radius, sigma):
    reach, size = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(kernel / kernel.sum(), (size, size), sigmaX=sigma)
    return cv2.filter2D(image, -1, kernel)


def glass_blur(draw, image, sigma, reach, rounds):
    image = cut(gaussian(image, sigma))
    height, width = image.shape[:2]
    for _ in range(rounds):
        for y in range(height - reach, reach, -1):
            for x in range(width - reach, reach, -1):
                right, down = draw.integers(-reach, reach, 2)
                image[y, x] = image[y + down, x + right]
    return gaussian(image, sigma)


def motion_blur(draw, image, radius, sigma):
    return moved(image, radius, sigma, draw.uniform(-45, 45))


def zoom_blur(draw, image, stop, step):
    factors = np.arange(1, stop, step)
    return (image + sum(zoomed(image, f) for f in factors)) / (len(factors) + 1)


def fog(draw, image, amount, decay):
    side = len(image)
    noise = plasma(draw, 2 ** int(np.ceil(np.log2(side))), decay)[:side, :side, None]
    return (image + amount * noise) * image.max() / (image.max() + amount)


def snow(draw, image, mean, deviation, zoom, threshold, radius, sigma, share):
    flakes = zoomed(draw.normal(mean, deviation, (*image.shape[:2], 1)), zoom)
    flakes = cut(np.where(flakes < threshold, 0, flakes))
    flakes = moved(flakes, radius, sigma, draw.uniform(-135, -45))
    grey = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)[..., None]
    image = share * image + (1 - share) * np.maximum(image, grey * 1.5 + 0.5)
    return image + flakes + np.rot90(flakes, 2)


def spatter(draw, image, mean, deviation, sigma, threshold, amount, mud):
    liquid = gaussian(draw.normal(mean, deviation, image.shape[:2]), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover = gaussian((liquid > threshold).astype(float), amount)[..., None]
        cover[cover < 0.8] = 0
        return image * (1 - cover) + cover * np.array([63, 42, 20]) / 255
    cover = drops((liquid * 255).astype(np.uint8))[..., None]
    return image + amount * cover * np.array([175, 238, 238]) / 255


def drops(liquid):
    far = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    far = cv2.blur(np.minimum(far, 20), (3, 3)).astype(np.uint8)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    raised = cv2.filter2D(cv2.equalizeHist(far), cv2.CV_8U, relief)
    cover = liquid * cv2.blur(raised, (3, 3)).astype(np.float32)
    return cover / max(cover.max(), 1e-9)


def contrast(draw, image, factor):
    mean = image.mean(axis=(0, 1))
    return mean + factor * (image - mean)


def by_hsv(image, change):
    """An image whose pixels go through HSV and back, one by one."""
    pixels = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel)))
        for pixel in image.reshape(-1, 3).tolist()
    ]
    return np.array(pixels).reshape(image.shape)


def brightness(draw, image, amount):
    return by_hsv(image, lambda h, s, v: (h, s, min(v + amount, 1)))


def saturate(draw, image, factor, offset):
    return by_hsv(image, lambda h, s, v: (h, min(s * factor + offset, 1), v))


def jpeg_compression(draw, image, quality):
    raw = np.round(image[..., ::-1] * 255).astype(np.uint8)
    _, coded = cv2.imencode(".jpg", raw, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1] / 255


def elastic_transform(draw, image, strength, sigma, jolt):
    side = len(image)
    middle, third = side // 2, side // 3
    old = middle + third * np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
    new = old + draw.uniform(-jolt, jolt, old.shape).astype(np.float32)
    image = cv2.warpAffine(
        image, cv2.getAffineTransform(old, new), (side, side),
        borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    places = np.indices((side, side)).astype(float)
    for axis in (1, 0):
        noise = draw.uniform(-1, 1, (side, side))
        places[axis] += strength * gaussian(noise, sigma, "reflect", 3)
    found = [
        ndimage.map_coordinates(image[..., c], places, order=1, mode="reflect")
        for c in range(3)
    ]
    return np.stack(found, axis=-1)


def pixelate(draw, image, share):
    from PIL import Image

    side = len(image)
    raw = Image.fromarray(np.round(image * 255).astype(np.uint8))
    small = raw.resize((int(side * share),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BOX)) / 255


def corrupt(draw, image, name, severity):
    """A corruption by name, cut to whole 1/255; the parameters for the image's side."""
    values = PARAMETERS[name][len(image)][severity - 1]
    values = values if isinstance(values, tuple) else (values,)
    return cut(globals()[name](draw, image.astype(np.float64), *values))
