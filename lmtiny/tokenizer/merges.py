"""Counted pieces of symbols -> byte-pair merges, by sentencepiece's trainer: exact, in C++, the same for the same counts.

Byte-pair encoding as a way to a vocabulary: Sennrich et al. 2016, arXiv 1508.07909. A symbol is a character here,
whatever it stands for: a byte, or a token of an earlier stage.
"""

import io
from collections.abc import Iterable

_NO_SYMBOL = "\u2047"  # sentencepiece insists on an unknown symbol: one that no piece contains


def learn_merges(pieces: Iterable[tuple[str, int]], num_merges: int, num_symbols: int, max_symbols: int, max_piece_bytes: int) -> list[str]:
    """Returns at most `num_merges` (or what sentencepiece gives beyond) merged strings of symbols, in the order they were learned.

    Args:
      pieces: (symbols, how often they occur); no merge spans two of them. Their order decides between equal counts.
      num_symbols: how many different symbols there are, or more: places set aside, which merges may take in part.
      max_symbols: of a merged string.
      max_piece_bytes: of UTF-8; longer pieces are left out.
    """
    import sentencepiece  # here, not above: only needed by who learns

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{piece}\t{count}" for piece, count in pieces),
        model_writer=model,
        model_type="bpe",
        input_format="tsv",
        vocab_size=num_merges + num_symbols + 1,  # the one is <unk>, which cannot be left out; symbols need none
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        split_by_whitespace=False,
        split_digits=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=max_piece_bytes,
        max_sentencepiece_length=max_symbols,
        unk_id=0,
        unk_piece=_NO_SYMBOL,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    learned = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    order = sorted(range(1, learned.vocab_size()), key=lambda index: -learned.get_score(index))
    return [piece for piece in map(learned.id_to_piece, order) if len(piece) > 1]
