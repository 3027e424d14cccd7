"""JavaScript modules become one script: in order of need, each once, and nothing that would break silently."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from portrait360.viewer.modules import joined_modules


def join(**modules: str) -> str:
    return joined_modules("main.js", lambda name: modules[name.removesuffix(".js")])


def test_each_module_comes_once_and_after_what_it_needs():
    text = join(
        main='import { a } from "./a.js";\nimport { b } from "./b.js";\na(b);\n',
        a='import { b } from "./b.js";\nexport function a(x) { return b + x; }\n',
        b="export const b = 1;\nexport class C {}\nexport async function d() {}\n",
    )
    assert "import" not in text
    assert "export" not in text
    assert text.count("const b = 1;") == 1
    assert text.index("const b") < text.index("function a") < text.index("a(b);")


def test_circles_are_refused():
    with pytest.raises(ValueError, match=r"main.js -> a.js -> main.js"):
        join(main='import { a } from "./a.js";\n', a='import { b } from "./main.js";\nexport const a = 1;\n')


def test_a_name_of_two_modules_is_refused():
    with pytest.raises(ValueError, match=r"same is declared in a.js and in main.js"):
        join(main='import { a } from "./a.js";\nconst same = 2;\n', a="export const a = 1;\nfunction same() {}\n")


@pytest.mark.parametrize(
    "line", ["export default 3;", 'import * as a from "./a.js";', "export { x };", 'export * from "./a.js";']
)
def test_other_forms_are_refused(line):
    with pytest.raises(ValueError, match="cannot be joined"):
        join(main=f"const x = 1;\n{line}\n", a="")


def test_the_page_s_modules_are_joined_and_need_no_network():
    web = files("portrait360.viewer") / "web"
    text = joined_modules("offline.js", lambda name: (web / name).read_text(encoding="utf-8"))
    for name in ("main", "controls", "source", "renderer", "march", "body", "synthesis", "latent"):
        assert f"// ---- {name}.js ----" in text
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts|eval)\b", text)
    assert "</script" not in text
