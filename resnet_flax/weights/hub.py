"""Weights from the Hugging Face hub: timm's and transformers' ResNets."""

import re
from pathlib import Path

from parity.conversion.checkpoints import NUMPY_SUFFIXES, TORCH_SUFFIXES
from parity.conversion.folders import INDICES, WHOLE, shards
from resnet_flax.errors import UserError
from resnet_flax.models import ARCHITECTURES

HUB = "hf-hub:"

_FILES = (".safetensors", *TORCH_SUFFIXES, *NUMPY_SUFFIXES)


def hub_name(weights: str) -> str | None:
    """OWNER/NAME[@REVISION] for "hf-hub:..." or for timm's "architecture.tag"; None for anything else."""
    if weights.startswith(HUB):
        return weights.removeprefix(HUB)
    architecture, _, tag = weights.partition(".")
    if architecture in ARCHITECTURES and re.fullmatch(r"[a-z0-9_]+", tag) and f".{tag}" not in _FILES:
        return f"timm/{weights}"
    return None


def fetch_from_hub(repository: str) -> tuple[Path, tuple[str, ...]]:
    """The path of a repository's weights in the local cache, with its configuration beside them, and notes.

    Downloads what is not cached yet; huggingface_hub's environment variables, such as `HF_HOME` and `HF_HUB_OFFLINE`,
    apply.

    Args:
        repository: OWNER/NAME, or OWNER/NAME@REVISION.

    Raises:
        UserError: if there are no weights, or they cannot be reached.
    """
    weights = _weights(repository)
    notes = []
    for name in ("config.json", "preprocessor_config.json"):
        try:
            _fetch(repository, name)
        except UserError:
            if name == "config.json":
                notes.append(f"{HUB}{repository} has no config.json here; assumed: the architecture's own arithmetic")
    return weights, tuple(notes)


def _weights(repository: str) -> Path:
    failures = []
    for name in (*WHOLE, *INDICES):
        try:
            path = _fetch(repository, name)
        except UserError as error:
            failures.append(error)
            continue
        if name in INDICES:
            for file in shards(path, complete=False) or []:
                _fetch(repository, file.name)
        return path
    raise failures[0]


def _fetch(repository: str, file_name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        path = Path(hf_hub_download(name, file_name, revision=revision or None))
    except (EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot get {file_name} of hf-hub:{repository} ({reason}); "
            "if this machine is offline, download the file elsewhere and give its path"
        ) from error
    if not path.is_file():
        raise UserError(f"cannot get {file_name} of hf-hub:{repository}")
    return path


def require_repository(repository: str) -> None:
    """Raises UserError unless this is OWNER/NAME as the hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{repository!r} is not a name on the hub: {str(error).splitlines()[0]}") from error
    if repository.count("/") != 1:
        raise UserError(f"{repository!r} is not a name on the hub: expected OWNER/NAME")


def require_token() -> None:
    """Raises UserError where huggingface_hub has no token to write with."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            "pushing to the hub needs a token, and there is none: run `hf auth login`, or set HF_TOKEN, or write the "
            "folder with --to DIR and upload that"
        )


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a folder in one commit, and returns the repository's address; it is made where there is none.

    Raises:
        UserError: if the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights of resnet_flax")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot push to {HUB}{repository} ({reason}); --to DIR writes the same files here") from error
    return str(address)
