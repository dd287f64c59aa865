"""What runs inside the environment of the official VBench: the standard library, torch and vbench, nothing of s2q.

Its text is given to that environment's Python on the command line (see `s2q.evaluation.vbench`), so it keeps to what
Python 3.8 understands.

    probe ANSWER DIMENSION…                       write what is installed there into the file ANSWER, as JSON
    judge INFO VIDEOS RESULTS DIMENSION…          score the videos; RESULTS/DIMENSION_eval_results.json each
"""

import importlib
import json
import os
import sys
import traceback

DONE, FAILED = "s2q: judged ", "s2q: failed "


def probe(answer, *dimensions):
    """Import all that judging needs, so that a broken environment is found before hours of work, and say what it is."""
    import vbench
    from vbench import VBench

    for dimension in dimensions:
        getattr(importlib.import_module("vbench." + dimension), "compute_" + dimension)
    assert callable(VBench.evaluate)
    try:
        from importlib.metadata import version

        found = version("vbench")
    except Exception:
        found = "source checkout"
    info = os.path.join(os.path.dirname(os.path.abspath(vbench.__file__)), "VBench_full_info.json")
    with open(answer, "w", encoding="utf-8") as file:
        json.dump({"version": found, "info": info}, file)


def judge(info, videos, results, *dimensions):
    """The official evaluation in its standard mode, one dimension after the other; one that fails stops no other."""
    import torch
    from vbench import VBench

    official = VBench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), info, results)
    for dimension in dimensions:
        try:
            official.evaluate(videos_path=videos, name=dimension, dimension_list=[dimension], mode="vbench_standard")
        except Exception as error:
            traceback.print_exc()
            print(FAILED + dimension + ": " + type(error).__name__ + ": " + str(error), flush=True)
        else:
            print(DONE + dimension, flush=True)


if __name__ == "__main__":
    {"probe": probe, "judge": judge}[sys.argv[1]](*sys.argv[2:])
