#!/usr/bin/env python3
"""Draws what development data said during the training, from the lines that train.py wrote to --work.

    python models/default/curves.py W/stages-*.jsonl --out docs/training        # writes docs/training-light.svg and docs/training-dark.svg
"""

import argparse
import json
from pathlib import Path

SHOWN = [("sts", "STS-B dev, 11 languages"), ("xquad", "XQuAD, articles 0 to 23, 12 languages"), ("sib", "SIB-200 dev as bitext, 22 languages"),
         ("tatoeba", "Tatoeba dev, Latin script"), ("tatoeba, other scripts", "Tatoeba dev, other scripts")]
WIDTH, HEIGHT, GAP = 330, 120, 50


def draw(points: list[dict], ends: list[int], dark: bool) -> str:
    ink, faint, line = ("#e6e6e6", "#555", "#6cb6ff") if dark else ("#222", "#ccc", "#0969da")
    last, parts = max(point["step"] for point in points), []
    for at, (name, title) in enumerate(SHOWN):
        left, top = 45 + (at % 2) * (WIDTH + GAP + 20), 30 + (at // 2) * (HEIGHT + GAP)
        values = [point["development"][name] for point in points]
        low, high = min(values) - 0.2, max(values) + 0.2

        def place(step: float, value: float) -> str:
            return f"{left + WIDTH * step / last:.1f},{top + HEIGHT * (high - value) / (high - low):.1f}"

        path = " ".join(place(point["step"], value) for point, value in zip(points, values))
        parts.append(f'<text x="{left}" y="{top - 8}">{title}</text><rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
                     f'stroke="{faint}"/><polyline points="{path}" fill="none" stroke="{line}" stroke-width="2"/>')
        parts += [f'<line x1="{left + WIDTH * end / last:.1f}" x2="{left + WIDTH * end / last:.1f}" y1="{top}" y2="{top + HEIGHT}" '
                  f'stroke="{faint}" stroke-dasharray="3 3"/>' for end in ends[:-1]]
        parts += [f'<text x="{left - 4}" y="{y}" text-anchor="end" font-size="10">{value:.1f}</text>'
                  for value, y in [(high, top + 8), (low, top + HEIGHT)]]
        parts += [f'<text x="{x}" y="{top + HEIGHT + 13}" text-anchor="{anchor}" font-size="10">{step}</text>'
                  for step, x, anchor in [(0, left, "start"), (f"{last} steps", left + WIDTH, "end")]]
    rows = (len(SHOWN) + 1) // 2
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (WIDTH + GAP) + 60} {rows * (HEIGHT + GAP) + 20}" '
            f'font-family="sans-serif" font-size="12" fill="{ink}">{"".join(parts)}</svg>\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="the stages in their order")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    points, ends, before = [], [], 0
    for file in args.files:
        found = [json.loads(line) for line in file.read_text().splitlines()]
        points += [point | {"step": point["step"] + before} for point in found]
        before += max(point["step"] for point in found)
        ends.append(before)
    for dark in (False, True):
        Path(f"{args.out}-{'dark' if dark else 'light'}.svg").write_text(draw(points, ends, dark))
