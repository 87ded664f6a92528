"""The argument types in stquant/_binding.py against the headers: a C program prints what the compiler sees."""

import ctypes
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from stquant import _binding

HEADERS = pathlib.Path(os.environ.get("STQUANT_SOURCE", pathlib.Path(__file__).parents[2])) / "include"
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = pytest.mark.skipif(
    COMPILER is None or not HEADERS.exists(), reason="needs a C compiler and the headers"
)


def program():
    """C source that prints `name value` for everything that the binding states."""
    lines = ["#include <stdio.h>", "#include <stquant/stquant.h>", "int main(void) {"]
    for name, struct in _binding.STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, _ in struct._fields_:
            lines.append(f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));')
    for table in _binding.ENUMERATIONS:
        for name in table:
            lines.append(f'printf("{name} %d\\n", (int){name});')
    return "\n".join(lines + ["return 0;", "}"])


@pytest.fixture(scope="module")
def seen_by_compiler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("binding")
    (folder / "program.c").write_text(program())
    subprocess.run(
        [COMPILER, "-std=c11", f"-I{HEADERS}", "program.c", "-o", "program"], cwd=folder, check=True
    )
    output = subprocess.run([folder / "program"], check=True, capture_output=True, text=True).stdout
    return {line.split()[0]: [int(word) for word in line.split()[1:]] for line in output.splitlines()}


@pytest.mark.parametrize("name", list(_binding.STRUCTS))
def test_struct(seen_by_compiler, name):
    struct = _binding.STRUCTS[name]
    assert seen_by_compiler[name] == [ctypes.sizeof(struct)]
    for field, _ in struct._fields_:
        entry = getattr(struct, field)
        assert seen_by_compiler[f"{name}.{field}"] == [entry.offset, entry.size], field


def test_enumerations(seen_by_compiler):
    for table in _binding.ENUMERATIONS:
        for name, value in table.items():
            assert seen_by_compiler[name] == [value], name


def without_comments(text):
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))


def test_structs_have_no_further_fields():
    """Every field of the headers' structs is in the binding, in order."""
    text = "".join(without_comments(path.read_text()) for path in sorted(HEADERS.glob("stquant/*.h")))
    for name, struct in _binding.STRUCTS.items():
        body = re.search(rf"typedef struct {name} \{{(.*?)\}} {name};", text, flags=re.DOTALL).group(1)
        fields = []
        for declaration in filter(None, map(str.strip, body.split(";"))):
            function = re.search(r"\(\*(\w+)\)", declaration)
            fields.append(function.group(1) if function else re.search(r"(\w+)(\[[^\]]*\])*$", declaration).group(1))
        assert fields == [field for field, _ in struct._fields_], name


C_TYPES = {
    "int": ctypes.c_int, "float": ctypes.c_float, "double": ctypes.c_double, "bool": ctypes.c_bool,
    "size_t": ctypes.c_size_t, "int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32, "uint64_t": ctypes.c_uint64,
    "stq_status": ctypes.c_int, "stq_state": ctypes.c_int, "stq_zone": ctypes.c_int, "stq_part": ctypes.c_int,
    "stq_dtype": ctypes.c_int, "uint8_t": ctypes.c_uint8,
    "void": None,
}


def ctypes_of(declaration):
    """What may stand in the binding for a C type, as a set."""
    words = declaration.replace("const ", "").strip()
    base = words.rstrip("* ").split()[-1]
    stars = words.count("*")
    if stars == 0:
        return {C_TYPES[base] if base in C_TYPES else _binding.STRUCTS[base]}
    if base == "char" and stars == 1:
        return {ctypes.c_char_p}
    if base == "stq_adamw":
        return {ctypes.c_void_p} if stars == 1 else {ctypes.POINTER(ctypes.c_void_p)}
    pointed = C_TYPES.get(base, _binding.STRUCTS.get(base))
    return {ctypes.c_void_p} | ({ctypes.POINTER(pointed)} if pointed is not None else set())


@pytest.mark.parametrize("name", list(_binding.FUNCTIONS))
def test_prototype(name):
    text = "".join(without_comments(path.read_text()) for path in sorted(HEADERS.glob("stquant/*.h")))
    found = re.search(rf"STQ_API\s+([\w\s\*]+?){name}\s*\(([^)]*)\)\s*;", text)
    assert found, f"{name} is not in the headers"
    result, arguments = _binding.FUNCTIONS[name]
    assert result in ctypes_of(found.group(1)), "result"
    declared = [] if found.group(2).strip() == "void" else found.group(2).split(",")
    assert len(arguments) == len(declared)
    for argument, declaration in zip(arguments, declared):
        kind = re.sub(r"\w+$", "", declaration.strip())
        assert argument in ctypes_of(kind), declaration.strip()
