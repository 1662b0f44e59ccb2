"""Writes docs/methods/: a page for every method, from its class, and the index.

python docs/generate.py            writes what has changed
python docs/generate.py --check    writes nothing; exit code 1 where a page is out of date
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT)]  # this file's own tree, whatever is installed

import docstring  # noqa: E402
import facts  # noqa: E402
from usage import USAGE, Usage  # noqa: E402

import mtlfast  # noqa: E402
from mtlfast.weighting import REGISTRY, ColumnWise, Weighting  # noqa: E402

FOLDER = ROOT / "docs" / "methods"
FAMILIES = {
    "constant": ("Fixed weights", "One joint backward a step; the baselines."),
    "gramian": (
        "Weights from the Gramian",
        "K backwards a step; the inner products of the task gradients decide.",
    ),
    "loss": ("Weights from the losses", "One joint backward a step; no gradient is compared."),
    "column": ("Column by column", "K backwards a step; there are no task weights."),
    "buffer": (
        "Buffers and several batches",
        "More than one batch's gradients decide: buffers of K P elements, or several batches.",
    ),
}
SECTIONS = (
    "Formula",
    "Shapes",
    "Options",
    "Notes",
    "Other implementations",
    "Degenerate input",
    "When to use it",
    "When it fails",
    "State",
    "Methods",
    "Errors",
    "Reference",
)
USE = "`adam` stands for any torch optimizer, `model_losses(batch)` for the K losses of a batch."
NOTE = (
    "<!-- Written by docs/generate.py from the class's docstring: change that, then make docs. -->"
)


def methods() -> list[type[Weighting]]:
    """Every method of the package, by name."""
    return [cls for _, cls in sorted(REGISTRY.items()) if cls.__module__.startswith("mtlfast.")]


def pages() -> dict[str, str]:
    """All files of docs/methods by name, with their contents."""
    known = methods()
    links = {cls.__name__: f"{cls.name}.md" for cls in known}
    files = {f"{cls.name}.md": page(cls, links) for cls in known}
    return {**files, "README.md": index(known, links)}


def page(cls: type[Weighting], links: dict[str, str]) -> str:
    """The page of one method."""
    read = docstring.read(cls.__doc__, links)
    use = USAGE.get(cls.name, Usage())
    method = example(cls, use)
    sections = dict(read.sections)
    sections["Options"] = options(cls, read)
    sections["State"] = [*sections.get("State", []), *facts.state(method)]
    sections["Methods"] = own_methods(cls, links)
    sections["Errors"] = [f"- `{name}`: {text}" for name, text in read.errors.items()]
    sections["Reference"] = [read.reference] if read.reference else []
    unknown = sections.keys() - {*SECTIONS}
    assert not unknown, unknown
    lines = [NOTE, "", f"# {cls.__name__}", "", read.summary, "", *facts.table(method), ""]
    lines += ["## Use", "", USE, "", "```python", *use_lines(method, use), "```"]
    for section in SECTIONS:
        blocks = sections.get(section)
        if blocks:
            tight = section in ("Options", "Errors")
            lines += ["", f"## {section}", "", ("\n" if tight else "\n\n").join(blocks)]
    return "\n".join(lines) + "\n"


def index(known: list[type[Weighting]], links: dict[str, str]) -> str:
    """The list of all methods by family."""
    words = (
        "G is the K x K Gramian of the task gradients, L the K losses. How to choose: "
        "[which-method.md](../which-method.md); other libraries' names and settings: "
        "[coming-from.md](../coming-from.md)."
    )
    lines = [NOTE, "", "# Methods", "", words]
    families = [*FAMILIES, *sorted({cls.family for cls in known} - FAMILIES.keys())]
    for family in families:
        members = [cls for cls in known if cls.family == family]
        if not members:
            continue
        title, words = FAMILIES.get(family, (family, ""))
        lines += ["", f"## {title}", "", words, ""]
        lines += ["| name | class | needs | what it does | paper |", "|---|---|---|---|---|"]
        for cls in members:
            read = docstring.read(cls.__doc__, links)
            method = example(cls, USAGE.get(cls.name, Usage()))
            link = f"[{cls.name}]({links[cls.__name__]})"
            cells = [link, f"`{signature(cls)}`", facts.needs(method), read.summary, paper(cls)]
            lines.append("| " + " | ".join(map(facts.cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def example(cls: type[Weighting], use: Usage) -> Weighting:
    """The method as the page's example makes it.

    Raises:
        ValueError: the constructor needs arguments that docs/usage.py does not give.
    """
    required = [p.name for p in parameters(cls) if p.default is p.empty]
    if required and not use.arguments:
        raise ValueError(
            f"docs/usage.py: expected an entry {cls.name!r} with the arguments of "
            f"{cls.__name__}, which needs {', '.join(required)}, found none"
        )
    method = eval(construction(cls, use), {"mtlfast": mtlfast})
    assert isinstance(method, Weighting)
    return method


def construction(cls: type[Weighting], use: Usage) -> str:
    """The constructor call of the example."""
    return f"mtlfast.{cls.__name__}({use.arguments})"


def use_lines(method: Weighting, use: Usage) -> list[str]:
    """The three lines of the example, and what the method wants after a step."""
    call = construction(type(method), use)
    wrapper = f", {use.wrapper}" if use.wrapper else ""
    batches = ["batch", "second_batch", "third_batch"][: method.num_batches]
    losses = ", ".join(f"model_losses({batch})" for batch in batches)
    comment = "  # K scalars, in place of sum(losses).backward()" if len(batches) == 1 else ""
    lines = [
        f"optimizer = mtlfast.MultiTaskOptimizer(adam, {call}{wrapper})",
        f"optimizer.backward({losses}){comment}",
        "optimizer.step()",
    ]
    return [*lines, use.after] if use.after else lines


def parameters(cls: type[Weighting]) -> list[inspect.Parameter]:
    """The options of the constructor."""
    return list(inspect.signature(cls).parameters.values())


def signature(cls: type[Weighting]) -> str:
    """The constructor call with its defaults."""
    words = [
        p.name if p.default is p.empty else f"{p.name}={code(p.default)}" for p in parameters(cls)
    ]
    return f"{cls.__name__}({', '.join(words)})"


def options(cls: type[Weighting], read: docstring.Docstring) -> list[str]:
    """A table of the constructor's arguments.

    Raises:
        ValueError: the docstring and the signature have different arguments.
    """
    found = parameters(cls)
    names = [p.name for p in found]
    if list(read.arguments) != names:
        raise ValueError(
            f"{cls.__name__}: expected the arguments {names} in the docstring, "
            f"found {list(read.arguments)}"
        )
    if not found:
        return []
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    for p in found:
        kind = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace(", ", " | "), str(p.annotation))
        kind = kind.replace("Numbers", "Sequence[float] | Tensor")
        default = "required" if p.default is p.empty else f"`{code(p.default)}`"
        cells = [f"`{p.name}`", f"`{kind}`".replace("'", '"'), default, read.arguments[p.name]]
        rows.append("| " + " | ".join(map(facts.cell, cells)) + " |")
    return rows


def own_methods(cls: type[Weighting], links: dict[str, str]) -> list[str]:
    """Public methods that the class has beyond those of every weighting."""
    found: list[str] = []
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        if name.startswith("_") or hasattr(Weighting, name) or hasattr(ColumnWise, name):
            continue
        words = [n for n in inspect.signature(function).parameters if n != "self"]
        read = docstring.read(function.__doc__, links)
        found.append(f"`{name}({', '.join(words)})`: {read.summary}")
        found += [text for blocks in read.sections.values() for text in blocks]
        entries = [f"- `{key}`: {text}" for key, text in read.arguments.items()]
        entries += [f"- raises `{key}`: {text}" for key, text in read.errors.items()]
        found += ["\n".join(entries)] if entries else []
    return found


def paper(cls: type[Weighting]) -> str:
    """Year and link of the paper."""
    if not cls.paper:
        return ""
    year = re.search(r", ((?:19|20)\d\d),", cls.paper)
    link = docstring.markdown(cls.paper.rsplit(", ", 1)[-1], {})
    return f"{link}, {year[1]}" if year else link


def code(value: object) -> str:
    """A value as the sources write it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def main() -> int:
    """Writes the pages, or says which are out of date."""
    parser = argparse.ArgumentParser(
        description="Writes docs/methods from the methods' docstrings."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    check = parser.parse_args().check
    wanted = pages()
    present = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    stale = sorted(name for name in wanted if present.get(name) != wanted[name])
    extra = sorted(present.keys() - wanted.keys())
    if check:
        for name in stale:
            print(f"docs/methods/{name} is out of date: run `make docs`")
        for name in extra:
            print(f"docs/methods/{name} belongs to no method: run `make docs`")
        return int(bool(stale or extra))
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(wanted[name])
    for name in extra:
        (FOLDER / name).unlink()
    print(f"{len(wanted)} pages, {len(stale)} written, {len(extra)} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
