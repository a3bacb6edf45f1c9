"""The lower bounds of pyproject.toml as constraints of pip, one a line: `make test-oldest`.

    python tests/lower_bounds.py [--but NAME …] > constraints.txt

--but: packages left free.
"""

import argparse
import re
import tomllib
from collections.abc import Collection
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:\[\w+])?(?:>=|==)(?P<version>[\d.]+)(?:,<[\d.]+)?")


def constraints(free: Collection[str] = ()) -> list[str]:
    """`name==version` for everything that the project and its extras require."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    found = {}
    for line in lines:
        if line.startswith(f"{project['name']}["):
            continue
        match = REQUIREMENT.fullmatch(line)
        if match is None:
            raise ValueError(f"{line}: no lower bound")
        if match["name"] not in free:
            found[match["name"]] = match["version"]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--but", nargs="+", default=[], metavar="NAME")
    print("\n".join(constraints(parser.parse_args().but)))
