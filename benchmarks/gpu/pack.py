"""Everything that `check.py` needs on a machine without a network, in one folder that git ignores.

    python benchmarks/gpu/pack.py [--wheels FOLDER] [--out .gpu] [--limit-mib 60]

Wheels for Python 3.12 on Linux (requirements.txt beside this file) and those of FOLDER, such as Transformer Engine's,
which are built for one PyTorch and one kind of GPU; a tokenizer and shards. Needs a network and no GPU.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.shards import make_shards

HERE = Path(__file__).parent
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="Folder of wheels to take along besides.")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / ".gpu")
    parser.add_argument("--python-version", default="3.12", help="Of the machine with the GPU.")
    parser.add_argument("--limit-mib", type=float, default=60, help="More than that is an error.")
    options = parser.parse_args()
    wheels = options.out / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    download(wheels, options.python_version)
    for wheel in sorted(options.wheels.glob("*.whl")) if options.wheels else []:
        shutil.copyfile(wheel, wheels / wheel.name)
    if not any(wheel.name.startswith("transformer_engine") for wheel in wheels.iterdir()):
        print(
            "no wheel of Transformer Engine: WHEELS=FOLDER takes one along, unless the machine has it", file=sys.stderr
        )
    make_shards(options.out / "data")
    sizes = {path: path.stat().st_size for path in sorted(options.out.rglob("*")) if path.is_file()}
    for path, size in sizes.items():
        print(f"{size / 2**20:>8.2f} MiB  {path.relative_to(options.out)}")
    total = sum(sizes.values()) / 2**20
    print(f"{total:>8.2f} MiB  {options.out}")
    if total > options.limit_mib:
        sys.exit(f"the folder is larger than {options.limit_mib:.0f} MiB")


def download(folder: Path, python_version: str) -> None:
    """Wheels of requirements.txt, without what they depend on."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--implementation=cp", f"--python-version={python_version}",
        *(f"--platform={name}" for name in PLATFORMS), "--dest", str(folder), "-r", str(HERE / "requirements.txt"),
    ]  # fmt: skip
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
