"""Prints the lowest version of each requirement of pyproject.toml that names one, for pip.

To test with them:

    python launch/lowest.py > lowest.txt && PIP_CONSTRAINT=$PWD/lowest.txt bash launch/test.sh
"""

import pathlib
import re
import tomllib

if __name__ == "__main__":
    text = (pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        for line in lines:
            if lowest := re.match(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", line):
                print(f"{lowest[1]}=={lowest[2]}")
