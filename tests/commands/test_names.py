"""Test images chosen by the names of their files."""

import tarfile

import cv2
import numpy as np
import pytest

from advadapters.data import sources
from advadapters.errors import UsageError
from advadapters.runs import image_choice, requests


@pytest.fixture(params=["folder", "tar"])
def split(request, tmp_path):
    """The test images 0/a.png, 0/b.png, 1/a.png, 1/c.png, each of another gray."""
    for part in ("train", "test"):
        for number, name in enumerate(("0/a", "0/b", "1/a", "1/c")):
            file = tmp_path / part / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), np.full((4, 4, 3), number, np.uint8))
        if request.param == "tar":
            with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
                tar.add(tmp_path / part, arcname=".")
    return sources.load(f"{request.param}:{tmp_path}").test


def test_images_by_the_names_of_their_files(split, tmp_path):
    file = tmp_path / "names.txt"

    def grays(text):
        file.write_text(text)
        found = image_choice.named(split, file)
        return [int(found[i][0].max()) for i in range(len(found))]

    assert grays("1/c.png\nb.png\n\n") == [1, 3]
    assert grays("1/a.png\nval/1/c.png\n1/a.png") == [2, 3]
    for text, message in (
        ("a.png", "2 test images have the name 'a.png'"),
        ("0/z.png", "no test image has the name '0/z.png'"),
        ("\n", "names no image"),
    ):
        with pytest.raises(UsageError, match=message):
            grays(text)


def test_names_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="cannot read --names"):
        image_choice.named(sources.load("digits").test, tmp_path / "none.txt")
    (tmp_path / "names.txt").write_text("a.png")
    with pytest.raises(UsageError, match="for images that are files"):
        image_choice.named(sources.load("digits").test, tmp_path / "names.txt")
    request = requests.Request(workdir="x", names="y", examples=5)
    with pytest.raises(UsageError, match="leave out --data, --images and --examples"):
        requests.check(request)
