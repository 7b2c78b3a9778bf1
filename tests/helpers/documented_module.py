"""The torch module of docs/models.md, which users copy."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/models.md"
(CODE,) = re.findall(r"```python\n(import torch\n.*?)```", PAGE.read_text(), re.DOTALL)
exec(compile(CODE, PAGE, "exec"))
