"""The tokens of a text for CLIP: byte-pair encoding of lower-case text (arXiv:2103.00020, 2.4).

A text is split into words, words into bytes, and bytes are merged in the order of merges.txt; a
word's last byte is another symbol than the same byte inside (Sennrich et al. 2016,
arXiv:1508.07909). vocab.json has the number of each symbol. The `tokenizers` library does the work.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

VOCABULARY, MERGES = "vocab.json", "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"
Tables = tuple[dict[str, int], list[tuple[str, str]]]  # a vocabulary and merges
_WORD_END = "</w>"
# Special tokens, English endings, runs of letters, single digits, runs of anything else.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def require_tokenizers(where: str) -> Any:
    """Return the library; raise ValueError if it is missing."""
    try:
        import tokenizers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"{where} needs a package: pip install tokenizers") from error
    return tokenizers


class Tokenizer:
    """Encodes texts.

    Args:
        vocabulary: the number of each symbol.
        merges: pairs of symbols, the first to be merged first.
        context_length: tokens of a text, with its start and end.
        where: for messages.

    Raises:
        ValueError: if the library is missing, or a symbol of the merges, or the start or end.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        context_length: int,
        where: str = "a tokenizer",
    ) -> None:
        library = require_tokenizers(where)
        self.context_length = context_length
        for symbol in (START, END):
            if symbol not in vocabulary:
                raise ValueError(f"{where}: {VOCABULARY} has no {symbol}, as that of a CLIP does")
        self._start, self._end = vocabulary[START], vocabulary[END]
        try:
            model = library.models.BPE(
                dict(vocabulary),
                list(merges),
                unk_token=END,
                continuing_subword_prefix="",
                end_of_word_suffix=_WORD_END,
            )
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"{where}: {VOCABULARY} and {MERGES} differ ({error})") from error
        self._core = library.Tokenizer(model)
        self._core.normalizer = library.normalizers.Sequence(
            [
                library.normalizers.NFC(),
                library.normalizers.Replace(library.Regex(r"\s+"), " "),
                library.normalizers.Lowercase(),
            ]
        )
        words = library.pre_tokenizers.Split(library.Regex(_WORDS), "removed", invert=True)
        # add_prefix_space=False, use_regex=False: the words are split already
        in_bytes = library.pre_tokenizers.ByteLevel(False, True, False)
        self._core.pre_tokenizer = library.pre_tokenizers.Sequence([words, in_bytes])
        self._core.add_special_tokens([START, END])

    def words(self, text: str) -> list[str]:
        """Return the words of a text, each as its bytes in the symbols of the vocabulary."""
        text = self._core.normalizer.normalize_str(text)
        return [word for word, _ in self._core.pre_tokenizer.pre_tokenize_str(text)]

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text from its start to its end, any number of them."""
        found = self._core.encode(text, add_special_tokens=False).ids
        return [self._start, *found, self._end]

    def encode(self, texts: Iterable[str]) -> Int32[np.ndarray, "texts length"]:
        """Return the tokens of texts, with the end repeated up to `context_length`.

        Raises:
            ValueError: for a text that is too long.
        """
        rows = []
        for text in texts:
            row = self.tokens(text)
            if (surplus := len(row) - self.context_length) > 0:
                raise ValueError(
                    f"prompt={text!r:.60} has {len(row) - 2} tokens, and the perceptor takes "
                    f"{self.context_length - 2}; leave out some {surplus} words"
                )
            rows.append(row + [self._end] * -surplus)
        return np.array(rows, np.int32).reshape(-1, self.context_length)


def read_tokenizer(folder: Path, context_length: int, where: str) -> Tokenizer:
    """Return the tokenizer of a folder with vocab.json and merges.txt.

    Raises:
        ValueError: if the library is missing, or a file is damaged.
        OSError: if a file cannot be read.
    """
    require_tokenizers(where)
    try:
        vocabulary = json.loads((folder / VOCABULARY).read_text("utf-8"))
        lines = (folder / MERGES).read_text("utf-8").split("\n")
    except ValueError as error:
        raise ValueError(f"{where}: {VOCABULARY} or {MERGES} is damaged ({error})") from error
    valid = isinstance(vocabulary, dict) and all(type(n) is int for n in vocabulary.values())
    # The first line is the version of the format.
    merges: list[Any] = [
        tuple(line.split()) for line in lines if line.strip() and line[:9] != "#version:"
    ]
    if not valid or any(len(pair) != 2 for pair in merges):
        problem = "one symbol and number an entry, and one pair of symbols a line"
        raise ValueError(f"{where}: {VOCABULARY} and {MERGES} must have {problem}")
    return Tokenizer(vocabulary, merges, context_length, where)


def tables_of_words(texts: Iterable[str]) -> Tables:
    """Return a vocabulary and merges for a small language, whose words are mostly single tokens.

    They have the layout of CLIP's: bytes, last bytes of words, merges, start and end. Each word is
    merged from its left. Other words are encoded by their parts.

    Raises:
        ValueError: if the library is missing.
    """
    library = require_tokenizers("a vocabulary")
    bytes_ = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    symbols = [*bytes_, *(byte + _WORD_END for byte in bytes_)]
    merges: list[tuple[str, str]] = []
    core = Tokenizer({s: i for i, s in enumerate([*symbols, START, END])}, [], 2)
    for text in texts:
        for word in core.words(text):
            made, *others = [*word[:-1], word[-1] + _WORD_END]
            for other in others:
                if made + other not in symbols:
                    merges.append((made, other))
                    symbols.append(made + other)
                made += other
    return {symbol: i for i, symbol in enumerate([*symbols, START, END])}, merges
