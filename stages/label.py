"""Stage `label`: parsing maps -> what each image hides."""

import sys

from pipeline import occlusion, params, parts, store


def main(parsing: str, out: str, config: str = "params.yaml") -> None:
    label = params.read(config, "label", occlusion.Label)
    threshold = params.read(config, "lambda", params.Amount)
    rows = store.Rows(parsing, "parsing")
    arrays = occlusion.label(rows["map"], label, threshold)
    names = list(parts.COARSE[label.parts])
    attrs = {"index": rows.attrs["index"], "parts": names, "grouping": parts.COARSE[label.parts]}
    store.write(out, "occlusion", arrays, attrs)


if __name__ == "__main__":
    store.run(main, sys.argv[1:])
