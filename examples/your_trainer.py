"""A trainer of one's own, in plain JAX and optax, gains BNS and CLA by `bacl_jax/addon.py`: python -m examples.your_trainer"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bacl_jax import addon

BATCH, WORDS, T, C, D = 32, 17, 5, 32, 32  # pairs, vocabulary, tokens of a caption, width of a token and of an embedding
CONFIG = addon.ObjectiveConfig(bank_size=128, bns=addon.BNSConfig(enabled=True), cla=addon.CLAConfig(enabled=True))


def batch(step):
    """Any data loader: here pictures of 2 x 4 patches, one of them coloured, and captions that say which and how."""
    random = np.random.default_rng(step)
    colour, column, row = (random.integers(0, n, BATCH) for n in (8, 4, 2))
    images = random.normal(0, 0.1, (BATCH, 8, 8)).astype(np.float32)
    images[np.arange(BATCH), 4 * row + column, colour] += 2
    captions = [f"colour {a} in column {b} of row {c}" for a, b, c in zip(colour, column, row, strict=True)]
    ids = np.stack([np.full(BATCH, 1), 3 + colour, 11 + column, 15 + row, np.full(BATCH, 2)], 1).astype(np.int32)  # BOS words EOS
    return images, ids, addon.caption_ids(captions), addon.anchor_ids(f"{step}/{i}" for i in range(BATCH))


def tower(p, x):
    """Embedding [B, D] and tokens [B, N, C] of pictures, or of token ids."""
    tokens = jax.nn.gelu(((p["in"][x] if x.ndim == 2 else x @ p["in"]) + p["place"]) @ p["hidden"])
    return tokens.mean(1) @ p["out"], tokens


def loss(params, bank, key, progress, images, ids, caption_id, anchor_id):
    (z, X), (w, Y) = tower(params["image"], images), tower(params["text"], ids)
    named = {"ids": ids, "mask": ids > 0, "caption_id": caption_id, "anchor_id": anchor_id, "log_scale": params["log_scale"]}
    features = addon.Features(z=z, w=w, X=X, Y=Y, encode_text=lambda ids, mask: tower(params["text"], ids), **named)
    total, bank, metrics = addon.loss(params["addon"], bank, features, key, progress, config=CONFIG)
    return total, (bank, metrics)


def main(steps=60):
    key, normal = jax.random.key(0), jax.nn.initializers.lecun_normal()
    shapes = {"in": (8, C), "place": (8, C), "hidden": (C, C), "out": (C, D)}
    image, text = ({k: normal(key, s) for k, s in (shapes | own).items()} for own in ({}, {"in": (WORDS, C), "place": (T, C)}))
    heads, bank = addon.init(key, addon.Dims(embed=D, context=T, text_width=C, anchor_width=C), CONFIG)
    params = {"image": image, "text": text, "log_scale": jnp.log(7.0), "addon": heads}
    label = {"image": "towers", "text": "towers", "log_scale": "towers", "addon": {name: name for name in heads}}
    optimizer = optax.multi_transform({"towers": optax.adam(1e-2), "cross_attention": optax.adamw(1e-3), "policy": optax.adam(1e-3)}, label)
    gradient, opt_state, history = jax.jit(jax.grad(loss, has_aux=True)), optimizer.init(params), []
    for step in range(steps):
        grads, (bank, metrics) = gradient(params, bank, jax.random.fold_in(key, step), step / steps, *batch(step))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        history.append({name: float(value) for name, value in metrics.items()})
        print(f"step {step + 1}  contrast {history[-1]['loss_contrast']:.3f}  least {history[-1]['loss_floor']:.3f}")
    return history


if __name__ == "__main__":
    main()
