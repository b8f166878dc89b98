import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from common.process.child_processes import script

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_are_kept() -> None:
    command = [script("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


HEAVY = {"torch", "monai", "opacus"}


def test_the_coordinator_loads_no_torch() -> None:
    assert not loaded("server.commands.coordinator, server.executor, server.transport.gateway") & {
        *HEAVY,
        "client",
    }


def test_a_sites_commands_load_what_they_need_alone() -> None:
    """A person who asks for help or gives a decision waits for no network to be imported."""
    assert not loaded("client.commands.site, client.commands.clinic") & HEAVY


def loaded(modules: str) -> set[str]:
    """Return the names of what a fresh Python has in memory once it imported ``modules``."""
    code = f"import sys, {modules}\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_name_is_imported_from_the_module_that_defines_it() -> None:
    """A re-export hides where a thing lives, and makes one room seem to depend on another."""
    sources = {module: ast.parse(path.read_text("utf-8")) for module, path in modules().items()}
    defined = {module: set(defines(tree.body)) for module, tree in sources.items()}
    taken = [
        f"{module}, line {node.lineno}: {alias.name} is not defined in {node.module}"
        for module, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in sources
        for alias in node.names
        if alias.name not in defined[node.module] and f"{node.module}.{alias.name}" not in sources
    ]
    assert not taken, "\n".join(taken)


def test_nothing_is_imported_for_others_to_import() -> None:
    trees = {module: ast.parse(path.read_text("utf-8")) for module, path in modules().items()}
    aliases = [
        f"{module}, line {node.lineno}: {alias.name} as {alias.asname}"
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    lists = [
        f"{module}: __all__" for module, tree in trees.items() if "__all__" in defines(tree.body)
    ]
    assert not [*aliases, *lists]


def test_every_room_is_small_and_says_what_belongs_in_it() -> None:
    """A stranger finds a concept in one guess: by few names, each in a room that is described."""
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    files = modules()
    for room in (module for module, path in files.items() if path.name == "__init__.py"):
        inside = [
            module
            for module, path in files.items()
            if module.rpartition(".")[0] == room and path.name != "__init__.py"
        ]
        assert len(inside) <= 20, room
        assert ast.get_docstring(ast.parse(files[room].read_text("utf-8"))), room
        side, _, name = room.partition(".")
        table = guide.partition(f"| `{side}` |")[2].partition("\n\n")[0]
        assert table, f"CONTRIBUTING.md has no table of {side}"
        assert f"`{name.rpartition('.')[2] or side}`" in table + f"`{side}`", room


def test_strings_that_name_modules_name_modules_that_are_there() -> None:
    """Processes are started, and programs found, by names that no checker follows."""
    files = modules()
    name = re.compile(r"(?:server|client|common)(?:\.\w+)+")
    in_code = {
        node.value
        for path in files.values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if name.fullmatch(node.value)
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    programs = {entry.partition(":")[0] for entry in project["scripts"].values()}
    made = set(name.findall((ROOT / "Makefile").read_text("utf-8")))
    assert "server.executor" in in_code, "nothing was found"
    keys = {"server.crt", "server.key", "server.next.key"}
    assert {*in_code, *programs, *made} - files.keys() == keys


def test_monai_is_imported_after_what_it_asks_of_the_account() -> None:
    assert "common.process.account_environment" in loaded("client.networks")


def modules() -> dict[str, Path]:
    """Return the product's files by the names of their modules."""
    paths = [
        path for side in ("server", "client", "common") for path in (ROOT / side).rglob("*.py")
    ]
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): path
        for path, parts in names.items()
    }


def defines(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind at the top of a module, imports apart."""
    for statement in body:
        match statement:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                yield name
            case ast.If(body=inner, orelse=other) | ast.Try(body=inner, orelse=other):
                yield from defines([*inner, *other])
            case _:
                for node in ast.walk(statement):
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                        yield node.id
