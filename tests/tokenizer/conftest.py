"""A small corpus of many scripts, and one tokenizer of each kind learned from it."""

import argparse
import inspect

import pytest

from lmtiny.tokenizer import KINDS, Tokenizer, learn

MANY_SCRIPTS = """The quick brown fox, aged 12, wasn't asleep in 1999; it'd run 3.14159 miles (about 5 km) at 07:45.
Il était une fois, à l'orée du bois, une fée. Das Mädchen aß Äpfel. Příliš žluťoučký kůň. Œuvre, naïveté, façade.
모든 국민은 인간으로서의 존엄과 가치를 가지며, 행복을 추구할 권리를 가진다. 국가는 국민의 기본적 인권을 보장한다.
すべての人間は、生まれながらにして自由であり、尊厳と権利とについて平等である。人人生而自由,在尊嚴和權利上一律平等。
يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. כל בני האדם נולדו בני חורין ושווים בערכם. Все люди рождаются свободными.
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। ทุกคนเกิดมามีอิสระ 😀👍🏽👨‍👩‍👧 ½ ² Ⅷ ١٢٣\r\n\ttabs\t\tand    spaces
"""


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return [MANY_SCRIPTS, inspect.getsource(argparse)[:40_000], MANY_SCRIPTS[::-1]]


@pytest.fixture(scope="session")
def tokenizers(corpus: list[str]) -> dict[str, Tokenizer]:
    return {kind: learn(kind, corpus, 1200, 10**9) for kind in KINDS}


@pytest.fixture(scope="session")
def bpe(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["bpe"]
