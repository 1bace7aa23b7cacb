"""A Containerfile, parsed: its stages, each a list of (instruction, argument)."""

import re
from pathlib import Path

Stage = list[tuple[str, str]]


def stages(path: Path) -> list[Stage]:
    """What stands before the first FROM, then each stage, its FROM first."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    found: list[Stage] = [[]]
    for line in filter(None, lines):
        instruction, argument = line.split(" ", 1)
        assert instruction.isupper(), f"{path}: {line}"
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, argument))
    return found


def arguments(stage: Stage, instruction: str) -> list[str]:
    """The arguments of every such instruction of a stage."""
    return [argument for name, argument in stage if name == instruction]
