"""The client's rooms: each imports only those before it."""

import pytest

from tests.test_import_boundaries import direct_imports, in_package, is_within

ROOMS = (
    "client.data",
    "client.recipes",
    "client.reports",
    "client.services",
    "client.demos",
    "client.commands",
)
"""The modules beside them, such as `client.teacher`, come before all but `client.cli`."""

CORE = [name for name in in_package("client") if not is_within(name, (*ROOMS, "client.cli"))]


@pytest.mark.parametrize("module", in_package(*ROOMS))
def test_a_room_imports_no_later_room(module: str) -> None:
    room = next(index for index, each in enumerate(ROOMS) if is_within(module, (each,)))
    later = (*ROOMS[room + 1 :], "client.cli")
    assert [name for name in direct_imports(module) if is_within(name, later)] == []


@pytest.mark.parametrize("module", CORE)
def test_what_the_rooms_stand_on_imports_none_of_them(module: str) -> None:
    assert [
        name for name in direct_imports(module) if is_within(name, (*ROOMS, "client.cli"))
    ] == []
