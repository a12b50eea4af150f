"""Hugging Face's `datasets` as sources: from the hub, from `save_to_disk`, or from a directory of files; and written.

`datasets.config.HF_HUB_OFFLINE` is not part of the documented interface. Read from version 5.2.0; the tests fail first
if it changes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.conversion.files import require_regular_tree
from parity.errors import needs_extra
from resnet_flax.data.columns import CLASS_LABEL, IMAGE, Column, choose_columns
from resnet_flax.data.decoding import CorruptImage
from resnet_flax.data.encoded import EncodedSource, Records
from resnet_flax.data.folder import read_image
from resnet_flax.data.parquet import column_of, labels_of, record_batches, schema_of
from resnet_flax.data.source import SourceOptions
from resnet_flax.data.splits import named_splits
from resnet_flax.data.writing import STORED_AS, write_folder
from resnet_flax.errors import UserError

with needs_extra("hf", "reading or writing Hugging Face data sets"):
    import datasets
    import datasets.config
    import pyarrow as pa

if TYPE_CHECKING:
    from resnet_flax.data.source import Source

NAME = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*){0,2}", re.ASCII)
TIMEOUT = 20  # seconds, for the hub's first answer
SHARD = "500MB"


def parse(rest: str) -> tuple[str, str | None]:
    """(directory or name on the hub, split or None) of NAME_OR_DIR[:SPLIT]."""
    name, _, split = rest.rpartition(":")
    return (name, split) if name and "/" not in split and not Path(rest).expanduser().exists() else (rest, None)


class HfRecords(Records):
    """One stored split."""

    def __init__(self, spec: str, dataset: Any, options: SourceOptions):
        self._spec = spec
        columns = [_column(name, feature, dataset) for name, feature in dataset.features.items()]
        chosen = choose_columns(spec, columns, options)
        self.notes = chosen.notes
        # The rows alone, whose images are left encoded: the source decodes all kinds in one way.
        images = dataset.select_columns([chosen.image]).with_format(None)
        if isinstance(dataset.features[chosen.image], datasets.Image):
            images = images.cast_column(chosen.image, datasets.Image(decode=False))
        self._images, self._column = images, chosen.image
        self.labels, self.names = None, {}
        if chosen.label is not None:
            column = dataset.select_columns([chosen.label]).with_format("arrow")[:].column(0)
            self.labels = labels_of(column, spec)
            self.names = dict(enumerate(getattr(dataset.features[chosen.label], "names", None) or ()))

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> bytes:
        value = self._images[index][self._column]
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes")
            if value is None and path:
                return read_image(path)
        if value is None:
            raise CorruptImage(self.name(index), "the data set has no bytes for it")
        return value

    def name(self, index: int) -> str:
        return f"{index} of {self._spec}"


def _column(name: str, feature: Any, dataset: Any) -> Column:
    if isinstance(feature, datasets.Image):
        return Column(name, IMAGE)
    if isinstance(feature, datasets.ClassLabel):
        return Column(name, CLASS_LABEL)
    return column_of(pa.field(name, dataset.features.arrow_schema.field(name).type), {})


def open_hf(rest: str, split: str, *, may_prepare: bool = True, options: SourceOptions | None = None) -> EncodedSource:
    """`hf:NAME_OR_DIR[:SPLIT]`: a data set with a column of images and one of labels.

    DIR is what `save_to_disk` wrote, or a directory that `load_dataset` reads (parquet files, an image folder). NAME is
    one on the hub, OWNER/NAME, or OWNER/NAME/CONFIG where it has several configurations. With SPLIT only that split is
    used, as a set of its own.

    Args:
        may_prepare: whether a set on the hub may be downloaded; without, only what is in the local cache is read.
    """
    options, spec = options or SourceOptions(), f"hf:{rest}"
    name, only = parse(rest)
    found, notes = _load(spec, name, may_prepare=may_prepare)
    splits = found if isinstance(found, dict) else {"train": found}
    if only is not None:
        if only not in splits or not isinstance(found, dict):
            has = f"the splits {', '.join(splits)}" if isinstance(found, dict) else "no splits"
            raise UserError(f"{spec}: there is no split {only!r}; {name} has {has}")
        splits = {"train": splits[only]}
        places = {"train": f"the split {only} of {name}"}
    else:
        names = named_splits(spec, list(splits))
        if "train" not in names:
            raise UserError(
                f"{spec} has no split train; it has {', '.join(splits)}; to use one of them as a set of its own, give "
                f"hf:{name}:{next(iter(splits))}"
            )
        if ignored := sorted(set(splits) - set(names.values())):
            notes += (f"ignored, of no split by their names: {', '.join(ignored)}",)
        splits = {split: splits[stored] for split, stored in names.items()}
        places = {split: f"the split {stored} of {name}" for split, stored in names.items()}
    stored = {split: partial(HfRecords, spec, dataset, options) for split, dataset in splits.items()}
    return EncodedSource(spec, split, stored, places, options, notes)


def _load(spec: str, name: str, *, may_prepare: bool) -> tuple[Any, tuple[str, ...]]:
    """A `Dataset` or `DatasetDict`, and notes."""
    path = Path(name).expanduser()
    try:
        with _quiet():
            if path.is_dir():
                require_regular_tree(path)
                is_saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
                return (datasets.load_from_disk if is_saved else datasets.load_dataset)(str(path)), ()
            return _from_hub(spec, name, may_prepare=may_prepare)
    except UserError:
        raise
    except Exception as error:  # `datasets` raises many types, and not all of them as documented
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"cannot open {spec}: {reason}") from error


def _from_hub(spec: str, name: str, *, may_prepare: bool) -> tuple[Any, tuple[str, ...]]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if not NAME.fullmatch(name) or ".." in name:
        raise UserError(f"{spec}: there is no directory {name}, and it is not a name on the hub, which is OWNER/NAME")
    repository = "/".join(name.split("/")[:2])
    config = name.removeprefix(repository).lstrip("/") or None
    reachable, reason = may_prepare, "downloads are for runs that are not dry or distributed"
    if may_prepare:
        try:
            HfApi().dataset_info(repository, timeout=TIMEOUT)
        except (GatedRepoError, RepositoryNotFoundError) as error:
            raise UserError(
                f"{spec}: there is no directory {name}, and the hub has no data set of that name, or only for those "
                "who may read it: log in with `hf auth login`, or set HF_TOKEN"
            ) from error
        except HfHubHTTPError as error:
            raise UserError(f"{spec}: the hub refuses it: {str(error).strip().splitlines()[0]}") from error
        except Exception as error:  # of the network, the proxy, or TLS
            reachable, reason = False, f"the hub cannot be reached ({str(error).strip().splitlines()[0][:200]})"
    if reachable:
        return datasets.load_dataset(repository, config), ()
    try:
        with _offline():
            return datasets.load_dataset(repository, config), (f"{spec} is of the local cache: {reason}",)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{spec}: there is no directory {name}, and no data set of that name in the local cache, and {reason}"
        ) from error


@contextmanager
def _offline() -> Generator[None]:
    before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Generator[None]:
    """Without the library's log, whose words are not ours, and without its progress bars where there is no terminal."""
    level, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def write_hf(
    name: str, data_dir: str | Path, splits: dict[str, Source], *, on_sample: Callable[[], None] = lambda: None
) -> Path:
    """Writes `splits` to the directory `name`, as `DatasetDict.save_to_disk` does; it appears when it is complete.

    Images as in `writing.stored_images`; `data_dir` is unused.

    Raises:
        UserError: if the directory exists, an image is damaged, or the disk full.
    """
    target = Path(name).expanduser()
    write_folder(target, lambda folder: _write(folder, splits, on_sample))
    return target


def _write(folder: Path, splits: dict[str, Source], on_sample: Callable[[], None]) -> None:
    first = folder.with_name("first")  # beside it, in the temporary folder: `save_to_disk` takes what is mapped
    first.mkdir()
    written: Any = {}
    for split, source in splits.items():
        schema, path = schema_of(source.class_names), first / f"{split}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in record_batches(source, range(len(source)), schema, on_sample):
                writer.write_batch(batch)
        written[STORED_AS[split]] = datasets.Dataset.from_file(str(path))
    with _quiet():
        datasets.DatasetDict(written).save_to_disk(str(folder), max_shard_size=SHARD)
