"""An earlier run whose work a new one takes over: fine-tunes need not be calibrated from nothing.

What is learned of a model, transforms and clips, stands in its checkpoint; which samples were chosen, in the provenance
beside it. Trajectories and received attention stand in the work folder, if that is still there. All of it describes how
activations lie, which a fine-tune changes little; the weights themselves are rounded anew.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from s2q.checkpoint import PROVENANCE_NAME
from s2q.export.source import QuantizedFolder, open_folder
from s2q.media import described
from s2q.models.folder import PARTS
from s2q.models.pipelines import OpenPipeline
from s2q.recipe import Recipe
from s2q.recipes import DEFAULT, DEFAULT_BITS, get_recipe, override
from s2q.storage import fingerprint, read_json, read_metadata, write_json, write_tensors
from s2q.workspace import SECONDS_NAME, SELECTION_NAME, SETTINGS_NAME, TOKEN_WEIGHTS, TRAJECTORIES, Workspace

NOTE_NAME = "reused.json"
# What must be as it was; epochs, learning rates and the objective may change.
SAME = ("linear", "modulation", "keep_float", "sampler")


class ReuseError(ValueError):
    """An earlier run that cannot be taken over, with all that stands against it."""


@dataclass(frozen=True)
class Earlier:
    """An earlier run."""

    checkpoint: QuantizedFolder
    provenance: Mapping[str, Any]
    work: Path | None
    """Its work folder, if it is still there."""

    def block(self, name: str, linears: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """Linear (inside the block `name`) → its tensors, see `s2q.checkpoint`."""
        return {linear: self.checkpoint.packed(f"{name}.{linear}") for linear in linears}


def open_earlier(folder: Path) -> Earlier:
    """The run that left `folder`: what `s2q quantize` wrote, or the folder of a whole `s2q run`.

    Raises:
        CheckpointError: no quantized transformer there, or a damaged one.
        ReuseError: nothing beside it tells how it was made.
    """
    if (folder / "transformer" / "config.json").is_file():
        folder = folder / "transformer"
    checkpoint, provenance = open_folder(folder), read_json(folder / PROVENANCE_NAME)
    if not isinstance(provenance, dict) or not {"recipe", "settings", "call", "samples"} <= provenance.keys():
        raise ReuseError(f"{folder} has no {PROVENANCE_NAME} that tells how it was made: it cannot be reused")
    works = (folder.with_name(folder.name + ".work"), folder.with_name("work"))
    own = [work for work in works if fingerprint(read_json(work / SETTINGS_NAME)) == provenance["settings"]]
    return Earlier(checkpoint, provenance, own[0] if own else None)


def recipe_after(earlier: Earlier | None, name: str | None, bits: str | None) -> Recipe:
    """The recipe of this name and these bits; what is not named is that of the earlier run, or the default without one.

    After an earlier run it learns nothing more, unless it is told to.

    Raises:
        ValueError: unknown name or bits.
        ReuseError: others than those of the earlier run.
    """
    if earlier is None:
        return get_recipe(name or DEFAULT, bits or DEFAULT_BITS)
    recipe = Recipe.model_validate(earlier.provenance["recipe"])
    if name not in (None, recipe.name) or bits not in (None, recipe.bits):
        raise ReuseError(
            f"{earlier.checkpoint.folder} was made by {recipe.name} {recipe.bits}, not {name or recipe.name} "
            f"{bits or recipe.bits}: reuse is under the same recipe and bits. Name none, or quantize without --reuse"
        )
    return override(recipe, ["optim.epochs=0"])


def check_reuse(earlier: Earlier, opened: OpenPipeline, recipe: Recipe, prompts: Sequence[str], seed: int) -> None:
    """Whether a run with these settings may take over `earlier`.

    Raises:
        ReuseError: another architecture, recipe, seed, prompts or call; or a recipe that has nothing to take over.
    """
    if not recipe.needs_samples:
        raise ReuseError(f"recipe {recipe.name!r} calibrates nothing, so there is nothing to reuse: leave reuse out")
    if "adaround" in (recipe.linear.rounding, recipe.modulation.rounding):
        raise ReuseError(
            f"recipe {recipe.name!r} learns the rounding of these very weights (adaround), which no other model can reuse"
        )
    noted, asked = earlier.provenance, recipe.model_dump(mode="json")
    wrong = _differing_keys(earlier.checkpoint.config, json.loads(opened.transformer.to_json_string()))
    wrong += [
        f"the recipe's {key} ({noted['recipe'].get('name')} {noted['recipe'].get('bits')} there, "
        f"{recipe.name} {recipe.bits} here)"
        for key in SAME
        if noted["recipe"].get(key) != asked[key]
    ]
    if noted.get("part", PARTS[0]) != opened.part:
        wrong.append(f"part ({noted.get('part', PARTS[0])} there, {opened.part} here)")
    if noted.get("seed") != seed:
        wrong.append(f"seed ({noted.get('seed')} there, {seed} here)")
    if noted.get("prompts") != list(map(described, prompts)):
        wrong.append("prompts")
    call = json.loads(json.dumps(opened.call))
    wrong += [
        f"{key} of the calls ({noted['call'].get(key)} there, {call.get(key)} here)"
        for key in sorted(noted["call"].keys() | call.keys())
        if noted["call"].get(key) != call.get(key)
    ]
    if wrong:
        raise ReuseError(
            f"{earlier.checkpoint.folder} cannot be reused here, for these differ: {'; '.join(wrong)}. Reuse is for "
            "another set of weights of the same model, under the same recipe, seed, prompts and calls"
        )


def _differing_keys(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Settings of the two models that are not the same; what begins with an underscore is no architecture."""
    if there.get("_class_name") != here.get("_class_name"):
        return [f"the model ({there.get('_class_name')} there, {here.get('_class_name')} here)"]
    keys = {key for key in there.keys() | here.keys() if not key.startswith("_")}
    return [f"{key} of the model" for key in sorted(keys) if there.get(key) != here.get(key)]


def take_over(earlier: Earlier, recipe: Recipe, workspace: Workspace, common: Workspace) -> None:
    """Put what is reused where the stages look for what is done already, and note it, see `read_note`.

    What was taken over counts no seconds.
    """
    noted = earlier.provenance
    taken = ["transforms and clips", "selection"]
    # In their order of size; each is whole or absent, so that an interrupted copy goes on.
    for kind, wanted in ((TRAJECTORIES, True), (TOKEN_WEIGHTS, recipe.uses_token_weights)):
        paths = sorted((earlier.work / kind).glob("*.safetensors")) if earlier.work is not None and wanted else []
        for path in paths:
            own = common.folder / kind / path.name
            if read_metadata(own) is None:
                write_tensors(own, load_file(path), read_metadata(path) | {"seconds": 0.0})
        if paths:
            taken.append("received attention" if kind == TOKEN_WEIGHTS else "trajectories")
    selection = {"samples": noted["samples"], "scores": noted["salience"], "timesteps": noted["timesteps"]}
    write_json(workspace.folder / SELECTION_NAME, selection | {"seconds": 0.0})
    seconds = None if earlier.work is None else read_json(earlier.work / SECONDS_NAME)
    write_json(workspace.folder / NOTE_NAME, {**identity(earlier), "taken": taken, "earlier_seconds": seconds})


def identity(earlier: Earlier) -> dict[str, str]:
    """Which run it was, as the settings of a new run know it."""
    return {"pipeline": earlier.provenance["pipeline"], "settings": earlier.provenance["settings"]}


def read_note(workspace: Workspace) -> dict[str, Any] | None:
    """What `take_over` noted: "pipeline" and "settings" of the earlier run, what was "taken", its "earlier_seconds"."""
    return read_json(workspace.folder / NOTE_NAME)


def account(reused: Mapping[str, Any], seconds: Mapping[str, float] | None) -> dict[str, Any]:
    """What is told of it: `reused` as noted, and "saved_seconds", None where the earlier run's time is not known.

    Args:
        seconds: time of every stage of this run.
    """
    before = reused.get("earlier_seconds")
    saved = sum(before.values()) - sum(seconds.values()) if before and seconds else None
    return {**reused, "earlier_seconds": before, "saved_seconds": saved}


def sentence(account: Mapping[str, Any]) -> str:
    """The same in words."""
    saved = account["saved_seconds"]
    spared = "what that saved is not known, for its work folder is gone"
    if saved is not None:
        spent = sum(account["earlier_seconds"].values())
        spared = f"that run took {spent:.0f} s to quantize, this one {spent - saved:.0f} s"
    return (
        f"Taken over from an earlier run on {account['pipeline']}: {', '.join(account['taken'])}; {spared}. What learning "
        "anew would have gained is not known; the error of every block is that of these weights."
    )
