"""Installation: one core set of dependencies, and extras for what only some users need."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "megatron_ko/__init__.py").read_text(encoding="utf-8")).group(1)

CORE = [
    "torch>=2.6",
    "megatron-core>=0.16.1,<0.20",
    # megatron-core 0.19 imports it unconditionally, and a CPU build of PyTorch does not bring it
    'triton; python_version >= "3.12" and platform_system == "Linux"',
    "psutil",  # megatron-core's checkpoint writer needs it and does not declare it
    "pydantic>=2.7",
    "ruamel.yaml>=0.18",
    "typer>=0.12",
    "rich>=13",
    "numpy",
    "pyarrow>=15",
    "sentencepiece>=0.2",
    "protobuf",  # reads and edits SentencePiece models
    "tokenizers>=0.20",
    "transformers>=5,<6",
    "huggingface-hub",  # hf:OWNER/NAME as an input of the data verbs
    "jinja2",  # what chat templates are written in
    "safetensors",
    "orjson",
    "zstandard",
    "xxhash",
    "matplotlib",
    "tensorboard",
    "nvidia-ml-py",
]

# Each stage of `data clean` that needs one of these says so when it is asked for and missing.
CLEAN = ["ftfy", "selectolax"]
# Models that the user brings: fasttext-predict has wheels; kenlm is compiled (a C++ compiler, CMake comes with pip).
QUALITY = ["fasttext-predict", "kenlm"]

EXTRAS = {
    "cuda": ["transformer-engine[pytorch]"],
    "wandb": ["wandb"],
    "clean": CLEAN,
    "quality": QUALITY,
    "gguf": ["gguf>=0.19", "llama-cpp-python>=0.3.36"],  # convert gguf: the second compiles llama.cpp
    # datatrove and python-stdnum are oracles: outside implementations that the tests compare with
    "dev": [
        *("pytest", "pytest-xdist", "pytest-cov", "pytest-timeout", "hypothesis", "ruff", "mypy", "accelerate"),
        *(*CLEAN, "fasttext-predict", "kiwipiepy<0.22", "datatrove", "python-stdnum"),
        *("datasketch", "rensa"),  # peers of benchmarks/dedup.py
        *("trl", "peft"),  # oracles of the objectives and of adapters
    ],
}

setup(
    name="megatron_ko",
    version=VERSION,
    description="Training Korean language models: text to a verified model, on a laptop and on a cluster",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_ko", "megatron_ko.*"]),
    package_data={"megatron_ko": ["py.typed", "convert/templates/*.py", "data/tokenizer/chat_presets/*.jinja"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-ko = megatron_ko.cli.main:main"]},
)
