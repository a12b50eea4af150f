"""Where checkpoints come from: tables of layouts, each exact, noted, warned of or refused by what is seen in it.

Entries are filled with their own numbers, so that one in another's place is found.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from parity.conversion.checkpoints import Checkpoint
from parity.conversion.nesting import unnested
from parity.errors import UsageError
from resnet_flax.models import ARCHITECTURES
from resnet_flax.weights.files import Weights, from_checkpoint
from tests.resnet_flax.weights import cases_of_configs, cases_of_projects, cases_of_signs, cases_of_training
from tests.resnet_flax.weights.cases import Case, body
from tests.resnet_flax.weights.others import Arrays, numbered

ROOT = Path(__file__).parents[3]
CASES = [*cases_of_training.CASES, *cases_of_projects.CASES, *cases_of_signs.CASES, *cases_of_configs.CASES]


def read(case: Case, folder: Path) -> Weights:
    folder = folder / "run"  # a test's own name would be a sign
    folder.mkdir()
    if case.config is not None:
        text = case.config if isinstance(case.config, str) else json.dumps(case.config)
        (folder / "config.json").write_text(text)
    path = folder / (case.file or f"{case.architecture}.pth")
    content = case.make(numbered(case.architecture))
    tensors, notes = unnested(content, path, lambda value: isinstance(value, np.ndarray))
    return from_checkpoint(Checkpoint(tensors, notes=notes), path, case.prefix)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.text or case.outcome}")
def test_a_layout(case, tmp_path):
    if case.outcome == "refused":
        with pytest.raises(UsageError, match=f"(?s){case.text}") as raised:
            read(case, tmp_path).to_model()
        assert "cut short" not in str(raised.value)
        assert "damaged" not in str(raised.value)
        if case.config is None:
            assert re.search(r"--prefix|names=|save|give|merge|convert it", str(raised.value)), "no way on"
        return
    weights = read(case, tmp_path)
    warnings = [str(note) for note in weights.warnings() if note.is_warning]
    if case.outcome == "warning":
        assert any(re.search(case.text, text) for text in warnings), warnings
    else:
        assert not warnings
        notes = [str(note) for note in weights.notes]
        assert not case.text or any(re.search(case.text, note) for note in notes), notes
    assert weights.options == dict(case.options)
    assert weights.identity.architecture == case.architecture
    assert weights.identity.num_classes == case.classes
    _assert_in_place(weights, numbered(case.architecture))


def _assert_in_place(weights: Weights, expected: Arrays) -> None:
    """Every entry of the network is there, and holds its own number."""
    wanted = body(expected) if weights.identity.num_classes == 0 else expected
    missing = {name for name in wanted if name not in weights.state_dict and not name.endswith("tracked")}
    assert not missing
    assert not weights.state_dict.keys() - expected.keys()
    is_folded = any("folded" in str(note) for note in weights.notes)
    for name, array in weights.state_dict.items():
        if name.startswith("fc.") or (is_folded and array.ndim == 1):
            continue
        assert array.flat[0] == array.flat[-1] == expected[name].flat[0], name
        assert array.shape == expected[name].shape or name == "conv1.weight", name


def test_the_documentation_has_a_row_for_every_kind():
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+?) \| (exact|note|warning|refused)[^|]* \|", text, re.MULTILINE))
    outcomes: dict[str, set[str]] = {}
    for case in CASES:
        outcomes.setdefault(case.kind, set()).add(case.outcome)
    assert rows.keys() == outcomes.keys()
    for kind, outcome in rows.items():
        assert outcome in outcomes[kind], kind


def test_the_table_is_long():
    assert len(CASES) >= 90


SHARED = [
    name
    for name, row in ARCHITECTURES.items()
    if any(row.has_shapes_of(o) for o in ARCHITECTURES.values() if o is not row)
]


@pytest.mark.parametrize("name", SHARED)
def test_architectures_of_the_same_shapes_are_told_apart_or_warned_of(name, tmp_path):
    def doubts(number, file, config=None):
        folder = tmp_path / str(number)
        folder.mkdir()
        if config:
            (folder / "config.json").write_text(json.dumps(config))
        weights = from_checkpoint(Checkpoint(numbered(name)), folder / file, None)
        return weights.identity, " ".join(map(str, weights.doubts))

    identity, text = doubts(1, "model_best.pth")
    candidates = (identity.architecture, *identity.also)
    assert name in candidates
    assert f"{', '.join(candidates)} have the same names and shapes" in text
    identity, text = doubts(2, f"{name}.a1_in1k.pth")
    assert identity.architecture == name
    assert name == candidates[0] or f"has {name} in it; taken as {name}" in text
    identity, text = doubts(3, "model.safetensors", {"architecture": name, "num_features": 512})
    assert (identity.architecture, text) == (name, "")
