"""Tables are aligned, and errors take one line."""

from files.text import one_line, table


def test_table_aligns_its_columns():
    assert table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


def test_an_error_is_its_type_and_first_line():
    assert one_line(ValueError("\nno room\nsource locations: ...")) == "ValueError: no room"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    text = one_line(OSError("a" * 200 + "b" * 200))
    assert text.startswith("OSError: aaa")
    assert text.endswith("bbb")
    assert len(text) < 310
