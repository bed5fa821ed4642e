"""Texts as tokens, and the speeches of a play."""

import numpy as np
import pytest

from tropigrad.perf_reports.data import DataError
from tropigrad.perf_reports.texts import END, UNKNOWN, read_speeches, read_text


def test_characters_are_told_apart_and_spelled_again(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question: " * 10, encoding="utf-8")
    text = read_text(path)
    assert (text.unit, text.name) == ("characters", "text.txt")
    assert [len(part) for part in (text.train, text.valid, text.test)] == [336, 42, 42]
    assert text.spelled(np.concatenate([text.train, text.valid, text.test]).tolist()) == path.read_text()
    assert text.train.max() < text.vocabulary == len(set(path.read_text()))


def test_words_end_their_lines_and_what_training_lacks_is_unknown(tmp_path):
    for part, lines in (("train", 9), ("valid", 5), ("test", 5)):
        other = "rare" if part == "test" else "a"
        (tmp_path / f"{part}.txt").write_text(f"the {other} <unk>\n" * lines, encoding="utf-8")
    text = read_text(tmp_path)
    assert (text.unit, text.words) == ("words", ["the", "a", UNKNOWN, END])
    assert text.train[:5].tolist() == [0, 1, 2, 3, 0]
    assert text.test[:4].tolist() == [0, 2, 2, 3]
    assert text.spelled([0, 1, 3, 0, 1]) == "the a\nthe a"


def test_a_unit_may_be_asked_for(tmp_path):
    (tmp_path / "input.txt").write_text("a b c d e f g h i j " * 20, encoding="utf-8")
    assert read_text(tmp_path, "words").words[0] == "a"
    assert read_text(tmp_path).unit == "characters"


def test_a_play_is_its_speeches(tmp_path, monkeypatch):
    blocks = ["A:\nTo be, to be"] * 3 + ["B:\nnot\nso"] * 2 + ["C:\nonce"] + ["no speaker here"]
    (tmp_path / "input.txt").write_text("\n\n".join(blocks), encoding="utf-8")
    play = read_speeches(tmp_path, least=2)
    assert play.names == ["A", "B"]
    assert play.y.tolist() == [0, 0, 0, 1, 1]
    assert play.words == ["be", "not", "so", "to"]
    assert play.csr().toarray()[[0, 3]].tolist() == [[2, 0, 0, 2], [0, 1, 1, 0]]


@pytest.mark.parametrize("read", [read_text, read_speeches])
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\xff\xfe\xfa", "byte 0 is not UTF-8"), (b"", "expected")],
    ids=["absent", "no text", "empty"],
)
def test_what_cannot_be_read_is_named(tmp_path, read, content, words):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"text\.txt: ") as error:
        read(path)
    assert words in str(error.value)


def test_a_folder_without_a_text_is_named(tmp_path):
    with pytest.raises(DataError, match=r"neither train\.txt"):
        read_text(tmp_path)
