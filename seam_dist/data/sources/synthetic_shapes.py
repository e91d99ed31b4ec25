"""The parts of a synthetic scene: textured grounds with clutter, and objects with a body and a patterned head.

Colors are RGB in 0..1, float32. All randomness comes from the generator that a function is given.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]

_SUBPIXEL_BITS: Final = 4
_MARGIN: Final = 2.0  # empty pixels around a drawn object


def _fractal_noise(rng: np.random.Generator, height: int, width: int, cells: float, octaves: int = 4) -> Float:
    """Return fractal noise (H, W) around 0, mostly within -0.4..0.4; the coarsest octave has `cells` waves."""
    total: Float = np.zeros((2, 2), np.float32)
    amplitude = 0.5
    for _ in range(octaves):
        rows, columns = (max(2, round(cells * side / max(height, width)) + 1) for side in (height, width))
        if rows > height or columns > width:
            break
        # Each octave is added on its own grid, so that only the last enlargement is full-sized.
        total = np.asarray(cv2.resize(total, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)
        total += amplitude * (rng.random((rows, columns), dtype=np.float32) - 0.5)
        amplitude *= 0.55
        cells *= 2.1
    return np.asarray(cv2.resize(total, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def repeat_rgb(values: Float) -> Float:
    """Return (H, W) repeated to (H, W, 3): equal shapes multiply several times faster than broadcast ones."""
    return np.asarray(cv2.merge((values, values, values)), np.float32)


def _mix(first: Float, second: Float, share: Float) -> Float:
    """Return (H, W, 3): the color `first` where `share` (H, W) is 0, `second` where it is 1."""
    mixed: Float = cv2.merge([first[c] + share * (second[c] - first[c]) for c in range(3)])
    return mixed


def _hsv(hue: float, saturation: float, value: float) -> Float:
    """Return RGB in 0..1 of a hue in revolutions, a saturation and a value in 0..1."""
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def random_color(rng: np.random.Generator) -> Float:
    """Return a muted color that is neither black nor white; only the marks of the classes are vivid."""
    return _hsv(rng.random(), rng.uniform(0.1, 0.55), rng.uniform(0.2, 0.95))


def contrasting_color(rng: np.random.Generator, image: Float) -> Float:
    """Return a random color away from the mean of the image: the best of a few draws, so not always far."""
    mean = np.array(cv2.mean(image)[:3])
    colors = [random_color(rng) for _ in range(6)]
    return max(colors, key=lambda color: float(np.abs(color - mean).sum()))


def _ground(rng: np.random.Generator, xs: Float, ys: Float, first: Float) -> Float:
    """Return a surface of two colors that run, cloud or break into patches, in places with tiles or planks."""
    height, width = ys.shape[0], xs.shape[0]
    second = np.clip(0.65 * first + 0.35 * random_color(rng), 0, 1)
    angle = rng.uniform(0, 2 * np.pi)
    across = math.cos(angle) * xs + math.sin(angle) * ys
    clouds = float(rng.choice([0.6, 1.2, 6])) * _fractal_noise(rng, height, width, 4)
    blend = np.clip(0.5 + rng.uniform(0.2, 1) * across + clouds, 0, 1)
    if rng.random() < 0.35:
        waves = rng.uniform(20, 70)
        seams = np.cos(across * waves) ** 8
        if rng.random() < 0.5:
            seams = np.maximum(seams, np.cos((math.sin(angle) * xs - math.cos(angle) * ys) * waves) ** 8)
        blend = np.clip(blend + rng.uniform(-0.8, 0.8) * seams, 0, 1)
    return _mix(first, second, blend)


def draw_background(rng: np.random.Generator, height: int, width: int) -> Float:
    """Return a textured ground with lines, polygons and ellipses scattered over it."""
    side = max(height, width)
    ys = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    xs = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    first = random_color(rng)
    image = _ground(rng, xs, ys, first)
    if rng.random() < 0.4:  # a horizon
        slope, level = rng.normal(0, 0.2), rng.uniform(-0.2, 0.25)
        above = (ys - level - slope * xs + 0.15 * _fractal_noise(rng, height, width, 3)) * side
        image += repeat_rgb(np.clip(0.5 - 0.5 * above, 0, 1)) * (_ground(rng, xs, ys, random_color(rng)) - image)

    canvas = image.copy()
    for _ in range(int(rng.integers(6, 20))):
        strength = rng.uniform(0.2, 0.7)
        color = [float(c) for c in first + strength * (random_color(rng) - first)]
        center = rng.random(2) * (width, height)
        shape = rng.integers(4)
        if shape == 0:
            ends = center + rng.normal(0, side * 0.35, (2, 2))
            start, stop = (tuple(int(v) for v in end) for end in ends)
            cv2.line(canvas, start, stop, color, int(rng.integers(1, 2 + side // 60)), cv2.LINE_AA)
        elif shape == 1:
            reach = side * rng.uniform(0.04, 0.22)
            polygon = (center + rng.uniform(-1, 1, (int(rng.integers(3, 6)), 2)) * reach).astype(np.int32)
            cv2.fillConvexPoly(canvas, cv2.convexHull(polygon), color, cv2.LINE_AA)
        elif shape == 2:
            axes = [max(1, int(v)) for v in side * rng.uniform(0.02, 0.14, 2)]
            thickness = -1 if rng.random() < 0.5 else int(rng.integers(1, 2 + side // 60))
            origin = tuple(int(v) for v in center)
            cv2.ellipse(canvas, origin, axes, rng.uniform(0, 180), 0, 360, color, thickness, cv2.LINE_AA)
        else:
            steps = np.linspace(-1, 1, 12)[:, None] * rng.normal(0, side * 0.3, 2)
            bend = np.sin(np.linspace(0, rng.uniform(3, 9), 12))[:, None] * rng.normal(0, side * 0.06, 2)
            curve = (center + steps + bend).astype(np.int32)
            cv2.polylines(canvas, [curve], False, color, int(rng.integers(1, 2 + side // 70)), cv2.LINE_AA)
    image += rng.uniform(0.5, 1.0) * (canvas - image)
    grain = _fractal_noise(rng, height, width, rng.uniform(12, 40), octaves=3)
    image *= repeat_rgb(1 + rng.uniform(0.5, 1.0) * grain)
    return np.clip(image, 0.02, 0.98, out=image)


def develop(rng: np.random.Generator, image: Float) -> Bytes:
    """Return the picture as from a camera: uneven light, a slight blur, grain, 8 bits."""
    height, width = image.shape[:2]
    light = rng.uniform(0.85, 1.15) * (1 + 0.5 * _fractal_noise(rng, height, width, 1.5, octaves=2))
    picture = np.asarray(cv2.GaussianBlur(image * repeat_rgb(light), (0, 0), rng.uniform(0.3, 0.7)), np.float32)
    picture += repeat_rgb(rng.uniform(0.005, 0.02) * rng.standard_normal((height, width), dtype=np.float32))
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Layer:
    """An object ready to paste: `color` (h, w, 3) in 0..1, `alpha` (h, w) in 0..1, `head` (h, w) bool."""

    color: Float
    alpha: Float
    head: Bools


def _outline(rng: np.random.Generator) -> list[Float]:
    """Return the polygons of a random body in local units: length 2 along x, the head's end at x = 1."""
    ratio = rng.uniform(0.4, 0.75)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    body_type = rng.integers(4)
    if body_type == 0:  # a blob
        radius = 1 + sum(rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5))
        body = np.stack([radius * np.cos(angle), ratio * radius * np.sin(angle)], 1)
        body[:, 0] = 2 * (body[:, 0] - body[:, 0].min()) / np.ptp(body[:, 0]) - 1
        return [body.astype(np.float32)]
    if body_type == 1:  # a rounded box
        power = rng.uniform(0.25, 0.7)
        cos, sin = np.cos(angle), np.sin(angle)
        body = np.stack([np.sign(cos) * np.abs(cos) ** power, ratio * np.sign(sin) * np.abs(sin) ** power], 1)
        return [body.astype(np.float32)]
    along = np.linspace(-1, 1, 24)
    bend = rng.uniform(-0.35, 0.35)
    taper = rng.uniform(0.5, 1.1)
    half = 0.5 * ratio * np.clip(1 - np.abs(along) ** 2.5, 0, 1) ** 0.5 * (1 + taper * 0.5 * along) + 0.02
    spine = bend * (along**2 - 0.5)
    body = np.stack([np.r_[along, along[::-1]], np.r_[spine + half, (spine - half)[::-1]]], 1)
    parts = [body]
    if body_type == 2:  # a fish or a bird: a tail and fins
        spread = rng.uniform(0.3, 0.6)
        tail = [(-0.75, spine[2]), (-1.3, spine[0] + spread), (-1.1, spine[0]), (-1.3, spine[0] - spread)]
        fin = np.array([(0.25, 0), (-0.35, rng.uniform(0.4, 0.9)), (-0.3, 0)])
        parts += [np.array(tail), fin]
        if rng.random() < 0.5:
            parts.append(fin * (1, -1))
    else:  # an animal or a piece of furniture: legs
        length, thickness = rng.uniform(0.55, 0.95), rng.uniform(0.09, 0.16)
        for x in (-0.7, -0.4, 0.3, 0.6)[:: int(rng.integers(1, 3))]:
            lean = rng.uniform(-0.15, 0.15)
            leg = [(x - thickness, 0), (x + thickness, 0), (x + lean + thickness * 0.8, length)]
            parts.append(np.array([*leg, (x + lean - thickness * 0.8, length)]))
    return [part.astype(np.float32) for part in parts]


PATTERNS: Final[dict[str, Callable[[Float, Float], NDArray[np.floating[Any]]]]] = {
    "rings": lambda p, q: np.cos(np.hypot(p, q) * 2 * np.pi * 1.5),
    "stripes": lambda p, q: np.sin(q * np.pi * 2.2),
    "checker": lambda p, q: 1.6 * np.sin(p * np.pi * 1.8) * np.sin(q * np.pi * 1.8),
    "spokes": lambda p, q: np.cos(np.arctan2(q, p) * 5),
    "dots": lambda p, q: 1.1 * np.cos(p * np.pi * 2.4) + 1.1 * np.cos(q * np.pi * 2.4) - 0.7,
    "cross": lambda p, q: (0.26 - np.minimum(np.abs(p), np.abs(q))) * 6,
    "waves": lambda p, q: np.sin((q + 0.3 * np.sin(p * 6)) * np.pi * 2.2),
    "halves": lambda p, q: p * 5,
}
"""The patterns of the classes, waves of height 1 in the coordinates (p, q) of a head, whose unit is its radius."""


def _fill(polygons: Sequence[Float], height: int, width: int) -> Bytes:
    """Return the antialiased union of polygons, 0..255."""
    canvas = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        points = np.round(polygon * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


def _shading(alpha: Bytes, light: float, edge: float, material: Float) -> Float:
    """Return the factors (H, W, 3), about 1, that make a flat shape swell, with a dark rim of `edge` pixels."""
    distance = np.asarray(cv2.distanceTransform((alpha >= 128).astype(np.uint8), cv2.DIST_L2, 3), np.float32)
    reach = max(float(distance.max()) * 0.8, 1.0)
    bulge = np.sqrt(1 - (1 - np.minimum(distance / reach, 1)) ** 2) * reach
    bulge = cv2.GaussianBlur(bulge, (0, 0), max(reach * 0.15, 0.6))
    slope = math.cos(light) * cv2.Sobel(bulge, -1, 1, 0, scale=0.125)
    slope += math.sin(light) * cv2.Sobel(bulge, -1, 0, 1, scale=0.125)
    relief = np.asarray(1 - 0.32 * np.tanh(slope), np.float32) * material
    return repeat_rgb(relief * np.where(distance < edge, np.float32(0.5), np.float32(1)))


def _texture(rng: np.random.Generator, u: Float, v: Float) -> Float:
    """Return a body's own texture, about -1..1, from local coordinates: mottled, banded, spotted or nearly plain."""
    height, width = u.shape
    texture = rng.integers(4)
    mottle = _fractal_noise(rng, height, width, rng.uniform(3, 8))
    if texture == 0:
        return np.asarray(1.2 * mottle, np.float32)
    if texture == 1:
        angle = rng.uniform(0, np.pi)
        bands = np.sin((u * math.cos(angle) + v * math.sin(angle)) * rng.uniform(6, 16) + 3 * mottle)
        return (0.4 * bands + 0.3 * mottle).astype(np.float32)
    if texture == 2:
        waves = rng.uniform(6, 12)
        spots = np.clip(3 * np.cos(u * waves) * np.cos(v * waves) - 1.5, 0, 0.8)
        return np.asarray(spots + 0.3 * mottle, np.float32)
    return np.asarray(0.4 * mottle, np.float32)


def _material(rng: np.random.Generator, u: Float, v: Float, period: float) -> Float:
    """Return the fine relief of a surface, a factor about 1: hatched, woven, studded or speckled.

    u and v count pixels. Head and body of an object share it, so that low-level features connect them.
    """
    relief, angle, strength = rng.integers(4), rng.uniform(0, np.pi), rng.uniform(0.2, 0.4)
    if relief == 3:
        grain = _fractal_noise(rng, u.shape[0], u.shape[1], max(u.shape) / period, octaves=1)
        return np.asarray(1 + 2 * strength * grain, np.float32)
    scale = 2 * np.pi / period
    first = np.sin((u * math.cos(angle) + v * math.sin(angle)) * scale)
    if relief == 0:
        return np.asarray(1 + strength * first, np.float32)
    second = np.sin((v * math.cos(angle) - u * math.sin(angle)) * scale)
    wave = np.maximum(first, second) if relief == 1 else first * second
    return np.asarray(1 + strength * wave, np.float32)


def draw_object(
    rng: np.random.Generator, size: float, limit: tuple[int, int], class_id: int, light: float, color: Float
) -> Layer:
    """Draw one object of `size` squared pixels in area, or less to stay within `limit` (H, W); class_id 0: no head."""
    parts = _outline(rng)
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    share = rng.uniform(0.13, 0.2)
    area = sum(cv2.contourArea(part) for part in parts)
    radius = float(np.sqrt(share / (1 - share) * area / np.pi))
    center = np.array([0.95 + 0.25 * radius, parts[0][np.argmax(parts[0][:, 0]), 1]])
    head = (center + radius * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)

    tilt = rng.normal(0, 0.6)
    rotation = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    if rng.random() < 0.5:
        rotation = np.diag([-1, 1]) @ rotation
    points = np.concatenate([*parts, head] if class_id else parts) @ rotation.T
    room = (np.array(limit[::-1]) - 2 * _MARGIN - 1) / np.ptp(points, axis=0)
    half = min(size / math.sqrt(area / (1 - share)), float(room.min()))
    origin = points.min(0) * half - _MARGIN
    width, height = (int(v) for v in np.ceil(np.ptp(points, axis=0) * half + 2 * _MARGIN))

    body_alpha = _fill([part @ rotation.T * half - origin for part in parts], height, width)
    xs = np.arange(width, dtype=np.float32) + np.float32(origin[0])
    ys = np.arange(height, dtype=np.float32) + np.float32(origin[1])
    back = np.linalg.inv(rotation) / half
    u = (back[0, 0] * xs + (back[0, 1] * ys)[:, None]).astype(np.float32)
    v = (back[1, 0] * xs + (back[1, 1] * ys)[:, None]).astype(np.float32)
    second = np.clip(color + rng.uniform(-0.2, 0.2, 3), 0, 1).astype(np.float32)
    picture = _mix(color, second, _texture(rng, u, v))
    edge = max(1.2, size / 70)
    material = _material(rng, u * half, v * half, min(limit) * rng.uniform(0.022, 0.04))
    picture *= _shading(body_alpha, light, edge, material)
    if not class_id:
        return Layer(np.clip(picture, 0, 1), body_alpha / np.float32(255), np.zeros((height, width), bool))

    head_alpha = _fill([head @ rotation.T * half - origin], height, width)
    ink = _hsv((class_id - 1) * 0.618 % 1, 0.95, 0.95)
    paper = 0.5 * color + (0.5 if class_id % 2 else 0.0)
    p, q = (u - np.float32(center[0])) / radius, (v - np.float32(center[1])) / radius
    wave = list(PATTERNS.values())[(class_id - 1) % len(PATTERNS)](p, q)
    drawn = np.clip(0.5 + 1.5 * wave, 0, 1).astype(np.float32)
    face = _mix(paper, ink, drawn) * _shading(head_alpha, light, edge, material)
    picture += repeat_rgb(head_alpha / np.float32(255)) * (face - picture)
    return Layer(np.clip(picture, 0, 1), np.maximum(body_alpha, head_alpha) / np.float32(255), head_alpha >= 128)
