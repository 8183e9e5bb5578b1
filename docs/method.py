"""Draws docs/method.svg: `python docs/method.py`. Its colours are legible on white and on black."""

import pathlib

FILE = pathlib.Path(__file__).with_suffix(".svg")
BLUE, ORANGE, GREEN, GREY = "#2f6db5", "#b35c1e", "#2f7d4f", "#6b7480"
LINE = "#7f8a97"
# x, y, width, colour, text, text below it
BOXES = (
    (10, 30, 150, GREY, "documents", "256 tokens each"),
    (220, 30, 170, BLUE, "LLM + compressor", "trained: scp, instruct"),
    (450, 30, 190, ORANGE, "memory vectors", "4x to 256x fewer, kept"),
    (10, 210, 150, GREY, "question", ""),
    (220, 210, 170, BLUE, "LLM + reasoner", "trained: e2e"),
    (450, 210, 190, ORANGE, "query vectors", "in the same space"),
    (450, 120, 190, GREEN, "soft top-k", "cosine; hard forward"),
    (700, 120, 180, BLUE, "LLM + generator", "reads the best k"),
    (930, 120, 90, GREY, "answer", ""),
)
# of arrows: points, whether it is the gradient
ARROWS = (
    ("160,57 214,57", False),
    ("390,57 444,57", False),
    ("160,237 214,237", False),
    ("390,237 444,237", False),
    ("545,84 545,114", False),
    ("545,210 545,180", False),
    ("640,147 694,147", False),
    ("880,147 924,147", False),
    ("975,174 975,286 305,286 305,270", True),
)


def svg() -> str:
    """The picture."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1030 320" role="img" '
        'font-family="system-ui, sans-serif" text-anchor="middle">',
        "<title>CLaRa: documents and a question become vectors of one LLM; the best documents' "
        "vectors go into its prompt; the answer's loss trains the choice</title>",
        '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker>',
    ]
    for points, gradient in ARROWS:
        dashes = ' stroke-dasharray="6 5"' if gradient else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="2"{dashes} '
            'marker-end="url(#tip)"/>'
        )
    for x, y, width, colour, text, below in BOXES:
        middle = x + width / 2
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="54" rx="8" fill="{colour}"/>')
        high = y + (24 if below else 33)
        parts.append(f'<text x="{middle:g}" y="{high}" font-size="17" fill="#fff">{text}</text>')
        if below:
            parts.append(
                f'<text x="{middle:g}" y="{y + 43}" font-size="13" fill="#fff">{below}</text>'
            )
    parts.append(
        f'<text x="640" y="308" font-size="14" fill="{LINE}">the answer\'s loss alone trains what '
        "is chosen</text></svg>"
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(svg(), encoding="utf-8")
