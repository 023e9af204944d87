"""The page: html, style sheets and scripts in this folder, made into one response that asks nothing of anybody else."""

import base64
import hashlib
import re
from importlib.resources import files

_INCLUDE = re.compile(r'<link rel="stylesheet" href="(?P<style>\w+\.css)">|<script src="(?P<script>\w+\.js)"></script>')


def build_page() -> tuple[str, str]:
    """The page with its style sheets and scripts inlined, and the content security policy that allows exactly these.

    Trusted Types are required and none is allowed: a script that made elements of text would fail, not run it.
    """
    folder = files(__name__)
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def inlined(match: re.Match[str]) -> str:
        tag, name = match.lastgroup, match[match.lastgroup or 0]
        assert tag is not None
        text = (folder / name).read_text(encoding="utf-8")
        assert f"</{tag}" not in text, f"{name} would end its own element"
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    page = _INCLUDE.sub(inlined, (folder / "index.html").read_text(encoding="utf-8"))
    policy = (
        f"default-src 'none'; style-src {' '.join(hashes['style'])}; script-src {' '.join(hashes['script'])}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return page, policy
