"""Stage `check`: params.yaml -> nothing but its faults, all together, before a stage costs anything.

Takes:
    data       folder of the datasets, of which those that are indexed are checked too
    trained    folder that the training writes, from which none can start
Writes:
    out        a file that says so; always the same bytes, so that nothing else runs again

Params: all but pretrain.  By hand, `python -m stages.check` also says what DVC trips over before any stage.
"""

import sys

from pipeline.core import params
from pipeline.core.cli import run_stage
from pipeline.core.files import atomic_write
from pipeline.core.params import BadInput, plural
from pipeline.studies.checks import params_faults
from pipeline.studies.unused import unused_params


def main(data: str = "", trained: str = "", out: str = "", config: str = "params.yaml") -> None:
    if faults := params_faults(config, data, trained):
        lines = "\n".join(f"{config}: {fault}" for fault in faults)
        raise BadInput(f"{lines}\n{plural(len(faults), 'fault')}; nothing was run.")
    if out:
        with atomic_write(out) as path:
            path.write_text("params.yaml was checked\n", encoding="utf-8")
    values = params.load(config)
    print(f"{config}: {plural(len(values['datasets']), 'dataset')}, every name and value is known")
    print(f"{config}: without effect: {', '.join(unused_params(values)) or 'none'}")


if __name__ == "__main__":
    run_stage(main, sys.argv[1:])
