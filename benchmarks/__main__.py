"""Lists the benchmarks, and runs one: `python -m benchmarks [NAME [OPTIONS]]`."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
NOT_ONE = {"__init__", "__main__", "harness", "published", "validation_images", "validation_sets"}


def modules() -> dict[str, str]:
    """The module of every benchmark, by the name that the command line has for it."""
    paths = [path for path in (*HERE.glob("*.py"), *HERE.glob("flow/*.py")) if path.stem not in NOT_ONE]
    dotted = [".".join(path.relative_to(HERE).with_suffix("").parts) for path in sorted(paths)]
    return {name.replace(".", "-").replace("_", "-"): f"benchmarks.{name}" for name in dotted}


def summary(module: str) -> str:
    """The first line of a module's docstring; nothing is imported."""
    path = HERE.parent / (module.replace(".", "/") + ".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def main() -> None:
    """Runs the benchmark that the first argument names."""
    known = modules()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("python -m benchmarks NAME [OPTIONS]; NAME --help says more\n")
        for each, module in known.items():
            print(f"  {each:<20} {summary(module)}")
        return
    if name not in known:
        sys.exit(f"unknown benchmark {name!r}; one of: {', '.join(known)}")
    sys.argv = [f"python -m benchmarks {name}", *rest]
    sys.exit(import_module(known[name]).main())


if __name__ == "__main__":
    main()
