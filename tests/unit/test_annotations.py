"""Property: a value is checked against an annotation whichever way its author writes that."""

from typing import Any

import pytest

from megatron_davinci.config.annotations import accepts

OPTIONAL_INT = ("Optional[int]", "typing.Optional[int]", "Union[int, None]", "int | None", "None | int")


@pytest.mark.parametrize("annotation", OPTIONAL_INT)
@pytest.mark.parametrize(("value", "fits"), [(3, True), (None, True), ("3", False), (True, False), (3.0, False)])
def test_every_spelling_of_an_optional_number(annotation: str, value: Any, fits: bool) -> None:
    assert accepts(annotation, value) is fits


@pytest.mark.parametrize(
    ("annotation", "value", "fits"),
    [
        ("float", 1, True),
        ("float", True, False),
        ("float", None, False),
        ("bool", True, True),
        ("bool", 1, False),
        ("Literal['full', 'selective'] | None", "full", True),
        ("Literal['full', 'selective'] | None", None, True),
        ("Optional[Literal['full', 'selective']]", "half", False),
        ("Literal[1, 2]", True, False),
        ("Optional[List[str]]", ["a", "b"], True),
        ("list[str] | None", ["a", 2], False),
        ("list[str] | None", "a", False),
        ("Optional[Union[int, List[int]]]", [1, 2], True),
        ("Optional[Union[int, List[int]]]", ["1"], False),
        ("torch.dtype", "anything", True),
        ("Optional[Callable[[Tensor], None]]", 3, True),
    ],
)
def test_what_fits(annotation: str, value: Any, fits: bool) -> None:
    assert accepts(annotation, value) is fits
