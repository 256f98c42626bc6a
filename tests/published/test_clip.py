"""CLIP in folders of transformers: its numbers, its files, and folders that are none.

The vectors were computed by CLIPModel of transformers 5.24 on PyTorch 2.13. Tensor i, in the order
of the names, had the numbers cos((i + 1) k) / 2, k = 1, 2, ...; images had sin(0.9 k), k = 0, 1.
The tokens come from its CLIPTokenizer, on the tables of WORDS.
"""

import functools
import json

import jax
import numpy as np
import pytest

from errors import FileError
from files.nested import flatten, unflatten
from models.clip import CLIP, TowerSize, embed_images, embed_texts
from published.clip import abstract_params, read_clip, rules, write_clip
from published.clip_tokenizer import Tokenizer, read_tokenizer, tables_of_words

WORDS = ("seven", "a seven", "the digit 7", "nine inner")
SIZE = TowerSize(features=8, depth=2, heads=2, hidden=12)
SIZES = {"image_size": 4, "patch_size": 2, "channels": 2, "vision": SIZE, "text": SIZE}
TOKENS = np.array([[18, 3, 4, 19, 19, 19], [18, 7, 1, 2, 5, 19]])
OF_IMAGES = {
    "quick_gelu": [
        [0.623065, -0.311157, -0.384249, 0.606072],
        [0.620358, -0.325411, -0.370602, 0.609851],
    ],
    "gelu": [
        [0.623367, -0.309471, -0.385846, 0.605611],
        [0.620705, -0.323661, -0.372293, 0.609399],
    ],
}
OF_TEXTS = {
    "quick_gelu": [
        [-0.554728, 0.09164, 0.418702, -0.71314],
        [-0.575113, 0.12221, 0.39371, -0.706613],
    ],
    "gelu": [[-0.55521, 0.092347, 0.418135, -0.713006], [-0.575755, 0.123199, 0.392885, -0.706378]],
}


def network(vocabulary, **fields):
    return CLIP(
        **SIZES,
        vocabulary=vocabulary,
        context_length=6,
        end_token=vocabulary - 1,
        embedding=4,
        **fields,
    )


@pytest.fixture(scope="module")
def tables():
    return tables_of_words(WORDS)


def random_params(made):
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.normal, 0.0, 0.1)
    shapes = abstract_params(made)
    return jax.tree.map(lambda leaf: np.float32(draw(size=leaf.shape)).reshape(leaf.shape), shapes)


@pytest.fixture
def folder(tmp_path, tables):
    """A folder with a network of the tables."""
    made = network(len(tables[0]))
    params = random_params(made)
    for std in ((1.0, 1.0), (0.3, 0.2)):  # the second one replaces the first
        write_clip(tmp_path / "clip", made, params, tables, ((0.5, 0.4), std))
    return tmp_path / "clip"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.slow
def test_vectors_are_those_of_transformers(activation, tmp_path, tables):
    """The files of OpenAI have the last token as the end, which they call 2."""
    made = network(20, activation=activation)
    names = sorted(rule.theirs for rule in rules(made))
    shapes = {rule.ours: rule for rule in rules(made)}
    params = {}
    for ours, leaf in flatten(abstract_params(made)).items():
        rule = shapes[ours]
        shape = rule.to_theirs(np.empty(leaf.shape, np.float32)).shape
        index = names.index(rule.theirs)
        values = np.cos((index + 1) * (np.arange(leaf.size) + 1.0)) / 2
        params[ours] = rule.to_ours(values.astype(np.float32).reshape(shape))
    write_clip(tmp_path / "clip", made, unflatten(params), tables, ((0, 0), (1, 1)))
    if activation == "quick_gelu":
        edit(tmp_path / "clip/config.json", lambda c: c["text_config"].update(eos_token_id=2))
    read = read_clip(str(tmp_path / "clip"), "it")
    assert read.network == made
    images = np.sin(np.arange(64) * 0.9).astype(np.float32).reshape(2, 4, 4, 2)
    found = jax.jit(embed_images, static_argnums=0)(read.network, read.params, images)
    np.testing.assert_allclose(found, OF_IMAGES[activation], atol=2e-6)
    found = jax.jit(embed_texts, static_argnums=0)(read.network, read.params, TOKENS)
    np.testing.assert_allclose(found, OF_TEXTS[activation], atol=2e-6)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The  DIGIT 7!", [529, 517, 521, 278, 256, 530]),
        ("na\u00efve nine's", [529, 77, 64, 127, 107, 85, 324, 524, 6, 338, 530]),
        ("e\u0301 \u00df", [529, 127, 358, 127, 509, 530]),  # an accent of its own, a sharp s
        ("\u65e5 \U0001f600", [529, 162, 245, 354, 172, 253, 246, 478, 530]),
        ("<|endoftext|> seven", [529, 530, 515, 530]),
        ("", [529, 530]),
    ],
)
def test_tokens_are_those_of_transformers(text, tokens, tables):
    assert Tokenizer(*tables, context_length=77).tokens(text) == tokens


def test_folder_is_read_as_it_was_written(folder, tables):
    read = read_clip(str(folder), "it")
    assert read.network == network(len(tables[0]))
    assert (read.mean, read.std) == ((0.5, 0.4), (0.3, 0.2))
    jax.tree.map(np.testing.assert_array_equal, read.params, random_params(read.network))
    assert read.tokenizer.encode(["seven", "the digit 7"]).tolist() == [
        [529, 515, 530, 530, 530, 530],
        [529, 517, 521, 278, 530, 530],
    ]
    with pytest.raises(ValueError, match=r"prompt='a a a a a' has 5 tokens, .* takes 4; leave out"):
        read.tokenizer.encode(["a a a a a"])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "merges.txt").unlink(), "no folder of a CLIP: it has no merges.txt; give"),
        (lambda f: (f / "model.safetensors").unlink(), "it has no model.safetensors"),
        (
            lambda f: (f / "config.json").write_text("[1]"),
            "config.json is damaged .*not a JSON obj",
        ),
        (lambda f: (f / "vocab.json").write_text("{}"), r"vocab.json has no <\|startoftext\|>"),
        (lambda f: (f / "vocab.json").write_text("[]"), "one symbol and number an entry"),
        (lambda f: (f / "merges.txt").write_text("x y\n"), "vocab.json and merges.txt differ"),
        (lambda f: (f / "preprocessor_config.json").write_text("{}"), "image_std for 2 channels"),
        (lambda f: edit(f / "config.json", lambda c: c.update(model_type="bert")), "'bert', not"),
        (lambda f: edit(f / "config.json", lambda c: c.update(projection_dim=5)), "belongs to its"),
        (
            lambda f: edit(f / "config.json", lambda c: c["vision_config"].update(patch_size=0)),
            "patch_size=0; valid is an integer from 1 to",
        ),
        (
            lambda f: edit(f / "config.json", lambda c: c["text_config"].update(hidden_size="a")),
            "features='a'; valid is",
        ),
        (
            lambda f: edit(f / "config.json", lambda c: c["text_config"].update(hidden_act="gelu")),
            "different activations",
        ),
    ],
)
def test_folder_that_is_no_clip_is_one_line(folder, damage, problem):
    damage(folder)
    with pytest.raises(ValueError, match=problem) as caught:
        read_clip(str(folder), "config.guidance.perceptor='a'")
    assert "\n" not in str(caught.value)
    assert "config.guidance.perceptor='a'" in str(caught.value)


def test_place_that_is_no_folder_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(FileError, match=r"there is no such folder; give a folder with config.json"):
        read_clip(str(tmp_path / "x"), "it")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="it is a file; give a folder"):
        read_clip(str(tmp_path / "file"), "it")

    import huggingface_hub

    def snapshot_download(*_, **__):
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    problem = (
        "it: the download failed .no network.; check the name and the network, or give a local"
    )
    with pytest.raises(ConnectionError, match=problem):
        read_clip("hf:a/b", "it")


def test_missing_library_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ValueError, match="it needs a package: pip install tokenizers"):
        read_tokenizer(folder, 6, "it")
