"""A TFDS dataset built on disk: array_record files, without TensorFlow."""

import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

SPLITS = {"train": range(50), "validation": range(50, 60), "empty": range(0)}


def text_of(number: int) -> str:
    return f"Example number {number}, naïve and plain.\r\n\r\nIts second paragraph.  "


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    url_infos: ClassVar = {}  # nothing is downloaded; TFDS would look for a list of checksums beside this file

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "number": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {split: self._generate_examples(numbers) for split, numbers in SPLITS.items() if numbers}

    def _generate_examples(self, numbers: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in numbers:
            yield number, {"text": text_of(number), "number": number}


def build(folder: pathlib.Path, file_format: str = "array_record") -> None:
    TinyTexts(data_dir=folder, file_format=file_format).download_and_prepare()
