"""Data sets of TFDS, prepared as ArrayRecord files and read without TensorFlow.

Its own types are Any here, as importing it takes seconds.
"""

from collections.abc import Sequence
from typing import Any

from advadapters.errors import UsageError

# Sets whose "test" has no labels (-1 for every image): the split to evaluate on instead.
LABELLED = {
    "imagenet2012": "validation",
    "i_naturalist2017": "validation",
    "i_naturalist2018": "validation",
    "i_naturalist2021": "val",
    "places365_small": "validation",
}
TESTS = ("test", "validation")  # of all other sets, the first that there is


def open_set(name: str, data_dir: str) -> Any:
    """The builder of a data set; raises whatever TFDS raises."""
    import tensorflow_datasets

    return tensorflow_datasets.builder(name, data_dir=data_dir or None)


def test_splits(builder: Any, name: str = "") -> tuple[str, ...]:
    """The splits to evaluate on, of which the first that there is counts.

    name: of the one that is wanted; "" for the set's usual ones.
    """
    labelled = LABELLED.get(builder.name)
    return (name,) if name else (labelled,) if labelled else TESTS


def read(builder: Any, name: str, splits: Sequence[str]) -> tuple[str, Any]:
    """Reads the first split that there is.

    Images are left encoded, for our own decoder: that of TFDS leaves a JPEG as it is, gray
    or CMYK.

    Args:
      builder: of the data set.
      name: of the data set, as the user wrote it.
      splits: names of splits.

    Returns:
      The name of the split, and its examples by number.

    Raises:
      UsageError: none of the splits is prepared; it has the command that prepares them.
    """
    import tensorflow_datasets

    existing = list(builder.info.splits)
    split = next((split for split in splits if split in existing), None)
    if split is None:
        more = f", only {', '.join(existing)}" if existing else ""
        raise UsageError(
            f"TFDS {name!r} is not prepared: no {' or '.join(splits)} split in "
            f"{builder.data_path}{more}; run `tfds build {name} "
            f"--file_format=array_record --data_dir={builder.data_dir_root}` where "
            "TensorFlow is installed"
        )
    undecoded = {"image": tensorflow_datasets.decode.SkipDecoding()}
    return split, builder.as_data_source(split=split, decoders=undecoded)


def names_of(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel's classes; () where they are only numbers."""
    names = feature.names
    return () if names == [str(number) for number in range(len(names))] else tuple(names)
