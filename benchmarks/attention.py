"""Where attention goes, as in Figures 4, 8 and 9 of arXiv 2508.04016: how much of it the most attended tokens receive.

    python benchmarks/attention.py --prompts 4 --results benchmarks/results/demo-attention.json \
        --image docs/images/demo-attention.png

Runs the full-precision pipeline and takes, at every step, in every block and for each guidance branch, what each token
receives over all heads and queries. Prints, for each block, the share of it that the top tenth of the tokens get
(among all tokens, and among the video's own), and the share of the text. The image shows that and, halfway through the
first prompt, the head-averaged attention maps of a few blocks.
"""

import argparse
import shlex
import statistics
import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from s2q.evaluation.figure_style import FLOAT, GRID, HEAT, MUTED, PRINTED, QUANTIZED, figure_style
from s2q.models.attention import AttentionTap
from s2q.models.pipelines import OpenPipeline, open_pipeline
from s2q.prompts import evaluation_prompts
from s2q.quantization.tokens import received_by_block
from s2q.storage import replacing, write_json

TEXT = "encoder_hidden_states"
BRANCHES = ("unconditional", "conditional")
KINDS = ("top_tenth", "top_tenth_of_video", "text")
MAP_SIDE = 256


def top_share(received: Tensor, share: float = 0.1) -> float:
    """The part of the total that the `share` most attended tokens receive; received [S]."""
    count = max(1, round(share * len(received)))
    return float(received.topk(count).values.sum() / received.sum())


def calls_of(opened: OpenPipeline, prompt: str, seed: int) -> list[dict]:
    """The arguments of the transformer at each step of a clip."""
    calls: list[dict] = []
    handle = opened.pipe.transformer.register_forward_pre_hook(lambda m, a, k: calls.append(k), with_kwargs=True)
    try:
        opened.pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **opened.call)
    finally:
        handle.remove()
    return calls


def text_tokens(opened: OpenPipeline, call: dict) -> slice:
    """Where the text stands among the tokens of self-attention; empty where it takes no part."""
    order = opened.family.tokens
    count = call[TEXT].shape[1] if TEXT in order else 0
    return slice(0, count) if order[0] == TEXT else slice(-count, None) if count else slice(0, 0)


def shares(received: Tensor, text: slice) -> dict[str, float]:
    """The three shares, by the names in `KINDS`; received [S]."""
    is_text = torch.zeros(len(received), dtype=torch.bool)
    is_text[text] = True
    return {
        "top_tenth": top_share(received),
        "top_tenth_of_video": top_share(received[~is_text]),
        "text": float(received[is_text].sum() / received.sum()),
    }


class MapTap(AttentionTap):
    """Also keeps the head-averaged attention map of each block, at most `MAP_SIDE` pixels a side."""

    def __init__(self, model: nn.Module, family):
        super().__init__(model, family, lambda block, sums: None)
        self.maps: dict[int, Tensor] = {}
        self.tokens = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.scaled_dot_product_attention and self._active is not None:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
            self.tokens = named["key"].shape[2]
            self.maps[self._active] = self._map(named["query"][-1].float(), named["key"][-1].float())
        return super().__torch_function__(function, types, args, kwargs)

    @staticmethod
    def _map(query: Tensor, key: Tensor, chunk: int = 256) -> Tensor:
        """Mean over heads of softmax(q kᵀ/√D), pooled: [H, S, D] twice → [side, side], rows are queries."""
        side = min(MAP_SIDE, key.shape[1])
        rows = []
        for part in query.split(chunk, dim=1):
            scores = (part @ key.mT / key.shape[-1] ** 0.5).softmax(-1).mean(0)
            rows.append(nn.functional.adaptive_avg_pool1d(scores, side))
        return nn.functional.adaptive_avg_pool1d(torch.cat(rows).mT, side).mT.cpu()


@torch.no_grad()
def measure(opened: OpenPipeline, prompts: list[str], seed: int) -> list[dict]:
    """One row a prompt, step, branch and block, with how many tokens there are and how many are text."""
    model, family, rows = opened.pipe.transformer, opened.family, []
    for number, prompt in enumerate(prompts):
        for step, call in enumerate(calls_of(opened, prompt, seed + number)):
            text = text_tokens(opened, call)
            for block, sums in enumerate(received_by_block(model, family, call)):
                names = BRANCHES if len(sums) == 2 else BRANCHES[1:]
                for branch, received in zip(names, sums.cpu(), strict=True):
                    place = {"prompt": number, "step": step, "branch": branch, "block": block}
                    place |= {"tokens": len(received), "text_tokens": len(received[text])}
                    rows.append(place | shares(received, text))
        print(f"prompt {number + 1}/{len(prompts)}", file=sys.stderr, flush=True)
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """Mean, smallest and largest over prompts and steps, a row a block and branch; and the mean at each step."""
    table = []
    steps = 1 + max(row["step"] for row in rows)
    for branch, block in dict.fromkeys((row["branch"], row["block"]) for row in rows):
        here = [row for row in rows if (row["branch"], row["block"]) == (branch, block)]
        line = {"branch": branch, "block": block, "tokens": here[0]["tokens"], "text_tokens": here[0]["text_tokens"]}
        for kind in KINDS:
            values = [row[kind] for row in here]
            line[kind] = {
                "mean": statistics.mean(values),
                "least": min(values),
                "most": max(values),
                "by_step": [statistics.mean(row[kind] for row in here if row["step"] == step) for step in range(steps)],
            }
        table.append(line)
    return table


def markdown(table: list[dict]) -> str:
    """The summary as people read it, in per cent: mean (least to most over prompts and steps)."""
    lines = ["| branch | block | top tenth of all tokens | top tenth of video tokens | text |", "|---|---|---|---|---|"]
    for line in table:
        cells = [
            f"{100 * line[kind]['mean']:.0f} % ({100 * line[kind]['least']:.0f} to {100 * line[kind]['most']:.0f})"
            for kind in KINDS
        ]
        lines.append(f"| {line['branch']} | {line['block']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@torch.no_grad()
def draw(opened: OpenPipeline, table: list[dict], prompt: str, seed: int, blocks: list[int], path: Path) -> None:
    """The shares of every block above, the maps of `blocks` (conditional, halfway) below."""
    calls = calls_of(opened, prompt, seed)
    call = calls[len(calls) // 2]
    with MapTap(opened.pipe.transformer, opened.family) as tap:
        opened.pipe.transformer(**call)
    total = tap.tokens
    text = text_tokens(opened, call)
    text_count = len(range(*text.indices(total)))
    lines = [line for line in table if line["branch"] == BRANCHES[1]]
    numbers = [line["block"] for line in lines]
    with figure_style("attention", printed=True):
        figure = Figure(figsize=(9, 5), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))
        axes = above.add_subplot()
        styles = (
            ("top_tenth", PRINTED[QUANTIZED], "o-", "top tenth of all tokens"),
            ("top_tenth_of_video", PRINTED[FLOAT], "s--", "top tenth of video tokens, of the video's part"),
            ("text", PRINTED[MUTED], "^:", f"text ({text_count} of {total} tokens)"),
        )
        for kind, colour, marker, label in styles:
            values = [100 * line[kind]["mean"] for line in lines]
            axes.plot(numbers, values, marker, color=colour, markersize=4, label=label)
        axes.axhline(10, color=PRINTED[GRID], linewidth=1)
        axes.annotate("10 %: all alike", (numbers[0], 10), xytext=(0, -3), textcoords="offset points", va="top")
        axes.set(xlabel="block", ylabel="received attention, %", ylim=(-4, 100), xticks=numbers)
        axes.legend(ncols=3, loc="upper right")
        panels = below.subplots(1, len(blocks), squeeze=False)[0]
        maps = [tap.maps[block] for block in blocks]
        norm = LogNorm(max(min(float(one.min()) for one in maps), 1e-6), max(float(one.max()) for one in maps))
        first = text_count if opened.family.tokens[0] == TEXT else total - text_count
        edge = first * maps[0].shape[1] / total
        for panel, block, one in zip(panels, blocks, maps, strict=True):
            image = panel.imshow(one, cmap=HEAT, norm=norm, interpolation="none")
            if 0 < edge < one.shape[1]:
                panel.axvline(edge - 0.5, color="white", linewidth=0.7)
                panel.axhline(edge - 0.5, color="white", linewidth=0.7)
            panel.set(title=f"block {block}", xticks=[], yticks=[], xlabel="token attended to")
            panel.grid(visible=False)
        panels[0].set_ylabel("token that attends")
        below.colorbar(image, ax=panels, fraction=0.03, pad=0.01, label="attention", format="%.2g")
        with replacing(path) as temporary, open(temporary, "wb") as file:
            FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="demo")
    parser.add_argument("--prompts", type=int, default=4, help="how many of the bundled evaluation prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps; default: the pipeline's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--maps", nargs="+", type=int, help="blocks whose maps are drawn; default: four, evenly spread")
    parser.add_argument("--image", type=Path, help="write the picture here, .png")
    parser.add_argument("--results", type=Path, help="write the JSON here")
    arguments = parser.parse_args()
    opened = open_pipeline(arguments.pipeline, device=arguments.device, num_inference_steps=arguments.steps)
    count = len(opened.family.blocks(opened.pipe.transformer))
    blocks = arguments.maps or sorted({round(index * (count - 1) / 3) for index in range(4)})
    if wrong := [block for block in blocks if not 0 <= block < count]:
        parser.error(f"no blocks {wrong}: this transformer has blocks 0 to {count - 1}")
    prompts = evaluation_prompts(arguments.pipeline, arguments.prompts)
    table = summary(measure(opened, prompts, arguments.seed))
    print(markdown(table))
    if arguments.results:
        command = "python " + shlex.join(sys.argv)
        write_json(
            arguments.results, {"command": command, "torch": torch.__version__, "prompts": prompts, "blocks": table}
        )
    if arguments.image:
        draw(opened, table, prompts[0], arguments.seed, blocks, arguments.image)


if __name__ == "__main__":
    main()
