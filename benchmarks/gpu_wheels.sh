#!/usr/bin/env bash
# Downloads what gpu_day.py and train.py need on a GPU machine that has jax, flax, optax, orbax-checkpoint, torch and
# torchvision but no network: wheels for Python 3.12 on 64-bit x86 Linux, without what those six bring along.
#
#     benchmarks/gpu_wheels.sh [DIRECTORY]                      here, with a network
#     pip install --no-index --no-deps DIRECTORY/*.whl          there; then run gpu_day.py from a copy of this repository
set -euo pipefail
directory=${1:-wheels}

packages=(
    grain array-record cloudpickle portpicker simplejpeg
    tensorflow-datasets tensorflow-metadata googleapis-common-protos dm-tree immutabledict promise simple-parsing
    six termcolor toml tqdm wrapt attrs importlib_resources etils fsspec zipp
    tyro docstring_parser typeguard rich markdown-it-py mdurl pygments
    safetensors tensorboard
    matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil packaging
)
mkdir -p "$directory"
root=$(cd "$(dirname "$0")/.." && pwd)
python3 -m pip download --quiet --no-deps --dest "$directory" --only-binary :all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    "${packages[@]/promise/six}"
# promise has no wheel, and this project none yet: pip builds both, pure ones, from their sources.
python3 -m pip wheel --quiet --no-deps --wheel-dir "$directory" promise "$root"
du -sh "$directory"
