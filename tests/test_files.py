"""What the whole package shares: files written whole, tables, pixels as floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advadapters.files import write_whole
from advadapters.markdown import markdown_table
from advadapters.pixels import to_float


@pytest.mark.parametrize("several", [False, True])
def test_a_file_is_whole_or_as_it_was(tmp_path, several):
    file = tmp_path / "a.txt"
    write_whole(file, lambda raw: raw.write(b"old"), several)

    def fail(raw):
        raw.write(b"half of the n")
        assert file.read_bytes() == b"old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(file, fail, several)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
    write_whole(file, lambda raw: raw.write(b"new"), several)
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


def test_cells_cannot_break_a_table():
    text = markdown_table(("name", "%"), [("a|b", "1"), ("", "2")], right=[1])
    assert text == "| name | % |\n| --- | ---: |\n| a\\|b | 1 |\n|  | 2 |"


def test_pixels_are_the_nearest_floats():
    """With jax up to a last bit: its compiler multiplies by 1 / 255."""
    levels = np.arange(256, dtype=np.uint8)
    nearest = np.float32(np.arange(256) / 255)
    np.testing.assert_array_equal(to_float(levels), nearest)
    for found in (jax.jit(to_float)(levels), to_float(jnp.array(levels))):
        np.testing.assert_array_max_ulp(np.asarray(found), nearest, maxulp=1)
    np.testing.assert_array_equal(to_float(nearest), nearest)
