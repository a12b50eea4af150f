"""Gives a ResNet a new head for a folder of images: what `python train.py finetune --cache-features` does, in Python.

    python docs/examples/finetune_on_a_folder.py DIR resnet18.safetensors

DIR has train/CLASS/*.jpg and test/CLASS/*.jpg (or other images). The weights are any that `python -m parity inspect`
understands, or a name such as IMAGENET1K_V1 with --model.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import resnet_flax
from resnet_flax.data import evaluation_batches, open_source
from resnet_flax.data.on_device import normalize
from resnet_flax.layers import Linear

BATCH, EPOCHS = 32, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("weights")
    parser.add_argument("--model", help="the architecture, where it does not follow from the weights")
    args = parser.parse_args()
    train, test = (open_source(f"folder:{args.folder}", split) for split in ("train", "test"))
    pretrained = resnet_flax.load_pretrained(args.model, args.weights, num_classes=0)  # no head: pooled features
    preprocessing = pretrained.preprocessing

    @nnx.jit
    def features(model, images):
        return model(normalize(images, preprocessing.mean, preprocessing.std))

    def all_features(source):
        """(N, features) and labels (N,); the padding of the last batch goes."""
        batches = list(evaluation_batches(source, preprocessing.transform, batch_size=BATCH))
        mask = np.concatenate([batch["mask"] for batch in batches])
        found = [np.asarray(features(pretrained.model, batch["image"])) for batch in batches]
        return np.concatenate(found)[mask], np.concatenate([batch["label"] for batch in batches])[mask]

    train_features, train_labels = all_features(train)
    test_features, test_labels = all_features(test)
    head = Linear(train_features.shape[1], train.num_classes, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(head, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(head, optimizer, inputs, labels):
        def loss(head):
            return optax.softmax_cross_entropy_with_integer_labels(head(inputs), labels).mean()

        value, grads = nnx.value_and_grad(loss)(head)
        optimizer.update(head, grads)
        return value

    rng = np.random.default_rng(0)
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(train_labels))
        for start in range(0, len(order) - len(order) % BATCH or 1, BATCH):
            chosen = order[start : start + BATCH]
            value = step(head, optimizer, train_features[chosen], train_labels[chosen])
        if epoch % 10 == 0:
            accuracy = (jnp.argmax(head(test_features), 1) == test_labels).mean()
            print(f"epoch {epoch}: loss {float(value):.3f}, test accuracy {float(accuracy):.1%}")
    print(f"classes: {', '.join(train.class_names)}; on {jax.devices()[0].platform}")


if __name__ == "__main__":
    main()
