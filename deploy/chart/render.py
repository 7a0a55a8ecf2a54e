"""The chart rendered by Helm's own library, since no package registry of ours has a helm.

    render.py FOLDER [VALUES.yaml]    writes a file for each template

`make manifests` renders its defaults into deploy/manifests.
"""

import pathlib
import sys

import helm_python
import yaml

CHART = pathlib.Path(__file__).parent / "kvscout"
HEAD = "# Rendered from deploy/chart/kvscout by `make manifests`: change it there.\n"


def main(folder, values=None):
    values = yaml.safe_load(pathlib.Path(values).read_text()) if values else {}
    try:
        with helm_python.Chart.load(CHART) as chart:
            files = chart.render(values, name="kvscout", namespace="default")
    except helm_python.HelmError as error:
        return str(error)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.yaml"):
        old.unlink()
    for name, text in files.items():
        name = pathlib.Path(name).name
        if text.strip() and name.endswith(".yaml"):
            (folder / name).write_text(HEAD + text.strip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
