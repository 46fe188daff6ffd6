"Write README.md from nbs/index.ipynb: its text and outputs as Markdown, paths as seen from the root."

import json
import re
from pathlib import Path

root = Path(__file__).parent.parent


def readme() -> str:
    parts = []
    for cell in json.loads((root / "nbs/index.ipynb").read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            if not re.search(r"^#\|\s*(echo:\s*false|hide)", source, re.M):
                parts.append("```python\n" + re.sub(r"^#\|.*\n", "", source, flags=re.M) + "\n```")
            for output in cell["outputs"]:
                data = output.get("data", {})
                if "text/markdown" in data:
                    parts.append("".join(data["text/markdown"]))
                elif output.get("output_type") == "stream":
                    parts.append("```\n" + "".join(output["text"]) + "```")
    return "\n\n".join(parts).replace("../", "") + "\n"


if __name__ == "__main__":
    (root / "README.md").write_text(readme())
