"""Which layers are folded: the model's verdict, the switch, and that the layers obey it."""

import copy
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnet_flax.compiled.cards import CARDS
from resnet_flax.compiled.fold import Fold, foldable_layers, known_card, seconds_saved, verdict
from resnet_flax.layers import BatchNorm, Conv, GroupNorm, conv_norm
from resnet_flax.training.config import ModelConfig, TrainConfig
from resnet_flax.training.saved_config import as_json, from_json
from resnet_flax.training.setup import model_options
from resnet_flax.training.sharding import data_mesh

BOTTLENECK, LAST_SHORTCUT = (802816, 64, 256), (12544, 1024, 2048)  # ResNet-50's first and last, 256 images


@pytest.mark.parametrize("card", CARDS)
def test_a_bottlenecks_first_layers_gain_on_every_card_and_narrowing_ones_lose(card):
    assert verdict(CARDS[card], BOTTLENECK) == "gains"
    assert verdict(CARDS[card], (10**6, 2048, 512)) == "loses"


@pytest.mark.parametrize("layer", [BOTTLENECK, LAST_SHORTCUT, (50176, 512, 1024), (12544, 512, 2048)])
def test_the_verdict_is_open_where_the_range_has_both_signs(layer):
    for card in CARDS.values():
        least, most = seconds_saved(card, layer)
        assert least < most
        assert verdict(card, layer) == ("gains" if least > 0 else "loses" if most < 0 else "open")


def test_cheaper_arithmetic_saves_more_and_cheaper_memory_less():
    card = CARDS["a100"]
    now = seconds_saved(card, LAST_SHORTCUT)
    assert seconds_saved(replace(card, bfloat16=2 * card.bfloat16), LAST_SHORTCUT) > now
    assert seconds_saved(replace(card, bandwidth=2 * card.bandwidth), LAST_SHORTCUT) < now


def test_auto_folds_unless_it_loses_and_on_unknown_cards():
    losing = next((card for card in CARDS if verdict(CARDS[card], LAST_SHORTCUT) == "loses"), None)
    assert losing is not None
    assert not Fold("auto", losing)(*LAST_SHORTCUT)
    assert Fold("always", losing)(*LAST_SHORTCUT)
    assert Fold("auto", "h100")(*BOTTLENECK)
    assert Fold("auto", known_card("cpu"))(10**6, 2048, 512)
    assert not Fold("never", "h100")(*BOTTLENECK)
    assert {known_card(card.name) for card in CARDS.values()} == set(CARDS)
    assert copy.deepcopy(Fold("auto", "a100")) == Fold("auto", "a100") != Fold("never", "a100")
    hash(Fold("auto", "a100"))


def conv_and_norm(fold):
    rngs = nnx.Rngs(0)
    conv = Conv(4, 16, 1, dtype=jnp.bfloat16, rngs=rngs)
    return conv, BatchNorm(16, dtype=jnp.bfloat16, fold=fold, rngs=rngs)


def test_a_norm_is_asked_with_its_layers_shape_and_obeyed():
    asked = []

    def never(*layer):
        asked.append(layer)
        return False

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 5, 4)), jnp.bfloat16)
    conv, norm = conv_and_norm(never)
    plain, other = conv_and_norm(never)
    np.testing.assert_array_equal(conv_norm(conv, norm, x), other(plain(x)))
    assert asked == [(60, 4, 16)]
    folded = jax.make_jaxpr(lambda x: conv_norm(*conv_and_norm(Fold("always")), x))(x)
    unfolded = jax.make_jaxpr(lambda x: conv_norm(*conv_and_norm(Fold("never")), x))(x)
    assert "product_moments" in str(folded)
    assert "product_moments" not in str(unfolded)


def test_the_layers_that_could_be_folded():
    found = foldable_layers("resnet26", 2, 64)  # 2 blocks in each of 4 stages
    assert sum(found.values()) == 8 + 4
    assert found[2 * 16 * 16, 64, 256] == 3  # both blocks of the first stage, and its shortcut


def test_the_switch_reaches_the_norms_of_bfloat16_networks_only():
    mesh = data_mesh(jax.devices()[:1])
    config = TrainConfig(model=ModelConfig("resnet50", dtype="bfloat16", fold="never"))
    norm = model_options(config, mesh)["norm_layer"]
    assert isinstance(norm, partial)
    assert norm.func is BatchNorm
    assert norm.keywords == {"fold": Fold("never", "")}
    for default in (ModelConfig("resnet50", fold="never"), ModelConfig("resnet50", dtype="bfloat16")):
        assert "norm_layer" not in model_options(TrainConfig(model=default), mesh)
    other = TrainConfig(model=ModelConfig("resnet50_gn", dtype="bfloat16", fold="never"))
    assert model_options(other, mesh).get("norm_layer", GroupNorm) is GroupNorm


def test_runs_of_earlier_versions_resume_with_everything_folded():
    config = TrainConfig(model=ModelConfig(fold="never"))
    saved = as_json(config)
    assert from_json(saved) == config
    del saved["model"]["fold"]
    assert from_json(saved).model.fold == "always"
