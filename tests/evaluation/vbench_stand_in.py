"""A stand-in for the official VBench: its interface, its files and its way of finding videos, and made-up scores.

`install` writes the package and an executable that is this interpreter with the package on its path. A dimension's
score is the mean grey level of its videos over 255, so that it is known from the videos alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

DIMENSIONS = (
    "imaging_quality", "aesthetic_quality", "motion_smoothness", "dynamic_degree", "background_consistency",
    "subject_consistency", "scene", "overall_consistency",
)  # fmt: skip
PROMPTS = {
    "a red square": ["subject_consistency", "dynamic_degree", "motion_smoothness"],
    "circle": ["scene", "background_consistency"],
    "a blue circle moves right": ["overall_consistency", "aesthetic_quality", "imaging_quality"],
    "not for these dimensions": ["temporal_flickering"],
}

_INIT = """
import importlib, json, os


class VBench(object):
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info_dir, self.output_path = device, full_info_dir, output_path
        os.makedirs(self.output_path, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode='vbench_standard', **kwargs):
        results = {}
        entries = json.load(open(self.full_info_dir))
        names = os.listdir(videos_path)
        postfix = os.path.splitext(names[0])[1]
        chosen = []
        for entry in entries:
            if set(dimension_list) & set(entry["dimension"]):
                entry["video_list"] = []
                for i in range(5):
                    video = f'{entry["prompt_en"]}-{str(i)}{postfix}'
                    if video in names:
                        entry["video_list"].append(os.path.join(videos_path, video))
                    else:
                        print(f"WARNING!!! This required video is not found! {video}")
                chosen.append(entry)
        path = os.path.join(self.output_path, name + "_full_info.json")
        json.dump(chosen, open(path, "w"))
        for dimension in dimension_list:
            module = importlib.import_module(f"vbench.{dimension}")
            results[dimension] = getattr(module, f"compute_{dimension}")(path, self.device, {}, **kwargs)
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as file:
            json.dump(results, file, indent=4)
"""
# That environment has a torch of its own; this one says no more than is asked of it, and is there at once.
_TORCH = """
class cuda:
    is_available = staticmethod(lambda: False)


device = str
"""
_DIMENSION = """
import json, os, sys
import av, numpy


def compute_{dimension}(json_dir, device, submodules_list, **kwargs):
    with open(os.path.join(os.path.dirname(__file__), "calls.txt"), "a") as calls:
        calls.write("{dimension}\\n")
    if os.path.exists(os.path.join(os.path.dirname(__file__), "fail-{dimension}")):
        raise FileNotFoundError("no weights of {dimension} here")
    results = []
    for entry in json.load(open(json_dir)):
        if "{dimension}" in entry["dimension"]:
            for path in entry["video_list"]:
                with av.open(path) as video:
                    frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
                results.append({{"video_path": path, "video_results": float(numpy.mean(frames)) / 255}})
    return sum(one["video_results"] for one in results) / len(results), results
"""


def install(folder: Path) -> Path:
    """Write the package into `folder` and give the path of its Python."""
    package = folder / "vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_INIT)
    for dimension in DIMENSIONS:
        (package / f"{dimension}.py").write_text(_DIMENSION.format(dimension=dimension))
    (folder / "torch.py").write_text(_TORCH)
    entries = [{"prompt_en": prompt, "dimension": dimensions} for prompt, dimensions in PROMPTS.items()]
    entries[1]["auxiliary_info"] = {"scene": {"scene": {"scene": "circle"}}}
    (package / "VBench_full_info.json").write_text(json.dumps(entries))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def calls(python: Path) -> list[str]:
    """The dimensions scored so far, in order."""
    path = python.parent / "vbench" / "calls.txt"
    return path.read_text().split() if path.exists() else []
