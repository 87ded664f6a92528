"""scripts/check-includes accepts the tree and finds an include that goes the wrong way."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(os.environ["STQUANT_SOURCE"])

# name, file to add, its text, words that the complaint must contain (none: no complaint)
CASES = [
    ("the right direction passes", "src/optim/x.c", '#include "quant/layout.h"\n', ""),
    ("quant must not see optim", "src/quant/x.c", '#include "optim/backend.h"\n', "quant must not depend on optim"),
    ("score must not see policy", "src/score/x.c", '#include <stquant/policy.h>\n', "score must not depend on policy"),
    ("common must not see quant through a relative path", "src/common/x.c", '#include "../quant/layout.h"\n',
     "common must not depend on quant"),
    ("an unknown part is named", "src/other/x.c", "int x;\n", "no part known"),
    ("the command must not see internals", "apps/x.c", '#include "quant/layout.h"\n', "public headers only"),
    ("MPI must not leak through a public header", "include/stquant/comm.h", "#include <mpi.h>\n", "leaks"),
    ("the umbrella is for users", "src/optim/x.c", "#include <stquant/stquant.h>\n", "umbrella"),
]


def main():
    failed = 0
    for name, path, text, expected in CASES:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for part in ("include", "src", "scripts"):
                shutil.copytree(SOURCE / part, root / part)
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            result = subprocess.run([root / "scripts/check-includes"], stdout=subprocess.PIPE, text=True)
        if expected:
            good = result.returncode == 1 and expected in result.stdout and path in result.stdout
        else:
            good = result.returncode == 0
        failed += not good
        print(f"{'ok' if good else 'not ok'} - {name}" + ("" if good else f": {result.stdout!r}"), flush=True)
    return 1 if failed else 0


sys.exit(main())
