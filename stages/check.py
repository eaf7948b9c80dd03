"""Stage `check`: params.yaml -> nothing but its faults, before a stage costs anything.

Takes:
    data       folder of the datasets, of which those that are indexed are checked too
    trained    folder that the training overwrites; a training cannot start from it
Writes:
    out        checked.txt, always the same bytes, so that no later stage runs again; none by hand

Params: all but pretrain.  By hand, `python -m stages.check` names what DVC trips over before any stage, and
the params without effect.
"""

import sys

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput, plural
from pipeline.studies.checks import params_faults
from pipeline.studies.unused import unused_params


def main(
    data: str = "data", trained: str = "models/trained", out: str = "", config: str = "params.yaml"
) -> None:
    values = params.load(config)
    if faults := params_faults(values, data, trained):
        lines = "\n".join(f"{config}: {fault}" for fault in faults)
        raise BadInput(f"{lines}\n{plural(len(faults), 'fault')}; nothing was run.")
    unused = unused_params(values)
    names = "`python -m stages.check` names them" if out else ", ".join(unused) or "none"
    print(f"{config}: {plural(len(values['datasets']), 'dataset')}, every name and value is known")
    print(f"{config}: {plural(len(unused), 'param')} without effect as the others are set: {names}")
    if out:
        with atomic_write(out) as path:
            path.write_text("params.yaml was checked\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
