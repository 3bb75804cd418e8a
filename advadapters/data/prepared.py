"""Data sets of TFDS, prepared as ArrayRecord files and read without TensorFlow."""

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


def open_set(name, data_dir):
    """TFDS' builder of a set; raises whatever TFDS raises."""
    import tensorflow_datasets

    return tensorflow_datasets.builder(name, data_dir=data_dir or None)


def test_splits(builder, asked=""):
    """The splits to evaluate on, of which the first that there is counts."""
    known = LABELLED.get(builder.name)
    return (asked,) if asked else (known,) if known else TESTS


def read(builder, name, splits):
    """(the name, the examples with images left encoded) of the first split that there is.

    Images are for our own decoder: TFDS leaves a JPEG as it is, gray or CMYK. name: of the
    set as it was asked for. Raises UsageError with the command that prepares the set.
    """
    import tensorflow_datasets

    there = list(builder.info.splits)
    split = next((split for split in splits if split in there), None)
    if split is None:
        more = f", only {', '.join(there)}" if there else ""
        raise UsageError(
            f"TFDS {name!r} is not prepared: no {' or '.join(splits)} split in "
            f"{builder.data_path}{more}; run `tfds build {name} "
            f"--file_format=array_record --data_dir={builder.data_dir_root}` where "
            "TensorFlow is installed"
        )
    undecoded = {"image": tensorflow_datasets.decode.SkipDecoding()}
    return split, builder.as_data_source(split=split, decoders=undecoded)


def names_of(feature):
    """Names of a ClassLabel's classes; () where they are but numbers."""
    names = feature.names
    return () if names == [str(number) for number in range(len(names))] else tuple(names)
