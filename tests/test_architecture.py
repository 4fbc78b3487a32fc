"""The imports of the package run one way, and importing it changes nothing in the process."""
import ast
import graphlib
import os
import subprocess
import sys

from conftest import ROOT

BUILD = ROOT / "build"
FILES = {".".join(path.relative_to(BUILD).with_suffix("").parts).removesuffix(".__init__"): path
         for path in [*(BUILD / "simple_llm").rglob("*.py")]}


def imports_of(name):
    """The modules of the package that a module imports, at its top or anywhere within."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [one if one in FILES else node.module for one in found]
        else:
            continue
        yield from (one for one in found if one in FILES)


IMPORTS = {name: set(imports_of(name)) for name in FILES}
# The one import that points upwards, when it is called: SimpleLLM.from_pretrained opens every form.
IMPORTS["simple_llm.model"].remove("simple_llm.today.model")


def room(name):
    """0 on the ground floor, 1 in today's wing, 2 in the engine, 3 in the command line, 4 where it starts."""
    if name in ("train", "simple_llm.__main__"):
        return 4
    return {"today": 1, "engine": 2, "cli": 3}.get(name.split(".")[1] if "." in name else "", 0)


def needs(name):
    """All that a module imports, and what those import, without "simple_llm."."""
    found, todo = set(), {f"simple_llm.{name}"}
    while todo:
        new = IMPORTS[todo.pop()] - found
        found, todo = found | new, todo | new
    return {one.removeprefix("simple_llm.") for one in found}


def test_the_ground_floor_knows_no_wing_today_no_engine_and_none_knows_the_command_line():
    assert {room(name) for name in FILES} == {0, 1, 2, 3, 4} and len(FILES) > 40
    for name, imported in IMPORTS.items():
        assert max(map(room, imported), default=0) <= room(name), (name, imported)
        assert "train" not in imported and "simple_llm.__main__" not in imported


def test_no_import_is_hidden_in_a_string_outside_of_the_command_line():
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and "import" in ast.unparse(node.func).split(".")[-1]:
                assert room(name) == 3 or "simple_llm" not in ast.unparse(node.args), name


def test_no_module_imports_itself_by_way_of_others():
    list(graphlib.TopologicalSorter(IMPORTS).static_order())       # raises CycleError


def test_training_knows_the_model_the_model_the_layers_and_these_nobody():
    assert needs("layers") == needs("errors") == needs("gradcheck") == needs("ngram") == set()
    assert needs("tiny") == set() and needs("optimizer") == needs("generate") == {"layers"}
    others = needs("model") - {"layers", "generate"}
    assert others <= {"checkpoint", "errors", "files", "voices"}
    assert "model" in needs("train") and needs("train") & {"inside", "live", "first"} == set()
    assert needs("world") & needs("text") & {"model", "train", "layers"} == set()


NOTHING_CHANGES = """
import multiprocessing, numpy, os, signal, sys, threading, warnings
from importlib import import_module
names, shells = sys.argv[1].split(), sys.argv[2].split()

def state():
    handlers = [signal.getsignal(n) for n in signal.valid_signals()]
    environment = {**os.environ}
    return (environment, sys.excepthook, sys.path[:], threading.enumerate(), threading.excepthook,
            [*warnings.filters], warnings.showwarning, handlers, os.getcwd(), numpy.geterr(),
            sys.stdout, sys.stderr, multiprocessing.active_children(),
            multiprocessing.get_start_method(allow_none=True), repr(numpy.random.get_state()),
            numpy.get_printoptions(), sys.getrecursionlimit(), os.umask(0o22))

os.umask(0o22)
before = state()
for name in names:
    import_module(name)
    for was, now in zip(before, state()):
        assert now == was, (name, now, was)
for name in shells:
    import_module(name)
environment, *others = state()
assert others == [*before[1:]], others
new = set(environment.items()) - set(before[0].items())
assert {value for _, value in new} <= {"1"} and all(name.endswith("_THREADS") for name, _ in new), new
"""


def test_importing_changes_nothing_in_the_process():
    """But for BLAS threads, by the command line alone, unless somebody has set them."""
    names = sorted(FILES, key=room)
    env = {name: value for name, value in os.environ.items() if "_THREADS" not in name}
    split = [" ".join(n for n in names if (room(n) >= 3) == shell) for shell in (False, True)]
    done = subprocess.run([sys.executable, "-c", NOTHING_CHANGES, *split], text=True,
                          env={**env, "PYTHONPATH": str(BUILD)}, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
