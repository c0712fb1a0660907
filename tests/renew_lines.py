"""Line numbers in docs/, kept true: `python -m tests.renew_lines` rewrites them; tests/test_docs.py fails where one is old.

A reference is written `name` ([grpo/loss.py:36](../grpo/loss.py#L36)): what stands in backticks is defined on that line. A
name may be a function, a class, a method as Class.method, or a constant of the module.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "docs" / name for name in ("algorithm.md", "metrics.md", "changing-it.md")]
REFERENCE = re.compile(r"`([A-Za-z_][\w.]*)`(\s+)\(\[([\w/]+\.py):(\d+)\]\(\.\./([\w/]+\.py)#L(\d+)\)\)")


def places(tree: ast.Module) -> dict[str, int]:
    """name -> line, of what a module defines; of a decorated function, the line of its def."""
    found: dict[str, int] = {}
    for prefix, body in [("", tree.body), *((f"{n.name}.", n.body) for n in tree.body if isinstance(n, ast.ClassDef))]:
        for node in body:
            found |= {prefix + name: node.lineno for name in _names(node)}
    return found


def _names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def renewed(text: str) -> str:
    """The text with the line of each reference as it is now. Raises KeyError or OSError where a file lacks the name."""
    def here(match: re.Match) -> str:
        name, space, path = match[1], match[2], match[3]
        line = places(ast.parse((ROOT / path).read_text()))[name]
        return f"`{name}`{space}([{path}:{line}](../{path}#L{line}))"

    return REFERENCE.sub(here, text)


def main() -> int:
    """Rewrite the documents whose lines have moved, and say which."""
    for path in DOCS:
        text = path.read_text()
        try:
            now = renewed(text)
        except (KeyError, OSError) as error:
            print(f"{path.name}: {error!r} is not there any more; mend the sentence that names it", file=sys.stderr)
            return 2
        if now != text:
            path.write_text(now)
            print(f"{path.name}: lines renewed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
