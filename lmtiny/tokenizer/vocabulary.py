"""What every vocabulary is made of: ids 0..255 are the bytes, then the learned tokens, then the special tokens, last."""

import itertools
from collections.abc import Sequence

KINDS = ("bpe", "superword", "char", "byte")

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

# GPT-4's split (tiktoken, cl100k_base) with numbers in groups of at most two digits, not three: a small vocabulary
# cannot afford a thousand number tokens (karpathy/nanochat). No merge reaches across two pieces of this split.
CONTRACTION = r"'(?i:[sdmt]|ll|ve|re)"
WORD = r"[^\r\n\p{L}\p{N}]?+\p{L}+"
NO_WORD = r"\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SPLIT_PATTERN = f"{CONTRACTION}|{WORD}|{NO_WORD}"

# The split of the kind "superword": the same, but for words in a row, which stay together up to 32 pieces of the split
# above, so that merges may join them. It cuts nowhere but where the split above cuts.
MORE_WORDS = 31  # at most, behind the first of a run
SUPERWORD_RUN = WORD + rf"(?:,? \p{{L}}+|{CONTRACTION}(?!\p{{L}})){{0,{MORE_WORDS}}}"
SUPERWORD_PATTERN = f"{CONTRACTION}|{SUPERWORD_RUN}|{NO_WORD}"

PATTERNS = {"bpe": SPLIT_PATTERN, "superword": SUPERWORD_PATTERN}  # the kinds whose tokens are merges, by rank

BYTES = tuple(bytes([value]) for value in range(256))
SMALLEST = len(BYTES) + len(SPECIAL_TOKENS)  # tokens: what a vocabulary has before anything is learned
MAX_TOKENS = 1 << 24  # of any kind; more than any published vocabulary, far fewer than would exhaust memory
MAX_TOKEN_BYTES = 128  # of a BPE token; a longer one is a ruler or an indentation, not a word


def problem_with(kind: str, tokens: Sequence[bytes]) -> str:
    """Returns what makes `tokens` (all but the special ones, in the order of their ids) no vocabulary of `kind`, or ""."""
    learned = tokens[256:]
    if kind not in KINDS:
        return f"kind {kind!r} is not one of {', '.join(KINDS)}"
    if tuple(tokens[:256]) != BYTES:
        return "the first 256 tokens are not the 256 bytes in order"
    if len(tokens) > MAX_TOKENS:
        return f"{len(tokens)} tokens are more than {MAX_TOKENS}"
    if kind == "byte":
        return "a byte vocabulary has no tokens but the 256 bytes" if learned else ""
    if kind == "char":
        return "" if _is_alphabet(learned) else "the tokens after the bytes are not characters beyond ASCII in ascending order"
    if not all(2 <= len(token) <= MAX_TOKEN_BYTES for token in learned):
        return f"a token after the bytes does not have 2 to {MAX_TOKEN_BYTES} bytes"
    return "" if len(set(learned)) == len(learned) else "a token is there twice"


def _is_alphabet(learned: Sequence[bytes]) -> bool:
    try:
        characters = [token.decode() for token in learned]
    except UnicodeDecodeError:
        return False
    return all(len(char) == 1 and char > "\x7f" for char in characters) and all(a < b for a, b in itertools.pairwise(characters))
