"""tensorflow-datasets by name, read through `tfds.data_source`: array_record or parquet files, without TensorFlow.

The dataset must have been prepared; TFDS does that in its own ways, some of which need TensorFlow or Beam.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from lmtiny.corpus.decoding import Records
from lmtiny.corpus.documents import Document, Unit, digest, of_record
from lmtiny.corpus.files import among
from lmtiny.corpus.fingerprint import of_file
from lmtiny.errors import UserError

UNIT_BYTES = 64 << 20  # of examples as they are stored, about
READ_AT_ONCE = 256  # examples


def units(name: str, split: str, validation: str, text_key: str, data_dir: str) -> list[Unit]:
    """Returns units of ranges of examples of the `split`, and held out those of the split `validation` ("": none).

    Raises:
      UserError: TFDS is not installed, the dataset is not prepared, or has no such split or text.
    """
    builder = _builder(name, data_dir)
    found = []
    for one in filter(None, (split, validation)):
        if one not in builder.info.splits:
            raise UserError(f"tfds:{name} has no split {one!r}; there are {', '.join(builder.info.splits)}")
        found += _units_of_split(name, builder.info, one, text_key, data_dir, held_out=bool(validation) and one == validation)
    if split == validation:
        raise UserError(f"tfds:{name}: the split {split!r} is both to train on (subset) and held out (validation)")
    return found


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError:
        raise UserError("tfds: sources need tensorflow-datasets: pip install 'lmtiny[tfds]'") from None
    _import_nothing_that_a_dataset_names(tensorflow_datasets.features.FeatureConnector)
    return tensorflow_datasets


def _import_nothing_that_a_dataset_names(connector: Any) -> None:
    """Lets a features.json name classes of TFDS alone: TFDS would import the module of any other, whatever it is."""
    if "lmtiny" in vars(connector):
        return
    find = connector.cls_from_name

    def known(class_name: Any) -> Any:
        if not str(class_name).startswith("tensorflow_datasets.core.features."):
            raise ValueError(f"its features.json names {str(class_name)[:100]!r}, which is none of TFDS's own features")
        return find(class_name)

    connector.cls_from_name = known
    connector.lmtiny = True


def _builder(name: str, data_dir: str) -> Any:
    tfds, where = _tfds(), {"data_dir": data_dir} if data_dir else {}
    make = f"tfds.builder({name!r}, file_format='array_record'{''.join(f', {key}={value!r}' for key, value in where.items())})"
    remedy = f'prepare it: python -c "import tensorflow_datasets as tfds; {make}.download_and_prepare()"'
    try:
        if tfds.core.naming.parse_builder_name_kwargs(name)[0].namespace:
            raise UserError(f"tfds:{name} is of a namespace, whose datasets bring code of their own; only prepared ones of TFDS are read")
        builder = tfds.builder(name, **where)
    except tfds.core.DatasetNotFoundError:
        there = f"there is none in {data_dir or tfds.core.constants.DATA_DIR}, and TFDS knows no recipe of that name"
        raise UserError(f"tfds:{name}: {there}; check the name, or {remedy} where TFDS can") from None
    except (ValueError, AssertionError, RuntimeError, OSError, ImportError) as error:
        raise UserError(f"tfds:{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
    if not builder.is_prepared():
        raise UserError(f"tfds:{name} is not in {data_dir or tfds.core.constants.DATA_DIR}; {remedy}")
    if builder.info.file_format not in (tfds.core.FileFormat.ARRAY_RECORD, tfds.core.FileFormat.PARQUET):
        stored = builder.info.file_format.value
        raise UserError(f"tfds:{name} is stored as {stored}, which only TensorFlow reads; {remedy}")
    return builder


def _units_of_split(name: str, info: Any, split: str, text_key: str, data_dir: str, held_out: bool) -> list[Unit]:
    fields = sorted(info.features or {})
    if text_key not in fields:
        raise UserError(f"tfds:{name} has no field {text_key!r}{among(text_key, fields, 'text_key')}")
    stored = info.splits[split]
    prints = [of_file(pathlib.Path(file)) for file in stored.filepaths]
    step = max(1, stored.num_examples * UNIT_BYTES // max(1, stored.num_bytes))
    found = []
    for start in range(0, stored.num_examples, step):
        end = min(start + step, stored.num_examples)
        fingerprint = digest(info.full_name, split, list(stored.shard_lengths), prints, start, end, text_key)
        own = functools.partial(read, name, data_dir, split, start, end, text_key)
        size = stored.num_bytes * (end - start) // stored.num_examples
        found.append(Unit(f"{info.full_name}/{split}@{start}", fingerprint, size, own, held_out))
    return found


def read(name: str, data_dir: str, split: str, start: int, end: int, text_key: str) -> Iterator[Document]:
    """Yields a document for each of the examples [start, end) of the split."""
    where = {"data_dir": data_dir} if data_dir else {}
    source = _tfds().data_source(name, split=f"{split}[{start}:{end}]", download=False, **where)
    records = Records(f"tfds:{name}")
    for first in range(0, end - start, READ_AT_ONCE):
        numbers = range(first, min(first + READ_AT_ONCE, end - start))
        for number, example in zip(numbers, source.__getitems__(list(numbers)), strict=True):
            text = example[text_key]
            if not isinstance(text, bytes | str):
                raise UserError(f"tfds:{name}: the field {text_key!r} is {type(text).__name__}, not text; set text_key")
            yield of_record(records.decoded(text) if isinstance(text, bytes) else text, name, f"{split}@{start + number}")
    records.warn()
